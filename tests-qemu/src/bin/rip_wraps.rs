//! An instruction that exits at the very end of 32-bit linear memory: the next one is at 0, not at 4 GiB.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::tests::Tests;
use tests_qemu::{cpu, memory, start};

tests_qemu::guest!(main);

/// The selector of `boot_gdt`'s 32-bit code segment.
const CODE32: u16 = 0x18;
const LAST_PAGE: u64 = 0xffff_f000;

fn main(t: &mut Tests) {
    // The ROM at the end of memory makes way for a page of RAM, page 0 for another.
    let (last, first) = (memory::page(), memory::page());
    let tables = [memory::page(), memory::page()];
    cpu::write64(tables[0] + 511 * 8, last | 3);
    cpu::write64(tables[1], first | 3);
    start::map_table(LAST_PAGE & !0x1f_ffff, tables[0]);
    start::map_table(0, tables[1]);
    // CPUID; then, at 0, a far jump back to 64-bit code, whose address is put in below.
    cpu::write32(last + 0xffc, 0xa20f_9090);
    cpu::write32(first, 0xea);
    let target = memory::page();
    cpu::write32(target, 0xffff_fffe);
    cpu::write32(target + 4, CODE32.into());
    let leaf: u32;
    // SAFETY: a far jump to 32-bit code that changes the registers named here and comes back to the label.
    unsafe {
        asm!(
            "push rbx",
            "lea r8, [rip + 2f]",
            "mov dword ptr [r9 + 1], r8d",
            "mov word ptr [r9 + 5], 8",
            "xor eax, eax",
            "xor ecx, ecx",
            // jmp far [r10]
            ".byte 0x41, 0xff, 0x2a",
            "2:",
            "pop rbx",
            in("r9") first, in("r10") target, out("eax") leaf, out("ecx") _, out("edx") _, out("r8") _,
        )
    };
    t.check("the instruction at the end has been carried out", leaf >= 1);
    t.check("and the one at 0 came next", true);
}
