//! The scheduler of the machine, and what its answers mean for the CPUs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hypervisor::domain::Domain;
use hypervisor::vcpu::Vcpu;
use mm::lock::{Guard, Lock, Rank};
use sched::{
    Admission, CpuPlace, CpuSet, DomainKey, Nanos, OutOfMemory, Policy, Refused, Rest, Scheduler, Terms, VcpuKey,
    Wanted,
};
use spin::{Once, RwLock};
use xen_abi::types::VcpuId;

use super::{PerCpu, count, get, this, timers};
use crate::machine::{X86, clock};

/// A vCPU by which it is known to the scheduler.
#[derive(Clone)]
pub struct Resident {
    pub domain: Arc<Domain<X86>>,
    pub vcpu: VcpuId,
}

impl Resident {
    pub fn vcpu(&self) -> Option<&Vcpu<X86>> {
        self.domain.vcpu(self.vcpu)
    }
}

static SCHEDULER: Once<Lock<Policy>> = Once::new();
/// By key.
static RESIDENTS: RwLock<Vec<Resident>> = RwLock::new(Vec::new());

/// Sets the scheduler up for CPUs that stand at `places`, by number.
pub fn start_scheduler(wanted: Wanted, places: &[CpuPlace]) -> Result<(), OutOfMemory> {
    let policy = Policy::new(wanted, places)?;
    SCHEDULER.call_once(|| Lock::new(Rank::Sched, policy));
    Ok(())
}

/// The scheduler, unless it is early.
#[inline]
fn scheduler() -> Option<Guard<'static, Policy>> {
    SCHEDULER.get().map(Lock::lock)
}

/// Takes a vCPU in on its domain's `terms`; it waits until it is woken.
pub fn adopt(resident: Resident, terms: Terms) -> Result<(), OutOfMemory> {
    let mut residents = RESIDENTS.write();
    let key = VcpuKey(residents.len() as u32);
    let domain = DomainKey(u32::from(resident.domain.id.0));
    residents.try_reserve(1).map_err(|_| OutOfMemory)?;
    timers::reserve(residents.len() + 1)?;
    let mut scheduler = scheduler().ok_or(OutOfMemory)?;
    scheduler.reserve(residents.len() + 1, domain.0 as usize + 1)?;
    let now = clock().now();
    let Terms { weight, cap, affinity } = terms;
    match scheduler.insert(key, Admission { domain, weight, affinity }, now) {
        // Nobody of the domain waits yet, so no CPU is to be told.
        Ok(()) if cap != 0 => drop(scheduler.set_cap(domain, cap, now)),
        Ok(()) => {}
        Err(Refused::OutOfMemory) => return Err(OutOfMemory),
        Err(why) => debug_assert!(false, "a new vCPU is refused: {why:?}"),
    }
    let (kind, figures) = (scheduler.kind(), scheduler.figures(key));
    drop(scheduler);
    if kind == sched::Kind::Null && figures.is_some_and(|figures| figures.cpu.is_none()) {
        let name = &resident.domain.name;
        log::warn!(target: "sched", "sched=null: no CPU is left for {name} vCPU {}; it does not run", resident.vcpu.0);
    }
    if let Some(vcpu) = resident.vcpu() {
        vcpu.machine.settle(this().id, key);
    }
    residents.push(resident);
    Ok(())
}

pub fn resident(key: VcpuKey) -> Option<Resident> {
    RESIDENTS.read().get(key.0 as usize).cloned()
}

/// A CPU may be wanted while a guest has it: for another vCPU, or because another CPU waits for it.
pub fn is_shared() -> bool {
    count() > 1 || RESIDENTS.read().len() > 1
}

/// A vCPU wants to run.
#[inline]
pub fn wake(key: VcpuKey) {
    let tickle = scheduler().map(|mut scheduler| scheduler.wake(key, clock().now()));
    tell(tickle.unwrap_or(CpuSet::EMPTY));
}

/// These CPUs are to decide anew.
#[inline]
fn tell(tickle: CpuSet) {
    if tickle.is_empty() {
        return;
    }
    for cpu in tickle.iter().filter_map(get) {
        // Who was told before has not decided since, and will see this too.
        if !cpu.reschedule.swap(true, Ordering::SeqCst) {
            cpu.kick();
        }
    }
}

impl PerCpu {
    /// Who runs next here. A timer ends its time slice, if it has one.
    pub fn next(&self, now: Nanos) -> Option<VcpuKey> {
        // Before the lock is taken: whoever sets it afterwards wants another decision.
        self.reschedule.store(false, Ordering::SeqCst);
        let decision = scheduler()?.decide(self.id, now);
        self.set_slice(decision.until, decision.replenish);
        tell(decision.tickle);
        decision.next
    }

    /// A vCPU does not run until it is woken. If it runs, its CPU decides next.
    pub fn rest(&self, key: VcpuKey, why: Rest) {
        let tickle = scheduler().map(|mut scheduler| scheduler.rest(key, why, clock().now()));
        let mut others = tickle.unwrap_or(CpuSet::EMPTY);
        others.remove(self.id);
        tell(others);
    }

    /// The running vCPU lets others go first.
    pub fn yield_now(&self) {
        if let Some(mut scheduler) = scheduler() {
            scheduler.yield_now(self.id);
        }
        self.reschedule.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub fn must_reschedule(&self) -> bool {
        self.reschedule.load(Ordering::Acquire)
    }

    /// Some who had used up their domain's budget may go on.
    pub(super) fn replenish(&self, now: Nanos) {
        let Some((tickle, next)) = scheduler().map(|mut scheduler| scheduler.replenish(now)) else { return };
        tell(tickle);
        if let Some(next) = next {
            self.set_replenish(next);
        }
    }
}
