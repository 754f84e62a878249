//! The interrupt descriptor table: one for all processors, with a stub for each vector.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use super::{exceptions, gdt};

/// What the stub and the processor leave on the stack: every register of the interrupted code.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    /// 0 for vectors without one.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(size_of::<TrapFrame>() == 22 * 8);

/// A gate is two words; they are atomic only so that the table can be a plain static.
#[repr(C, align(16))]
struct Gate([AtomicU64; 2]);

const _: () = assert!(size_of::<Gate>() == 16);

static IDT: [Gate; 256] = [const { Gate([AtomicU64::new(0), AtomicU64::new(0)]) }; 256];

/// Bytes from one stub to the next.
const STUB: u64 = 16;

// A stub pushes a zero where the processor pushes no error code (SDM Vol. 3, table 6-1), and the vector.
global_asm!(
    r#"
    .pushsection .text.trap, "ax", @progbits
    .balign 16
corten_trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || vector == 10 || vector == 11 || vector == 12 || vector == 13 || vector == 14 || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0
    .endif
    push vector
    jmp corten_trap_common
    .set vector, vector + 1
    .endr

    .balign 16
corten_trap_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call {trap}
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
    .popsection
    "#,
    trap = sym trap,
);

unsafe extern "C" {
    static corten_trap_stubs: u8;
}

static INTERRUPT: Once<fn(u8)> = Once::new();

/// Sets what is called for the vectors from 32 on. They are taken with interrupts off and without a way to nest.
pub fn set_interrupt_handler(handler: fn(u8)) {
    INTERRUPT.call_once(|| handler);
}

extern "C" fn trap(frame: &mut TrapFrame) {
    match frame.vector {
        vector @ 0..32 => exceptions::handle(vector as u8, frame),
        vector => {
            if let Some(handler) = INTERRUPT.get() {
                handler(vector as u8);
            }
        }
    }
}

/// Fills the table. Once, before the first [`load`].
pub fn init() {
    let stubs = &raw const corten_trap_stubs as u64;
    for (vector, gate) in (0..).zip(&IDT) {
        let words = gate_words(stubs + vector * STUB, exceptions::stack_of(vector as u8));
        for (word, value) in gate.0.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// A 64-bit interrupt gate at privilege level 0 (SDM Vol. 3, 6.14.1). `stack` is an index into the interrupt stack table, 0 for none.
fn gate_words(handler: u64, stack: u8) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
    let low = handler & 0xffff
        | u64::from(gdt::CODE) << 16
        | u64::from(stack) << 32
        | PRESENT_INTERRUPT_GATE
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Loads the table into this processor's register.
pub fn load() {
    // SAFETY: the table lasts for ever, and every gate leads to a stub.
    unsafe {
        lidt(&DescriptorTablePointer { limit: (size_of_val(&IDT) - 1) as u16, base: VirtAddr::new(base()) });
    }
}

/// The table's address, for the VMCS's host state.
pub fn base() -> u64 {
    IDT.as_ptr() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_holds_its_handler_in_three_pieces() {
        let [low, high] = gate_words(0xffff_ffff_8012_3456, 2);
        assert_eq!(low, 0x8012_8e02_0008_3456);
        assert_eq!(high, 0xffff_ffff);
    }
}
