//! The hypervisor's timers (single-shot, periodic) and the local APIC's (one-shot, periodic, TSC deadline).

#![no_std]
#![no_main]

use tests_qemu::events::{acknowledge, bind_virq, clear_pending, is_pending, set_upcall_vector};
use tests_qemu::hypercall::vcpu_op;
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu, fault, say};
use xen_abi::event::VIRQ_TIMER;
use xen_abi::types::Port;
use xen_abi::vcpu::*;

tests_qemu::guest!(main);

const UPCALL: u8 = 0xf3;
const APIC_TIMER: u8 = 0x40;
const TRIES: u32 = 40;
const MILLISECOND: u64 = 1_000_000;

fn main(t: &mut Tests) {
    apic::enable();
    fault::on_interrupt(UPCALL, |_| acknowledge());
    set_upcall_vector(0, UPCALL);
    let port = bind_virq(VIRQ_TIMER, 0).unwrap_or_default();
    clear_pending(port);
    single_shot(t, port);
    periodic(t, port);
    local_apic(t);
    if cpu::cpuid(1, 0).ecx & 1 << 24 != 0 {
        tsc_deadline(t);
    }
}

fn set(timeout_abs_ns: u64, flags: u32) -> i64 {
    vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut SetSingleshotTimer { timeout_abs_ns, flags, pad: 0 })
}

fn single_shot(t: &mut Tests, port: Port) {
    let deadline = clock::now() + 5 * MILLISECOND;
    let result = set(deadline, 0);
    while !is_pending(port) {
        cpu::sleep();
    }
    let late = clock::now().wrapping_sub(deadline);
    t.returns("a timer in 5 ms", result, 0);
    say!("it was {late} ns late");
    t.within("wakes in time, not before", late, 0, clock::slop());
    clear_pending(port);

    t.returns("a timer in the past", set(clock::now() - MILLISECOND, 0), 0);
    cpu::sleep();
    t.check("fires at once", is_pending(port));
    clear_pending(port);
    // The flag had a meaning once; Xen 4.20 ignores it, and so a late timer is never lost.
    t.returns("a timer in the past that must lie ahead", set(1, VCPU_SSHOTTMR_FUTURE), 0);
    cpu::sleep();
    t.check("fires at once, too", is_pending(port));
    clear_pending(port);

    let result = set(clock::now() + 20 * MILLISECOND, 0);
    let stopped = vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, 0, &mut 0u64);
    clock::spin(20 * MILLISECOND);
    t.returns("a timer in 20 ms", result, 0);
    t.returns("stopped", stopped, 0);
    clock::spin(4 * MILLISECOND);
    t.check("does not fire", !is_pending(port));

    let first = set(clock::now() + 8 * MILLISECOND, 0);
    let sooner = clock::now() + 2 * MILLISECOND;
    let second = set(sooner, 0);
    while !is_pending(port) {
        cpu::sleep();
    }
    let late = clock::now().wrapping_sub(sooner);
    t.returns("a timer in 8 ms", first, 0);
    t.returns("replaced by one in 2 ms", second, 0);
    t.within("fires at the second time", late, 0, clock::slop());
    clear_pending(port);
    clock::spin(10 * MILLISECOND);
    t.check("and not at the first", !is_pending(port));
    t.returns("a timer of a vCPU that is not there", vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, 77, &mut 0u64), -2);
}

/// What `count` counts while nothing stops the machine: an emulator's machine may be stopped for a while, and ticks of that time
/// become one. `count` tells the longest time, in nanoseconds, in which it did not look.
fn undisturbed(count: impl Fn() -> (u64, u64)) -> u64 {
    let mut ticks = 0;
    for _ in 0..TRIES {
        let (counted, longest) = count();
        ticks = counted;
        if longest < 2 * MILLISECOND {
            break;
        }
    }
    ticks
}

fn periodic(t: &mut Tests, port: Port) {
    let mut every = SetPeriodicTimer { period_ns: 5 * MILLISECOND };
    let result = vcpu_op(VCPUOP_SET_PERIODIC_TIMER, 0, &mut every);
    cpu::interrupts_on();
    let ticks = undisturbed(|| {
        let end = clock::now() + 50 * MILLISECOND;
        let (mut ticks, mut last, mut longest) = (0, clock::now(), 0);
        while last < end {
            cpu::pause();
            if is_pending(port) {
                clear_pending(port);
                ticks += 1;
            }
            let now = clock::now();
            longest = longest.max(now.wrapping_sub(last));
            last = now;
        }
        (ticks, longest)
    });
    cpu::interrupts_off();
    t.returns("a period of 5 ms", result, 0);
    t.within("about ten ticks in 50 ms", ticks, 8, 12);
    t.returns("stopping it", vcpu_op(VCPUOP_STOP_PERIODIC_TIMER, 0, &mut 0u64), 0);
    clear_pending(port);
    clock::spin(12 * MILLISECOND);
    t.check("ends the ticks", !is_pending(port));
    let mut every = SetPeriodicTimer { period_ns: 1000 };
    t.returns("a period below 1 ms", vcpu_op(VCPUOP_SET_PERIODIC_TIMER, 0, &mut every), -22);
}

fn local_apic(t: &mut Tests) {
    apic::write(apic::TIMER_DIVIDE, 0xb); // by 1
    apic::write(apic::LVT_TIMER, apic::MASKED | u32::from(APIC_TIMER));
    apic::write(apic::TIMER_INITIAL, 0xffff_ffff);
    clock::spin(2 * MILLISECOND);
    let per_millisecond = (0xffff_ffff - apic::read(apic::TIMER_CURRENT)) / 2;
    say!("the local APIC's timer has {per_millisecond} ticks per ms");
    t.check("the count goes down", per_millisecond > 100);
    t.equal("a masked timer is silent", fault::count(APIC_TIMER), 0);

    apic::write(apic::LVT_TIMER, APIC_TIMER.into());
    let start = clock::now();
    apic::write(apic::TIMER_INITIAL, per_millisecond * 3);
    while fault::count(APIC_TIMER) == 0 {
        cpu::sleep();
    }
    let took = clock::now() - start;
    t.within("one shot after 3 ms", took, 2_700_000, 3 * MILLISECOND + clock::slop());
    t.equal("then the count is 0", apic::read(apic::TIMER_CURRENT), 0);
    clock::spin(5 * MILLISECOND);
    t.equal("and no second shot", fault::count(APIC_TIMER), 1);

    apic::write(apic::LVT_TIMER, 1 << 17 | u32::from(APIC_TIMER));
    apic::write(apic::TIMER_INITIAL, per_millisecond * 2);
    let end = clock::now() + 20 * MILLISECOND;
    while clock::now() < end {
        cpu::sleep();
    }
    apic::write(apic::TIMER_INITIAL, 0);
    let count = fault::count(APIC_TIMER);
    t.within("ten periods of 2 ms in 20 ms", u64::from(count) - 1, 8, 12);
    cpu::interrupts_on();
    clock::spin(5 * MILLISECOND);
    cpu::interrupts_off();
    t.within("a count of 0 stops it", fault::count(APIC_TIMER).into(), count.into(), u64::from(count) + 1);
}

fn tsc_deadline(t: &mut Tests) {
    const DEADLINE: u32 = 0x6e0;
    apic::write(apic::LVT_TIMER, 2 << 17 | u32::from(APIC_TIMER));
    let count = fault::count(APIC_TIMER);
    let deadline = cpu::rdtsc() + clock::tsc_hz() / 500;
    cpu::wrmsr(DEADLINE, deadline);
    t.equal("the deadline reads back", cpu::rdmsr(DEADLINE), deadline);
    while fault::count(APIC_TIMER) == count {
        cpu::sleep();
    }
    let late = clock::ticks_to_nanos(&clock::time_info(), cpu::rdtsc().wrapping_sub(deadline));
    t.within("the TSC deadline", late, 0, clock::slop());
    t.equal("is then disarmed", cpu::rdmsr(DEADLINE), 0);
    cpu::wrmsr(DEADLINE, cpu::rdtsc() + clock::tsc_hz() / 500);
    cpu::wrmsr(DEADLINE, 0);
    clock::spin(4 * MILLISECOND);
    t.check("writing 0 disarms", !apic::bit(apic::REQUESTED, APIC_TIMER));
    cpu::wrmsr(DEADLINE, 1);
    cpu::sleep();
    t.equal("a deadline in the past fires at once", fault::count(APIC_TIMER), count + 2);
}
