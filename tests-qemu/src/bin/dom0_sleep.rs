//! Runs inside Dom0's Linux, without a C library: sleeps for ten seconds by the kernel's clock and says how many ticks of the TSC
//! they took.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const WRITE: u64 = 1;
const NANOSLEEP: u64 = 35;
const EXIT: u64 = 60;
const SECONDS: u64 = 10;

global_asm!(".global _start", "_start:", "and rsp, -16", "call helper_main", "ud2");

fn syscall(number: u64, a: u64, b: u64, c: u64) -> u64 {
    let result;
    // SAFETY: the calls made here write nothing that Rust knows of.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            lateout("rcx") _, lateout("r11") _, options(nostack))
    };
    result
}

fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

#[unsafe(no_mangle)]
extern "C" fn helper_main() -> ! {
    let time = [SECONDS, 0];
    let start = rdtsc();
    syscall(NANOSLEEP, time.as_ptr() as u64, 0, 0);
    let ticks = rdtsc() - start;
    let mut line = *b"SLEPT 00000000000000000000 ticks\n";
    let mut rest = ticks;
    for digit in line[6..26].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    syscall(WRITE, 1, line.as_ptr() as u64, line.len() as u64);
    syscall(EXIT, 0, 0, 0);
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    syscall(EXIT, 1, 0, 0);
    loop {
        core::hint::spin_loop();
    }
}
