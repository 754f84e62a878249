//! The scheduler of the machine, and what its answers mean for the CPUs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hypervisor::domain::Domain;
use hypervisor::vcpu::Vcpu;
use mm::lock::{Guard, Lock, Rank};
use sched::{
    Admission, Affinity, CpuId, CpuPlace, CpuSet, DomainKey, Nanos, OutOfMemory, Policy, Refused, Rest, Scheduler,
    Terms, VcpuKey, Wanted, Weight,
};
use spin::{Once, RwLock};
use xen_abi::errno::Errno;
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
static PLACES: Once<Vec<CpuPlace>> = Once::new();
static RESIDENTS: RwLock<Residents> = RwLock::new(Residents { by_key: Vec::new(), domains: Vec::new() });

/// No vCPU's key.
pub const NOBODY: VcpuKey = VcpuKey(u32::MAX);

/// Who has which key.
struct Residents {
    by_key: Vec<Option<Resident>>,
    /// The domains' keys that are taken.
    domains: Vec<bool>,
}

/// A place that is free, with room for a value there.
fn first_free<T>(list: &mut Vec<T>, is_free: impl Fn(&T) -> bool) -> Result<u32, OutOfMemory> {
    list.try_reserve(1).map_err(|_| OutOfMemory)?;
    Ok(list.iter().position(is_free).unwrap_or(list.len()) as u32)
}

/// Puts a value at a place that [`first_free`] found.
fn put<T>(list: &mut Vec<T>, at: u32, value: T) {
    match list.get_mut(at as usize) {
        Some(place) => *place = value,
        None => list.push(value),
    }
}

/// Sets the scheduler up for CPUs that stand at `places`, by number.
pub fn start_scheduler(wanted: Wanted, places: Vec<CpuPlace>) -> Result<(), OutOfMemory> {
    let policy = Policy::new(wanted, &places)?;
    PLACES.call_once(|| places);
    SCHEDULER.call_once(|| Lock::new(Rank::Sched, policy));
    Ok(())
}

/// Where a CPU is in the machine.
pub fn place_of(cpu: CpuId) -> CpuPlace {
    PLACES.get().and_then(|places| places.get(cpu.0 as usize)).copied().unwrap_or_default()
}

/// The scheduler, unless it is early.
#[inline]
fn scheduler() -> Option<Guard<'static, Policy>> {
    SCHEDULER.get().map(Lock::lock)
}

/// Takes a domain's vCPUs in on these terms; each waits until it is woken.
pub fn adopt(domain: &Arc<Domain<X86>>, terms: Terms) -> Result<(), OutOfMemory> {
    let mut residents = RESIDENTS.write();
    let whose = first_free(&mut residents.domains, |taken| !taken)?;
    put(&mut residents.domains, whose, true);
    domain.machine.key.store(whose, Ordering::Relaxed);
    for vcpu in &domain.vcpus {
        let resident = Resident { domain: Arc::clone(domain), vcpu: vcpu.id };
        if let Err(why) = adopt_one(&mut residents, resident, DomainKey(whose), terms) {
            // Nobody has run any of them.
            drop(residents);
            give_keys_back(domain);
            return Err(why);
        }
    }
    Ok(())
}

fn adopt_one(
    residents: &mut Residents,
    resident: Resident,
    domain: DomainKey,
    terms: Terms,
) -> Result<(), OutOfMemory> {
    let key = VcpuKey(first_free(&mut residents.by_key, Option::is_none)?);
    let count = residents.by_key.len() + 1;
    timers::reserve(count)?;
    let mut scheduler = scheduler().ok_or(OutOfMemory)?;
    scheduler.reserve(count, residents.domains.len())?;
    let now = clock().now();
    let Terms { weight, cap, affinity } = terms;
    match scheduler.insert(key, Admission { domain, weight, affinity }, now) {
        // Nobody of the domain waits yet, so no CPU is to be told.
        Ok(()) => drop(scheduler.set_cap(domain, cap, now)),
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
    put(&mut residents.by_key, key.0, Some(resident));
    Ok(())
}

/// How far it is that CPUs have nothing of a domain's vCPUs any more.
#[derive(Debug, Default)]
pub enum Retirement {
    #[default]
    Working,
    /// The scheduler does not know them any more; some CPU may have decided for one of them before that.
    Unknown(Vec<u64>),
    /// No CPU will take the registers of one of them again.
    Left,
}

/// Takes a domain's vCPUs, which are held for good, off the CPUs and out of the scheduler. False while a CPU may still have something of them.
/// One CPU at a time does this for a domain.
pub fn retire(domain: &Domain<X86>) -> bool {
    let state = core::mem::take(&mut *domain.machine.retirement.lock());
    let next = match state {
        Retirement::Working => begin_to_retire(domain),
        Retirement::Unknown(decisions) => {
            // This CPU is here, so what it has decided before is done with.
            let later =
                |(cpu, before): (&PerCpu, &u64)| cpu.id == this().id || cpu.decisions.load(Ordering::SeqCst) != *before;
            if super::all().zip(&decisions).all(later) && have_left(domain) {
                give_keys_back(domain);
                Retirement::Left
            } else {
                Retirement::Unknown(decisions)
            }
        }
        Retirement::Left => Retirement::Left,
    };
    let left = matches!(next, Retirement::Left);
    *domain.machine.retirement.lock() = next;
    left
}

fn begin_to_retire(domain: &Domain<X86>) -> Retirement {
    let mut decisions = Vec::new();
    if decisions.try_reserve_exact(count() as usize).is_err() {
        return Retirement::Working;
    }
    forget(domain);
    decisions.extend(super::all().map(|cpu| cpu.decisions.load(Ordering::SeqCst)));
    let mut others = CpuSet::first_of_all(count() as usize);
    others.remove(this().id);
    tell(others);
    Retirement::Unknown(decisions)
}

/// The scheduler is not asked about a domain's vCPUs again.
fn forget(domain: &Domain<X86>) {
    let now = clock().now();
    for vcpu in &domain.vcpus {
        let (_, key) = vcpu.machine.place();
        if let Some(place) = RESIDENTS.write().by_key.get_mut(key.0 as usize)
            && place.as_ref().is_some_and(|resident| core::ptr::eq(&*resident.domain, domain))
        {
            // Its key stays taken until no CPU can name it: see `give_keys_back`.
            let tickle = scheduler().map(|mut scheduler| scheduler.remove(key, now));
            tell(tickle.unwrap_or(CpuSet::EMPTY));
        }
    }
}

/// Whether no CPU has registers of the domain's any more. Those that do are asked for them.
fn have_left(domain: &Domain<X86>) -> bool {
    let mut left = true;
    for vcpu in &domain.vcpus {
        if vcpu.machine.context.lock().is_none() {
            left = false;
            if let Some(holder) = get(vcpu.machine.place().0) {
                holder.ask_to_give_up();
            }
        }
    }
    left
}

/// The keys of a domain whose vCPUs run no more are for others.
fn give_keys_back(domain: &Domain<X86>) {
    for vcpu in &domain.vcpus {
        timers::cancel(vcpu);
        let (_, key) = vcpu.machine.place();
        if let Some(place) = RESIDENTS.write().by_key.get_mut(key.0 as usize)
            && place.as_ref().is_some_and(|resident| core::ptr::eq(&*resident.domain, domain))
        {
            let gone = place.take();
            if let Some(mut scheduler) = scheduler() {
                // Where it is known no more this does nothing.
                let _ = scheduler.remove(key, clock().now());
            }
            drop(gone);
            vcpu.machine.settle(this().id, NOBODY);
        }
    }
    let whose = domain.machine.key.swap(u32::MAX, Ordering::Relaxed);
    if let Some(taken) = RESIDENTS.write().domains.get_mut(whose as usize) {
        *taken = false;
    }
}

pub fn resident(key: VcpuKey) -> Option<Resident> {
    let resident = RESIDENTS.read().by_key.get(key.0 as usize).cloned().flatten()?;
    // One that is being taken down is nobody's to run.
    (!resident.domain.control.is_dying()).then_some(resident)
}

/// A CPU may be wanted while a guest has it: for another vCPU, or because another CPU waits for it.
pub fn is_shared() -> bool {
    count() > 1 || RESIDENTS.read().by_key.len() > 1
}

// ---- what the toolstack may set ----

pub fn scheduler_kind() -> sched::Kind {
    scheduler().map_or(sched::Kind::Credit2, |scheduler| scheduler.kind())
}

pub fn ratelimit() -> Option<Nanos> {
    scheduler()?.ratelimit()
}

pub fn set_ratelimit(limit: Nanos) {
    if let Some(mut scheduler) = scheduler() {
        scheduler.set_ratelimit(limit);
    }
}

/// Who runs on a CPU.
pub fn running_on(cpu: CpuId) -> Option<VcpuKey> {
    scheduler()?.running(cpu)
}

pub fn affinity(key: VcpuKey) -> Option<Affinity> {
    scheduler()?.figures(key).map(|figures| figures.affinity)
}

/// EINVAL if no CPU is left to the vCPU, ESRCH for one that the scheduler does not know, ENOMEM.
pub fn set_affinity(key: VcpuKey, affinity: Affinity) -> Result<(), Errno> {
    let set = scheduler().ok_or(Errno::ESRCH)?.set_affinity(key, affinity, clock().now());
    match set {
        Ok(tickle) => {
            tell(tickle);
            Ok(())
        }
        Err(Refused::NoCpu) => Err(Errno::EINVAL),
        Err(Refused::BadKey) => Err(Errno::ESRCH),
        Err(Refused::OutOfMemory) => Err(Errno::ENOMEM),
    }
}

/// A domain's weight and cap from now on.
pub fn set_share(domain: &Domain<X86>, weight: Weight, cap: u16) {
    let now = clock().now();
    let Some(mut scheduler) = scheduler() else { return };
    for vcpu in &domain.vcpus {
        scheduler.set_weight(vcpu.machine.place().1, weight, now);
    }
    let key = DomainKey(domain.machine.key.load(Ordering::Relaxed));
    let tickle = scheduler.set_cap(key, cap.into(), now);
    drop(scheduler);
    tell(tickle);
}

// ---- who runs ----

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
        // After the last use of what was decided before, and before the lock: see `retire`.
        self.decisions.fetch_add(1, Ordering::SeqCst);
        let mut scheduler = scheduler()?;
        if self.yields.load(Ordering::Relaxed) {
            self.yields.store(false, Ordering::Relaxed);
            scheduler.yield_now(self.id);
        }
        let decision = scheduler.decide(self.id, now);
        drop(scheduler);
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

    /// The running vCPU lets others go first. The scheduler hears of it at the decision that follows, under one lock with it.
    pub fn yield_now(&self) {
        self.yields.store(true, Ordering::Relaxed);
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
