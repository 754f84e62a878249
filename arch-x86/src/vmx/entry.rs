//! Into the guest and back: the one place where the CPU changes hands.

use core::arch::naked_asm;

use super::field::{HOST_RIP, HOST_RSP};
use super::vmcs;
use crate::regs::GuestRegs;

/// How an attempt to enter came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// The guest ran (or the entry failed in its checks of the guest: bit 31 of the exit reason says so).
    Exited,
    /// VMLAUNCH or VMRESUME itself failed; the instruction-error field tells why.
    Refused,
}

/// Runs the guest of the current VMCS until its next exit.
///
/// # Safety
/// A VMCS is current and its host state describes this CPU and this stack's address space; `launched` says whether it was launched. The guest's
/// floating-point state is in the CPU, and host code uses none.
#[inline]
pub unsafe fn enter(regs: &mut GuestRegs, launched: bool) -> Entered {
    // SAFETY: by the caller's promise.
    if unsafe { enter_guest(regs, u64::from(launched)) } == 0 { Entered::Exited } else { Entered::Refused }
}

/// The address where exits continue, for the VMCS's host state.
pub fn exit_address() -> u64 {
    leave_guest as *const () as u64
}

/// `regs` in rdi, `launched` in rsi. Zero in rax after an exit, one if the entry was refused.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_guest(regs: *mut GuestRegs, launched: u64) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "test rsi, rsi",
        "mov rax, [rdi + 0]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "jz 2f",
        "vmresume",
        "jmp 3f",
        "2:",
        "vmlaunch",
        "3:",
        "pop rdi",
        "mov eax, 1",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const HOST_RSP.encoding,
    )
}

/// Where the CPU continues after an exit: on the stack that `enter_guest` left, the guest's registers still in place.
#[unsafe(naked)]
unsafe extern "sysv64" fn leave_guest() {
    naked_asm!(
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + 0], rax",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "pop qword ptr [rdi + 56]",
        "pop rdi",
        "xor eax, eax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Points the current VMCS's host state at the exit path.
pub fn point_host_at_exit() {
    vmcs::write(HOST_RIP, exit_address());
}
