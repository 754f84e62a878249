//! What this host CPU has and how Corten's own code waits on it.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use core::sync::atomic::{AtomicBool, Ordering};

use hypervisor::machine::Hardware;

static RDTSCP: AtomicBool = AtomicBool::new(false);
static XSAVE: AtomicBool = AtomicBool::new(false);

/// Notes what guests' state there is to switch.
pub fn set_features(rdtscp: bool, xsave: bool) {
    RDTSCP.store(rdtscp, Ordering::Relaxed);
    XSAVE.store(xsave, Ordering::Relaxed);
}

/// Switches XSAVE on, on this CPU, if the machine has it.
pub fn enable_xsave() {
    if has_xsave() {
        // SAFETY: CR4.OSXSAVE switches XSAVE and XSETBV on, and nothing off.
        unsafe { write_cr4(read_cr4() | 1 << 18) };
    }
}

#[inline]
pub fn has_rdtscp() -> bool {
    RDTSCP.load(Ordering::Relaxed)
}

#[inline]
pub fn has_xsave() -> bool {
    XSAVE.load(Ordering::Relaxed)
}

/// Sleeps until an interrupt, which is taken here and nowhere else in the host. No lock is held.
#[inline]
pub fn wait_for_interrupt() {
    // SAFETY: the handlers run on this stack and keep all registers. STI takes effect after HLT has begun, so that none is slept through.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Takes the interrupts that wait, without sleeping.
#[inline]
pub fn take_interrupts() {
    // SAFETY: as above; the NOP is the shadow of STI.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// An NMI came while a guest ran: it is handled as if it had come to the host.
pub fn nmi() {
    // SAFETY: vector 2 has a handler on a stack of its own.
    unsafe { asm!("int 2", options(nostack)) };
}

/// A machine check came while a guest ran: the host's handler reports and stops.
pub fn machine_check() -> ! {
    // SAFETY: vector 18 has a handler that does not return.
    unsafe { asm!("int 18", options(nostack, noreturn)) };
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts off only an NMI wakes it, and it goes back to sleep.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// Resets the CPU, and on a PC with it the machine.
pub fn triple_fault() -> ! {
    let nothing = [0u8; 10];
    // SAFETY: without an IDT the breakpoint cannot be delivered, nor the faults that follow.
    unsafe { asm!("lidt [{0}]", "int3", "2:", "hlt", "jmp 2b", in(reg) &nothing, options(nostack, noreturn)) };
}

pub fn read_cr2() -> u64 {
    let value: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {0}, cr2", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

pub fn write_cr2(value: u64) {
    // SAFETY: CR2 only reports page faults, and the host survives none of its own.
    unsafe { asm!("mov cr2, {0}", in(reg) value, options(nostack, nomem, preserves_flags)) };
}

/// DR0 to DR3, and DR6. DR7 is switched by the engine, and the host's is zero: none of them has an effect here.
pub fn read_debug_registers() -> [u64; 5] {
    let (a, b, c, d, status): (u64, u64, u64, u64, u64);
    // SAFETY: reading them changes nothing; CR4.DE and DR7.GD are off in the host.
    unsafe {
        asm!("mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3", "mov {4}, dr6",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, out(reg) status, options(nostack, nomem, preserves_flags));
    }
    [a, b, c, d, status]
}

/// DR6, which is the guest's while it is on the CPU.
pub fn read_debug_status() -> u64 {
    let value: u64;
    // SAFETY: as for `read_debug_registers`.
    unsafe { asm!("mov {0}, dr6", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

pub fn write_debug_status(value: u64) {
    // SAFETY: the register only reports; its high half must be zero.
    unsafe { asm!("mov dr6, {0}", in(reg) value & 0xffff_ffff, options(nostack, nomem, preserves_flags)) };
}

/// Writes the caches back and empties them.
pub fn write_back_caches() {
    // SAFETY: WBINVD changes nothing that a program sees.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

pub fn write_debug_registers(values: &[u64; 5]) {
    let [a, b, c, d, status] = *values;
    // SAFETY: with DR7 zero the addresses match nothing.
    unsafe {
        asm!("mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr6, {4}",
            in(reg) a, in(reg) b, in(reg) c, in(reg) d, in(reg) status & 0xffff_ffff, options(nostack, nomem, preserves_flags));
    }
}

pub fn read_cr4() -> u64 {
    x86_64::registers::control::Cr4::read_raw()
}

/// # Safety
/// As for any write to CR4: the paging and protection that Corten rests on stay on.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { x86_64::registers::control::Cr4::write_raw(value) };
}

/// What the toolstack is told of this CPU.
pub fn hardware() -> Hardware {
    let basic = |leaf: u32, subleaf: u32| {
        if __cpuid(0).eax >= leaf {
            __cpuid_count(leaf, subleaf)
        } else {
            CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 }
        }
    };
    let highest = __cpuid(0x8000_0000).eax;
    let extended = |leaf: u32| {
        if highest >= leaf { __cpuid(leaf) } else { CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } }
    };
    let (one, seven, state) = (basic(1, 0), basic(7, 0), basic(0xd, 1));
    let (first, power, sizes) = (extended(0x8000_0001), extended(0x8000_0007), extended(0x8000_0008));
    Hardware {
        has_iommu: false,
        address_bits: if sizes.eax & 0xff != 0 { sizes.eax as u8 } else { 36 },
        features: [one.edx, one.ecx, first.edx, first.ecx, state.eax, seven.ebx, seven.ecx, power.edx],
    }
}
