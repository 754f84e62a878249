//! MSRs that a kernel reads or writes without a guard: each has an answer.

#![no_std]
#![no_main]

use tests_qemu::tests::Tests;
use tests_qemu::{cpu, probe, say};

tests_qemu::guest!(main);

const APIC_BASE: u32 = 0x1b;
const PAT: u32 = 0x277;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const EFER: u32 = 0xc000_0080;

/// Read by every x86 kernel.
const READABLE: &[(u32, &str)] = &[
    (0x10, "TSC"),
    (APIC_BASE, "APIC base"),
    (0x8b, "microcode revision"),
    (0xfe, "MTRR capabilities"),
    (0x174, "SYSENTER CS"),
    (0x175, "SYSENTER ESP"),
    (0x176, "SYSENTER EIP"),
    (0x179, "machine check capabilities"),
    (0x17a, "machine check status"),
    (0x200, "MTRR base 0"),
    (0x201, "MTRR mask 0"),
    (0x250, "fixed MTRR of the first 512 KiB"),
    (0x258, "fixed MTRR at 512 KiB"),
    (0x26f, "fixed MTRR at 0xf8000"),
    (PAT, "PAT"),
    (MTRR_DEFAULT_TYPE, "MTRR default type"),
    (0x400, "MC0_CTL"),
    (0x401, "MC0_STATUS"),
    (EFER, "EFER"),
    (0xc000_0081, "STAR"),
    (0xc000_0082, "LSTAR"),
    (0xc000_0083, "CSTAR"),
    (0xc000_0084, "SFMASK"),
    (0xc000_0100, "FS base"),
    (0xc000_0101, "GS base"),
    (0xc000_0102, "kernel GS base"),
];
const READABLE_INTEL: &[(u32, &str)] =
    &[(0x17, "platform id"), (0x3a, "feature control"), (0x1a0, "MISC_ENABLE"), (0x1d9, "DEBUGCTL")];
const READABLE_AMD: &[(u32, &str)] = &[
    (0xc001_0010, "SYSCFG"),
    (0xc001_0015, "HWCR"),
    (0xc001_0112, "TSEG address"),
    (0xc001_1029, "DE_CFG"),
    (0xc001_001f, "NB_CFG"),
];

fn main(t: &mut Tests) {
    let vendor = if cpu::is_amd() { READABLE_AMD } else { READABLE_INTEL };
    for (msr, name) in READABLE.iter().chain(vendor) {
        let value = probe::rdmsr(*msr);
        say!("{name} ({msr:#x}) is {value:x?}");
        t.check(name, value.is_ok());
    }
    let base = probe::rdmsr(APIC_BASE).unwrap_or(0);
    t.equal("the APIC is at its place, on, of the boot CPU", base, 0xfee0_0900);
    t.check("there are MTRRs", probe::rdmsr(0xfe).unwrap_or(0) & 0xff >= 8);
    t.equal("memory is write-back by default, MTRRs on or off", probe::rdmsr(MTRR_DEFAULT_TYPE).unwrap_or(0) & 0xff, 6);
    t.equal("PAT after reset", probe::rdmsr(PAT), Ok(0x0007_0406_0007_0406));
    t.equal("EFER is as the guest set it", probe::rdmsr(EFER), Ok(0xd00));

    let keep = [
        (PAT, 0x0007_0106_0007_0406, "PAT"),
        (0x200, 0x8000_0000, "MTRR base 0"),
        (0x201, 0xf_8000_0800, "MTRR mask 0"),
        (0x174, 8, "SYSENTER CS"),
        (0x175, 0x1234_5678, "SYSENTER ESP"),
        (0xc000_0081, 0x0023_0010_0000_0000, "STAR"),
        (0xc000_0082, 0xffff_ffff_8100_0000, "LSTAR"),
        (0xc000_0084, 0x4_7700, "SFMASK"),
        (0xc000_0102, 0xffff_8880_0000_0000, "kernel GS base"),
    ];
    for (msr, value, name) in keep {
        t.equal(name, probe::wrmsr(msr, value).and_then(|()| probe::rdmsr(msr)), Ok(value));
    }
    t.equal("EFER keeps SCE", probe::wrmsr(EFER, 0xd01).and_then(|()| probe::rdmsr(EFER)), Ok(0xd01));
    t.equal("machine check status is cleared", probe::wrmsr(0x401, 0), Ok(()));
    if !cpu::is_amd() {
        t.equal("microcode revision may be cleared to be read", probe::wrmsr(0x8b, 0), Ok(()));
    }
    let before = cpu::rdtsc();
    t.check("the TSC by MSR is the TSC", probe::rdmsr(0x10).is_ok_and(|value| value >= before));
}
