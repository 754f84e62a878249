//! The end of domains beside Dom0: when one has stopped, its memory goes back, a part at a time, while CPUs have nothing better to do.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use hypervisor::domain::Domain;
use hypervisor::machine::Machine;
use hypervisor::system::System;
use hypervisor::teardown::Teardown;
use mm::lock::{Lock, Rank};
use sched::{CpuSet, Nanos};

use crate::machine::X86;
use crate::percpu;

/// A domain has stopped, or is being taken down.
static PENDING: AtomicBool = AtomicBool::new(false);
/// A CPU is at it.
static BUSY: AtomicBool = AtomicBool::new(false);
/// The domain that is being taken down. No lock is held meanwhile.
static CURRENT: Lock<Option<(Arc<Domain<X86>>, Teardown)>> = Lock::new(Rank::Domains, None);

/// A domain beside Dom0 has stopped.
pub fn note() {
    PENDING.store(true, Ordering::Release);
}

/// Does a part of what there is to do. True if there is more, and this CPU may go on with it.
pub fn some(system: &'static System<X86>) -> bool {
    if !PENDING.load(Ordering::Acquire) || BUSY.swap(true, Ordering::Acquire) {
        return false;
    }
    let begun = CURRENT.lock().take();
    if let Some((domain, mut teardown)) = begun.or_else(|| next(system)) {
        if has_left(&domain) && teardown.step(system, &domain) {
            report(&domain, system.machine.now());
            // What is left is small, and referred to by the scheduler's list.
            log::info!(target: "domain", "{} (domain {}): its memory is free again", domain.name, domain.id.0);
        } else {
            *CURRENT.lock() = Some((domain, teardown));
        }
    }
    BUSY.store(false, Ordering::Release);
    PENDING.load(Ordering::Acquire)
}

/// A domain that has stopped, taken off the list.
fn next(system: &System<X86>) -> Option<(Arc<Domain<X86>>, Teardown)> {
    // Before the look: one that stops after it is seen next time.
    PENDING.store(false, Ordering::SeqCst);
    let mut stopped = None;
    system.for_each(|domain| {
        if !domain.is_control() && domain.shutdown_reason().is_some() {
            stopped = Some(domain.id);
        }
    });
    let domain = system.remove(stopped?)?;
    PENDING.store(true, Ordering::Release);
    let now = system.machine.now();
    for vcpu in &domain.vcpus {
        vcpu.set_singleshot(None);
        vcpu.set_periodic(now, Nanos::ZERO);
        vcpu.machine.set_lapic_deadline(None);
        system.machine.timer_changed(&domain, vcpu);
    }
    Some((domain, Teardown::default()))
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

/// Whether no CPU has registers of the domain's any more. Those that do are asked for them.
fn has_left(domain: &Domain<X86>) -> bool {
    let mut left = true;
    for vcpu in &domain.vcpus {
        if vcpu.machine.context.lock().is_none() {
            left = false;
            if let Some(holder) = percpu::get(vcpu.machine.place().0) {
                holder.ask_to_give_up();
            }
        }
    }
    left
}
