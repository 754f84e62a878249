//! Ports: what passes through, what is emulated, and what reads as ones because the hypervisor owns it.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::tests::Tests;
use tests_qemu::{acpi, cpu, memory, say};

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    t.equal("a port that nothing answers", cpu::in8(0x5678), 0xff);
    t.equal("the hypervisor's serial port", cpu::in8(0x3fd), 0xff);
    t.equal("the master PIC's mask", cpu::in8(0x21), 0xff);
    t.equal("the PIT's counter", cpu::in8(0x40), 0xff);
    t.equal("the DMA controller", cpu::in8(0x08), 0xff);
    cpu::out8(0x20, 0x11);
    cpu::out8(0x43, 0x34);
    say!("port 0x61 is {:#x}", cpu::in8(0x61));

    pci(t);
    cmos(t);
    strings(t);

    let timer: u32 = acpi::table(b"FACP").map_or(0, |fadt| acpi::field(fadt + 76));
    t.equal("the PM timer is the hypervisor's", cpu::in32(timer as u16), 0xffff_ffff);
}

fn config(address: u32) -> u32 {
    cpu::out32(0xcf8, address);
    cpu::in32(0xcfc)
}

fn pci(t: &mut Tests) {
    let bridge = config(0x8000_0000);
    t.equal("the host bridge's vendor", bridge & 0xffff, 0x8086);
    t.equal("the address reads back", cpu::in32(0xcf8), 0x8000_0000);
    t.equal("the vendor, by bytes", u32::from(cpu::in8(0xcfc)) | u32::from(cpu::in8(0xcfd)) << 8, 0x8086);
    t.equal("the device, by a word", u32::from(cpu::in16(0xcfe)), bridge >> 16);
    t.equal("a device that is not there", config(0x8000_f800 | 0x70_0000), 0xffff_ffff);
    t.equal("data without the enable bit", config(0), 0xffff_ffff);
    t.equal("class of the host bridge", config(0x8000_0008) >> 16, 0x0600);
}

/// RTC and CMOS by index and data. The register's value is whatever the machine has; it must be steady and in range.
fn cmos(t: &mut Tests) {
    let read = |index: u8| {
        cpu::out8(0x70, index);
        cpu::in8(0x71)
    };
    let status = read(0x0b);
    t.equal("RTC status B is steady", read(0x0b), status);
    t.check("RTC is valid", read(0x0d) & 0x80 != 0);
    t.check("RTC hours are in range", read(0x04) & 0x7f <= 0x23);
}

/// String instructions do as many accesses as they say.
fn strings(t: &mut Tests) {
    let page = memory::page();
    for offset in 0..512 {
        cpu::write64(page + offset * 8, 0);
    }
    let left: u64;
    // SAFETY: reads four bytes of a port that nothing answers into a page of our own.
    unsafe {
        asm!("cld", "rep insb", in("dx") 0x5678u16, inlateout("rdi") page => _, inlateout("rcx") 4u64 => left,
            options(nostack))
    };
    t.equal("REP INSB ends", left, 0);
    t.equal("REP INSB stores four bytes", cpu::read64(page), 0xffff_ffff);
    let end: u64;
    // SAFETY: as above, downwards.
    unsafe {
        asm!("std", "rep insw", "cld", in("dx") 0x21u16, inlateout("rdi") page + 62 => end, inlateout("rcx") 3u64 => _,
            options(nostack))
    };
    t.equal("REP INSW downwards of an emulated port", end, page + 56);
    t.equal("REP INSW downwards stores three words", cpu::read64(page + 56), 0xffff_ffff_ffff_0000);
    cpu::write32(page + 128, 0x8000_0000);
    // SAFETY: writes the configuration address from a page of our own.
    unsafe { asm!("outsd", in("dx") 0xcf8u16, inlateout("rsi") page + 128 => _, options(nostack)) };
    t.equal("OUTSD to an emulated port", cpu::in32(0xcf8), 0x8000_0000);
    // SAFETY: reads the configuration data into a page of our own.
    unsafe { asm!("insd", in("dx") 0xcfcu16, inlateout("rdi") page + 132 => _, options(nostack)) };
    t.equal("INSD from an emulated port", cpu::read32(page + 132) & 0xffff, 0x8086);
}
