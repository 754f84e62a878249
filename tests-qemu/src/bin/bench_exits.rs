//! Costs: instructions that exit, and hypercalls that do little.

#![no_std]
#![no_main]

use tests_qemu::hypercall::call;
use tests_qemu::measure::{path, path_after, path_to_handler, report};
use tests_qemu::tests::Tests;
use tests_qemu::{apic, cpu, memory, probe};
use xen_abi::memory::XENMEM_DECREASE_RESERVATION;
use xen_abi::numbers::*;

tests_qemu::guest!(main);

const VECTOR: u8 = 0x50;
const IO_APIC: u64 = 0xfec0_0000;

fn main(t: &mut Tests) {
    report("first-instruction", cpu::rdtsc());
    path("empty", || {});
    path("null-hypercall", || {
        call(XEN_VERSION, [0, 0, 0, 0, 0]);
    });
    path("unknown-hypercall", || {
        call(60, [0, 0, 0, 0, 0]);
    });
    path("bad-pointer", || {
        call(EVENT_CHANNEL_OP, [4, 1 << 40, 0, 0, 0]);
    });
    path("yield", || {
        call(SCHED_OP, [0, 0, 0, 0, 0]);
    });
    path("cpuid", || {
        cpu::cpuid(0, 0);
    });
    path("rdmsr", || {
        cpu::rdmsr(apic::BASE_MSR);
    });
    path("refused-msr", || {
        let _ = probe::rdmsr(0x123);
    });
    path("port-in", || {
        cpu::in8(0x61);
    });
    path("pci-config-read", || {
        cpu::out32(0xcf8, 0x8000_0000);
        cpu::in32(0xcfc);
    });
    apic::enable();
    apic::enter_x2apic();
    path_to_handler("self-ipi", VECTOR, || apic::send_self(VECTOR), || apic::write(apic::EOI, 0));
    path_after(
        "io-apic-access",
        || cpu::write32(IO_APIC, 1),
        || {
            cpu::read32(IO_APIC + 0x10);
        },
    );
    let hole = memory::spare_ram();
    let gfns = [memory::gfn(hole)];
    t.returns("making a hole", memory::reserve(XENMEM_DECREASE_RESERVATION, &gfns, 0), 1);
    path("p2m-hole", || {
        cpu::read32(hole);
    });
}
