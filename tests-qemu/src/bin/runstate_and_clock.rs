//! The clocks: system time against the RTC, the wall clock, runstates, and where they are kept.

#![no_std]
#![no_main]

use tests_qemu::hypercall::{call, op, vcpu_op};
use tests_qemu::memory::{self, gfn};
use tests_qemu::tests::Tests;
use tests_qemu::{clock, cpu, say};
use xen_abi::numbers::{HVM_OP, SCHED_OP, VCPU_OP, VM_ASSIST};
use xen_abi::vcpu::*;

tests_qemu::guest!(main);

fn main(t: &mut Tests) {
    system_time(t);
    wall_clock(t);
    vcpu_info(t);
    runstate(t);
    time_area(t);
}

fn rtc_second() -> u8 {
    cpu::out8(0x70, 0);
    cpu::in8(0x71)
}

/// The moment at which the RTC's second changes.
fn next_second() -> u64 {
    let second = rtc_second();
    while rtc_second() == second {}
    clock::now()
}

fn system_time(t: &mut Tests) {
    let mut last = clock::now();
    let mut steady = true;
    for _ in 0..10_000 {
        let now = clock::now();
        steady &= now >= last;
        last = now;
    }
    t.check("system time never goes back", steady);
    let info = clock::time_info();
    say!(
        "TSC {} Hz, scale {:#x} shift {}, flags {}",
        clock::tsc_hz(),
        info.tsc_to_system_mul,
        info.tsc_shift,
        info.flags
    );
    t.check("the version is even", info.version & 1 == 0);
    t.check("the scale is normal", info.tsc_to_system_mul >= 0x8000_0000);
    // An engine that lives in its host's time may look too late once; a clock that is wrong is so each time.
    let mut second = 0;
    for _ in 0..5 {
        let start = next_second();
        second = next_second() - start;
        if (990_000_000..=1_010_000_000).contains(&second) {
            break;
        }
    }
    t.within("a second of the RTC is one of system time, within 1 %", second, 990_000_000, 1_010_000_000);
    let mut time = xen_abi::hvm::GetTime::default();
    let before = clock::now();
    t.returns("HVMOP_get_time", op(HVM_OP, xen_abi::hvm::HVMOP_GET_TIME, &mut time), 0);
    t.check("is system time", before <= time.now && time.now <= clock::now());
}

fn wall_clock(t: &mut Tests) {
    let shared = memory::shared_info();
    let seconds = u64::from(cpu::read32(shared + 3076)) | u64::from(cpu::read32(shared + 3084)) << 32;
    t.check("the wall clock's version is even", cpu::read32(shared + 3072) & 1 == 0);
    let nanos = cpu::read32(shared + 3080);
    say!("wall clock {seconds} s {nanos} ns at system time 0");
    t.check("nanoseconds are below a second", nanos < 1_000_000_000);
    // What the RTC says now is what the wall clock at 0 and system time come to.
    let now = seconds + clock::now() / 1_000_000_000;
    let read = |register: u8| {
        cpu::out8(0x70, register);
        let bcd = cpu::in8(0x71);
        u64::from(bcd & 0xf) + u64::from(bcd >> 4) * 10
    };
    let in_hour = read(2) * 60 + read(0);
    t.within("it is the RTC's time", (now % 3600 + 3602 - in_hour) % 3600, 0, 4);
}

fn vcpu_info(t: &mut Tests) {
    let page = memory::page();
    let mut there = RegisterVcpuInfo { mfn: gfn(page), offset: 128, reserved: 0 };
    let mut wrong = RegisterVcpuInfo { offset: 4096 - 32, ..there };
    t.returns("vCPU info across a page's end", vcpu_op(VCPUOP_REGISTER_VCPU_INFO, 0, &mut wrong), -6);
    let mut wrong = RegisterVcpuInfo { offset: 3, ..there };
    t.returns("vCPU info that is not aligned", vcpu_op(VCPUOP_REGISTER_VCPU_INFO, 0, &mut wrong), -6);
    t.returns("moving vCPU info", vcpu_op(VCPUOP_REGISTER_VCPU_INFO, 0, &mut there), 0);
    t.check("the time is there", cpu::read32(page + 128 + 32 + 24) != 0);
    call(SCHED_OP, [0, 0, 0, 0, 0]);
    t.check("and is kept", cpu::read64(page + 128 + 32 + 8) != 0);
    t.returns("moving it again", vcpu_op(VCPUOP_REGISTER_VCPU_INFO, 0, &mut there), -16);
    t.returns("is this vCPU up", call(VCPU_OP, [VCPUOP_IS_UP.into(), 0, 0, 0, 0]), 1);
    t.returns("is a vCPU up that is not there", call(VCPU_OP, [VCPUOP_IS_UP.into(), 77, 0, 0, 0]), -2);
    t.returns("an operation that does not exist", call(VCPU_OP, [99, 0, 0, 0, 0]), -38);
}

fn runstate(t: &mut Tests) {
    let mut info = RunstateInfo::default();
    t.returns("the runstate", vcpu_op(VCPUOP_GET_RUNSTATE_INFO, 0, &mut info), 0);
    t.equal("is running", info.state, RUNSTATE_RUNNING);
    t.check("since a while", info.state_entry_time > 0 && info.state_entry_time <= clock::now());
    let sum = info.time.iter().fold(0u64, |sum, time| sum.wrapping_add(*time));
    t.within("the times add up to system time", clock::now().wrapping_sub(sum), 0, clock::now());

    let page = memory::page();
    t.returns("updates may be flagged", call(VM_ASSIST, [0, 5, 0, 0, 0]), 0);
    let mut area = RegisterArea { addr: page };
    t.returns("a place for it", vcpu_op(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, &mut area), 0);
    t.equal("it is running there", cpu::read32(page), RUNSTATE_RUNNING);
    let running = cpu::read64(page + 16);
    call(SCHED_OP, [0, 0, 0, 0, 0]);
    t.check("the time that it ran is kept", cpu::read64(page + 16) >= running);
    t.equal("no update is under way", cpu::read64(page + 8) & XEN_RUNSTATE_UPDATE, 0);
    let page = memory::page();
    let mut area = RegisterArea { addr: page };
    t.returns("a place by physical address", vcpu_op(VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, 0, &mut area), 0);
    t.check("has the times", cpu::read64(page + 8) != 0);
    let mut area = RegisterArea { addr: 1 << 50 };
    t.check("a place that is not there", vcpu_op(VCPUOP_REGISTER_RUNSTATE_PHYS_AREA, 0, &mut area) < 0);
}

fn time_area(t: &mut Tests) {
    let page = memory::page();
    let mut area = RegisterArea { addr: page };
    t.returns("a place for the time", vcpu_op(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 0, &mut area), 0);
    t.check("has the scale", cpu::read32(page + 24) != 0);
    let mut area = RegisterArea { addr: memory::page() };
    t.returns("by physical address", vcpu_op(VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA, 0, &mut area), 0);
    t.check("has the scale, too", cpu::read32(area.addr + 24) != 0);
}
