//! Accesses to memory that is a device, or nothing: the IO-APIC, the local APIC's page, holes.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::apic;
use tests_qemu::tests::Tests;
use tests_qemu::{acpi, cpu, memory, say};

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    io_apic(t);
    local_apic(t);
    hole(t);
}

fn io_apic(t: &mut Tests) {
    let mut base = 0;
    acpi::madt_entries(|kind, entry| {
        if kind == 1 && base == 0 {
            base = u64::from(acpi::field::<u32>(entry + 4));
        }
    });
    t.equal("the MADT has the IO-APIC", base, 0xfec0_0000);
    let read = |register: u32| {
        cpu::write32(base, register);
        cpu::read32(base + 0x10)
    };
    let write = |register: u32, value: u32| {
        cpu::write32(base, register);
        cpu::write32(base + 0x10, value);
    };
    let version = read(1);
    say!("IO-APIC version register {version:#x}");
    t.check("IO-APIC version", matches!(version & 0xff, 0x11 | 0x20));
    t.equal("its pins", version >> 16 & 0xff, 23);
    t.equal("the register selector reads back", cpu::read32(base), 1);
    t.check("a pin is masked at reset", read(0x10 + 2 * 5) & 1 << 16 != 0);
    write(0x10 + 2 * 5, 0x1_0055);
    write(0x11 + 2 * 5, 0);
    t.equal("a pin's entry reads back", read(0x10 + 2 * 5), 0x1_0055);
    write(0x10 + 2 * 5, 0x1_0000 | 0x5055);
    t.equal("read-only bits of an entry", read(0x10 + 2 * 5) & 0x5000, 0);
    // SAFETY: an instruction with a read and a write of the device's register in one.
    unsafe { asm!("or dword ptr [{}], {:e}", in(reg) base + 0x10, in(reg) 0x2u32, options(nostack)) };
    t.equal("OR to the data register", read(0x10 + 2 * 5) & 0xff, 0x57);
    let byte: u32;
    // SAFETY: a load of one byte with zero extension.
    unsafe { asm!("movzx {:e}, byte ptr [{}]", out(reg) byte, in(reg) base, options(nostack)) };
    t.equal("a byte of the selector", byte, 0x1a);
    // SAFETY: a store of an immediate.
    unsafe { asm!("mov dword ptr [{}], 1", in(reg) base, options(nostack)) };
    t.equal("an immediate to the selector", cpu::read32(base), 1);
    write(0x10 + 2 * 5, 0x1_0000);
}

fn local_apic(t: &mut Tests) {
    t.equal("local APIC id", apic::read(apic::ID) >> 24, 0);
    let version = apic::read(apic::VERSION);
    t.check("local APIC version", version & 0xff == 0x14 || version & 0xff == 0x15);
    apic::write(apic::TASK_PRIORITY, 0x20);
    t.equal("task priority reads back", apic::read(apic::TASK_PRIORITY), 0x20);
    apic::write(apic::TASK_PRIORITY, 0);
    apic::enable();
    t.equal("the spurious register reads back", apic::read(apic::SPURIOUS), 0x1ff);
    let value: u64;
    // SAFETY: XCHG with the page of the local APIC, as some kernels write it.
    unsafe { asm!("xchg [{}], {:e}", in(reg) apic::PAGE + 0x80, inlateout(reg) 0x30u64 => value, options(nostack)) };
    t.equal("XCHG returns what was there", value & 0xff, 0);
    t.equal("XCHG writes", apic::read(apic::TASK_PRIORITY), 0x30);
    apic::write(apic::TASK_PRIORITY, 0);
}

/// Between RAM and the devices there is nothing.
fn hole(t: &mut Tests) {
    let (entries, count, _) = memory::memory_map();
    let mut address = 0xd000_0000u64;
    for entry in entries.iter().take(count) {
        let (start, size) = (entry.addr, entry.size);
        if start <= address && address < start + size {
            address = 0xfe00_0000;
        }
    }
    t.equal("a hole reads as ones", cpu::read32(address + 0x100), 0xffff_ffff);
    t.equal("a hole reads as ones, 64 bits", cpu::read64(address + 0x108), u64::MAX);
    cpu::write32(address + 0x100, 0x1234);
    t.equal("a hole forgets", cpu::read32(address + 0x100), 0xffff_ffff);
    cpu::write64(address + 0xff8, 1);
    let sum: u64;
    // SAFETY: an arithmetic instruction with a hole as its source.
    unsafe { asm!("add {}, [{}]", inlateout(reg) 1u64 => sum, in(reg) address, options(nostack)) };
    t.equal("ADD from a hole", sum, 0);
}
