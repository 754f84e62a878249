//! The end of domains that no toolstack looks after: when one that was made at boot has stopped, it is taken down, a part at a time, while CPUs have
//! nothing better to do. What is left of others goes then, too.

use core::sync::atomic::{AtomicBool, Ordering};

use hypervisor::domain::Domain;
use hypervisor::machine::Machine;
use hypervisor::system::System;
use hypervisor::teardown;
use sched::{CpuSet, Nanos};

use crate::machine::X86;

/// A domain has stopped, or is being taken down.
static PENDING: AtomicBool = AtomicBool::new(false);
/// A CPU is at it.
static BUSY: AtomicBool = AtomicBool::new(false);

/// A domain beside Dom0 has stopped.
pub fn note() {
    PENDING.store(true, Ordering::Release);
}

/// Does a part of what there is to do. True if there is more, and this CPU may go on with it.
pub fn some(system: &'static System<X86>) -> bool {
    if system.has_graves() && teardown::bury(system) {
        return true;
    }
    if !PENDING.load(Ordering::Acquire) || BUSY.swap(true, Ordering::Acquire) {
        return false;
    }
    // Before the look: one that stops after it is seen next time.
    PENDING.store(false, Ordering::SeqCst);
    let mut stopped = None;
    system.for_each(|domain| {
        let is_ours = !domain.is_control() && !domain.control.made.by_toolstack;
        if is_ours && domain.shutdown_reason().is_some() {
            stopped = Some(domain.clone());
        }
    });
    if let Some(domain) = stopped {
        note();
        if teardown::destroy(system, &domain) {
            report(&domain, system.machine.now());
            log::info!(target: "domain", "{} (domain {}): its memory is free again", domain.name, domain.id.0);
        }
    }
    BUSY.store(false, Ordering::Release);
    PENDING.load(Ordering::Acquire)
}

/// Says how long each vCPU has run, and where.
fn report(domain: &Domain<X86>, now: Nanos) {
    for vcpu in &domain.vcpus {
        let [ran, ..] = vcpu.runstate.lock().times(now);
        let seen = vcpu.machine.context.lock().as_ref().map_or(CpuSet::EMPTY, |context| context.seen);
        if !seen.is_empty() {
            let (name, id, vcpu, ms) = (&domain.name, domain.id.0, vcpu.id.0, ran / 1_000_000);
            log::info!(target: "domain", "{name} (domain {id}): vCPU {vcpu} has run for {ms} ms, on CPUs {seen}");
        }
    }
}
