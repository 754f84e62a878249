//! Costs: waking a vCPU on an idle CPU, from another CPU.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tests_qemu::events::{bind_ipi, clear_mask, clear_pending, mask, send, set_upcall_vector};
use tests_qemu::hypercall::op;
use tests_qemu::measure::{report, stamp, stamp_at};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu, memory, second};
use xen_abi::handle::GuestHandle;
use xen_abi::numbers::SCHED_OP;
use xen_abi::sched::{Poll, SCHEDOP_POLL};
use xen_abi::types::Port;

tests_qemu::guest!(main);

const UPCALL: u8 = 0xf3;
const IPI: u8 = 0x60;
const ROUNDS: u32 = 50;
/// Nanoseconds until a vCPU that is about to sleep does so for certain, and its CPU has nothing left to do.
const ASLEEP: u64 = 1_000_000;

/// How the second vCPU sleeps.
const HALT: u32 = 1;
const POLL: u32 = 2;

static HOW: AtomicU32 = AtomicU32::new(HALT);
static PORT: AtomicU32 = AtomicU32::new(0);
/// How often it has gone to sleep.
static NAPS: AtomicU64 = AtomicU64::new(0);

fn second_main() -> ! {
    apic::enter_x2apic();
    apic::enable();
    loop {
        forget_events();
        NAPS.fetch_add(1, Ordering::SeqCst);
        if HOW.load(Ordering::SeqCst) == HALT {
            // The handler leaves its time.
            cpu::sleep();
            apic::write(apic::EOI, 0);
        } else {
            let ports = [Port(PORT.load(Ordering::SeqCst))];
            let mut poll = Poll { ports: GuestHandle::new(ports.as_ptr() as u64), nr_ports: 1, ..Default::default() };
            op(SCHED_OP, SCHEDOP_POLL, &mut poll);
            stamp().store(cpu::rdtsc(), Ordering::SeqCst);
        }
    }
}

/// Nothing is pending for the second vCPU, as its part of the shared page has it.
fn forget_events() {
    clear_pending(Port(PORT.load(Ordering::SeqCst)));
    cpu::write64(memory::shared_info() + 64, 0);
    cpu::write64(memory::shared_info() + 72, 0);
}

/// Waits for the next nap; false if there is none.
fn naps(after: u64) -> bool {
    let end = clock::now() + 100_000_000 + clock::slop();
    while NAPS.load(Ordering::SeqCst) == after {
        if clock::now() > end {
            return false;
        }
        cpu::pause();
    }
    clock::spin(ASLEEP);
    true
}

/// The fewest ticks from the call of `wake` to the second vCPU's going on, and to its own return.
fn measure(wake: impl Fn()) -> Option<(u64, u64)> {
    let (mut fewest, mut fewest_here) = (u64::MAX, u64::MAX);
    for _ in 0..ROUNDS {
        stamp().store(0, Ordering::SeqCst);
        let nap = NAPS.load(Ordering::SeqCst);
        let start = cpu::rdtsc();
        wake();
        let done = cpu::rdtsc();
        if !naps(nap) {
            return None;
        }
        fewest = fewest.min(stamp().load(Ordering::SeqCst).wrapping_sub(start));
        fewest_here = fewest_here.min(done - start);
    }
    Some((fewest, fewest_here))
}

fn main(t: &mut Tests) {
    apic::enter_x2apic();
    apic::enable();
    stamp_at(UPCALL);
    stamp_at(IPI);
    set_upcall_vector(1, UPCALL);
    let port = bind_ipi(1).unwrap_or_default();
    PORT.store(port.0, Ordering::SeqCst);
    // Mapped before there are two that could do so.
    memory::shared_info();
    second::start(2, second_main);
    cpu::interrupts_on();
    // What is left over from its start wakes it once more.
    t.check("the second vCPU sleeps", naps(0));
    clock::spin(ASLEEP);

    let by_event = || {
        send(port);
    };
    let mut tell = |name: &str, here: Option<&str>, measured: Option<(u64, u64)>| {
        t.check(name, measured.is_some());
        if let Some((there, own)) = measured {
            report(name, there);
            here.inspect(|here| report(here, own));
        }
    };
    clear_mask(port);
    tell("wake-halted", Some("wake-send"), measure(by_event));
    tell("wake-ipi", None, measure(|| apic::send(2, IPI.into())));
    // The nap that it is in is the last of this kind.
    HOW.store(POLL, Ordering::SeqCst);
    mask(port);
    apic::send(2, IPI.into());
    clock::spin(2 * ASLEEP);
    tell("wake-polling", None, measure(by_event));
    cpu::interrupts_off();
}
