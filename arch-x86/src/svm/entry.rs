//! Into the guest and back: the one place where the CPU changes hands.

use core::arch::{asm, naked_asm};

use mm::addr::HostPhys;

use super::vmcb::Vmcb;
use crate::regs::GuestRegs;

/// Saves what VMLOAD loads (FS, GS, TR, LDTR and the MSRs of SYSCALL and SYSENTER) of this CPU into a frame.
///
/// # Safety
/// The frame is nobody else's, and SVM is on.
pub unsafe fn save_host(area: HostPhys) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("vmsave rax", in("rax") area.0, options(nostack, preserves_flags)) };
}

/// Runs the guest of a VMCB until its next exit. Host interrupts stay pending; an NMI that came meanwhile has been handled on return.
///
/// # Safety
/// `vmcb` lies at `at` and is consistent; `host` was filled on this CPU by [`save_host`]. The guest's floating-point state is in the CPU, and host
/// code uses none.
#[inline]
pub unsafe fn enter(regs: &mut GuestRegs, at: HostPhys, host: HostPhys, vmcb: *mut Vmcb) {
    // SAFETY: by the caller's promise.
    unsafe { enter_guest(regs, at.0, host.0, vmcb) }
}

/// `regs` in rdi, the VMCB's address in rsi, the host's area in rdx. The VMCB is also passed as a pointer, as the CPU writes to it.
///
/// With the global interrupt flag clear nothing comes between here and the guest, nor between the guest and the host's own state. RFLAGS.IF
/// is set meanwhile: under V_INTR_MASKING it is what lets host interrupts end the guest's run (APM Vol. 2, 15.21.1).
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_guest(regs: *mut GuestRegs, at: u64, host: u64, vmcb: *mut Vmcb) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rdi",
        "clgi",
        "sti",
        "mov rax, rsi",
        "vmload rax",
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
        "vmrun rax",
        // The host's rax, rsp and flags are back; all else is the guest's.
        "vmsave rax",
        "mov rax, [rsp]",
        "mov [rax + 8], rcx",
        "mov [rax + 16], rdx",
        "mov [rax + 24], rbx",
        "mov [rax + 40], rbp",
        "mov [rax + 48], rsi",
        "mov [rax + 56], rdi",
        "mov [rax + 64], r8",
        "mov [rax + 72], r9",
        "mov [rax + 80], r10",
        "mov [rax + 88], r11",
        "mov [rax + 96], r12",
        "mov [rax + 104], r13",
        "mov [rax + 112], r14",
        "mov [rax + 120], r15",
        "mov rax, [rsp + 8]",
        "vmload rax",
        "cli",
        "stgi",
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}
