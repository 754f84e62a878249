//! Measuring by the TSC, which counts instructions in Bochs.

use crate::{cpu, fault, say};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// How often a path is taken; the shortest counts, since a timer may interrupt any one.
const ROUNDS: u32 = 50;

/// Reports `path NAME TICKS`: the fewest ticks that `work` took.
pub fn path(name: &str, mut work: impl FnMut()) {
    path_after(name, || {}, &mut work);
}

/// The same, where each round has to be prepared and is not counted in.
pub fn path_after(name: &str, mut prepare: impl FnMut(), mut work: impl FnMut()) {
    let mut fewest = u64::MAX;
    for _ in 0..ROUNDS {
        prepare();
        let start = cpu::rdtsc();
        work();
        fewest = fewest.min(cpu::rdtsc() - start);
    }
    report(name, fewest);
}

/// The ticks from the start of `work` to the first instruction of an interrupt handler.
pub fn path_to_handler(name: &str, vector: u8, mut work: impl FnMut(), mut after: impl FnMut()) {
    fault::set_gate(vector, (&raw const stamp_handler) as u64);
    let mut fewest = u64::MAX;
    cpu::interrupts_on();
    for _ in 0..ROUNDS {
        STAMP.store(0, Ordering::SeqCst);
        let start = cpu::rdtsc();
        work();
        while STAMP.load(Ordering::SeqCst) == 0 {
            cpu::pause();
        }
        fewest = fewest.min(STAMP.load(Ordering::SeqCst) - start);
        after();
    }
    cpu::interrupts_off();
    report(name, fewest);
}

pub fn report(name: &str, ticks: u64) {
    say!("path {name} {ticks}");
}

/// When the handler was entered.
#[unsafe(no_mangle)]
static STAMP: AtomicU64 = AtomicU64::new(0);

pub fn stamp() -> &'static AtomicU64 {
    &STAMP
}

/// Makes `vector` leave its time in [`stamp`], and do nothing else.
pub fn stamp_at(vector: u8) {
    fault::set_gate(vector, (&raw const stamp_handler) as u64);
}

unsafe extern "C" {
    static stamp_handler: u8;
}

global_asm!(
    r#"
    .section .text.stamp, "ax", @progbits
    .global stamp_handler
stamp_handler:
    push rax
    push rdx
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [STAMP], rax
    pop rdx
    pop rax
    iretq
"#
);
