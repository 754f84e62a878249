//! Executes an instruction that may fault, and says what came of it.

use crate::fault::Frame;
use core::arch::{asm, global_asm};

/// Registers before and after.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rdi: u64,
    pub rsi: u64,
}
const _: () = assert!(size_of::<Registers>() == 48);

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: u64,
    pub address: u64,
}

pub const UNDEFINED_OPCODE: u8 = 6;
pub const GENERAL_PROTECTION: u8 = 13;
pub const PAGE_FAULT: u8 = 14;

global_asm!(
    r#"
    .section .text.probe, "ax", @progbits
    .global probe_run
probe_run:              // rdi: code, rsi: registers
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [probe_stack], rsp
    push rsi
    mov r15, rdi
    mov rax, [rsi]
    mov rbx, [rsi + 8]
    mov rcx, [rsi + 16]
    mov rdx, [rsi + 24]
    mov rdi, [rsi + 32]
    mov rsi, [rsi + 40]
    call r15
    xchg rsi, [rsp]
    mov [rsi], rax
    mov [rsi + 8], rbx
    mov [rsi + 16], rcx
    mov [rsi + 24], rdx
    mov [rsi + 32], rdi
    pop [rsi + 40]
    xor eax, eax
    jmp 2f
    .global probe_fault
probe_fault:
    mov eax, 1
2:  mov qword ptr [probe_stack], 0
    cld
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .section .bss.probe, "aw", @nobits
    .balign 8
    .global probe_stack
probe_stack: .skip 8
"#
);

unsafe extern "C" {
    fn probe_run(code: *const u8, registers: *mut Registers) -> u32;
    static probe_fault: u8;
    static mut probe_stack: u64;
}

static mut CODE: [u8; 32] = [0xc3; 32];
static mut LAST: Fault = Fault { vector: 0, error: 0, address: 0 };

/// Runs the instructions in `code` (machine code, without a return) with these registers, which are brought up to date
/// unless it faults.
pub fn run(code: &[u8], registers: &mut Registers) -> Result<(), Fault> {
    // SAFETY: the guest has one vCPU that probes; the page is writable and executable; the fault handler comes back here.
    unsafe {
        let buffer = (&raw mut CODE).cast::<u8>();
        assert!(code.len() < 32, "probes are short");
        buffer.copy_from_nonoverlapping(code.as_ptr(), code.len());
        buffer.add(code.len()).write(0xc3);
        if probe_run(buffer, registers) == 0 { Ok(()) } else { Err((&raw const LAST).read()) }
    }
}

/// Whether the fault was a probe's; then the probe is where it goes on.
pub(crate) fn recover(frame: &mut Frame) -> bool {
    // SAFETY: as in `run`: one vCPU probes.
    unsafe {
        if probe_stack == 0 {
            return false;
        }
        let address: u64;
        asm!("mov {}, cr2", out(reg) address, options(nomem, nostack));
        LAST = Fault { vector: frame.vector as u8, error: frame.error, address };
        frame.rip = (&raw const probe_fault) as u64;
        frame.rsp = probe_stack;
        true
    }
}

pub fn rdmsr(msr: u32) -> Result<u64, Fault> {
    let mut registers = Registers { rcx: msr.into(), ..Default::default() };
    run(&[0x0f, 0x32], &mut registers)?;
    Ok(registers.rdx << 32 | registers.rax & 0xffff_ffff)
}

pub fn wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    run(
        &[0x0f, 0x30],
        &mut Registers { rcx: msr.into(), rax: value & 0xffff_ffff, rdx: value >> 32, ..Default::default() },
    )
}

/// The vector of the fault, if there is one.
pub fn vector<T>(result: Result<T, Fault>) -> Option<u8> {
    result.err().map(|fault| fault.vector)
}
