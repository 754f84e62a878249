//! What each physical CPU has of its own: its timers, what it is told by the others, and how far it is with what it has read.

mod schedule;
mod shoot_down;
mod timers;

use alloc::boxed::Box;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use mm::lock::{Lock, Rank};
use sched::{CpuId, CpuSet, Nanos, Passage, TimerQueue};
use spin::Once;
use xen_abi::types::DomainId;

use crate::apic::local;
use crate::apic::vectors::{self, CPUS, Target, Targets};
use crate::engine::HostState;
pub use schedule::{
    Resident, Retirement, adopt, affinity, is_shared, place_of, ratelimit, resident, retire, running_on,
    scheduler_kind, set_affinity, set_ratelimit, set_share, start_scheduler, wake,
};
pub use shoot_down::shoot_down;
pub use timers::timer_changed;

/// No domain's number.
const NOBODY: u32 = u32::MAX;

#[repr(C)]
pub struct PerCpu {
    /// Its own address, for `this`.
    itself: *const PerCpu,
    pub id: CpuId,
    pub apic_id: u32,
    /// What AML knows the CPU by.
    pub acpi_id: u32,
    host: Once<HostState>,
    timers: Lock<TimerQueue>,
    /// What the hardware timer is set to, in nanoseconds; `u64::MAX` for never.
    armed: AtomicU64,
    /// Another CPU has put something into `timers` that is due before that.
    rearm: AtomicBool,
    /// The running vCPU is to give way.
    reschedule: AtomicBool,
    /// What runs here has yielded; the next decision is told.
    yields: AtomicBool,
    /// How often it has decided who runs.
    decisions: AtomicU64,
    /// Nanoseconds that it had nothing to do before `idle_since`, which is `u64::MAX` while it has.
    idle: AtomicU64,
    idle_since: AtomicU64,
    /// Another CPU waits for the registers of the vCPU that ran here last.
    give_up: AtomicBool,
    /// How far it is with the translations of the domain that it runs.
    pub passage: Passage,
    /// The domain whose vCPU has its registers here.
    domain: AtomicU32,
    /// The ranks of the locks that are held here.
    held_ranks: AtomicU32,
}

// `this` reads the first word behind GS.
const _: () = assert!(core::mem::offset_of!(PerCpu, itself) == 0);

// SAFETY: everything that changes is atomic or locked; `itself` only names the value.
unsafe impl Send for PerCpu {}
// SAFETY: as above.
unsafe impl Sync for PerCpu {}

/// By number. Those that there are come first; none ever goes.
static ALL: [AtomicPtr<PerCpu>; CpuSet::MAX] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CpuSet::MAX];
static COUNT: AtomicU32 = AtomicU32::new(0);

const GS_BASE: u32 = 0xc000_0101;

impl PerCpu {
    // BOOT: a CPU is there from then on.
    /// An area for a CPU that is to become number `id`.
    pub fn allocate(id: CpuId, apic_id: u32, acpi_id: u32) -> Result<&'static PerCpu, sched::OutOfMemory> {
        let mut timers = TimerQueue::new();
        timers.reserve(timers::FIRST_VCPU_SLOT as usize)?;
        let cpu = Box::leak(Box::new(PerCpu {
            itself: core::ptr::null(),
            id,
            apic_id,
            acpi_id,
            host: Once::new(),
            timers: Lock::new(Rank::Timers, timers),
            armed: AtomicU64::new(u64::MAX),
            rearm: AtomicBool::new(false),
            reschedule: AtomicBool::new(false),
            yields: AtomicBool::new(false),
            decisions: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            idle_since: AtomicU64::new(u64::MAX),
            give_up: AtomicBool::new(false),
            passage: Passage::new(),
            domain: AtomicU32::new(NOBODY),
            held_ranks: AtomicU32::new(0),
        }));
        cpu.itself = cpu;
        Ok(cpu)
    }

    /// Points this CPU's GS at the area. From here on [`this`] finds it.
    pub fn install(&'static self) {
        // SAFETY: the host uses GS for nothing but this area.
        unsafe { crate::msr::wrmsr(GS_BASE, core::ptr::from_ref(self) as u64) };
    }

    /// The CPU can run guests, with `host` as what exits come back to. It is the next that [`get`] knows.
    pub fn enlist(&'static self, host: HostState) {
        self.host.call_once(|| HostState { gs_base: core::ptr::from_ref(self) as u64, ..host });
        if let Some(place) = ALL.get(self.id.index()) {
            place.store(core::ptr::from_ref(self).cast_mut(), Ordering::Release);
            COUNT.fetch_max(self.id.0 + 1, Ordering::AcqRel);
        }
    }

    /// What exits come back to; `None` before the CPU is ready.
    pub fn host(&self) -> Option<&HostState> {
        self.host.get()
    }

    /// Has the CPU come out of the guest or wake up and look at its queues, if it is another than this.
    #[inline]
    pub fn kick(&self) {
        if self.id != this().id {
            local::send(self.apic_id, vectors::KICK);
        }
    }

    // ---- what it does ----

    /// It has nothing to do from `now` on.
    pub fn begin_idle(&self, now: Nanos) {
        let _ = self.idle_since.compare_exchange(u64::MAX, now.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// It has something to do again.
    #[inline]
    pub fn end_idle(&self, now: Nanos) {
        let since = self.idle_since.load(Ordering::Relaxed);
        if since != u64::MAX {
            self.idle.fetch_add(now.0.saturating_sub(since), Ordering::Relaxed);
            self.idle_since.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// How long it had nothing to do.
    pub fn idle_time(&self, now: Nanos) -> Nanos {
        let since = self.idle_since.load(Ordering::Relaxed);
        Nanos(self.idle.load(Ordering::Relaxed).saturating_add(now.0.saturating_sub(since)))
    }

    // ---- who is here ----

    /// A vCPU of this domain has its registers here from now on, or nobody.
    pub fn note_domain(&self, domain: Option<DomainId>) {
        self.domain.store(domain.map_or(NOBODY, |domain| u32::from(domain.0)), Ordering::Relaxed);
    }

    /// Asks for the registers of a vCPU that was here last and runs here no more.
    pub fn ask_to_give_up(&self) {
        self.give_up.store(true, Ordering::Release);
        self.kick();
    }

    /// Whether another CPU has asked for the registers of the vCPU that was here last.
    pub fn is_to_give_up(&self) -> bool {
        self.give_up.load(Ordering::Acquire)
    }

    /// The registers of the vCPU that was here last are where others find them.
    pub fn has_given_up(&self) {
        self.give_up.store(false, Ordering::Relaxed);
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
#[inline]
pub fn get(id: CpuId) -> Option<&'static PerCpu> {
    let place = ALL.get(id.index())?.load(Ordering::Acquire);
    // SAFETY: what is there was put there by `enlist`, from a reference that lasts for ever.
    unsafe { place.as_ref() }
}

/// How many CPUs run guests: numbers 0 to one less.
#[inline]
pub fn count() -> u32 {
    COUNT.load(Ordering::Acquire)
}

/// All CPUs that run guests.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..count()).filter_map(|id| get(CpuId(id)))
}

/// The CPUs that devices can interrupt, this one first if it is one of them.
pub fn targets() -> Targets {
    targets_near(this().id)
}

/// As [`targets`], with another CPU first.
pub fn targets_near(first: CpuId) -> Targets {
    let in_order = get(first).into_iter().chain(all().filter(|cpu| cpu.id != first));
    let target = |cpu: &PerCpu| {
        let apic_id = u8::try_from(cpu.apic_id).ok().filter(|&id| id != u8::MAX)?;
        (cpu.id.index() < CPUS).then_some(Target { cpu: cpu.id, apic_id })
    };
    in_order.filter_map(target).collect()
}

/// Where the locks note what is held here; for [`mm::lock::set_held_ranks`].
pub fn held_ranks() -> &'static AtomicU32 {
    &this().held_ranks
}
