//! What every scheduler does: the one door between policy and the machine.

use crate::{Admission, Affinity, CpuId, CpuSet, DomainKey, Figures, Nanos, OutOfMemory, Rest, VcpuKey, Weight};

/// Who runs on a CPU from now on.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Nobody: the CPU idles until it is tickled.
    pub next: Option<VcpuKey>,
    /// When to decide again at the latest; never if nothing but an event can change the decision.
    pub until: Option<Nanos>,
    /// Other CPUs that must decide now.
    pub tickle: CpuSet,
    /// When to call [`Scheduler::replenish`]: someone waits for its domain's budget.
    pub replenish: Option<Nanos>,
}

/// Why something is refused. Nothing has changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `-ENOMEM`.
    OutOfMemory,
    /// No CPU that there is may run it: `-EINVAL`.
    NoCpu,
    /// The key is beyond what was reserved, or is taken, or is not known: `-ESRCH` or `-EEXIST`, as the caller meant it.
    BadKey,
}

impl From<OutOfMemory> for Refused {
    fn from(_: OutOfMemory) -> Refused {
        Refused::OutOfMemory
    }
}

/// A scheduler: it is told what happens to vCPUs and answers who runs where.
///
/// It knows no clock, no CPU and no lock. `now` never runs backwards. A set of CPUs that comes back is to be *tickled*:
/// each of them must call [`decide`](Scheduler::decide) soon (the caller's own CPU by itself, the others on an interrupt). A CPU
/// also decides when what it runs blocks, and at [`Decision::until`].
///
/// Keys that are not known are ignored where no error is returned: a wake-up may be too late.
pub trait Scheduler {
    /// Makes vCPU keys `0..vcpus` and domain keys `0..domains` usable. What there is stays; nothing else but
    /// [`insert`](Scheduler::insert) and [`set_affinity`](Scheduler::set_affinity) allocates.
    fn reserve(&mut self, vcpus: usize, domains: usize) -> Result<(), OutOfMemory>;

    /// Takes in a vCPU, offline until it is woken.
    fn insert(&mut self, vcpu: VcpuKey, admission: Admission, now: Nanos) -> Result<(), Refused>;

    /// Gives up a vCPU, whatever it was doing. Its key is free once the CPU that it ran on has decided.
    fn remove(&mut self, vcpu: VcpuKey, now: Nanos) -> CpuSet;

    /// The vCPU wants to run.
    fn wake(&mut self, vcpu: VcpuKey, now: Nanos) -> CpuSet;

    /// The vCPU does not run until it is woken. Where it runs must decide.
    fn rest(&mut self, vcpu: VcpuKey, why: Rest, now: Nanos) -> CpuSet;

    /// What runs on `cpu` lets those who wait there go first. The CPU decides next.
    fn yield_now(&mut self, cpu: CpuId);

    /// Who runs on `cpu` from `now` on.
    fn decide(&mut self, cpu: CpuId, now: Nanos) -> Decision;

    /// The time that a [`Decision`] named for it has come. Also says when it is next.
    fn replenish(&mut self, now: Nanos) -> (CpuSet, Option<Nanos>);

    /// The toolstack sets a domain's weight: that of each of its vCPUs, which compete one by one.
    fn set_weight(&mut self, vcpu: VcpuKey, weight: Weight, now: Nanos);

    /// The domain's vCPUs together run at most `cap` percent of one CPU (150: one and a half); 0 is no limit.
    fn set_cap(&mut self, domain: DomainKey, cap: u32, now: Nanos) -> CpuSet;

    /// Refused with [`Refused::NoCpu`] if no CPU of the machine is in the hard affinity.
    fn set_affinity(&mut self, vcpu: VcpuKey, affinity: Affinity, now: Nanos) -> Result<CpuSet, Refused>;

    /// Nothing if the vCPU is not known.
    fn figures(&self, vcpu: VcpuKey) -> Option<Figures>;

    /// What the last decision on `cpu` was, unless it is gone.
    fn running(&self, cpu: CpuId) -> Option<VcpuKey>;
}
