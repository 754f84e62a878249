//! How CPUs are shared: on the command line `hog=N`, in which case the guest works from the first second to the Nth and says what it got of that;
//! or `wait=N`, in which case it sleeps until then, and ends the machine. Both in hexadecimal, in seconds of system time. With interrupts off
//! throughout, a hog works without an exit, with `exits=1` with one after the other, and with `yields=1` it lets others go first all the time.

#![no_std]
#![no_main]

use tests_qemu::hypercall::{call, op, vcpu_op};
use tests_qemu::start::number;
use tests_qemu::tests::Tests;
use tests_qemu::{clock, cpu, power, say};
use xen_abi::numbers::SCHED_OP;
use xen_abi::sched::{Poll, SCHEDOP_POLL, SCHEDOP_YIELD};
use xen_abi::vcpu::{RunstateInfo, VCPUOP_GET_RUNSTATE_INFO};

tests_qemu::guest!(main);

const SECOND: u64 = 1_000_000_000;
/// When hogs begin to count: all have been started by then, unless the machine is slow.
const FROM: u64 = SECOND;

fn main(t: &mut Tests) {
    if let Some(end) = number("hog") {
        cpu::interrupts_off();
        let turn = match (number("exits"), number("yields")) {
            (None, None) => core::hint::spin_loop,
            (Some(_), _) => exit,
            (None, Some(_)) => give_way,
        };
        hog(end * SECOND, turn);
        power::shut_down(0);
    }
    let end = number("wait").unwrap_or(1) * SECOND;
    while clock::now() < end {
        op(SCHED_OP, SCHEDOP_POLL, &mut Poll { timeout: end, ..Default::default() });
    }
    t.check("it has slept", clock::now() >= end);
}

/// Nanoseconds that this vCPU has run.
fn ran() -> u64 {
    let mut info = RunstateInfo::default();
    vcpu_op(VCPUOP_GET_RUNSTATE_INFO, 0, &mut info);
    info.time[0]
}

fn exit() {
    cpu::cpuid(0, 0);
}

fn give_way() {
    call(SCHED_OP, [SCHEDOP_YIELD.into(), 0, 0, 0, 0]);
}

fn hog(end: u64, turn: fn()) {
    work_until(FROM, turn);
    let (start, before) = (clock::now(), ran());
    work_until(end, turn);
    say!("SHARE {} of {}", ran() - before, clock::now() - start);
}

fn work_until(end: u64, turn: fn()) {
    while clock::now() < end {
        turn();
    }
}
