//! A hundred thousand hypercalls with arguments that make no sense, from a fixed seed. Nothing may break, nothing may be lost.

#![no_std]
#![no_main]

use tests_qemu::hypercall::{call, op};
use tests_qemu::memory;
use tests_qemu::random::Random;
use tests_qemu::tests::Tests;
use tests_qemu::{cpu, fault, say, start};
use xen_abi::memory::{MemoryDomain, XENMEM_CURRENT_RESERVATION};
use xen_abi::numbers::*;
use xen_abi::types::DomainId;
use xen_abi::vcpu::VCPUOP_DOWN;

tests_qemu::guest!(main);

const CALLS: u32 = 100_000;
const SEED: u64 = 0x5eed_c0de_2026_0001;

/// What would end the guest, the machine, or the guest's only vCPU, or fill the console: these are not called. The rest of each
/// hypercall is.
fn is_allowed(number: u64, [a, b, c, ..]: [u64; 5]) -> bool {
    let operation = a as u32;
    match number {
        // shutdown, remote_shutdown, shutdown_code; block and poll might sleep for ever; watchdog would end it later.
        SCHED_OP => !matches!(operation, 1..=6),
        SCHED_OP_COMPAT => false,
        // The last vCPU that goes down takes the domain with it.
        VCPU_OP => operation != VCPUOP_DOWN,
        CONSOLE_IO => operation != 0 || b == 0 || c >= 0x8000_0000_0000,
        // What a batch holds is not looked at here.
        MULTICALL => false,
        // Those with the right interface version are tried below by kind; debug keys reboot, CPUs go offline.
        SYSCTL | DOMCTL | PLATFORM_OP => true,
        // kexec into nothing
        KEXEC_OP => operation != 0,
        // A page might be taken away that the guest stands on.
        MEMORY_OP => !matches!(operation & 0x3f, 7 | 15 | 23 | 1 | 11),
        _ => true,
    }
}

fn main(t: &mut Tests) {
    let scratch = scratch();
    let before = reservation();
    let mut random = Random(SEED);
    let (mut made, mut refused, mut done) = (0u32, 0u32, 0u32);
    while made < CALLS {
        if made.is_multiple_of(64) {
            fill(&mut random, scratch);
        }
        let number = random.below(56);
        let arguments = core::array::from_fn(|_| random.argument(scratch));
        if !is_allowed(number, arguments) || !is_harmless(number, arguments, scratch) {
            continue;
        }
        let result = call(number, arguments);
        made += 1;
        if result < 0 {
            refused += 1
        } else {
            done += 1
        }
        if result < -4095 {
            t.check("an error is an errno", false);
            say!("hypercall {number} {arguments:x?} returned {result}");
            break;
        }
        if made.is_multiple_of(20_000) {
            say!("{made} calls");
        }
    }
    say!("{made} calls, {refused} refused, {done} done");
    t.equal("as many calls as wanted", made, CALLS);
    t.check("most are refused", refused > CALLS / 2);
    t.equal("the guest has its memory", reservation(), before);
    t.equal("no exception came but NMI", (0..32).filter(|vector| *vector != 2).map(fault::count).sum::<u32>(), 0);
    t.returns("hypercalls still work", call(XEN_VERSION, [0, 0, 0, 0, 0]), 4 << 16 | 20);
}

/// Two pages that nothing else is near, so that a long array ends before it reaches the guest. The first 2 MiB, where small
/// numbers would point, are taken away.
fn scratch() -> u64 {
    const PLACE: u64 = 0xffa0_0000;
    let table = memory::page();
    cpu::write64(table, memory::page() | 3);
    cpu::write64(table + 8, memory::page() | 3);
    start::map_table(PLACE, table);
    start::map_table(0, memory::page());
    PLACE
}

/// Numbers of all kinds, in both pages.
fn fill(random: &mut Random, scratch: u64) {
    for word in 0..1024 {
        cpu::write64(scratch + word * 8, random.word(scratch));
    }
}

/// Structures that are in the caller's memory are looked at, too.
fn is_harmless(number: u64, [a, b, ..]: [u64; 5], scratch: u64) -> bool {
    let pages = scratch..scratch + 8192 - 64;
    match number {
        // A platform operation, sysctl or domctl of a version that is spoken: none here, they have tests of their own.
        PLATFORM_OP | SYSCTL | DOMCTL if pages.contains(&a) => {
            cpu::write32(a + 4, 0xdead_0000 | cpu::read32(a + 4) & 0xff);
            cpu::read32(a + 4) != 0
        }
        // Parameters that change how the guest is woken are fine; interrupts are off.
        HVM_OP => a as u32 != 25 || !pages.contains(&b),
        _ => true,
    }
}

fn reservation() -> i64 {
    op(MEMORY_OP, XENMEM_CURRENT_RESERVATION, &mut MemoryDomain { domid: DomainId::SELF })
}
