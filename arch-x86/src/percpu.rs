//! What each physical CPU has of its own: its run queue, its timers, and the vCPUs that belong to it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypervisor::domain::Domain;
use hypervisor::vcpu::Vcpu;
use mm::lock::{Lock, Rank};
use sched::{CpuId, Nanos, RoundRobin, TimerQueue, TimerSlot, VcpuKey};
use spin::{Once, RwLock};
use xen_abi::types::VcpuId;

use crate::engine::HostState;
use crate::machine::X86;

/// The timer slot of the running vCPU's time slice; the vCPUs' own follow.
const SLICE_SLOT: TimerSlot = TimerSlot(0);

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
    queue: Lock<RoundRobin>,
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
    pub fn install(id: CpuId, apic_id: u32, host: HostState) -> &'static PerCpu {
        let mut queue = RoundRobin::new();
        let mut timers = TimerQueue::new();
        let room = queue.reserve(1).and(timers.reserve(2));
        debug_assert!(room.is_ok());
        let cpu = Box::leak(Box::new(PerCpu {
            itself: core::ptr::null(),
            id,
            apic_id,
            host,
            queue: Lock::new(Rank::Sched, queue),
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
        cpu
    }

    /// Takes a vCPU in; it waits until it is woken.
    pub fn adopt(&self, resident: Resident) -> Result<(), sched::OutOfMemory> {
        let mut residents = self.residents.write();
        let key = VcpuKey(residents.len() as u32);
        residents.try_reserve(1).map_err(|_| sched::OutOfMemory)?;
        self.queue.lock().reserve(residents.len() + 1)?;
        self.timers.lock().reserve(residents.len() + 2)?;
        self.queue.lock().add(key);
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

    /// Who runs next, and until when at most.
    pub fn next(&self, now: Nanos) -> Option<VcpuKey> {
        self.reschedule.store(false, Ordering::Relaxed);
        let (next, slice_end) = self.queue.lock().next(now);
        let mut timers = self.timers.lock();
        match slice_end {
            Some(end) => timers.set(SLICE_SLOT, end),
            None => timers.cancel(SLICE_SLOT),
        };
        let earliest = timers.next();
        drop(timers);
        self.arm(earliest);
        next
    }

    pub fn wake(&self, key: VcpuKey) {
        let preempts = self.queue.lock().wake(key);
        if preempts {
            self.reschedule.store(true, Ordering::Release);
        }
    }

    pub fn block(&self, key: VcpuKey) {
        self.queue.lock().block(key);
    }

    pub fn yield_now(&self) {
        self.queue.lock().yield_now();
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
        let slot = TimerSlot(key.0 + 1);
        let mut timers = self.timers.lock();
        match deadline {
            Some(deadline) => timers.set(slot, deadline),
            None => timers.cancel(slot),
        };
        let earliest = timers.next();
        drop(timers);
        self.arm(earliest);
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
                Some(slot) => act(VcpuKey(slot.0 - 1)),
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
