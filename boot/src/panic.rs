//! The end: says where and why, then stops or restarts the machine. Needs no heap, no lock and no other processor.

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch_x86::cpu::exceptions;
use arch_x86::cpu::idt::TrapFrame;
use arch_x86::{fault, host, paging, power, smp};

use crate::console::Emergency;
use crate::symbols;

/// Frames that a backtrace shows at most.
const MAX_FRAMES: usize = 64;
/// The image is smaller than this.
const IMAGE_SIZE: u64 = 2 << 20;

/// Which CPU is going down, as [`own_number`] says; 0 for none.
static DOWN: AtomicU64 = AtomicU64::new(0);
/// Its report went wrong.
static AGAIN: AtomicBool = AtomicBool::new(false);
static NO_REBOOT: AtomicBool = AtomicBool::new(false);

/// Has exceptions and NMIs reported here.
pub fn init() {
    exceptions::set_fatal_handler(on_exception);
    exceptions::set_nmi_handler(on_nmi);
}

/// `noreboot`: stop after a crash, so that what was said can be read.
pub fn set_no_reboot(no_reboot: bool) {
    NO_REBOOT.store(no_reboot, Ordering::Relaxed);
}

/// Reports a panic, for the panic handler.
pub fn on_panic(info: &PanicInfo<'_>) -> ! {
    let mut out = match info.location() {
        Some(at) => begin(format_args!("panic: {}\n(corten)   at {}:{}", info.message(), at.file(), at.line())),
        None => begin(format_args!("panic: {}", info.message())),
    };
    let frame: u64;
    // SAFETY: a look at a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    let _ = writeln!(out, "(corten)   backtrace:");
    backtrace(&mut out, frame);
    end(out)
}

fn on_exception(frame: &TrapFrame) -> ! {
    let (cr2, cr3): (u64, u64);
    // SAFETY: a look at registers.
    unsafe { asm!("mov {}, cr2", "mov {}, cr3", out(reg) cr2, out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    let mut out = begin(format_args!(
        "fatal exception {}: {}, error code {:#x}, at {:#x}, cr2 {cr2:#x}",
        frame.vector,
        exceptions::name(frame.vector),
        frame.error,
        frame.rip
    ));
    if matches!(frame.vector, 8 | 14) && (paging::STACKS..paging::STACKS + (1 << 39)).contains(&cr2) {
        let _ = writeln!(out, "(corten)   at {cr2:#x}: that is below a stack, which has overflowed");
    }
    registers(&mut out, frame, cr2, cr3);
    let _ = writeln!(out, "(corten)   backtrace:");
    location(&mut out, frame.rip, 0);
    // A jump to nowhere has made no frame: its caller is all that is on the stack.
    if !in_image(frame.rip)
        && let Some(caller) = fault::read_safe(frame.rsp)
    {
        location(&mut out, caller, 1);
    }
    backtrace(&mut out, frame.rbp);
    end(out)
}

#[rustfmt::skip]
fn registers(out: &mut Emergency, f: &TrapFrame, cr2: u64, cr3: u64) {
    let rows = [
        [("rax", f.rax), ("rbx", f.rbx), ("rcx", f.rcx), ("rdx", f.rdx)],
        [("rsi", f.rsi), ("rdi", f.rdi), ("rbp", f.rbp), ("rsp", f.rsp)],
        [(" r8", f.r8),  (" r9", f.r9),  ("r10", f.r10), ("r11", f.r11)],
        [("r12", f.r12), ("r13", f.r13), ("r14", f.r14), ("r15", f.r15)],
        [("rip", f.rip), ("flg", f.rflags), ("cr2", cr2), ("cr3", cr3)],
    ];
    for row in rows {
        let _ = out.write_str("(corten)  ");
        for (name, value) in row {
            let _ = write!(out, " {name} {value:016x}");
        }
        let _ = out.write_str("\n");
    }
}

fn on_nmi(frame: &TrapFrame) {
    if smp::is_stopping() {
        host::halt_forever();
    }
    let mut out = Emergency::without_locks();
    let _ = writeln!(out, "(corten) NMI at");
    location(&mut out, frame.rip, 0);
}

/// Sees to it that only one processor reports, and begins with what happened.
fn begin(what: fmt::Arguments<'_>) -> Emergency {
    let own = own_number();
    if let Err(first) = DOWN.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        // Another processor reports, or the report itself went wrong: then this is all that can be said.
        let mut out = Emergency::without_locks();
        let _ = writeln!(out, "(corten) another crash during the report of the first: {what}");
        if first == own && !AGAIN.swap(true, Ordering::Relaxed) {
            end(out);
        }
        host::halt_forever();
    }
    // So that nothing goes on behind the report.
    smp::stop_others();
    let mut out = Emergency::begin();
    let _ = writeln!(out, "(corten) {what}");
    out
}

/// A number that no other CPU has, made of its APIC IDs, and never 0. CPUID says them wherever the CPU is in trouble.
fn own_number() -> u64 {
    const TOPOLOGY: u32 = 0xb;
    let extended = if __cpuid(0).eax < TOPOLOGY { 0 } else { __cpuid(TOPOLOGY).edx };
    (u64::from(extended) << 8 | u64::from(__cpuid(1).ebx >> 24)) + 1
}

/// Walks the frames from `frame` on, each of which holds the address of its caller's and the return address.
fn backtrace(out: &mut Emergency, mut frame: u64) {
    let (mut last, mut repeated) = (0, 0);
    for _ in 0..MAX_FRAMES {
        if !frame.is_multiple_of(8) || frame < 1 << 47 {
            break;
        }
        let (Some(next), Some(back)) = (fault::read_safe(frame), fault::read_safe(frame.wrapping_add(8))) else {
            break;
        };
        if back == 0 {
            break;
        }
        if back == last {
            repeated += 1;
        } else {
            say_repeated(out, &mut repeated);
            // The call is before the address that it returns to, perhaps as the last instruction of its function.
            location(out, back, 1);
        }
        last = back;
        if next <= frame {
            break;
        }
        frame = next;
    }
    say_repeated(out, &mut repeated);
}

fn say_repeated(out: &mut Emergency, count: &mut usize) {
    if *count > 0 {
        let _ = writeln!(out, "(corten)       (and {count} times more)");
        *count = 0;
    }
}

fn in_image(at: u64) -> bool {
    at.wrapping_sub(paging::IMAGE) < IMAGE_SIZE
}

fn location(out: &mut Emergency, at: u64, back: u64) {
    let offset = at.wrapping_sub(paging::IMAGE).wrapping_sub(back);
    let symbol = if in_image(at) { symbols::find(offset as u32) } else { None };
    let _ = match symbol {
        Some((name, into)) => writeln!(out, "(corten)     {at:016x} {name}+{:#x}", u64::from(into) + back),
        None => writeln!(out, "(corten)     {at:016x}"),
    };
}

fn end(mut out: Emergency) -> ! {
    if NO_REBOOT.load(Ordering::Relaxed) {
        let _ = writeln!(out, "(corten) halted (noreboot)");
        host::halt_forever();
    }
    let _ = writeln!(out, "(corten) rebooting in a few seconds (noreboot on the command line prevents it)");
    wait_some_seconds();
    power::reset()
}

/// About three seconds: a read of port 0x80 takes about a microsecond everywhere, since it goes to where ISA was.
fn wait_some_seconds() {
    for _ in 0..3_000_000u32 {
        // SAFETY: reading the port of the diagnostic display does nothing.
        let _ = unsafe { x86_64::instructions::port::Port::<u8>::new(0x80).read() };
    }
}
