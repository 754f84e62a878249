//! I/O ports. Reading and writing a port cannot break Rust's memory: what a device then does with DMA is its driver's to answer for.

use core::arch::asm;

#[inline(always)]
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: see the module.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

#[inline(always)]
pub fn outb(port: u16, value: u8) {
    // SAFETY: see the module.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

#[inline(always)]
pub fn inw(port: u16) -> u16 {
    let value: u16;
    // SAFETY: see the module.
    unsafe { asm!("in ax, dx", out("ax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

#[inline(always)]
pub fn outw(port: u16, value: u16) {
    // SAFETY: see the module.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

#[inline(always)]
pub fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: see the module.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

#[inline(always)]
pub fn outl(port: u16, value: u32) {
    // SAFETY: see the module.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads 1, 2 or 4 bytes.
pub fn input(port: u16, size: u8) -> u32 {
    match size {
        1 => u32::from(inb(port)),
        2 => u32::from(inw(port)),
        _ => inl(port),
    }
}

/// Writes 1, 2 or 4 bytes.
pub fn output(port: u16, size: u8, value: u32) {
    match size {
        1 => outb(port, value as u8),
        2 => outw(port, value as u16),
        _ => outl(port, value),
    }
}
