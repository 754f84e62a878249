//! Costs: event channels and timers.

#![no_std]
#![no_main]

use core::sync::atomic::Ordering;
use tests_qemu::events::*;
use tests_qemu::hypercall::vcpu_op;
use tests_qemu::measure::{path, path_after, path_to_handler, report, stamp, stamp_at};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, clock, cpu};
use xen_abi::event::VIRQ_TIMER;
use xen_abi::types::{DomainId, Port};
use xen_abi::vcpu::*;

tests_qemu::guest!(main);

const UPCALL: u8 = 0xf3;

fn main(t: &mut Tests) {
    apic::enable();
    set_upcall_vector(0, UPCALL);
    settle(UPCALL);
    let port = bind_ipi(0).unwrap_or_default();
    clear_pending(port);
    mask(port);
    path_after(
        "send-masked",
        || clear_pending(port),
        || {
            send(port);
        },
    );
    clear_pending(port);
    clear_mask(port);
    let again = || {
        clear_pending(port);
        acknowledge();
        apic::write(apic::EOI, 0);
    };
    path_to_handler(
        "send-to-self",
        UPCALL,
        || {
            send(port);
        },
        again,
    );
    close(port);

    let mut last = Port(0);
    let mut ports = [Port(0); 50];
    let mut index = 0;
    path("alloc-unbound", || {
        ports[index] = alloc_unbound(DomainId::SELF).unwrap_or_default();
        index += 1;
    });
    index = 0;
    path("bind-interdomain", || {
        last = bind_interdomain(DomainId::SELF, ports[index]).unwrap_or_default();
        index += 1;
    });
    index = 0;
    path("close", || {
        close(ports[index]);
        index += 1;
    });
    t.check("ports were bound", last != Port(0));
    timers();
}

fn set(timeout_abs_ns: u64) -> i64 {
    vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, &mut SetSingleshotTimer { timeout_abs_ns, flags: 0, pad: 0 })
}

fn timers() {
    let timer = bind_virq(VIRQ_TIMER, 0).unwrap_or_default();
    clear_pending(timer);
    acknowledge();
    let far = clock::now() + 10_000_000_000;
    path("timer-set", || {
        set(far);
    });
    let start = || {
        set(far);
    };
    path_after("timer-stop", start, || {
        vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, 0, &mut 0u64);
    });

    // How long after its time a timer's handler runs, out of HLT. In ticks: nanoseconds are coarser than instructions.
    stamp_at(UPCALL);
    let mut fewest = u64::MAX;
    for _ in 0..20 {
        // What was requested while the last one was in service comes now, and does not count.
        cpu::interrupts_on();
        cpu::pause();
        cpu::interrupts_off();
        apic::write(apic::EOI, 0);
        stamp().store(0, Ordering::SeqCst);
        let info = clock::time_info();
        let ticks = clock::tsc_hz() / 500;
        let at = cpu::rdtsc() + ticks;
        set(info.system_time + clock::ticks_to_nanos(&info, at - info.tsc_timestamp));
        while !is_pending(timer) {
            cpu::sleep();
        }
        fewest = fewest.min(stamp().load(Ordering::SeqCst).saturating_sub(at));
        clear_pending(timer);
        acknowledge();
        apic::write(apic::EOI, 0);
    }
    report("timer-wake", fewest);
}
