//! The instructions of hardware virtualisation, and others that a guest is not offered: #UD each.

#![no_std]
#![no_main]

use tests_qemu::probe::{self, Registers};
use tests_qemu::tests::Tests;
use tests_qemu::{cpu, memory};

tests_qemu::guest!(main);

/// Memory operands are at RAX.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("VMXON", &[0xf3, 0x0f, 0xc7, 0x30]),
    ("VMXOFF", &[0x0f, 0x01, 0xc4]),
    ("VMCLEAR", &[0x66, 0x0f, 0xc7, 0x30]),
    ("VMPTRLD", &[0x0f, 0xc7, 0x30]),
    ("VMPTRST", &[0x0f, 0xc7, 0x38]),
    ("VMREAD", &[0x0f, 0x78, 0xc8]),
    ("VMWRITE", &[0x0f, 0x79, 0xc8]),
    ("VMLAUNCH", &[0x0f, 0x01, 0xc2]),
    ("VMRESUME", &[0x0f, 0x01, 0xc3]),
    ("INVEPT", &[0x66, 0x0f, 0x38, 0x80, 0x08]),
    ("INVVPID", &[0x66, 0x0f, 0x38, 0x81, 0x08]),
    ("VMFUNC", &[0x0f, 0x01, 0xd4]),
    ("MONITOR", &[0x0f, 0x01, 0xc8]),
    ("MWAIT", &[0x0f, 0x01, 0xc9]),
    ("VMRUN", &[0x0f, 0x01, 0xd8]),
    ("VMLOAD", &[0x0f, 0x01, 0xda]),
    ("VMSAVE", &[0x0f, 0x01, 0xdb]),
    ("STGI", &[0x0f, 0x01, 0xdc]),
    ("CLGI", &[0x0f, 0x01, 0xdd]),
    ("UD2", &[0x0f, 0x0b]),
];

fn main(t: &mut Tests) {
    let page = memory::page();
    for (name, code) in INSTRUCTIONS {
        let mut registers = Registers { rax: page, ..Default::default() };
        t.equal(name, probe::vector(probe::run(code, &mut registers)), Some(probe::UNDEFINED_OPCODE));
    }
    let cr4: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack)) };
    t.check("CR4.VMXE reads as clear", cr4 & 1 << 13 == 0);
    let set_cr4 = [0x0f, 0x22, 0xe0];
    for (name, bit) in [("setting CR4.VMXE", 13), ("setting CR4.SMXE", 14), ("setting a reserved bit of CR4", 31)] {
        let mut registers = Registers { rax: cr4 | 1 << bit, ..Default::default() };
        t.equal(name, probe::vector(probe::run(&set_cr4, &mut registers)), Some(probe::GENERAL_PROTECTION));
    }
    let mut registers = Registers { rax: cr4 | 1 << 2, ..Default::default() };
    t.equal("setting CR4.TSD", probe::run(&set_cr4, &mut registers), Ok(()));
    let mut registers = Registers { rax: cr4, ..Default::default() };
    t.equal("and clearing it", probe::run(&set_cr4, &mut registers), Ok(()));
    let mut registers = Registers { rcx: 0, rax: 4, ..Default::default() };
    let xsetbv = [0x0f, 0x01, 0xd1];
    t.check("XSETBV without CR4.OSXSAVE, or of a bad value", probe::run(&xsetbv, &mut registers).is_err());
    // WBINVD and INVD may do nothing, but they must not fault; CPUID is still there afterwards.
    t.equal("WBINVD", probe::run(&[0x0f, 0x09], &mut Registers::default()), Ok(()));
    t.check("CPUID", cpu::cpuid(0, 0).eax > 0);
}
