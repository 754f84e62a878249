//! MSRs that a guest must not have, and values that make no sense: #GP, and nothing worse.

#![no_std]
#![no_main]

use tests_qemu::tests::Tests;
use tests_qemu::{cpu, probe};

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    let refused = Some(probe::GENERAL_PROTECTION);
    let unknown: &[(u32, &str)] = &[
        (0x123, "MSR 0x123"),
        (0x1234_5678, "MSR 0x12345678"),
        (0x4fff_ffff, "MSR 0x4fffffff"),
        (0xffff_ffff, "MSR 0xffffffff"),
        (0xc000_2fff, "MSR 0xc0002fff"),
        (0x480, "VMX capabilities"),
        (0x1900, "MSR 0x1900"),
    ];
    for (msr, name) in unknown {
        t.equal(name, probe::vector(probe::rdmsr(*msr)), refused);
    }
    t.equal("writing MSR 0x123", probe::vector(probe::wrmsr(0x123, 0)), refused);
    t.equal("writing VMX capabilities", probe::vector(probe::wrmsr(0x480, 0)), refused);
    if !cpu::is_amd() {
        t.equal("SVM's host save area", probe::vector(probe::rdmsr(0xc001_0117)), refused);
    }
    t.equal("x2APIC registers in xAPIC mode", probe::vector(probe::rdmsr(0x802)), refused);
    t.equal("writing the MTRR capabilities", probe::vector(probe::wrmsr(0xfe, 0)), refused);
    t.equal("an MTRR of a reserved type", probe::vector(probe::wrmsr(0x200, 2)), refused);
    t.equal("a reserved default memory type", probe::vector(probe::wrmsr(0x2ff, 7)), refused);
    t.equal("a reserved type in the PAT", probe::vector(probe::wrmsr(0x277, 2)), refused);
    t.equal("a reserved bit of EFER", probe::vector(probe::wrmsr(0xc000_0080, 0x8000_0d00)), refused);
    t.equal("leaving long mode by EFER", probe::vector(probe::wrmsr(0xc000_0080, 0xc00)), refused);
    t.equal("a system call entry that is not canonical", probe::vector(probe::wrmsr(0xc000_0082, 1 << 60)), refused);
    t.equal("a GS base that is not canonical", probe::vector(probe::wrmsr(0xc000_0102, 1 << 60)), refused);
    t.equal("a reserved bit of the APIC base", probe::vector(probe::wrmsr(0x1b, 0xfee0_0900 | 1 << 9)), refused);
    t.equal("the VMX lock cannot be changed", probe::vector(probe::wrmsr(0x3a, 5)), refused);
    t.check("the TSC still runs", cpu::rdtsc() < cpu::rdtsc());
}
