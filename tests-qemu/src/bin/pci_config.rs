//! Configuration space by ports and by memory; BARs that are sized and moved; MSI and MSI-X, whose table is not the device's.
//!
//! The machine has two devices that interrupt when they are told to: e1000e (Intel 82574, MSI-X) and QEMU's "edu" (MSI).

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::pci::{BAR, COMMAND, Function, VENDOR};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu, fault, pci, say};

tests_qemu::guest!(main);

const NIC: u32 = 0x10d3_8086;
const EDU: u32 = 0x11e8_1234;
const MSI: u8 = 5;
const MSIX: u8 = 0x11;

const OPEN: u8 = 0x70;
const MASKED: u8 = 0x71;
const SINGLE: u8 = 0x72;

/// An address that no machine with less than 3 GiB uses.
const ELSEWHERE: u32 = 0xd800_0000;

const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;

fn main(t: &mut Tests) {
    apic::enable();
    for vector in [OPEN, MASKED, SINGLE] {
        fault::on_interrupt(vector, |_| {});
    }
    let find = |id| pci::find(|function| pci::read(function, VENDOR) == id);
    let (Some(nic), Some(edu)) = (find(NIC), find(EDU)) else {
        t.check("both devices are there", false);
        return;
    };
    by_memory(t, nic);
    sizes(t, nic);
    moves(t, nic);
    msix(t, nic);
    msi(t, edu);
}

fn by_memory(t: &mut Tests, nic: Function) {
    let Some(at) = pci::in_memory(nic) else {
        t.check("there is an MCFG", false);
        return;
    };
    t.equal("vendor and device", cpu::read32(at), NIC);
    let (byte, word, sign): (u32, u32, u32);
    // SAFETY: loads from the function's configuration space.
    unsafe {
        asm!("movzx {:e}, byte ptr [{}]", out(reg) byte, in(reg) at + 1, options(nostack));
        asm!("movzx {:e}, word ptr [{}]", out(reg) word, in(reg) at + 2, options(nostack));
        asm!("movsx {:e}, byte ptr [{}]", out(reg) sign, in(reg) at, options(nostack));
    }
    t.equal("a byte", byte, 0x80);
    t.equal("a word", word, 0x10d3);
    t.equal("a byte with its sign", sign, 0xffff_ff86);
    t.check("extended capabilities begin at 0x100", !matches!(cpu::read32(at + 0x100), 0 | u32::MAX));
    let nobody = (0x20..=0xffu16).rev().find(|function| pci::read(*function, VENDOR) == u32::MAX).unwrap_or(0xf7);
    t.equal("nobody by the ports", pci::read(nobody, VENDOR), u32::MAX);
    t.equal("nobody by memory", pci::in_memory(nobody).map(cpu::read32), Some(u32::MAX));
    // The interrupt line is a byte for software's own use.
    let line = u64::from(pci::read(nic, 0x3c) & 0xff);
    // SAFETY: a store to, and an arithmetic instruction on, that byte.
    unsafe {
        asm!("mov byte ptr [{}], 0x50", in(reg) at + 0x3c, options(nostack));
        asm!("or byte ptr [{}], 5", in(reg) at + 0x3c, options(nostack));
    }
    t.equal("OR to a byte of it, read by the ports", pci::read(nic, 0x3c) & 0xff, 0x55);
    pci::write(nic, 0x3c, pci::read(nic, 0x3c) & !0xff | line as u32);
}

fn command(function: Function, set: u32, clear: u32) {
    pci::write(function, COMMAND, pci::read(function, COMMAND) & 0xffff & !clear | set);
}

fn sizes(t: &mut Tests, nic: Function) {
    let before = pci::read(nic, BAR);
    command(nic, 0, MEMORY);
    pci::write(nic, BAR, u32::MAX);
    t.equal("a BAR's size by the ports", pci::read(nic, BAR), 0xfffe_0000);
    let at = pci::in_memory(nic).unwrap_or_default() + u64::from(BAR);
    cpu::write32(at, 0);
    cpu::write32(at, u32::MAX);
    t.equal("a BAR's size by memory", cpu::read32(at), 0xfffe_0000);
    cpu::write32(at, before);
    t.equal("the BAR is back", pci::read(nic, BAR), before);
    command(nic, MEMORY | BUS_MASTER, 0);
}

/// The 82574's registers.
mod register {
    pub const STATUS: u64 = 0x8;
    pub const ICS: u64 = 0xc8;
    pub const IMS: u64 = 0xd0;
    pub const IMC: u64 = 0xd8;
    pub const IVAR: u64 = 0xe4;
    /// Interrupt causes: a receive and a transmit queue.
    pub const RECEIVE: u32 = 1 << 20;
    pub const TRANSMIT: u32 = 1 << 22;
}

fn moves(t: &mut Tests, nic: Function) {
    use register::STATUS;
    let old = pci::read(nic, BAR) & !0xf;
    let status = cpu::read32(u64::from(old) + STATUS);
    t.check("the device answers at its BAR", !matches!(status, 0 | u32::MAX));
    command(nic, 0, MEMORY);
    pci::write(nic, BAR, ELSEWHERE);
    command(nic, MEMORY, 0);
    t.equal("the BAR is elsewhere", pci::read(nic, BAR) & !0xf, ELSEWHERE);
    t.equal("the device answers there", cpu::read32(u64::from(ELSEWHERE) + STATUS), status);
    t.check("and not where it was", cpu::read32(u64::from(old) + STATUS) != status);
    command(nic, 0, MEMORY);
    pci::write(nic, BAR, old);
    command(nic, MEMORY, 0);
    t.equal("it answers again where it was", cpu::read32(u64::from(old) + STATUS), status);
    t.check("and no more elsewhere", cpu::read32(u64::from(ELSEWHERE) + STATUS) != status);
}

/// Where a capability is.
fn capability(function: Function, id: u8) -> Option<u16> {
    let mut at = pci::read(function, pci::CAPABILITIES) as u16 & 0xfc;
    for _ in 0..48 {
        let header = pci::read(function, at);
        if at == 0 || header as u8 == id {
            break;
        }
        at = (header >> 8) as u16 & 0xfc;
    }
    (at != 0).then_some(at)
}

fn wait_for(vector: u8, count: u32) {
    cpu::interrupts_on();
    let end = clock::now() + 100_000_000 + clock::slop();
    while fault::count(vector) < count && clock::now() < end {
        cpu::pause();
    }
    cpu::interrupts_off();
}

fn msix(t: &mut Tests, nic: Function) {
    let Some(at) = capability(nic, MSIX) else {
        t.check("it has MSI-X", false);
        return;
    };
    let place = |offset: u16| {
        let word = pci::read(nic, at + offset);
        u64::from(pci::read(nic, BAR + (word & 7) as u16 * 4) & !0xf) + u64::from(word & !7)
    };
    let (table, pending) = (place(4), place(8));
    let entries = u64::from(pci::read(nic, at) >> 16 & 0x7ff) + 1;
    say!("MSI-X: {entries} entries at {table:#x}, pending bits at {pending:#x}");
    let masked = (0..entries).all(|entry| cpu::read32(table + entry * 16 + 12) & 1 == 1);
    t.check("every entry is masked at reset", masked);
    let set = |entry: u64, vector: u8, mask: u32| {
        cpu::write32(table + entry * 16, 0xfee0_0000);
        cpu::write32(table + entry * 16 + 4, 0);
        cpu::write32(table + entry * 16 + 8, vector.into());
        cpu::write32(table + entry * 16 + 12, mask);
    };
    set(0, OPEN, 0);
    set(1, MASKED, 1);
    t.equal("an entry's address reads back", cpu::read64(table), 0xfee0_0000);
    t.equal("an entry's data and mask read back", cpu::read64(table + 16 + 8), 1 << 32 | u64::from(MASKED));
    pci::write(nic, at, pci::read(nic, at) & 0xffff | 0x8000_0000);
    t.equal("MSI-X is on", pci::read(nic, at) >> 30, 2);

    let registers = u64::from(pci::read(nic, BAR) & !0xf);
    cpu::write32(registers + register::IMC, u32::MAX);
    // The first receive queue's interrupt is entry 0, the first transmit queue's entry 1.
    cpu::write32(registers + register::IVAR, 0x8 | 0x9 << 8);
    cpu::write32(registers + register::IMS, register::RECEIVE | register::TRANSMIT);
    cpu::write32(registers + register::ICS, register::RECEIVE);
    wait_for(OPEN, 1);
    t.equal("a message by its own entry", fault::count(OPEN), 1);
    t.equal("nothing is pending", cpu::read32(pending), 0);
    cpu::write32(registers + register::ICS, register::TRANSMIT);
    cpu::interrupts_on();
    clock::spin(2_000_000);
    cpu::interrupts_off();
    t.equal("none by an entry that is masked", fault::count(MASKED), 0);
    t.equal("it is pending", cpu::read32(pending), 1 << 1);
    cpu::write32(table + 16 + 12, 0);
    wait_for(MASKED, 1);
    t.equal("it comes once the entry is unmasked", fault::count(MASKED), 1);
    t.equal("and pends no more", cpu::read32(pending), 0);
    cpu::write32(registers + register::IMC, u32::MAX);
    pci::write(nic, at, pci::read(nic, at) & 0xffff);
    t.equal("MSI-X is off", pci::read(nic, at) >> 31, 0);
}

fn msi(t: &mut Tests, edu: Function) {
    const RAISE: u64 = 0x60;
    const ACKNOWLEDGE: u64 = 0x64;
    command(edu, MEMORY | BUS_MASTER, 0);
    let Some(at) = capability(edu, MSI) else {
        t.check("it has MSI", false);
        return;
    };
    let is_64 = pci::read(edu, at) & 1 << 23 != 0;
    t.check("its address has 64 bits", is_64);
    pci::write(edu, at + 4, 0xfee0_0000);
    pci::write(edu, at + 8, 0);
    pci::write(edu, at + 12, SINGLE.into());
    pci::write(edu, at, pci::read(edu, at) & 0xffff | 1 << 16);
    t.equal("the address reads back", pci::read(edu, at + 4), 0xfee0_0000);
    t.equal("the data reads back", pci::read(edu, at + 12) & 0xffff, SINGLE.into());
    t.equal("MSI is on", pci::read(edu, at) >> 16 & 1, 1);
    let registers = u64::from(pci::read(edu, BAR) & !0xf);
    for round in 1..=3 {
        cpu::write32(registers + RAISE, 1);
        wait_for(SINGLE, round);
        cpu::write32(registers + ACKNOWLEDGE, 1);
    }
    t.equal("a message each time", fault::count(SINGLE), 3);
    pci::write(edu, at, pci::read(edu, at) & 0xffff);
    cpu::write32(registers + RAISE, 1);
    cpu::interrupts_on();
    clock::spin(1_000_000);
    cpu::interrupts_off();
    cpu::write32(registers + ACKNOWLEDGE, 1);
    t.equal("none once it is off", fault::count(SINGLE), 3);
}
