//! The end of a domain: its vCPUs leave the CPUs, its event channels are closed, its memory is given up, and what it has mapped of others is let
//! go. All of that a part at a time, as whoever does it has other things to do.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use mm::addr::Gfn;
use sched::Nanos;
use xen_abi::event::VIRQ_DOM_EXC;

use crate::domain::Domain;
use crate::machine::Machine;
use crate::system::System;
use crate::vcpu::hold;
use crate::{event, grant, physmap};

/// Ports, pages and grant mappings of one step.
const PORTS: u32 = 64;
const PAGES: u64 = 256;
const MAPPINGS: usize = 16;

/// How far the end of one domain is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Teardown {
    /// No CPU has anything of its vCPUs any more.
    retired: bool,
    /// Its event channels are closed.
    closed: bool,
    /// Its address space is empty up to here.
    gfn: Gfn,
    /// The grant mapping to go on with.
    handle: u32,
}

impl Teardown {
    /// Does a part of it; true when nothing is left. What others still refer to is theirs until they are done.
    pub fn step<M: Machine>(&mut self, system: &System<M>, domain: &Domain<M>) -> bool {
        if !self.retired {
            if !system.machine.retire(domain) {
                return false;
            }
            self.retired = true;
        }
        if !self.closed {
            self.closed = event::close_all(system, domain, PORTS);
        }
        if !self.closed || !physmap::relinquish(system, domain, &mut self.gfn, PAGES) {
            return false;
        }
        match grant::map::release_all(&domain.grants, self.handle, MAPPINGS) {
            Some(next) => {
                self.handle = next;
                false
            }
            None => {
                self.handle = 0;
                true
            }
        }
    }
}

/// Does a part of taking down a domain that is on the [system's](System) list, however far others got with it; true when it is gone. The
/// control domain is told by VIRQ_DOM_EXC.
pub fn destroy<M: Machine>(system: &System<M>, domain: &Arc<Domain<M>>) -> bool {
    if domain.control.begin_dying() {
        let now = system.machine.now();
        for vcpu in &domain.vcpus {
            vcpu.set_hold(hold::STOPPED);
            system.machine.call_out(domain, vcpu);
            vcpu.set_singleshot(None);
            vcpu.set_periodic(now, Nanos::ZERO);
        }
        system.release_claim(domain);
    }
    // Another CPU is at it.
    let Some(mut teardown) = domain.control.take_ending() else { return false };
    let done = teardown.step(system, domain);
    domain.control.give_ending(teardown);
    if done && system.remove(domain.id).is_some() {
        system.add_grave(Grave::new(Arc::clone(domain)));
        event::send_global_virq(system, VIRQ_DOM_EXC);
    }
    done
}

/// A domain that is on no list any more, and how far what is left of it has been given back.
pub struct Grave<M: Machine> {
    pub domain: Arc<Domain<M>>,
    last: Teardown,
    /// Only tables are left.
    emptied: bool,
}

impl<M: Machine> Grave<M> {
    pub(crate) fn new(domain: Arc<Domain<M>>) -> Grave<M> {
        // What was under way when the domain ended may have put something there since.
        Grave { domain, last: Teardown { retired: true, ..Teardown::default() }, emptied: false }
    }

    /// Does a part of it; true when nothing is left but the domain itself. Nobody else has the domain.
    fn step(&mut self, system: &System<M>) -> bool {
        if !self.emptied {
            self.emptied = self.last.step(system, &self.domain);
            return false;
        }
        let held = self.domain.pages.load(Ordering::Relaxed);
        debug_assert!(self.domain.one_to_one || held == 0, "{held} pages of domain {} are left", self.domain.id.0);
        Arc::get_mut(&mut self.domain).is_none_or(|domain| domain.p2m.take_apart(PAGES))
    }
}

/// Gives back a part of what is left of domains that are on no list any more. True if there may be more to do, in domains that nobody looks at.
#[must_use]
pub fn bury<M: Machine>(system: &System<M>) -> bool {
    system.work_on_a_grave(|grave| grave.step(system))
}

/// As [`bury`], until nothing is left.
pub fn bury_all<M: Machine>(system: &System<M>) {
    while bury(system) {}
}
