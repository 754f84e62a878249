//! Two vCPUs: INIT and SIPI start the second, and interrupts go both ways in xAPIC and in x2APIC mode.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use tests_qemu::events::{acknowledge, bind_ipi, send, set_upcall_vector};
use tests_qemu::hypercall::call;
use tests_qemu::tests::Tests;
use tests_qemu::{acpi, apic, clock, cpu, fault, memory, second};
use xen_abi::numbers::VCPU_OP;
use xen_abi::vcpu::VCPUOP_IS_UP;

tests_qemu::guest!(main);

const TO_SECOND: u8 = 0x60;
const TO_FIRST: u8 = 0x61;
const UPCALL: u8 = 0xf3;
const SELF: u8 = 0x62;

/// How often an interrupt goes there and back in each mode. Many, for a fault that came once in hundreds of times: two CPUs on one core that lost
/// all their time to waiting for each other's turn of a ticket lock.
const ROUNDS: u32 = 25;

/// How far the second vCPU is: 1 up, 2 in x2APIC mode.
static STATE: AtomicU32 = AtomicU32::new(0);
/// How often it was started, and how often it has been round its loop.
static STARTS: AtomicU32 = AtomicU32::new(0);
static TURNS: AtomicU32 = AtomicU32::new(0);
static MODE: AtomicU32 = AtomicU32::new(0);
static SECOND_ID: AtomicU32 = AtomicU32::new(0);

fn second_main() -> ! {
    STARTS.fetch_add(1, Ordering::SeqCst);
    apic::enable();
    SECOND_ID.store(cpu::apic_id(), Ordering::SeqCst);
    STATE.store(1, Ordering::SeqCst);
    loop {
        cpu::interrupts_on();
        cpu::pause();
        TURNS.fetch_add(1, Ordering::SeqCst);
        if MODE.load(Ordering::SeqCst) == 2 && STATE.load(Ordering::SeqCst) == 1 {
            cpu::interrupts_off();
            cpu::wrmsr(apic::BASE_MSR, cpu::rdmsr(apic::BASE_MSR) | 1 << 10);
            STATE.store(2, Ordering::SeqCst);
        }
    }
}

fn main(t: &mut Tests) {
    apic::enable();
    fault::on_interrupt(SELF, |_| {});
    fault::on_interrupt(TO_FIRST, |_| {});
    fault::on_interrupt(UPCALL, |_| acknowledge());
    fault::on_interrupt(TO_SECOND, |_| apic::send(0, TO_FIRST.into()));

    let mut ids = [u32::MAX; 4];
    let mut count = 0;
    acpi::madt_entries(|kind, entry| {
        // A local APIC (type 0) or a local x2APIC (type 9): UID, APIC id, flags.
        let (uid, id, flags): (u32, u32, u32) = match kind {
            0 => (acpi::field::<u8>(entry + 2).into(), acpi::field::<u8>(entry + 3).into(), acpi::field(entry + 4)),
            9 => (acpi::field(entry + 12), acpi::field(entry + 4), acpi::field(entry + 8)),
            _ => return,
        };
        if flags & 1 != 0 && uid < 4 {
            ids[uid as usize] = id;
            count += 1;
        }
    });
    t.equal("the MADT has two processors", count, 2);
    t.equal("their UIDs are vCPU ids, their APIC ids twice that", [ids[0], ids[1]], [0, 2]);
    t.returns("the second vCPU is down", call(VCPU_OP, [VCPUOP_IS_UP.into(), 1, 0, 0, 0]), 0);
    own(t, 1);
    start(t, ids[1]);
    between(t, ids[1], 0);
    event(t);

    MODE.store(2, Ordering::SeqCst);
    // With interrupts off, Bochs 2.7 keeps the host's timer from a guest too, and the other vCPU never gets its turn.
    cpu::interrupts_on();
    wait_for(|| STATE.load(Ordering::SeqCst) == 2);
    cpu::interrupts_off();
    t.equal("the second vCPU is in x2APIC mode", STATE.load(Ordering::SeqCst), 2);
    apic::enter_x2apic();
    t.equal("the id by MSR", apic::read(apic::ID), 0);
    own(t, 2);
    between(t, ids[1], ROUNDS);
    t.check("xAPIC's page is gone", cpu::read32(apic::PAGE + 0x20) == u32::MAX);
}

fn wait_for(condition: impl Fn() -> bool) -> bool {
    let end = clock::now() + 100_000_000 + clock::slop();
    while clock::now() < end {
        if condition() {
            return true;
        }
        cpu::pause();
    }
    false
}

/// Interrupts to this vCPU itself, by shorthand and by id.
fn own(t: &mut Tests, round: u32) {
    let before = fault::count(SELF);
    cpu::interrupts_on();
    apic::send_self(SELF);
    cpu::pause();
    apic::send(cpu::apic_id(), SELF.into());
    cpu::pause();
    cpu::interrupts_off();
    t.equal(if round == 1 { "to itself, xAPIC" } else { "to itself, x2APIC" }, fault::count(SELF), before + 2);
}

fn start(t: &mut Tests, id: u32) {
    // Linux gives a vCPU its vcpu_info and its upcall vector before it starts it, which leaves an upcall waiting.
    t.returns("an upcall vector of the second vCPU", set_upcall_vector(1, UPCALL), 0);
    send(bind_ipi(1).unwrap_or_default());
    let startup = second::prepare(second_main);
    apic::send(id, second::INIT);
    clock::spin(1_000_000);
    t.equal("INIT alone starts nothing", STATE.load(Ordering::SeqCst), 0);
    apic::send(id, startup);
    wait_for(|| STATE.load(Ordering::SeqCst) == 1);
    t.equal("SIPI starts it", STATE.load(Ordering::SeqCst), 1);
    t.equal("it has its APIC id", SECOND_ID.load(Ordering::SeqCst), id);
    wait_for(|| fault::count(UPCALL) == 1);
    t.equal("INIT has not lost the upcall that waited", fault::count(UPCALL), 1);
    t.returns("it is up", call(VCPU_OP, [VCPUOP_IS_UP.into(), 1, 0, 0, 0]), 1);
    apic::send(id, startup);
    // It has to have had its turn since, or nothing is shown.
    let turns = TURNS.load(Ordering::SeqCst);
    cpu::interrupts_on();
    let ran = wait_for(|| TURNS.load(Ordering::SeqCst).wrapping_sub(turns) >= 2);
    cpu::interrupts_off();
    t.check("it goes on after a second SIPI", ran);
    t.equal("a second SIPI is ignored", STARTS.load(Ordering::SeqCst), 1);
}

/// There and back: the second vCPU's handler sends an interrupt to the first.
fn between(t: &mut Tests, id: u32, before: u32) {
    cpu::interrupts_on();
    for round in 1..=ROUNDS {
        apic::send(id, TO_SECOND.into());
        wait_for(|| fault::count(TO_FIRST) == before + round);
    }
    cpu::interrupts_off();
    t.equal("there", fault::count(TO_SECOND), before + ROUNDS);
    t.equal("and back", fault::count(TO_FIRST), before + ROUNDS);
}

/// An event channel that notifies the second vCPU.
fn event(t: &mut Tests) {
    let before = fault::count(UPCALL);
    let port = bind_ipi(1).unwrap_or_default();
    // The handler acknowledges vCPU 0's word only: clear the second one's here.
    cpu::write64(memory::shared_info() + 64, 0);
    cpu::write64(memory::shared_info() + 72, 0);
    send(port);
    cpu::interrupts_on();
    wait_for(|| fault::count(UPCALL) > before);
    cpu::interrupts_off();
    t.check("an event wakes it", fault::count(UPCALL) > before);
    t.check("its own word says so", cpu::read64(memory::shared_info() + 64) & 0xff == 1);
}
