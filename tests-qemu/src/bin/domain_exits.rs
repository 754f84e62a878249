//! A domain that does one thing all the time, beside another on the next CPU: it exits, or with `fpu=1` it loads x87 state. What it has is there
//! again after each, whatever the other does meanwhile. On the command line `until=N`, seconds of system time in hexadecimal.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::start::number;
use tests_qemu::tests::Tests;
use tests_qemu::{clock, cpu, say};

tests_qemu::guest!(main);

/// No device of a domain's answers there.
const PORT: u16 = 0x42;
/// How often between looks at the clock.
const TURNS: u64 = 500;
const CR2: u64 = 0x1234_5678_9abc;

fn main(t: &mut Tests) {
    let end = number("until").unwrap_or(1) * 1_000_000_000;
    let turn = if number("fpu").is_some() { loads } else { exits };
    let (mut done, mut wrong) = (0, 0);
    while clock::now() < end {
        wrong += turn(done);
        done += TURNS;
    }
    say!("{done} turns");
    t.check("it has run", done > TURNS);
    t.equal("what it had is there after every turn", wrong, 0);
}

/// How often something was lost.
fn exits(from: u64) -> u64 {
    let mut wrong = 0;
    for turn in from..from + TURNS {
        let wanted = CR2 + turn;
        let found: u64;
        // SAFETY: CR2 means nothing until the next page fault sets it.
        unsafe { asm!("mov cr2, {}", in(reg) wanted, options(nostack)) };
        let answer = cpu::in8(PORT);
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, cr2", out(reg) found, options(nostack)) };
        wrong += u64::from(answer != 0xff || found != wanted);
    }
    wrong
}

/// The same for the x87's control word.
fn loads(from: u64) -> u64 {
    let mut environment = [0u32; 7];
    let at = environment.as_mut_ptr();
    let mut wrong = 0;
    // SAFETY: the area is as long as an environment. Rust's own code uses no x87.
    unsafe { asm!("fninit", "fnstenv [{}]", in(reg) at, options(nostack)) };
    for turn in from..from + TURNS {
        // Precision and rounding: bits 8 to 11.
        let wanted = 0x7f | (turn as u32 & 0xf) << 8;
        let mut found = 0u16;
        environment[0] = environment[0] & !0xffff | wanted;
        // SAFETY: as above; all exceptions stay masked.
        unsafe { asm!("fldenv [{}]", "fnstcw [{}]", in(reg) at, in(reg) &raw mut found, options(nostack)) };
        wrong += u64::from(u32::from(found) & 0xf7f != wanted & 0xf7f);
    }
    wrong
}
