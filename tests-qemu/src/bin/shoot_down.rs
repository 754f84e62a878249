//! A page that is taken away is out of reach of the other vCPU when the hypercall that took it returns, wherever that runs.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};
use tests_qemu::memory::{self, gfn, reserve};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu, second};
use xen_abi::memory::{XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP};

tests_qemu::guest!(main);

const ROUNDS: u64 = 50;

/// The page.
static PAGE: AtomicU64 = AtomicU64::new(0);
/// Odd while the page is away for certain.
static STAGE: AtomicU64 = AtomicU64::new(0);
/// How often the second vCPU has been round its loop, found nothing, and found memory where none could be.
static TURNS: AtomicU64 = AtomicU64::new(0);
static HOLES: AtomicU64 = AtomicU64::new(0);
static STALE: AtomicU64 = AtomicU64::new(0);

fn second_main() -> ! {
    let page = PAGE.load(Ordering::SeqCst);
    loop {
        let turn = TURNS.load(Ordering::SeqCst);
        let before = STAGE.load(Ordering::SeqCst);
        cpu::write64(page, turn);
        let seen = cpu::read64(page);
        let after = STAGE.load(Ordering::SeqCst);
        if before == after && before % 2 == 1 {
            let found = if seen == u64::MAX { &HOLES } else { &STALE };
            found.fetch_add(1, Ordering::SeqCst);
        }
        TURNS.store(turn + 1, Ordering::SeqCst);
    }
}

/// Lets the second vCPU go round a few times.
fn turns(count: u64) -> bool {
    let start = TURNS.load(Ordering::SeqCst);
    let end = clock::now() + 1_000_000_000 + clock::slop();
    while TURNS.load(Ordering::SeqCst).wrapping_sub(start) < count {
        if clock::now() > end {
            return false;
        }
        cpu::pause();
    }
    true
}

fn main(t: &mut Tests) {
    apic::enable();
    let page = memory::spare_ram();
    PAGE.store(page, Ordering::SeqCst);
    second::start(2, second_main);
    // With interrupts off, Bochs keeps the host's timer from a guest too, and the other vCPU would have to wait.
    cpu::interrupts_on();
    t.check("the second vCPU runs", turns(3));
    let (mut taken, mut given, mut went_on) = (0, 0, 0);
    for _ in 0..ROUNDS {
        taken += reserve(XENMEM_DECREASE_RESERVATION, &[gfn(page)], 0);
        STAGE.fetch_add(1, Ordering::SeqCst);
        went_on += u64::from(turns(3));
        STAGE.fetch_add(1, Ordering::SeqCst);
        given += reserve(XENMEM_POPULATE_PHYSMAP, &[gfn(page)], 0);
        went_on += u64::from(turns(3));
    }
    cpu::interrupts_off();
    t.equal("the page goes each time", taken, ROUNDS as i64);
    t.equal("and comes back", given, ROUNDS as i64);
    t.equal("the second vCPU goes on all the time", went_on, 2 * ROUNDS);
    t.equal("it never finds memory where there is none", STALE.load(Ordering::SeqCst), 0);
    t.check("it looks while the page is away", HOLES.load(Ordering::SeqCst) >= ROUNDS);
}
