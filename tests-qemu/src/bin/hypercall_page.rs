//! The hypercall page: what it holds, and that it does what the instruction does.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::tests::Tests;
use tests_qemu::{cpu, hypercall, memory, probe};
use xen_abi::numbers;
use xen_abi::version::XENVER_VERSION;

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    let direct = hypercall::call(numbers::XEN_VERSION, [XENVER_VERSION.into(), 0, 0, 0, 0]);
    t.equal("XENVER_version by the instruction", direct, 4 << 16 | 20);

    let page = memory::page();
    let msr = cpu::cpuid(0x4000_0002, 0).ebx;
    t.equal("the MSR takes a page", probe::wrmsr(msr, page), Ok(()));
    t.check("the page is filled", (0..512).any(|word| cpu::read64(page + word * 8) != 0));
    t.equal("a slot loads its number", cpu::read32(page + numbers::XEN_VERSION * 32) & 0xff, 0xb8);
    t.equal("the number", cpu::read32(page + numbers::XEN_VERSION * 32 + 1), numbers::XEN_VERSION as u32);
    t.equal("the last slot's number", cpu::read32(page + 63 * 32 + 1), 63);
    t.equal("XENVER_version by the page", through(page, numbers::XEN_VERSION, XENVER_VERSION.into()), direct);
    t.equal("an unknown number by the page", through(page, 63, 0), -38);

    let slot = cpu::read32(page + numbers::IRET * 32) & 0xffff;
    t.equal("IRET's slot is UD2", slot, 0x0b0f);
    t.equal("a page beyond all memory", probe::vector(probe::wrmsr(msr, 1 << 45)), Some(probe::GENERAL_PROTECTION));
    t.equal("a second page index", probe::vector(probe::wrmsr(msr, page + 1)), Some(probe::GENERAL_PROTECTION));
    t.check("the MSR can be read", probe::rdmsr(msr).is_ok());
}

fn through(page: u64, number: u64, argument: u64) -> i64 {
    let result: i64;
    // SAFETY: the page was filled by the hypervisor; each slot returns.
    unsafe {
        asm!("call {}", in(reg) page + number * 32, out("rax") result, inlateout("rdi") argument => _,
            inlateout("rsi") 0u64 => _, out("rdx") _, out("r10") _, out("r8") _, out("rcx") _, out("r11") _)
    };
    result
}
