//! Event channels of the two-level kind: every operation, and how the guest learns of an event.

#![no_std]
#![no_main]

use core::sync::atomic::Ordering;
use tests_qemu::events::*;
use tests_qemu::tests::Tests;
use tests_qemu::{apic, cpu, fault, hypercall};
use xen_abi::event::*;
use xen_abi::hvm::{HVM_PARAM_CALLBACK_IRQ, HVMOP_SET_PARAM, Param};
use xen_abi::numbers;
use xen_abi::types::{DomainId, Port};

tests_qemu::guest!(main);

const UPCALL: u8 = 0xf3;
const CALLBACK: u8 = 0xe0;

fn main(t: &mut Tests) {
    binding(t);
    pending_bits(t);
    callback(t);
    upcall(t);
    refusals(t);
    reset(t);
}

fn binding(t: &mut Tests) {
    let unbound = alloc_unbound(DomainId::SELF).unwrap_or_default();
    t.equal("the first port is 1", unbound, Port(1));
    let (result, is) = status(unbound);
    t.equal("it is unbound, for Dom0", (result, is.status, is.vcpu, is.value), (0, EVTCHNSTAT_UNBOUND, 0, 0));
    let bound = bind_interdomain(DomainId::SELF, unbound).unwrap_or_default();
    t.equal("the other end is the next port", bound, Port(2));
    let (_, is) = status(bound);
    t.equal("it is interdomain", (is.status, is.value, is.remote_port), (EVTCHNSTAT_INTERDOMAIN, 0, unbound));
    let (_, is) = status(unbound);
    t.equal("and so is the first", (is.status, is.remote_port), (EVTCHNSTAT_INTERDOMAIN, bound));
    let ipi = bind_ipi(0).unwrap_or_default();
    t.equal("an IPI's status", status(ipi).1.status, EVTCHNSTAT_IPI);
    let timer = bind_virq(VIRQ_TIMER, 0).unwrap_or_default();
    t.equal("a VIRQ's status", (status(timer).1.status, status(timer).1.value), (EVTCHNSTAT_VIRQ, VIRQ_TIMER));
    t.equal("a VIRQ is bound once", bind_virq(VIRQ_TIMER, 0), Err(-17));
    t.returns("closing a VIRQ", close(timer), 0);
    t.equal("a closed port", (status(timer).0, status(timer).1.status), (0, EVTCHNSTAT_CLOSED));
    t.equal("it is handed out again", bind_virq(VIRQ_TIMER, 0), Ok(timer));
    t.returns("closing one end", close(bound), 0);
    t.equal("leaves the other unbound", status(unbound).1.status, EVTCHNSTAT_UNBOUND);
    for port in [unbound, ipi, timer] {
        close(port);
    }
}

fn pending_bits(t: &mut Tests) {
    let a = alloc_unbound(DomainId::SELF).unwrap_or_default();
    let b = bind_interdomain(DomainId::SELF, a).unwrap_or_default();
    clear_pending(b);
    acknowledge();
    mask(b);
    t.returns("sending to a masked port", send(a), 0);
    t.check("it is pending", is_pending(b));
    t.check("the sender's end is not", !is_pending(a));
    t.equal("nobody is told", (upcall_pending().load(Ordering::SeqCst), selector().load(Ordering::SeqCst)), (0, 0));
    t.returns("unmasking", unmask(b), 0);
    t.check("clears the mask", !is_masked(b));
    t.equal("and tells", (upcall_pending().load(Ordering::SeqCst), selector().load(Ordering::SeqCst)), (1, 1));
    acknowledge();
    t.returns("sending again while pending", send(a), 0);
    t.equal("tells nobody", upcall_pending().load(Ordering::SeqCst), 0);
    clear_pending(b);
    t.returns("sending once more", send(a), 0);
    t.equal("tells", upcall_pending().load(Ordering::SeqCst), 1);
    clear_pending(b);
    acknowledge();
    close(a);
    close(b);
}

/// The upcall by `HVM_PARAM_CALLBACK_IRQ` as a vector: no local APIC is involved.
fn callback(t: &mut Tests) {
    fault::on_interrupt(CALLBACK, |_| acknowledge());
    let value = 2 << 56 | u64::from(CALLBACK);
    let mut param = Param { domid: DomainId::SELF, index: HVM_PARAM_CALLBACK_IRQ, value, ..Default::default() };
    t.returns("setting the callback", hypercall::op(numbers::HVM_OP, HVMOP_SET_PARAM, &mut param), 0);
    let ipi = bind_ipi(0).unwrap_or_default();
    clear_pending(ipi);
    t.returns("sending", send(ipi), 0);
    t.equal("interrupts are off: no callback yet", fault::count(CALLBACK), 0);
    cpu::interrupts_on();
    cpu::pause();
    cpu::interrupts_off();
    t.equal("one callback", fault::count(CALLBACK), 1);
    t.check("the port is pending", is_pending(ipi));
    clear_pending(ipi);
    close(ipi);
}

/// The upcall by a vector of the vCPU's own, as the local APIC delivers it.
fn upcall(t: &mut Tests) {
    apic::enable();
    fault::on_interrupt(UPCALL, |_| acknowledge());
    t.returns("setting the upcall vector", set_upcall_vector(0, UPCALL), 0);
    let before = settle(UPCALL);
    let ipi = bind_ipi(0).unwrap_or_default();
    clear_pending(ipi);
    cpu::interrupts_on();
    t.returns("sending with interrupts on", send(ipi), 0);
    t.equal("the upcall comes at once", fault::count(UPCALL), before + 1);
    clear_pending(ipi);
    cpu::interrupts_off();
    send(ipi);
    t.check("the vector is requested", apic::bit(apic::REQUESTED, UPCALL));
    cpu::sleep();
    t.equal("HLT wakes", fault::count(UPCALL), before + 2);
    t.check("nothing is in service after the EOI", !apic::bit(apic::IN_SERVICE, UPCALL));
    clear_pending(ipi);

    // A hundred events, each delivered.
    cpu::interrupts_on();
    for _ in 0..100 {
        clear_pending(ipi);
        send(ipi);
    }
    cpu::interrupts_off();
    t.equal("none of a hundred is lost", fault::count(UPCALL), before + 102);
    clear_pending(ipi);
    close(ipi);
}

fn refusals(t: &mut Tests) {
    t.returns("sending on a closed port", send(Port(9)), -22);
    t.returns("sending on port 0", send(Port(0)), -22);
    t.returns("sending beyond all ports", send(Port(0xffff_ffff)), -22);
    t.returns("closing a closed port", close(Port(9)), -22);
    t.equal("an IPI for a vCPU that is not there", bind_ipi(77), Err(-2));
    t.equal("a VIRQ that does not exist", bind_virq(NR_VIRQS, 0), Err(-22));
    t.equal("a VIRQ for a vCPU that is not there", bind_virq(VIRQ_TIMER, 77), Err(-2));
    t.equal("a global VIRQ for a vCPU other than 0", bind_virq(VIRQ_CONSOLE, 1), Err(-22));
    t.equal("binding to a port that is not unbound", bind_interdomain(DomainId::SELF, Port(9)), Err(-22));
    t.equal("binding to a domain that is not there", bind_interdomain(DomainId(1234), Port(1)), Err(-3));
    let mut elsewhere = AllocUnbound { dom: DomainId(1234), ..Default::default() };
    t.returns("allocating for a domain that is not there", op(EVTCHNOP_ALLOC_UNBOUND, &mut elsewhere), -3);
    t.returns(
        "status of a domain that is not there",
        op(EVTCHNOP_STATUS, &mut Status { dom: DomainId(1234), ..Default::default() }),
        -3,
    );
    t.returns("an operation that does not exist", op(99, &mut 0u64), -38);
    let ipi = bind_ipi(0).unwrap_or_default();
    t.returns("moving an IPI", op(EVTCHNOP_BIND_VCPU, &mut BindVcpu { port: ipi, vcpu: 0 }), -22);
    t.returns("moving to a vCPU that is not there", op(EVTCHNOP_BIND_VCPU, &mut BindVcpu { port: ipi, vcpu: 77 }), -2);
    t.returns("unmasking a closed port", unmask(Port(9)), 0);
    t.returns("unmasking beyond all ports", unmask(Port(0xffff_ffff)), -22);
    t.returns(
        "a priority without FIFO events",
        op(EVTCHNOP_SET_PRIORITY, &mut SetPriority { port: ipi, priority: 1 }),
        -38,
    );
    t.returns("an upcall vector below 16", set_upcall_vector(0, 15), -22);
    t.returns("an upcall vector for a vCPU that is not there", set_upcall_vector(77, 0xf3), -2);
}

fn reset(t: &mut Tests) {
    t.returns("resetting", op(EVTCHNOP_RESET, &mut Reset { dom: DomainId::SELF }), 0);
    t.equal("closes every port", alloc_unbound(DomainId::SELF), Ok(Port(1)));
    t.returns("resetting again", op(EVTCHNOP_RESET, &mut Reset { dom: DomainId::SELF }), 0);
    // Every port that there is, then none.
    let mut ports = 0;
    while alloc_unbound(DomainId::SELF).is_ok() {
        ports += 1;
    }
    t.equal("there are 4095 ports", ports, EVTCHN_2L_NR_CHANNELS - 1);
    t.equal("and no more", alloc_unbound(DomainId::SELF), Err(-28));
    t.returns("resetting once more", op(EVTCHNOP_RESET, &mut Reset { dom: DomainId::SELF }), 0);
}
