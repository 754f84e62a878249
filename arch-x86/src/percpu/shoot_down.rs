//! When a translation that was taken away is out of use on every CPU: see [`sched::Passage`].

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use sched::{CpuSet, Milestone};
use xen_abi::types::DomainId;

use super::{PerCpu, all, this};

/// Waits until no CPU uses translations of a domain's that were taken away before. The caller holds none, and no lock.
pub fn shoot_down(domain: DomainId) {
    let here = this();
    let mut awaited = ArrayVec::<(&PerCpu, Milestone), { CpuSet::MAX }>::new();
    for cpu in all().filter(|cpu| cpu.id != here.id) {
        // The fence in the first look makes the second one right: a CPU that takes a vCPU of the domain in after it sees the new generation.
        if let Some(milestone) = cpu.passage.ahead()
            && cpu.domain.load(Ordering::Relaxed) == u32::from(domain.0)
        {
            cpu.kick();
            let _ = awaited.try_push((cpu, milestone));
        }
    }
    if awaited.is_empty() {
        return;
    }
    // Those that are waited for may themselves wait for this CPU.
    let in_use = here.passage.is_in_use();
    if in_use {
        here.passage.end();
    }
    for (cpu, milestone) in awaited {
        while !cpu.passage.is_beyond(milestone) {
            core::hint::spin_loop();
        }
    }
    if in_use {
        here.passage.begin();
    }
}
