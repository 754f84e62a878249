//! Giving up the CPU: yield, block, poll.

#![no_std]
#![no_main]

use tests_qemu::events::{acknowledge, bind_ipi, bind_virq, clear_pending, mask, send, set_upcall_vector, settle};
use tests_qemu::hypercall::{call, op, vcpu_op};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu, fault};
use xen_abi::event::VIRQ_TIMER;
use xen_abi::handle::GuestHandle;
use xen_abi::numbers::SCHED_OP;
use xen_abi::sched::*;
use xen_abi::types::Port;
use xen_abi::vcpu::{SetSingleshotTimer, VCPUOP_SET_SINGLESHOT_TIMER};

tests_qemu::guest!(main);

const UPCALL: u8 = 0xf3;

fn poll(ports: &[Port], timeout: u64) -> i64 {
    let mut argument =
        Poll { ports: GuestHandle::new(ports.as_ptr() as u64), nr_ports: ports.len() as u32, pad: 0, timeout };
    op(SCHED_OP, SCHEDOP_POLL, &mut argument)
}

fn set_timer(timeout_abs_ns: u64) {
    let timer = bind_virq(VIRQ_TIMER, 0).unwrap_or_default();
    clear_pending(timer);
    vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut SetSingleshotTimer { timeout_abs_ns, ..Default::default() });
}

fn main(t: &mut Tests) {
    apic::enable();
    fault::on_interrupt(UPCALL, |_| acknowledge());
    set_upcall_vector(0, UPCALL);
    let before = settle(UPCALL);
    t.returns("yield, alone", call(SCHED_OP, [SCHEDOP_YIELD.into(), 0, 0, 0, 0]), 0);

    let port = bind_ipi(0).unwrap_or_default();
    clear_pending(port);
    mask(port);
    send(port);
    t.returns("polling a pending port", poll(&[port], 0), 0);
    clear_pending(port);
    let start = clock::now();
    let result = poll(&[port], start + 3_000_000);
    let took = clock::now() - start;
    t.returns("polling until a time", result, 0);
    t.within("returns at that time", took, 2_900_000, 3_000_000 + clock::slop());
    let start = clock::now();
    let result = poll(&[port], 1);
    let took = clock::now() - start;
    t.returns("polling until a time that is past", result, 0);
    t.within("returns at once", took, 0, clock::slop());
    t.returns("polling no port", poll(&[], clock::now() + 1_000_000), 0);
    t.returns("polling a port beyond all", poll(&[Port(0x10_0000)], 1), -22);
    t.returns("polling too many ports", poll(&[port; 129], 1), -22);

    cpu::interrupts_on();
    let unmasked = bind_ipi(0).unwrap_or_default();
    clear_pending(unmasked);
    send(unmasked);
    t.equal("an event with interrupts on", fault::count(UPCALL), before + 1);
    clear_pending(unmasked);
    let start = clock::now();
    // Far enough ahead that it cannot come before the guest blocks.
    set_timer(start + 3_000_000 + clock::slop());
    let result = call(SCHED_OP, [SCHEDOP_BLOCK.into(), 0, 0, 0, 0]);
    let took = clock::now() - start;
    cpu::interrupts_off();
    t.returns("blocking until a timer", result, 0);
    t.within("takes so long", took, 2_900_000, 3_000_000 + 2 * clock::slop());
    t.returns("an operation that does not exist", call(SCHED_OP, [99, 0, 0, 0, 0]), -38);
    t.returns(
        "a watchdog that does not exist",
        op(SCHED_OP, SCHEDOP_WATCHDOG, &mut Watchdog { id: 9, timeout: 1 }),
        -22,
    );
    let mut watchdog = Watchdog { id: 0, timeout: 100 };
    t.returns("a watchdog", op(SCHED_OP, SCHEDOP_WATCHDOG, &mut watchdog), 1);
    t.returns("is ended", op(SCHED_OP, SCHEDOP_WATCHDOG, &mut Watchdog { id: 1, timeout: 0 }), 0);
}
