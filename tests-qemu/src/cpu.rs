//! Instructions that Rust has no word for.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// The time stamp counter, after everything before it is done.
#[inline(always)]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// An MSR that is known to exist; others are read by [`crate::probe`].
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes nothing in the MSRs that guests use.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// RFLAGS after a comparison of 0 with `compared`, and a CMPXCHG16B that finds what it expects.
pub fn flags_after_cmpxchg16b(compared: u64) -> u64 {
    #[repr(align(16))]
    struct Operand([u64; 2]);
    let mut operand = Operand([0; 2]);
    let flags;
    // SAFETY: the operand is aligned, and nobody else's; the flags are loaded as they are.
    unsafe {
        asm!(".p2align 6", "pushfq", "popfq", "cmp rax, {compared}", "cmpxchg16b [{operand}]", "pushfq", "pop {flags}",
            compared = in(reg) compared, operand = in(reg) &raw mut operand.0, flags = lateout(reg) flags,
            inout("rax") 0u64 => _, inout("rdx") 0u64 => _, in("rcx") 0u64);
    }
    flags
}

pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: guests write MSRs of their own virtual CPU, whose effect they know.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack)) };
}

pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: the ports of a test machine.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack)) };
    value
}

pub fn out8(port: u16, value: u8) {
    // SAFETY: the ports of a test machine.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: the ports of a test machine.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack)) };
    value
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: the ports of a test machine.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack)) };
}

pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: the ports of a test machine.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: the ports of a test machine.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

/// One access of 32 bits to memory that may be a device.
pub fn read32(address: u64) -> u32 {
    let value;
    // SAFETY: guests read addresses that the machine has, or that read as ones.
    unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

#[inline(always)]
pub fn write8(address: u64, value: u8) {
    // SAFETY: all of memory is mapped one to one, and what is where is the caller's to know.
    unsafe { (address as *mut u8).write_volatile(value) };
}

pub fn write32(address: u64, value: u32) {
    // SAFETY: guests write devices, and pages that nothing else refers to.
    unsafe { asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack)) };
}

pub fn read64(address: u64) -> u64 {
    let value;
    // SAFETY: as for `read32`.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

pub fn write64(address: u64, value: u64) {
    // SAFETY: as for `write32`.
    unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
}

pub fn interrupts_on() {
    // SAFETY: the interrupt table is set up before the guest's main function runs.
    unsafe { asm!("sti", options(nostack)) };
}

pub fn interrupts_off() {
    // SAFETY: no interrupt is needed.
    unsafe { asm!("cli", options(nostack)) };
}

/// Lets interrupts in and sleeps until one comes.
pub fn sleep() {
    // SAFETY: STI's shadow covers HLT, so that no wake-up is lost.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

pub fn pause() {
    core::hint::spin_loop();
}

/// Sleeps for ever.
pub fn stop() -> ! {
    loop {
        interrupts_off();
        // SAFETY: interrupts are off: nothing comes back.
        unsafe { asm!("hlt", options(nostack)) };
    }
}

pub fn invlpg(address: u64) {
    // SAFETY: forgets a translation.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// `APIC id` of this vCPU (CPUID leaf 1).
pub fn apic_id() -> u32 {
    cpuid(1, 0).ebx >> 24
}

/// Whether the CPU is AMD's: another hypercall instruction, and MSRs of its own.
pub fn is_amd() -> bool {
    cpuid(0, 0).ebx == u32::from_le_bytes(*b"Auth")
}
