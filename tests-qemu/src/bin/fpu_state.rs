//! x87, SSE and AVX registers survive exits, hypercalls, sleep, and another vCPU that fills them with values of its own; so do XCR0, the debug
//! registers and TSC_AUX.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu, fault, hypercall, memory, second};
use xen_abi::numbers::{SCHED_OP, XEN_VERSION};

tests_qemu::guest!(main);

const TIMER: u8 = 0x40;
const LEGACY: u64 = 512;
const TSC_AUX: u32 = 0xc000_0103;
/// The second vCPU's APIC id: vCPU ids are spread by two.
const SECOND: u32 = 2;
const ROUNDS: u64 = 20;

/// Which states XCR0 has switched on.
const X87_SSE: u32 = 3;
const X87_SSE_AVX: u32 = 7;

fn main(t: &mut Tests) {
    apic::enable();
    apic::write(apic::TIMER_DIVIDE, 0xb);
    fault::on_interrupt(TIMER, |_| {});
    let first = Vcpu::new(X87_SSE_AVX);

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
        ("giving up the CPU", yield_cpu),
        ("a sleep", sleep),
    ];
    clock::now();
    for (name, way) in ways {
        first.fill(1);
        way();
        t.equal(name, first.lost(1), 0);
    }
    // SAFETY: sets the task-switched flag, executes an SSE instruction in a probe, and clears the flag again.
    let trapped = unsafe {
        asm!("mov {0}, cr0", "or {0}, 8", "mov cr0, {0}", out(reg) _, options(nostack));
        let result = tests_qemu::probe::run(&[0x0f, 0x57, 0xc0], &mut Default::default());
        asm!("clts", options(nostack));
        result
    };
    t.equal("CR0.TS makes SSE trap", tests_qemu::probe::vector(trapped), Some(7));
    beside_another(t, &first);
}

/// Whose turn it is: the first vCPU's (0), or the second's (1).
static TURN: AtomicU32 = AtomicU32::new(0);
/// What the second vCPU has lost so far, and how often it has looked.
static SECOND_LOST: AtomicU32 = AtomicU32::new(0);
static SECOND_LOOKED: AtomicU64 = AtomicU64::new(0);

/// The two take turns: each fills its registers and finds them as they were once the other has had its turn.
fn beside_another(t: &mut Tests, first: &Vcpu) {
    let page = memory::page();
    SECOND_PAGE.store(page, Ordering::SeqCst);
    second::start(SECOND, second_main);
    let mut lost = 0;
    for round in 1..=ROUNDS {
        first.fill(2 * round);
        TURN.store(1, Ordering::SeqCst);
        if !wait_for(0) {
            break;
        }
        lost |= first.lost(2 * round);
    }
    t.equal("the second vCPU has had its turns", SECOND_LOOKED.load(Ordering::SeqCst), ROUNDS - 1);
    t.equal("the first vCPU's registers survive the second's", lost, 0);
    t.equal("and the second's the first's", SECOND_LOST.load(Ordering::SeqCst), 0);
}

static SECOND_PAGE: AtomicU64 = AtomicU64::new(0);

fn second_main() -> ! {
    apic::enable();
    apic::write(apic::TIMER_DIVIDE, 0xb);
    let vcpu = Vcpu::on_page(SECOND_PAGE.load(Ordering::SeqCst), X87_SSE);
    for round in 1.. {
        wait_for(1);
        if round > 1 {
            SECOND_LOST.fetch_or(vcpu.lost(2 * round - 1), Ordering::SeqCst);
            SECOND_LOOKED.fetch_add(1, Ordering::SeqCst);
        }
        vcpu.fill(2 * round + 1);
        TURN.store(0, Ordering::SeqCst);
    }
    cpu::stop()
}

/// Gives up the CPU, now by a yield and now by a sleep, until it is this one's turn. False if that does not come.
fn wait_for(turn: u32) -> bool {
    for attempt in 0..1000 {
        if TURN.load(Ordering::SeqCst) == turn {
            return true;
        }
        if attempt % 2 == 0 { yield_cpu() } else { sleep() }
    }
    false
}

fn yield_cpu() {
    hypercall::call(SCHED_OP, [0, 0, 0, 0, 0]);
}

fn sleep() {
    apic::write(apic::LVT_TIMER, TIMER.into());
    apic::write(apic::TIMER_INITIAL, 100_000);
    cpu::sleep();
}

/// What a vCPU may have lost, as bits.
mod lost {
    pub const X87_SSE: u32 = 1 << 0;
    pub const AVX: u32 = 1 << 1;
    pub const XCR0: u32 = 1 << 2;
    pub const DEBUG: u32 = 1 << 3;
    pub const TSC_AUX: u32 = 1 << 4;
}

/// A vCPU's values.
struct Vcpu {
    /// 1 KiB of values, then two areas of 1 KiB for what is saved.
    page: u64,
    /// 0 where the CPU has no XSAVE.
    xcr0: u32,
    tsc_aux: bool,
}

impl Vcpu {
    fn new(xcr0: u32) -> Vcpu {
        Vcpu::on_page(memory::page(), xcr0)
    }

    /// Has the states of `xcr0` on this vCPU, if the CPU has AVX.
    fn on_page(page: u64, xcr0: u32) -> Vcpu {
        let has = cpu::cpuid(1, 0).ecx;
        let avx = has & 1 << 26 != 0 && has & 1 << 28 != 0 && cpu::cpuid(0xd, 0).eax & 4 != 0;
        if avx {
            // SAFETY: sets CR4.OSXSAVE and XCR0 to states that the CPU has.
            unsafe {
                asm!("mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", out(reg) _, options(nostack));
                asm!("xsetbv", in("ecx") 0, in("eax") xcr0, in("edx") 0, options(nostack));
            }
        }
        let extended = cpu::cpuid(0x8000_0000, 0).eax >= 0x8000_0001;
        let tsc_aux = extended && cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0;
        Vcpu { page, xcr0: if avx { xcr0 } else { 0 }, tsc_aux }
    }

    fn has_avx(&self) -> bool {
        self.xcr0 & 4 != 0
    }

    fn debug_address(seed: u64, register: u64) -> u64 {
        seed << 16 | (register + 1) << 4
    }

    /// Distinct values in every register, and others for each seed.
    fn fill(&self, seed: u64) {
        let page = self.page;
        for word in 0..128 {
            cpu::write64(page + word * 8, (0x0101_0101_0101_0101 * (word + 1)) ^ (seed << 32) ^ seed);
        }
        let dr = |register| Vcpu::debug_address(seed, register);
        // Rounding differs with the seed: bits 10 and 11 of the control word, 13 and 14 of MXCSR.
        let control = [0x37f | (seed as u32 & 3) << 10, 0x1f80 | (seed as u32 & 3) << 13];
        // SAFETY: the compiler uses none of these registers (soft-float target); the page is ours; no breakpoint is switched on.
        unsafe {
            asm!("fninit", "fldcw [{0}]", "ldmxcsr [{0} + 4]", in(reg) &control, options(nostack));
            asm!("fld1", "fldpi", "fild qword ptr [{0}]", in(reg) page, options(nostack));
            asm!("movdqu xmm0, [{0}]", "movdqu xmm7, [{0} + 16]", "movdqu xmm15, [{0} + 32]", in(reg) page, options(nostack));
            if self.has_avx() {
                asm!("vmovdqu ymm3, [{0} + 64]", "vmovdqu ymm12, [{0} + 96]", in(reg) page, options(nostack));
            }
            asm!("mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", in(reg) dr(0), in(reg) dr(1), in(reg) dr(2), in(reg) dr(3), options(nostack));
        }
        if self.tsc_aux {
            cpu::wrmsr(TSC_AUX, seed);
        }
        self.save(page + 1024);
    }

    /// Which of them are not as they were filled with this seed, as [`lost`] has it.
    fn lost(&self, seed: u64) -> u32 {
        let (before, now) = (self.page + 1024, self.page + 2048);
        self.save(now);
        let differ = |words: core::ops::Range<u64>| {
            words.into_iter().any(|word| cpu::read64(before + word * 8) != cpu::read64(now + word * 8))
        };
        let mut lost = 0;
        // The legacy area without its last 96 bytes, which are free for software.
        if differ(0..(LEGACY - 96) / 8) {
            lost |= lost::X87_SSE;
        }
        if self.has_avx() && differ(576 / 8..832 / 8) {
            lost |= lost::AVX;
        }
        if self.xcr0 != 0 && xcr0() != self.xcr0.into() {
            lost |= lost::XCR0;
        }
        if (0..4).any(|register| debug_register(register) != Vcpu::debug_address(seed, register)) {
            lost |= lost::DEBUG;
        }
        if self.tsc_aux && cpu::rdmsr(TSC_AUX) != seed {
            lost |= lost::TSC_AUX;
        }
        lost
    }

    /// XSAVE, or FXSAVE, to an aligned place.
    fn save(&self, address: u64) {
        // SAFETY: the area is ours, aligned and large enough (832 bytes).
        unsafe {
            if self.has_avx() {
                asm!("xsave64 [{}]", in(reg) address, in("eax") 7, in("edx") 0, options(nostack));
            } else {
                asm!("fxsave64 [{}]", in(reg) address, options(nostack));
            }
        }
    }
}

fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register; the caller has switched XSAVE on.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn debug_register(register: u64) -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe {
        match register {
            0 => asm!("mov {}, dr0", out(reg) value, options(nomem, nostack)),
            1 => asm!("mov {}, dr1", out(reg) value, options(nomem, nostack)),
            2 => asm!("mov {}, dr2", out(reg) value, options(nomem, nostack)),
            _ => asm!("mov {}, dr3", out(reg) value, options(nomem, nostack)),
        }
    }
    value
}
