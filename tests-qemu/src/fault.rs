//! Exceptions and interrupts: caught, counted, and reported when nobody expected them.

use crate::{apic, cpu, power, probe, say};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

global_asm!(
    r#"
    .section .text.vectors, "ax", @progbits
    .balign 16
    .global vectors
vectors:
    .set vector, 0
    .rept 256
    .balign 16
    // The CPU pushes an error code for these: #DF #TS #NP #SS #GP #PF #AC #CP.
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21))
    push 0
    .endif
    push vector
    jmp vector_common
    .set vector, vector + 1
    .endr

vector_common:
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
    call on_vector
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
"#
);

/// What the stubs leave on the stack.
#[repr(C)]
pub struct Frame {
    pub registers: [u64; 15],
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}
const _: () = assert!(size_of::<Frame>() == 22 * 8);

#[repr(C, align(16))]
struct Idt([[u64; 2]; 256]);
const _: () = assert!(size_of::<Idt>() == 4096);

static mut IDT: Idt = Idt([[0; 2]; 256]);
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static HANDLERS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

unsafe extern "C" {
    static vectors: u8;
}

pub(crate) fn init() {
    for vector in 0..=255 {
        set_gate(vector, (&raw const vectors) as u64 + u64::from(vector) * 16);
    }
    load();
}

/// Points a vector at code of one's own (which ends in IRETQ).
pub fn set_gate(vector: u8, address: u64) {
    let low = address & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
    // SAFETY: one writer, and the CPU reads a gate only while it delivers that vector.
    unsafe { (&raw mut IDT.0[usize::from(vector)]).write_volatile([low, address >> 32]) };
}

/// Loads the interrupt table on this vCPU.
pub fn load() {
    load_table((&raw const IDT) as u64, 4095);
}

/// Loads any table: one with no room for gates makes the next fault a triple fault.
pub fn load_table(address: u64, limit: u16) {
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    const _: () = assert!(size_of::<Pointer>() == 10);
    let pointer = Pointer(limit, address);
    // SAFETY: the table is static, or its loss is wanted.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) };
}

/// How often a vector came.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

/// Calls `handler` at each interrupt of `vector`, which is then counted and acknowledged to the local APIC.
pub fn on_interrupt(vector: u8, handler: fn(&mut Frame)) {
    HANDLERS[usize::from(vector)].store(handler as usize as u64, Ordering::Relaxed);
}

/// NMI is no error, and is not acknowledged.
const NMI: u64 = 2;

#[unsafe(no_mangle)]
extern "C" fn on_vector(frame: &mut Frame) {
    let index = (frame.vector & 0xff) as usize;
    COUNTS[index].fetch_add(1, Ordering::Relaxed);
    let handler = HANDLERS[index].load(Ordering::Relaxed);
    if handler != 0 {
        // SAFETY: only `on_interrupt` writes this, from a function of this type.
        let handler = unsafe { core::mem::transmute::<usize, fn(&mut Frame)>(handler as usize) };
        handler(frame);
    }
    match frame.vector {
        NMI => {}
        vector if vector >= 32 => apic::end_of_interrupt(vector as u8),
        _ => {
            if handler == 0 && !probe::recover(frame) {
                unexpected(frame)
            }
        }
    }
}

fn unexpected(frame: &Frame) -> ! {
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    say!(
        "TEST runtime: no unexpected fault FAIL: vector {} error {:#x} at {:#x}, cr2 {cr2:#x}, on vCPU with APIC id {}",
        frame.vector,
        frame.error,
        frame.rip,
        cpu::apic_id(),
    );
    power::off()
}

/// Where the count of a vector is, for code that reads it between two instructions.
pub fn count_address(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].as_ptr() as u64
}
