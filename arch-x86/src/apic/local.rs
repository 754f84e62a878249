//! This CPU's local APIC: x2APIC where the CPU has it, the memory-mapped one otherwise (SDM Vol. 3, chapter 11).

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use mm::addr::HostPhys;

use super::vectors;
use crate::msr::{rdmsr, wrmsr};

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_MSRS: u32 = 0x800;

/// Register numbers: the offset in the page is × 16, the MSR 0x800 +.
mod register {
    pub const ID: u32 = 0x02;
    pub const TASK_PRIORITY: u32 = 0x08;
    pub const EOI: u32 = 0x0b;
    /// The first of eight registers with a bit a vector.
    pub const REQUESTED: u32 = 0x20;
    pub const SPURIOUS: u32 = 0x0f;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_LINT0: u32 = 0x35;
    pub const LVT_LINT1: u32 = 0x36;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
}

const MASKED: u32 = 1 << 16;
const TSC_DEADLINE_MODE: u32 = 2 << 17;
const NMI: u32 = 4 << 8;

static X2APIC: AtomicBool = AtomicBool::new(false);
static DEADLINE: AtomicBool = AtomicBool::new(false);
static PAGE: AtomicPtr<u32> = AtomicPtr::new(core::ptr::null_mut());
/// Timer counts a TSC tick × 2^32, where there is no TSC deadline.
static COUNTS_A_TICK: AtomicU32 = AtomicU32::new(0);

#[inline(always)]
fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        return rdmsr(X2APIC_MSRS + register) as u32;
    }
    let page = PAGE.load(Ordering::Relaxed);
    // SAFETY: `init` mapped the APIC's page, uncached; its registers are 16 bytes apart.
    unsafe { page.add(register as usize * 4).read_volatile() }
}

#[inline(always)]
fn write(register: u32, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: the APIC's registers do not touch memory.
        unsafe { wrmsr(X2APIC_MSRS + register, u64::from(value)) };
        return;
    }
    let page = PAGE.load(Ordering::Relaxed);
    // SAFETY: as for `read`.
    unsafe { page.add(register as usize * 4).write_volatile(value) };
}

/// What this CPU's APIC can do, from CPUID leaf 1.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    pub x2apic: bool,
    pub tsc_deadline: bool,
}

/// The physical address of the memory-mapped APIC.
pub fn base() -> HostPhys {
    HostPhys(rdmsr(APIC_BASE) & 0x000f_ffff_ffff_f000)
}

/// Says how the machine's APICs are used, and switches the boot CPU's on. `page` is where the memory-mapped APIC is mapped (unused with x2APIC).
pub fn init(features: Features, page: *mut u32) {
    PAGE.store(page, Ordering::Relaxed);
    X2APIC.store(features.x2apic, Ordering::Relaxed);
    DEADLINE.store(features.tsc_deadline, Ordering::Relaxed);
    init_this();
}

/// Switches this CPU's APIC on.
pub fn init_this() {
    let base = rdmsr(APIC_BASE) | 1 << 11;
    // SAFETY: enabling the APIC, then x2APIC mode (SDM Vol. 3, 11.12.1: from xAPIC only) touches no memory.
    unsafe {
        wrmsr(APIC_BASE, base);
        if X2APIC.load(Ordering::Relaxed) {
            wrmsr(APIC_BASE, base | 1 << 10);
        }
    }
    write(register::TASK_PRIORITY, 0);
    write(register::SPURIOUS, 1 << 8 | u32::from(vectors::SPURIOUS));
    write(register::LVT_LINT0, MASKED);
    write(register::LVT_LINT1, NMI);
    write(register::LVT_ERROR, u32::from(vectors::APIC_ERROR));
    set_timer_mode();
    write(register::DIVIDE, 0b1011);
}

fn set_timer_mode() {
    let mode = if DEADLINE.load(Ordering::Relaxed) { TSC_DEADLINE_MODE } else { 0 };
    write(register::LVT_TIMER, mode | u32::from(vectors::TIMER));
}

pub fn id() -> u32 {
    let id = read(register::ID);
    if X2APIC.load(Ordering::Relaxed) { id } else { id >> 24 }
}

#[inline(always)]
pub fn eoi() {
    write(register::EOI, 0);
}

/// For [`crate::time::calibrate::calibrate`]: starts the timer's counter.
pub fn start_count() {
    write(register::LVT_TIMER, MASKED | u32::from(vectors::TIMER));
    write(register::INITIAL_COUNT, u32::MAX);
}

/// Counts since [`start_count`].
pub fn elapsed_count() -> u32 {
    u32::MAX - read(register::CURRENT_COUNT)
}

/// Tells the timer's rate: `counts` passed while the TSC made `ticks`.
pub fn set_rate(counts: u32, ticks: u64) {
    write(register::INITIAL_COUNT, 0);
    set_timer_mode();
    let rate = (u64::from(counts) << 32) / ticks.max(1);
    COUNTS_A_TICK.store(u32::try_from(rate).unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
}

/// Tries the TSC deadline out, with interrupts off, and does without it if it is not kept: some machines compare it with another counter than
/// the TSC once there has been a reset, and would interrupt without end. Whether the deadline is used.
pub fn try_deadline() -> bool {
    /// Far enough not to come while it is looked at, near enough to be believed.
    const FAR: u64 = 1 << 32;
    const LOOK: u64 = 1 << 14;
    const PATIENCE: u64 = 1 << 24;
    if !DEADLINE.load(Ordering::Relaxed) {
        return false;
    }
    let now = crate::time::rdtsc();
    set_timer(Some(now + FAR));
    let early = comes_before(now + LOOK);
    set_timer(Some(crate::time::rdtsc() + LOOK));
    let kept = !early && comes_before(now + PATIENCE);
    set_timer(None);
    if !kept {
        DEADLINE.store(false, Ordering::Relaxed);
        set_timer_mode();
    }
    kept
}

/// Whether the timer's interrupt is requested before the TSC reaches `end`.
fn comes_before(end: u64) -> bool {
    let vector = u32::from(vectors::TIMER);
    loop {
        if read(register::REQUESTED + vector / 32) & 1 << (vector % 32) != 0 {
            return true;
        }
        if crate::time::rdtsc() >= end {
            return false;
        }
    }
}

/// Has the timer interrupt when the TSC reaches `deadline`; never if `None`.
#[inline]
pub fn set_timer(deadline: Option<u64>) {
    if DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: the timer touches no memory. Zero disarms it; a deadline that has passed fires at once.
        unsafe { wrmsr(TSC_DEADLINE, deadline.map_or(0, |tsc| tsc.max(1))) };
        return;
    }
    let count = deadline.map_or(0, |tsc| {
        let ticks = tsc.saturating_sub(crate::time::rdtsc());
        let counts = (u128::from(ticks) * u128::from(COUNTS_A_TICK.load(Ordering::Relaxed))) >> 32;
        // A deadline beyond the counter's reach is met in steps: the interrupt finds nothing due and sets it again.
        u32::try_from(counts).unwrap_or(u32::MAX).saturating_add(1)
    });
    write(register::INITIAL_COUNT, count);
}

/// The interrupt command register's kinds of message, and its level (SDM Vol. 3, 11.6.1).
mod message {
    pub const FIXED: u32 = 0;
    pub const NMI: u32 = 4 << 8;
    pub const INIT: u32 = 5 << 8;
    pub const STARTUP: u32 = 6 << 8;
    pub const ASSERT: u32 = 1 << 14;
    pub const NOT_SENT_YET: u32 = 1 << 12;
}

/// Interrupts another CPU.
#[inline]
pub fn send(apic_id: u32, vector: u8) {
    command(apic_id, message::FIXED | u32::from(vector));
}

/// Has another CPU take an NMI.
pub fn send_nmi(apic_id: u32) {
    command(apic_id, message::NMI | message::ASSERT);
}

/// Resets another CPU, which then waits for a [`send_startup`].
pub fn send_init(apic_id: u32) {
    command(apic_id, message::INIT | message::ASSERT);
}

/// Has another CPU, which was reset, start in real mode at the beginning of the page with this number.
pub fn send_startup(apic_id: u32, page: u8) {
    command(apic_id, message::STARTUP | message::ASSERT | u32::from(page));
}

/// The highest id that a message can be sent to.
pub fn highest_id() -> u32 {
    // The last ones mean everyone.
    if X2APIC.load(Ordering::Relaxed) { u32::MAX - 1 } else { 0xfe }
}

#[inline]
fn command(apic_id: u32, command: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // The write may pass earlier stores (SDM Vol. 3, 11.12.3): what the other CPU is to see must be out first.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: an IPI with one of Corten's own vectors, which its IDT handles, or one to a CPU that is being started or stopped.
        unsafe { wrmsr(X2APIC_MSRS + register::ICR, u64::from(apic_id) << 32 | u64::from(command)) };
    } else {
        write(register::ICR_HIGH, apic_id << 24);
        write(register::ICR, command);
        // The register takes no second message before this one is out.
        while read(register::ICR) & message::NOT_SENT_YET != 0 {
            core::hint::spin_loop();
        }
    }
}
