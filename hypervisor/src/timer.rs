//! What time does to a vCPU: VIRQ_TIMER for its timers, the end of a poll, its domain's watchdogs.

use sched::Nanos;
use xen_abi::event::VIRQ_TIMER;
use xen_abi::sched::SHUTDOWN_WATCHDOG;

use crate::domain::{self, Domain};
use crate::event;
use crate::machine::Machine;
use crate::system::System;
use crate::vcpu::{Vcpu, hold};

/// Does what is due at `now`. The machine calls this at [`Vcpu::next_deadline`], and asks for the next one afterwards.
#[inline]
pub fn expire<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>, now: Nanos) {
    let due = vcpu.take_due(now);
    if due.timer {
        event::send_virq(system, domain, vcpu, VIRQ_TIMER);
    }
    if due.poll && vcpu.clear_hold(hold::POLLING) {
        system.machine.wake(domain, vcpu);
    }
    if due.watchdog {
        watchdog_fired(system, domain, vcpu);
    }
}

#[cold]
fn watchdog_fired<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>) {
    vcpu.watchdogs.end_all();
    if domain.shutdown_reason().is_none() {
        log::warn!(target: "domain", "{} (domain {}): its watchdog has fired", domain.name, domain.id.0);
        domain::shut_down(system, domain, SHUTDOWN_WATCHDOG as u8);
    }
}

/// A vCPU's timers were set: what is due already is done now, and the machine is told of the rest.
#[inline]
pub fn set<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>) {
    let now = system.machine.now();
    if vcpu.next_deadline().is_some_and(|deadline| deadline <= now) {
        expire(system, domain, vcpu, now);
    }
    system.machine.timer_changed(domain, vcpu);
}

/// A deadline as guests give them. Beyond 2^63 it counts as past, as in Xen, where times are signed.
#[inline]
pub fn deadline(nanos: u64) -> Nanos {
    Nanos(if nanos > i64::MAX as u64 { 0 } else { nanos })
}
