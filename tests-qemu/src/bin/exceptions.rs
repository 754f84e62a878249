//! A guest's own exceptions, NMI, and the corners of their delivery around exits.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::probe::{self, Registers};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, cpu, fault, hypercall, memory};
use xen_abi::numbers::VCPU_OP;
use xen_abi::vcpu::VCPUOP_SEND_NMI;

tests_qemu::guest!(main);

const VECTOR: u8 = 0x50;

fn main(t: &mut Tests) {
    t.equal("#DE", probe::vector(probe::run(&[0x31, 0xc9, 0xf7, 0xf1], &mut Registers::default())), Some(0));
    let mut registers = Registers { rax: 1 << 60, ..Default::default() };
    t.equal(
        "#GP at an address that is not canonical",
        probe::vector(probe::run(&[0x8a, 0x00], &mut registers)),
        Some(13),
    );
    let mut registers = Registers { rax: 0x7f_1234_5678, ..Default::default() };
    let fault = probe::run(&[0x88, 0x00], &mut registers).err();
    t.equal("#PF of a write", fault.map(|f| (f.vector, f.error, f.address)), Some((14, 2, 0x7f_1234_5678)));
    t.equal(
        "an interrupt gate beyond the privilege",
        probe::vector(probe::run(&[0xcd, 0x03], &mut Registers::default())),
        Some(3),
    );

    t.equal("INT1 is #DB", probe::vector(probe::run(&[0xf1], &mut Registers::default())), Some(1));

    single_step(t);
    breakpoint(t);
    nmi(t);
    interrupts(t);
    control_registers(t);
}

/// A trap flag that is set across an instruction that exits must trap right after it.
fn single_step(t: &mut Tests) {
    fault::on_interrupt(1, |frame| {
        frame.rflags &= !0x100;
        cpu::write64(seen(), frame.rip);
        let status: u64;
        // SAFETY: reads DR6 and clears it, as handlers do.
        unsafe { asm!("mov {0}, dr6", "mov dr6, {1}", out(reg) status, in(reg) DR6_CLEAR, options(nomem, nostack)) };
        cpu::write64(seen() + 8, status);
    });
    let before = fault::count(1);
    let after: u64;
    // SAFETY: sets TF, executes CPUID (an exit), and expects the trap before the next instruction.
    unsafe {
        asm!("push rbx", "mov r9, 0", "pushfq", "or qword ptr [rsp], 0x100", "xor eax, eax", "popfq", "cpuid",
            "2: lea r9, [rip + 2b]", "pop rbx", out("r9") after, out("rax") _, out("rcx") _, out("rdx") _)
    };
    t.equal("single step over CPUID", cpu::read64(seen()), after);
    t.equal("one #DB", fault::count(1) - before, 1);
    t.equal("DR6 says that it was a single step", cpu::read64(seen() + 8) & 0xf00f, SINGLE_STEP);
    let after: u64;
    // SAFETY: the same over an instruction that does not exit.
    unsafe {
        asm!("mov r9, 0", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "2: lea r9, [rip + 2b]", out("r9") after)
    };
    t.equal("single step over NOP", cpu::read64(seen()), after);
    t.equal("DR6 says so again", cpu::read64(seen() + 8) & 0xf00f, SINGLE_STEP);
}

const DR6_CLEAR: u64 = 0xffff_0ff0;
const SINGLE_STEP: u64 = 1 << 14;

/// A breakpoint on data traps behind the instruction that writes, and says which of the four it was.
fn breakpoint(t: &mut Tests) {
    let before = fault::count(1);
    let watched = seen() + 64;
    let after: u64;
    // SAFETY: DR0 watches a word that only this writes.
    unsafe {
        asm!("mov dr0, {0}", "mov {1}, 0x90401", "mov dr7, {1}", "mov qword ptr [{0}], 5", "2: lea {2}, [rip + 2b]",
            "mov {1}, 0x400", "mov dr7, {1}", in(reg) watched, out(reg) _, out(reg) after, options(nostack))
    };
    t.equal("a breakpoint on data", fault::count(1), before + 1);
    t.equal("traps behind the write", cpu::read64(seen()), after);
    t.equal("DR6 says which", cpu::read64(seen() + 8) & 0xf00f, 1);
    t.equal("the write was made", cpu::read64(watched), 5);
}

fn seen() -> u64 {
    memory::spare_ram()
}

fn nmi(t: &mut Tests) {
    t.returns("an NMI by hypercall", hypercall::call(VCPU_OP, [VCPUOP_SEND_NMI.into(), 0, 0, 0, 0]), 0);
    t.returns("it takes no argument", hypercall::vcpu_op(VCPUOP_SEND_NMI, 0, &mut 0u64), -22);
    t.equal("comes", fault::count(2), 1);
    apic::enable();
    apic::send(cpu::apic_id(), 0x4400);
    cpu::pause();
    t.equal("an NMI by the local APIC comes", fault::count(2), 2);
}

fn interrupts(t: &mut Tests) {
    fault::on_interrupt(VECTOR, |_| {});
    apic::send_self(VECTOR);
    t.check("interrupts are off: it waits", apic::bit(apic::REQUESTED, VECTOR) && fault::count(VECTOR) == 0);
    let between: u64;
    // SAFETY: one instruction in STI's shadow, then the interrupt.
    unsafe {
        asm!("sti", "mov {0:e}, dword ptr [{1}]", "nop", "cli", out(reg) between, in(reg) count_address(), options(nostack))
    };
    t.equal("STI holds it back for one instruction", between, 0);
    t.equal("then it comes", fault::count(VECTOR), 1);
}

/// The handler's count of `VECTOR`, read in the middle of a sequence of instructions.
fn count_address() -> u64 {
    fault::count_address(VECTOR)
}

fn control_registers(t: &mut Tests) {
    let mov_cr0 = [0x0f, 0x22, 0xc0];
    let cr0: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack)) };
    for (name, value) in [
        ("CR0.PG without PE", cr0 & !1),
        ("a high bit of CR0", cr0 | 1 << 40),
        ("leaving paging in 64-bit mode", cr0 & !(1 << 31)),
    ] {
        let mut registers = Registers { rax: value, ..Default::default() };
        t.equal(name, probe::vector(probe::run(&mov_cr0, &mut registers)), Some(probe::GENERAL_PROTECTION));
    }
    let mut registers = Registers { rax: cr0 | 1 << 30, ..Default::default() };
    t.equal("CR0.CD", probe::run(&mov_cr0, &mut registers), Ok(()));
    let mut registers = Registers { rax: cr0, ..Default::default() };
    t.equal("and back", probe::run(&mov_cr0, &mut registers), Ok(()));
}
