//! What each physical CPU has of its own: its run queue, its timers, and the vCPUs that belong to it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypervisor::domain::Domain;
use hypervisor::vcpu::Vcpu;
use mm::lock::{Lock, Rank};
use sched::{
    Admission, Affinity, CpuId, CpuPlace, DomainKey, Nanos, Policy, Refused, Rest, Scheduler, TimerQueue, TimerSlot,
    VcpuKey, Wanted, Weight,
};
use spin::{Once, RwLock};
use xen_abi::types::VcpuId;

use crate::engine::HostState;
use crate::machine::X86;

/// The timer slot of the running vCPU's time slice.
const SLICE_SLOT: TimerSlot = TimerSlot(0);
/// That of the next budget of a domain that has used up its own.
const REPLENISH_SLOT: TimerSlot = TimerSlot(1);
/// The vCPUs' own follow.
const FIRST_VCPU_SLOT: u32 = 2;

/// Each CPU has a scheduler of its own as yet, for which it is the first and only CPU.
const HERE: CpuId = CpuId(0);

/// A vCPU that belongs to a CPU.
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

#[repr(C)]
pub struct PerCpu {
    /// Its own address, for `this`.
    itself: *const PerCpu,
    pub id: CpuId,
    pub apic_id: u32,
    pub host: HostState,
    scheduler: Lock<Policy>,
    timers: Lock<TimerQueue>,
    /// What the hardware timer is set to, in nanoseconds; `u64::MAX` for never.
    armed: AtomicU64,
    residents: RwLock<Vec<Resident>>,
    /// The running vCPU is to give way.
    reschedule: AtomicBool,
}

// `this` reads the first word behind GS.
const _: () = assert!(core::mem::offset_of!(PerCpu, itself) == 0);

// SAFETY: everything that changes is atomic or locked; `itself` only names the value.
unsafe impl Send for PerCpu {}
// SAFETY: as above.
unsafe impl Sync for PerCpu {}

static ALL: RwLock<Vec<&'static PerCpu>> = RwLock::new(Vec::new());
static READY: Once<()> = Once::new();

const GS_BASE: u32 = 0xc000_0101;

impl PerCpu {
    /// Makes this CPU's area and points GS at it.
    pub fn install(
        id: CpuId,
        apic_id: u32,
        host: HostState,
        wanted: Wanted,
    ) -> Result<&'static PerCpu, sched::OutOfMemory> {
        let scheduler = Policy::new(wanted, &[CpuPlace::default()])?;
        let mut timers = TimerQueue::new();
        timers.reserve(FIRST_VCPU_SLOT as usize)?;
        let cpu = Box::leak(Box::new(PerCpu {
            itself: core::ptr::null(),
            id,
            apic_id,
            host,
            scheduler: Lock::new(Rank::Sched, scheduler),
            timers: Lock::new(Rank::Timers, timers),
            armed: AtomicU64::new(u64::MAX),
            residents: RwLock::new(Vec::new()),
            reschedule: AtomicBool::new(false),
        }));
        cpu.itself = cpu;
        cpu.host.gs_base = core::ptr::from_ref(cpu) as u64;
        let cpu: &'static PerCpu = cpu;
        // SAFETY: the host uses GS for nothing but this area.
        unsafe { crate::msr::wrmsr(GS_BASE, cpu.host.gs_base) };
        ALL.write().push(cpu);
        READY.call_once(|| ());
        Ok(cpu)
    }

    /// Takes a vCPU in; it waits until it is woken.
    pub fn adopt(&self, resident: Resident) -> Result<(), sched::OutOfMemory> {
        let mut residents = self.residents.write();
        let key = VcpuKey(residents.len() as u32);
        let domain = DomainKey(u32::from(resident.domain.id.0));
        residents.try_reserve(1).map_err(|_| sched::OutOfMemory)?;
        self.timers.lock().reserve(residents.len() + 1 + FIRST_VCPU_SLOT as usize)?;
        let mut scheduler = self.scheduler.lock();
        scheduler.reserve(residents.len() + 1, domain.0 as usize + 1)?;
        let admission = Admission { domain, weight: Weight::DEFAULT, affinity: Affinity::ANY };
        match scheduler.insert(key, admission, crate::machine::clock().now()) {
            Ok(()) => {}
            Err(Refused::OutOfMemory) => return Err(sched::OutOfMemory),
            Err(why) => debug_assert!(false, "a new vCPU is refused: {why:?}"),
        }
        let (kind, figures) = (scheduler.kind(), scheduler.figures(key));
        drop(scheduler);
        if kind == sched::Kind::Null && figures.is_some_and(|figures| figures.cpu.is_none()) {
            let name = &resident.domain.name;
            log::warn!(target: "sched", "sched=null: no CPU is left for {name} vCPU {}; it does not run", resident.vcpu.0);
        }
        if let Some(vcpu) = resident.vcpu() {
            vcpu.machine.settle(self.id, key);
        }
        residents.push(resident);
        Ok(())
    }

    pub fn resident(&self, key: VcpuKey) -> Option<Resident> {
        self.residents.read().get(key.0 as usize).cloned()
    }

    // ---- scheduling ----

    /// Several vCPUs live here, and one may keep another waiting.
    pub fn is_shared(&self) -> bool {
        self.residents.read().len() > 1
    }

    /// Who runs next. A timer ends its time slice, if it has one.
    pub fn next(&self, now: Nanos) -> Option<VcpuKey> {
        self.reschedule.store(false, Ordering::Relaxed);
        let decision = self.scheduler.lock().decide(HERE, now);
        let mut timers = self.timers.lock();
        match decision.until {
            Some(end) => timers.set(SLICE_SLOT, end),
            None => timers.cancel(SLICE_SLOT),
        };
        if let Some(at) = decision.replenish {
            timers.set(REPLENISH_SLOT, at);
        }
        let earliest = timers.next();
        drop(timers);
        self.arm(earliest);
        decision.next
    }

    pub fn wake(&self, key: VcpuKey) {
        let tickle = self.scheduler.lock().wake(key, crate::machine::clock().now());
        if !tickle.is_empty() {
            self.reschedule.store(true, Ordering::Release);
        }
    }

    /// The vCPU does not run until it is woken. If it runs, the caller sees to it that the CPU decides.
    pub fn rest(&self, key: VcpuKey, why: Rest) {
        self.scheduler.lock().rest(key, why, crate::machine::clock().now());
    }

    pub fn yield_now(&self) {
        self.scheduler.lock().yield_now(HERE);
        self.reschedule.store(true, Ordering::Release);
    }

    #[inline]
    pub fn must_reschedule(&self) -> bool {
        self.reschedule.load(Ordering::Acquire)
    }

    // ---- time ----

    /// Sets or clears when a vCPU wants to be looked after.
    #[inline]
    pub fn set_deadline(&self, key: VcpuKey, deadline: Option<Nanos>) {
        let slot = TimerSlot(key.0 + FIRST_VCPU_SLOT);
        let mut timers = self.timers.lock();
        match deadline {
            Some(deadline) => timers.set(slot, deadline),
            None => timers.cancel(slot),
        };
        let earliest = timers.next();
        drop(timers);
        self.arm(earliest);
    }

    /// Some who had used up their domain's budget may go on.
    fn replenish(&self, now: Nanos) {
        let (tickle, next) = self.scheduler.lock().replenish(now);
        if !tickle.is_empty() {
            self.reschedule.store(true, Ordering::Relaxed);
        }
        if let Some(next) = next {
            self.timers.lock().set(REPLENISH_SLOT, next);
        }
    }

    #[inline]
    fn arm(&self, earliest: Option<Nanos>) {
        let wanted = earliest.map_or(u64::MAX, |at| at.0);
        if self.armed.swap(wanted, Ordering::Relaxed) != wanted {
            let clock = crate::machine::clock();
            crate::apic::local::set_timer(earliest.map(|at| clock.tsc_at(at)));
        }
    }

    /// The hardware timer fired: `act` on each vCPU whose time has come.
    pub fn expire(&self, now: Nanos, mut act: impl FnMut(VcpuKey)) {
        self.armed.store(u64::MAX, Ordering::Relaxed);
        loop {
            let due = self.timers.lock().pop_due(now);
            match due {
                Some(SLICE_SLOT) => self.reschedule.store(true, Ordering::Relaxed),
                Some(REPLENISH_SLOT) => self.replenish(now),
                Some(slot) => act(VcpuKey(slot.0 - FIRST_VCPU_SLOT)),
                None => break,
            }
        }
        let earliest = self.timers.lock().next();
        self.arm(earliest);
    }
}

/// This CPU's area.
#[inline(always)]
pub fn this() -> &'static PerCpu {
    let address: *const PerCpu;
    // SAFETY: `install` pointed GS at this CPU's area, which is never freed, before anything that runs on it asks.
    unsafe {
        asm!("mov {0}, gs:[0]", out(reg) address, options(nostack, readonly, preserves_flags));
        &*address
    }
}

/// The CPU with this number.
pub fn get(id: CpuId) -> Option<&'static PerCpu> {
    ALL.read().get(id.index()).copied()
}

pub fn count() -> usize {
    ALL.read().len()
}
