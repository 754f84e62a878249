//! Event channels of the two-level kind, and the calls that both kinds share.

use crate::{cpu, fault, hypercall, memory};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use xen_abi::event::*;
use xen_abi::hvm::{EvtchnUpcallVector, HVMOP_SET_EVTCHN_UPCALL_VECTOR};
use xen_abi::numbers;
use xen_abi::types::{DomainId, Port};

pub fn op<T>(operation: u32, argument: &mut T) -> i64 {
    hypercall::op(numbers::EVENT_CHANNEL_OP, operation, argument)
}

/// A port of the caller's own that `remote` may bind to.
pub fn alloc_unbound(remote: DomainId) -> Result<Port, i64> {
    let mut argument = AllocUnbound { dom: DomainId::SELF, remote_dom: remote, port: Port(0) };
    match op(EVTCHNOP_ALLOC_UNBOUND, &mut argument) {
        0 => Ok(argument.port),
        error => Err(error),
    }
}

pub fn bind_ipi(vcpu: u32) -> Result<Port, i64> {
    let mut argument = BindIpi { vcpu, port: Port(0) };
    match op(EVTCHNOP_BIND_IPI, &mut argument) {
        0 => Ok(argument.port),
        error => Err(error),
    }
}

pub fn bind_virq(virq: u32, vcpu: u32) -> Result<Port, i64> {
    let mut argument = BindVirq { virq, vcpu, port: Port(0) };
    match op(EVTCHNOP_BIND_VIRQ, &mut argument) {
        0 => Ok(argument.port),
        error => Err(error),
    }
}

pub fn bind_interdomain(remote_dom: DomainId, remote_port: Port) -> Result<Port, i64> {
    let mut argument = BindInterdomain { remote_dom, remote_port, ..Default::default() };
    match op(EVTCHNOP_BIND_INTERDOMAIN, &mut argument) {
        0 => Ok(argument.local_port),
        error => Err(error),
    }
}

pub fn send(port: Port) -> i64 {
    op(EVTCHNOP_SEND, &mut Send { port })
}

pub fn unmask(port: Port) -> i64 {
    op(EVTCHNOP_UNMASK, &mut Unmask { port })
}

pub fn close(port: Port) -> i64 {
    op(EVTCHNOP_CLOSE, &mut Close { port })
}

pub fn status(port: Port) -> (i64, Status) {
    let mut argument = Status { dom: DomainId::SELF, port, ..Default::default() };
    let result = op(EVTCHNOP_STATUS, &mut argument);
    (result, argument)
}

/// Events are to raise `vector` on `vcpu`.
pub fn set_upcall_vector(vcpu: u32, vector: u8) -> i64 {
    let mut argument = EvtchnUpcallVector { vcpu, vector, pad: [0; 3] };
    hypercall::op(numbers::HVM_OP, HVMOP_SET_EVTCHN_UPCALL_VECTOR, &mut argument)
}

fn word(offset: u64) -> &'static AtomicU64 {
    // SAFETY: the shared page stays mapped, and is only touched by atomics.
    unsafe { AtomicU64::from_ptr((memory::shared_info() + offset) as *mut u64) }
}

const PENDING: u64 = 2048;
const MASK: u64 = 2560;

pub fn is_pending(port: Port) -> bool {
    word(PENDING + u64::from(port.0 / 64) * 8).load(Ordering::SeqCst) & 1 << (port.0 % 64) != 0
}

pub fn clear_pending(port: Port) {
    word(PENDING + u64::from(port.0 / 64) * 8).fetch_and(!(1 << (port.0 % 64)), Ordering::SeqCst);
}

pub fn mask(port: Port) {
    word(MASK + u64::from(port.0 / 64) * 8).fetch_or(1 << (port.0 % 64), Ordering::SeqCst);
}

pub fn is_masked(port: Port) -> bool {
    word(MASK + u64::from(port.0 / 64) * 8).load(Ordering::SeqCst) & 1 << (port.0 % 64) != 0
}

/// Clears the mask without asking the hypervisor.
pub fn clear_mask(port: Port) {
    word(MASK + u64::from(port.0 / 64) * 8).fetch_and(!(1 << (port.0 % 64)), Ordering::SeqCst);
}

/// `evtchn_upcall_pending` of vCPU 0 in the shared page.
pub fn upcall_pending() -> &'static AtomicU8 {
    // SAFETY: as in `word`.
    unsafe { AtomicU8::from_ptr(memory::shared_info() as *mut u8) }
}

/// `evtchn_pending_sel` of vCPU 0 in the shared page.
pub fn selector() -> &'static AtomicU64 {
    word(8)
}

/// Forgets that anything is pending for vCPU 0, as a handler does.
pub fn acknowledge() {
    upcall_pending().store(0, Ordering::SeqCst);
    selector().swap(0, Ordering::SeqCst);
}

/// Lets in what waits already (setting an upcall vector raises it once), and says how often `vector` has come by then.
pub fn settle(vector: u8) -> u32 {
    acknowledge();
    cpu::interrupts_on();
    // An exit or two: what is pending goes in at the next entry.
    for _ in 0..3 {
        hypercall::call(numbers::XEN_VERSION, [0; 5]);
    }
    cpu::interrupts_off();
    acknowledge();
    fault::count(vector)
}
