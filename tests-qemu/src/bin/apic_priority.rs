//! The local APIC's task priority, by its register and by CR8.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::tests::Tests;
use tests_qemu::{apic, cpu, fault};

tests_qemu::guest!(main);

const VECTOR: u8 = 0x50;
const LOWER: u8 = 0x41;

fn main(t: &mut Tests) {
    apic::enable();
    fault::on_interrupt(VECTOR, |_| {});
    fault::on_interrupt(LOWER, |_| {});
    apic::send_self(LOWER);
    apic::send_self(VECTOR);
    apic::write(apic::TASK_PRIORITY, 0x48);
    cpu::interrupts_on();
    cpu::pause();
    cpu::interrupts_off();
    t.equal("the task priority lets the higher class through", fault::count(VECTOR), 1);
    t.equal("and holds the lower one", fault::count(LOWER), 0);
    apic::write(apic::TASK_PRIORITY, 0);
    cpu::interrupts_on();
    cpu::pause();
    cpu::interrupts_off();
    t.equal("until it is lowered", fault::count(LOWER), 1);

    // The same by CR8, which some CPUs' hypervisors never see.
    let cr8: u64;
    // SAFETY: the task priority.
    unsafe { asm!("mov cr8, {}", in(reg) 5u64, options(nostack)) };
    t.equal("CR8 is the task priority", apic::read(apic::TASK_PRIORITY), 0x50);
    apic::send_self(LOWER);
    cpu::interrupts_on();
    cpu::pause();
    t.equal("CR8 holds an interrupt", fault::count(LOWER), 1);
    // SAFETY: as above.
    unsafe {
        asm!("mov cr8, {}", in(reg) 0u64, options(nostack));
        asm!("mov {}, cr8", out(reg) cr8, options(nostack));
    }
    cpu::pause();
    cpu::interrupts_off();
    t.equal("and lets it go", (cr8, fault::count(LOWER)), (0, 2));
}
