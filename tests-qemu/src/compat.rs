//! Hypercalls from 32-bit code: the same guest, for the length of the call in a 32-bit segment.

use core::arch::global_asm;

use crate::cpu;

// Everything is below 4 GiB and mapped one to one, the stack too. High halves of registers do not survive the way through 32-bit code.
global_asm!(
    r#"
    .section .text
    .code64
    .global hypercall_from_32_bits
hypercall_from_32_bits:     // rdi = number, rsi = five arguments, rdx = whether the CPU is AMD's
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov eax, edi
    mov ebp, edx
    mov ebx, [rsi]
    mov ecx, [rsi + 4]
    mov edx, [rsi + 8]
    mov edi, [rsi + 16]
    mov esi, [rsi + 12]
    push 0x18               // the boot GDT's 32-bit code
    lea r8, [rip + in_32_bits]
    push r8
    retfq
    .code32
in_32_bits:
    test ebp, ebp
    jnz 3f
    vmcall
    jmp 4f
3:  vmmcall
4:  push 8
    mov edx, offset back_in_64_bits
    push edx
    retf
    .code64
back_in_64_bits:
    movsxd rax, eax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"#
);

unsafe extern "C" {
    fn hypercall_from_32_bits(number: u64, arguments: *const u32, amd: u64) -> i64;
}

/// A hypercall by a 32-bit caller.
pub fn call(number: u64, arguments: [u32; 5]) -> i64 {
    // SAFETY: it keeps to the C calling convention; what the hypervisor writes is what the arguments point at, and those are the caller's.
    unsafe { hypercall_from_32_bits(number, arguments.as_ptr(), cpu::is_amd().into()) }
}

/// One of the usual shape: an operation and a structure, in and out.
pub fn op<T>(number: u64, operation: u32, argument: &mut T) -> i64 {
    call(number, [operation, address(argument), 0, 0, 0])
}

/// The address of something of the guest's, which a pointer of 32 bits holds.
pub fn address<T: ?Sized>(of: &mut T) -> u32 {
    core::ptr::from_mut(of).cast::<u8>() as u64 as u32
}
