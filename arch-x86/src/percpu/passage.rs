//! When a translation that was taken away is out of use on every CPU.
//!
//! A CPU that runs a vCPU uses its domain's translations, in the guest and in the host's own copies; between two entries it looks at the p2m's
//! generation and drops what is older. So whoever takes translations away waits until each CPU that has a vCPU of the domain has passed by
//! there once more, or does not run it at all. A count tells both: it is odd while the CPU uses no translations, and grows at each passage.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;
use sched::CpuSet;
use xen_abi::types::DomainId;

use super::{PerCpu, all, this};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Passage(AtomicU64);

impl Passage {
    pub(super) const fn new() -> Passage {
        Passage(AtomicU64::new(1))
    }

    /// A look at the count that a waiter can compare with later; `None` if there is nothing to wait for.
    fn to_wait_for(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|count| count % 2 == 0)
    }
}

impl PerCpu {
    /// The CPU begins to use translations.
    ///
    /// The addition is a full fence, here and below: a waiter raises the generation and then looks at the count; this CPU changes the count and
    /// then looks at the generation. One of the two sees the other.
    #[inline]
    pub fn begin_use(&self) {
        self.passage.0.fetch_add(1, Ordering::SeqCst);
    }

    /// The CPU holds no translation any more.
    #[inline]
    pub fn end_use(&self) {
        self.passage.0.fetch_add(1, Ordering::SeqCst);
    }

    /// The CPU holds no translation at this moment, and looks at the generation before it uses one.
    #[inline]
    pub fn pass(&self) {
        self.passage.0.fetch_add(2, Ordering::SeqCst);
    }
}

/// Waits until no CPU uses translations of a domain's that were taken away before. The caller holds none, and no lock.
pub fn shoot_down(domain: DomainId) {
    // What was taken away is out before the looks at the counts.
    fence(Ordering::SeqCst);
    let here = this();
    let mut awaited = ArrayVec::<(&PerCpu, u64), { CpuSet::MAX }>::new();
    for cpu in all() {
        if cpu.id == here.id || cpu.domain.load(Ordering::Relaxed) != u32::from(domain.0) {
            continue;
        }
        if let Some(count) = cpu.passage.to_wait_for() {
            cpu.kick();
            let _ = awaited.try_push((cpu, count));
        }
    }
    if awaited.is_empty() {
        return;
    }
    // Those that are waited for may themselves wait for this CPU.
    let in_use = here.passage.to_wait_for().is_some();
    if in_use {
        here.end_use();
    }
    for (cpu, count) in awaited {
        while cpu.passage.to_wait_for() == Some(count) {
            core::hint::spin_loop();
        }
    }
    if in_use {
        here.begin_use();
    }
}
