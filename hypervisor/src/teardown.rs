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
        if !event::close_all(system, domain, PORTS) || !physmap::relinquish(system, domain, &mut self.gfn, PAGES) {
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
        system.bury(Arc::clone(domain));
        event::send_global_virq(system, VIRQ_DOM_EXC);
    }
    done
}

/// Gives back what is left of domains that are on no list any more, unless somebody still looks at one of them.
pub fn bury<M: Machine>(system: &System<M>) {
    while let Some(domain) = system.next_grave() {
        // What was under way when the domain ended may have put something there since.
        let mut last = Teardown { retired: true, ..Teardown::default() };
        while !last.step(system, &domain) {}
        let held = domain.pages.load(Ordering::Relaxed);
        debug_assert!(domain.one_to_one || held == 0, "{held} pages of domain {} are left", domain.id.0);
    }
}
