//! Event channels: how domains, their vCPUs and the hypervisor notify each other.
//!
//! A domain has a table of [`ports`]. What a port is bound to changes under the domain's lock ([`bind`]); sending ([`channels`]) reads
//! the port's word and takes no lock of the sender, and of the receiver only what its ABI needs: [`two_level`] none, [`fifo`] that
//! of one queue. The order of the steps makes up for the missing locks, and each place that relies on it says how.
//!
//! The functions of this file are what the rest of the hypervisor uses: they tie a [`Domain`] to the core.
//!
//! Two ends can disagree for a moment: a port may be closed between a sender's look at it and the delivery. A remote end therefore
//! checks that it is still this sender's peer. What remains is at worst an event that was sent just before the close and shows just after,
//! which the ABI allows: every consumer of events must cope with one that is spurious.

pub mod bind;
pub mod channels;
mod fifo;
mod ports;
#[cfg(test)]
mod tests;
mod two_level;

use core::ops::Deref;
use core::sync::atomic::Ordering;

use alloc::sync::Arc;
use mm::SharedPage;
use xen_abi::errno::Errno;
use xen_abi::types::{DomainId, Port, VcpuId};

use crate::domain::Domain;
use crate::machine::{Machine, Width};
use crate::system::System;
use crate::vcpu::{Vcpu, hold};
pub use channels::{EventChannels, Guest, Party, Route, Shared};
pub use fifo::CONTROL_SIZE;
pub use ports::{Binding, MAX_VCPUS, Slot, State};

impl<M: Machine> Shared for Domain<M> {
    #[inline]
    fn events(&self) -> &EventChannels {
        &self.events
    }

    #[inline]
    fn shared_info(&self) -> &SharedPage {
        &self.shared_info
    }

    #[inline]
    fn width(&self) -> Width {
        self.shared_width()
    }

    #[inline]
    fn info(&self, vcpu: VcpuId) -> Option<(&SharedPage, usize)> {
        Some(self.vcpu(vcpu)?.info(self)?.place())
    }
}

/// A domain on its machine: somebody who can be notified.
pub struct Target<'a, M: Machine> {
    machine: &'a M,
    domain: &'a Domain<M>,
}

impl<'a, M: Machine> Target<'a, M> {
    #[inline]
    pub fn new(system: &'a System<M>, domain: &'a Domain<M>) -> Self {
        Target { machine: &system.machine, domain }
    }
}

impl<M: Machine> Shared for Target<'_, M> {
    #[inline]
    fn events(&self) -> &EventChannels {
        self.domain.events()
    }

    #[inline]
    fn shared_info(&self) -> &SharedPage {
        self.domain.shared_info()
    }

    #[inline]
    fn width(&self) -> Width {
        self.domain.width()
    }

    #[inline]
    fn info(&self, vcpu: VcpuId) -> Option<(&SharedPage, usize)> {
        self.domain.info(vcpu)
    }
}

impl<M: Machine> Guest for Target<'_, M> {
    #[inline]
    fn upcall(&self, vcpu: VcpuId) {
        if let Some(vcpu) = self.domain.vcpu(vcpu) {
            self.machine.upcall(self.domain, vcpu);
        }
    }

    fn wake_poller(&self, vcpu: VcpuId, port: Port) {
        if let Some(vcpu) = self.domain.vcpu(vcpu)
            && vcpu.polls(port.0)
            && vcpu.clear_hold(hold::POLLING)
        {
            self.machine.wake(self.domain, vcpu);
        }
    }

    fn hypervisor_event(&self, vcpu: VcpuId, _port: Port) {
        if let Some(vcpu) = self.domain.vcpu(vcpu) {
            self.machine.wake(self.domain, vcpu);
        }
    }
}

/// The events of a domain that is kept alive meanwhile.
pub struct EventsOf<M: Machine>(Arc<Domain<M>>);

impl<M: Machine> Deref for EventsOf<M> {
    type Target = EventChannels;

    fn deref(&self) -> &EventChannels {
        &self.0.events
    }
}

/// How [`bind::close`] and [`bind::reset`] find the other end.
pub fn find<M: Machine>(system: &System<M>) -> impl Fn(DomainId) -> Option<EventsOf<M>> + '_ {
    |id| system.domain(id).map(EventsOf)
}

/// EVTCHNOP_send, and what the hypervisor sends by a port of its own ([`notify`]).
#[inline]
fn send_by<M: Machine>(system: &System<M>, domain: &Domain<M>, port: Port, by: Party) -> Result<(), Errno> {
    match domain.events.route(port, by)? {
        Route::Nowhere => {}
        Route::Own(slot) => channels::deliver(&Target::new(system, domain), port, slot),
        Route::Peer { domain: peer, port: to } if peer == domain.id => {
            channels::deliver_from(&Target::new(system, domain), domain.id, port, to);
        }
        Route::Peer { domain: peer, port: to } => {
            if let Some(peer) = system.domain(peer) {
                channels::deliver_from(&Target::new(system, &peer), domain.id, port, to);
            }
        }
    }
    Ok(())
}

/// EVTCHNOP_send. EINVAL for a port that cannot send.
#[inline]
pub fn send<M: Machine>(system: &System<M>, domain: &Domain<M>, port: Port) -> Result<(), Errno> {
    send_by(system, domain, port, Party::Guest)
}

/// Sends by a port of the domain whose local end is the hypervisor ([`bind::alloc_for_hypervisor`]). EINVAL for any other.
#[inline]
pub fn notify<M: Machine>(system: &System<M>, domain: &Domain<M>, port: Port) -> Result<(), Errno> {
    send_by(system, domain, port, Party::Hypervisor)
}

/// Sends a virq to one vCPU, or a global one to the domain by its vCPU 0. False if the guest has not bound it.
#[inline]
pub fn send_virq<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>, virq: u32) -> bool {
    channels::send_virq(&Target::new(system, domain), vcpu.id, virq)
}

/// Sends a global virq to the control domain, whose they are (but VIRQ_ARGO). False if there is none or it has not bound it.
pub fn send_global_virq<M: Machine>(system: &System<M>, virq: u32) -> bool {
    system.control().is_some_and(|domain| channels::send_virq(&Target::new(system, &domain), VcpuId(0), virq))
}

/// Whether an event is pending at a port, masked or not. EINVAL for a port that the domain's table does not reach.
pub fn is_pending<M: Machine>(domain: &Domain<M>, port: Port) -> Result<bool, Errno> {
    channels::is_pending(domain, port)
}

/// The vCPU's vcpu_info is in a new place now; it is made to look at everything.
pub fn info_moved<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>) {
    channels::info_moved(&Target::new(system, domain), vcpu.id);
}

/// Repeats the upcall of a vCPU whose `evtchn_upcall_pending` is set, once there is a new way to make it.
pub fn raise_if_pending<M: Machine>(system: &System<M>, domain: &Domain<M>, vcpu: &Vcpu<M>) {
    let pending = vcpu.info(domain).and_then(|info| info.upcall_pending());
    if pending.is_some_and(|pending| pending.load(Ordering::SeqCst) != 0) {
        system.machine.upcall(domain, vcpu);
    }
}

/// Closes the ports of a domain that ends, a part at a time; true when all are closed.
pub fn close_all<M: Machine>(system: &System<M>, domain: &Domain<M>, budget: u32) -> bool {
    bind::reset(&Target::new(system, domain), Party::Hypervisor, budget, find(system))
}
