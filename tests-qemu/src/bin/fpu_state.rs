//! x87, SSE and AVX registers survive exits, hypercalls and sleep.

#![no_std]
#![no_main]

use core::arch::asm;
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu, fault, hypercall, memory};
use xen_abi::numbers::{SCHED_OP, XEN_VERSION};

tests_qemu::guest!(main);

const TIMER: u8 = 0x40;
const LEGACY: usize = 512;

fn main(t: &mut Tests) {
    let has = cpu::cpuid(1, 0).ecx;
    let avx = has & 1 << 26 != 0 && has & 1 << 28 != 0 && cpu::cpuid(0xd, 0).eax & 4 != 0;
    if avx {
        // SAFETY: sets CR4.OSXSAVE and XCR0 to x87, SSE and AVX, which the CPU has.
        unsafe {
            asm!("mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", out(reg) _, options(nostack));
            asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0, options(nostack));
        }
    }
    apic::enable();
    apic::write(apic::TIMER_DIVIDE, 0xb);
    fault::on_interrupt(TIMER, |_| {});

    let ways: [(&str, fn()); 5] = [
        ("a CPUID exit", || {
            cpu::cpuid(0, 0);
        }),
        ("a hypercall", || {
            hypercall::call(XEN_VERSION, [0, 0, 0, 0, 0]);
        }),
        ("an access to the local APIC", || {
            apic::read(apic::VERSION);
        }),
        ("giving up the CPU", || {
            hypercall::call(SCHED_OP, [0, 0, 0, 0, 0]);
        }),
        ("a sleep", || {
            apic::write(apic::LVT_TIMER, TIMER.into());
            apic::write(apic::TIMER_INITIAL, 100_000);
            cpu::sleep();
        }),
    ];
    clock::now();
    for (name, way) in ways {
        fill(avx);
        way();
        t.check(name, is_intact(avx));
    }
    // SAFETY: sets the task-switched flag, executes an SSE instruction in a probe, and clears the flag again.
    let trapped = unsafe {
        asm!("mov {0}, cr0", "or {0}, 8", "mov cr0, {0}", out(reg) _, options(nostack));
        let result = tests_qemu::probe::run(&[0x0f, 0x57, 0xc0], &mut Default::default());
        asm!("clts", options(nostack));
        result
    };
    t.equal("CR0.TS makes SSE trap", tests_qemu::probe::vector(trapped), Some(7));
}

/// Distinct values in every register.
fn fill(avx: bool) {
    let page = memory_page();
    for word in 0..128 {
        cpu::write64(page + word * 8, 0x0101_0101_0101_0101 * (word + 1));
    }
    // SAFETY: the compiler uses none of these registers (soft-float target); the page is ours.
    unsafe {
        asm!("fninit", "fld1", "fldpi", "fldl2e", options(nostack));
        asm!("movdqu xmm0, [{0}]", "movdqu xmm7, [{0} + 16]", "movdqu xmm15, [{0} + 32]", in(reg) page, options(nostack));
        if avx {
            asm!("vmovdqu ymm3, [{0} + 64]", "vmovdqu ymm12, [{0} + 96]", in(reg) page, options(nostack));
        }
    }
    save(page + 1024, avx);
}

fn is_intact(avx: bool) -> bool {
    let page = memory_page();
    save(page + 2048, avx);
    // The legacy area without its last 96 bytes, which are free for software.
    (0..(LEGACY as u64 - 96) / 8).all(|word| cpu::read64(page + 1024 + word * 8) == cpu::read64(page + 2048 + word * 8))
        && (!avx
            || (0..32)
                .all(|word| cpu::read64(page + 1024 + 576 + word * 8) == cpu::read64(page + 2048 + 576 + word * 8)))
}

/// XSAVE, or FXSAVE, to an aligned place.
fn save(address: u64, avx: bool) {
    // SAFETY: the area is ours, aligned and large enough (832 bytes).
    unsafe {
        if avx {
            asm!("xsave64 [{}]", in(reg) address, in("eax") 7, in("edx") 0, options(nostack));
        } else {
            asm!("fxsave64 [{}]", in(reg) address, options(nostack));
        }
    }
}

fn memory_page() -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    static PAGE: AtomicU64 = AtomicU64::new(0);
    let page = PAGE.load(Ordering::Relaxed);
    if page != 0 {
        return page;
    }
    PAGE.store(memory::page(), Ordering::Relaxed);
    PAGE.load(Ordering::Relaxed)
}
