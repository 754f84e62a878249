//! Opening, connecting, moving and closing ports, and changing the ABI: everything that changes a port's state, under the domain's lock.
//!
//! What concerns two domains takes both locks ([`lock_pair`]).

use core::ops::Deref;
use core::sync::atomic::Ordering;

use mm::SharedPage;
use mm::lock::lock_pair;
use xen_abi::errno::Errno;
use xen_abi::event::{EVTCHN_FIFO_PRIORITY_MIN, NR_VIRQS};
use xen_abi::types::{DomainId, Port, VcpuId};

use super::channels::{EventChannels, Guest, Party, conclude, is_global, raise};
use super::fifo::{self, Fifo};
use super::ports::{Binding, Slot, State};
use super::two_level;
use crate::area::Area;

/// What the lock protects apart from the ports' states.
pub struct Changes {
    /// No port below is free.
    lowest_free: u32,
    /// How far a reset has come.
    reset_at: u32,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes { lowest_free: 1, reset_at: 1 }
    }
}

/// How often closing looks at a port that other vCPUs of the same domain close and open again between the look and the taking of locks.
const ATTEMPTS: u32 = 16;

impl EventChannels {
    /// Takes the first free port into use. ENOSPC if the domain has all that it may have, ENOMEM where memory is short. For callers
    /// that hold the lock `changes`.
    fn allocate(&self, guest: &impl Guest, changes: &mut Changes, state: State) -> Result<Port, Errno> {
        let fifo = self.fifo.read();
        let limit = if fifo.is_some() { fifo::PORTS } else { two_level::ports(guest.width()) };
        let mut passed_over = None;
        for port in (changes.lowest_free..limit.min(self.port_limit)).map(Port) {
            let slot = self.ports.get_or_grow(port)?;
            if !slot.state().is_free() {
                continue;
            }
            // A former event of this port may still be in a queue. The guest takes it out sooner or later.
            if fifo.as_ref().is_some_and(|fifo| fifo.is_linked(port)) {
                passed_over.get_or_insert(port.0);
                continue;
            }
            match &*fifo {
                Some(fifo) => fifo.clear_pending(port),
                None => two_level::clear_pending(guest, port),
            }
            slot.early.store(false, Ordering::SeqCst);
            slot.set(state);
            changes.lowest_free = passed_over.unwrap_or(port.0.wrapping_add(1));
            return Ok(port);
        }
        Err(Errno::ENOSPC)
    }

    fn slot(&self, port: Port) -> Result<&Slot, Errno> {
        self.ports.get(port).ok_or(Errno::EINVAL)
    }

    /// ENOENT for a vCPU that does not exist.
    fn check_vcpu(&self, vcpu: VcpuId) -> Result<(), Errno> {
        if (vcpu.0 as usize) < self.virqs.len() { Ok(()) } else { Err(Errno::ENOENT) }
    }
}

/// EVTCHNOP_alloc_unbound: a port of `guest` that `remote` may connect to. ENOSPC, ENOMEM.
pub fn alloc_unbound(guest: &impl Guest, remote: DomainId) -> Result<Port, Errno> {
    let events = guest.events();
    let mut changes = events.changes.lock();
    events.allocate(guest, &mut changes, State::new(Binding::Unbound { remote }, VcpuId(0)))
}

/// A port of `guest` whose local end is the hypervisor, acting for one of the guest's vCPUs, and that `remote` may connect to. What `remote`
/// sends comes as [`Guest::hypervisor_event`]. ENOENT, ENOSPC, ENOMEM.
pub fn alloc_for_hypervisor(guest: &impl Guest, vcpu: VcpuId, remote: DomainId) -> Result<Port, Errno> {
    let events = guest.events();
    events.check_vcpu(vcpu)?;
    let mut changes = events.changes.lock();
    events.allocate(guest, &mut changes, State::new(Binding::Unbound { remote }, vcpu).of_hypervisor())
}

/// EVTCHNOP_bind_interdomain: connects a new port of `local` to a port of `remote` that waits for it. EINVAL if that does not, ENOSPC, ENOMEM.
pub fn bind_interdomain(local: &impl Guest, remote: &impl Guest, remote_port: Port) -> Result<Port, Errno> {
    let (near, far) = (local.events(), remote.events());
    let port = {
        let (mut changes, _far_changes) = lock_pair(&near.changes, &far.changes);
        let far_slot = far.slot(remote_port)?;
        let far_state = far_slot.state();
        if far_state.binding() != (Binding::Unbound { remote: near.domain }) {
            return Err(Errno::EINVAL);
        }
        let to_far = Binding::Interdomain { remote: far.domain, port: remote_port };
        let port = near.allocate(local, &mut changes, State::new(to_far, VcpuId(0)))?;
        far_slot.set(far_state.bound_to(Binding::Interdomain { remote: near.domain, port }));
        port
    };
    // What the other side sent while nobody was here is made up for by one event.
    raise(local, port, near.slot(port)?);
    Ok(port)
}

/// EVTCHNOP_bind_virq. EINVAL for a virq that does not exist, or a global one on another vCPU than 0; ENOENT for a vCPU that does not
/// exist; EEXIST if it is bound already; ENOSPC, ENOMEM.
pub fn bind_virq(guest: &impl Guest, virq: u32, vcpu: VcpuId) -> Result<Port, Errno> {
    let events = guest.events();
    if virq >= NR_VIRQS || (is_global(virq) && vcpu != VcpuId(0)) {
        return Err(Errno::EINVAL);
    }
    let bound = events.virqs.get(vcpu.0 as usize).ok_or(Errno::ENOENT)?;
    let bound = bound.get(virq as usize).ok_or(Errno::EINVAL)?;
    let mut changes = events.changes.lock();
    if bound.load(Ordering::Relaxed) != 0 {
        return Err(Errno::EEXIST);
    }
    let port = events.allocate(guest, &mut changes, State::new(Binding::Virq(virq), vcpu))?;
    bound.store(port.0, Ordering::Release);
    Ok(port)
}

/// EVTCHNOP_bind_ipi. ENOENT for a vCPU that does not exist; ENOSPC, ENOMEM.
pub fn bind_ipi(guest: &impl Guest, vcpu: VcpuId) -> Result<Port, Errno> {
    let events = guest.events();
    events.check_vcpu(vcpu)?;
    let mut changes = events.changes.lock();
    events.allocate(guest, &mut changes, State::new(Binding::Ipi, vcpu))
}

/// EVTCHNOP_bind_vcpu. ENOENT for a vCPU that does not exist; EINVAL for a port that stays where it is: an IPI, a virq of one vCPU, the
/// hypervisor's, a closed one.
pub fn bind_vcpu(guest: &impl Guest, port: Port, vcpu: VcpuId) -> Result<(), Errno> {
    let events = guest.events();
    events.check_vcpu(vcpu)?;
    let slot = events.slot(port)?;
    {
        let _changes = events.changes.lock();
        let state = slot.state();
        let movable = match state.binding() {
            Binding::Unbound { .. } | Binding::Interdomain { .. } => !state.is_hypervisors(),
            Binding::Virq(virq) => is_global(virq),
            Binding::Free | Binding::Reserved | Binding::Ipi => false,
        };
        if !movable {
            return Err(Errno::EINVAL);
        }
        slot.set(state.notifying(vcpu));
    }
    // What waited for the former vCPU's control block may not have to wait for this one's.
    raise_early(guest, port, slot);
    Ok(())
}

/// EVTCHNOP_set_priority, which counts from the next event on. EINVAL for a priority or a port that does not exist, ENOSYS without the FIFO ABI.
pub fn set_priority(guest: &impl Guest, port: Port, priority: u32) -> Result<(), Errno> {
    let events = guest.events();
    if priority > EVTCHN_FIFO_PRIORITY_MIN {
        return Err(Errno::EINVAL);
    }
    let slot = events.slot(port)?;
    let _changes = events.changes.lock();
    if !events.uses_fifo() {
        return Err(Errno::ENOSYS);
    }
    slot.set(slot.state().at_priority(priority));
    Ok(())
}

/// EVTCHNOP_close: a remote end waits for a new connection again. `find` gives the events of another domain. EINVAL for a port
/// that is closed or not this party's, ERESTART if others of this domain keep at it. The domain at the other end cannot hinder it.
pub fn close<P>(guest: &impl Guest, port: Port, by: Party, find: impl Fn(DomainId) -> Option<P>) -> Result<(), Errno>
where
    P: Deref<Target = EventChannels>,
{
    let events = guest.events();
    let slot = events.slot(port)?;
    for attempt in 0..ATTEMPTS {
        // The other end may come and go before the locks are there; the domain that it is in stays the same. A port that seemed unconnected and
        // was not needs that domain's lock, too.
        let partner = match slot.state().binding() {
            Binding::Interdomain { remote, .. } => Some(remote),
            Binding::Unbound { remote } if attempt > 0 => Some(remote),
            _ => None,
        };
        let partner = partner.filter(|&remote| remote != events.domain);
        let far = partner.and_then(&find);
        let far = far.as_deref();
        let (mut changes, _far_changes) = match far {
            Some(far) => lock_pair(&events.changes, &far.changes),
            None => (events.changes.lock(), None),
        };
        let state = slot.state();
        let binding = state.binding();
        if let Binding::Interdomain { remote, .. } = binding
            && remote != events.domain
            && partner != Some(remote)
        {
            continue;
        }
        if state.is_hypervisors() != (by == Party::Hypervisor) {
            return Err(Errno::EINVAL);
        }
        match binding {
            Binding::Free | Binding::Reserved => return Err(Errno::EINVAL),
            Binding::Interdomain { remote, port: far_port } => {
                let far = if remote == events.domain { Some(events) } else { far };
                if let Some(far_slot) = far.and_then(|far| far.ports.get(far_port)) {
                    let far_state = far_slot.state();
                    if far_state.is_peer_of(events.domain, port) {
                        far_slot.set(far_state.bound_to(Binding::Unbound { remote: events.domain }));
                    }
                }
            }
            Binding::Virq(virq) => {
                for bound in events.virqs.iter().filter_map(|virqs| virqs.get(virq as usize)) {
                    // A sender that has read the port already finds that it is no virq's any more, or sends a last event.
                    let _ = bound.compare_exchange(port.0, 0, Ordering::AcqRel, Ordering::Relaxed);
                }
            }
            Binding::Unbound { .. } | Binding::Ipi => {}
        }
        // First closed, then cleared: later senders find it closed.
        slot.set(State::FREE);
        slot.early.store(false, Ordering::SeqCst);
        match &*events.fifo.read() {
            Some(fifo) => fifo.clear_pending(port),
            None => two_level::clear_pending(guest, port),
        }
        changes.lowest_free = changes.lowest_free.min(port.0);
        return Ok(());
    }
    Err(Errno::ERESTART)
}

/// Closes ports until all are closed, or `budget` of them have been looked at; true when done. Then the domain is back at the
/// two-level ABI and its FIFO pages are let go. `by` the guest leaves the hypervisor's ports alone (EVTCHNOP_reset); by the hypervisor
/// closes everything (the end of the domain).
pub fn reset<P>(guest: &impl Guest, by: Party, budget: u32, find: impl Fn(DomainId) -> Option<P>) -> bool
where
    P: Deref<Target = EventChannels>,
{
    let events = guest.events();
    let first = events.changes.lock().reset_at;
    let end = events.ports.len().min(first.saturating_add(budget));
    for (port, slot) in events.ports.iter_from(first).take_while(|(port, _)| port.0 < end) {
        let party = if slot.state().is_hypervisors() { Party::Hypervisor } else { Party::Guest };
        if party == Party::Guest || by == Party::Hypervisor {
            // Otherwise it is closed already, or closed by another vCPU at this moment: both are what is wanted.
            if close(guest, port, party, &find) == Err(Errno::ERESTART) {
                events.changes.lock().reset_at = port.0;
                return false;
            }
        }
    }
    let mut changes = events.changes.lock();
    if end < events.ports.len() {
        changes.reset_at = end;
        return false;
    }
    changes.reset_at = 1;
    leave_fifo(events);
    true
}

fn leave_fifo(events: &EventChannels) {
    // First nobody comes in any more, then those inside are waited for.
    events.fifo_in_use.store(false, Ordering::SeqCst);
    *events.fifo.write() = None;
}

/// EVTCHNOP_init_control: gives a vCPU its control block. The first one takes the FIFO ABI into use; what is pending in the two-level bitmap is
/// carried over, and shows once the guest has added the words ([`expand_array`]). ENOENT for a vCPU that does not exist, EINVAL if it has a control
/// block, ENOMEM.
pub fn init_control(guest: &impl Guest, vcpu: VcpuId, block: Area) -> Result<(), Errno> {
    let events = guest.events();
    events.check_vcpu(vcpu)?;
    let changes = events.changes.lock();
    if events.uses_fifo() {
        events.fifo.read().as_ref().ok_or(Errno::EINVAL)?.add_control(vcpu, block)?;
        drop(changes);
        for (port, slot) in events.ports.iter_from(1) {
            raise_early(guest, port, slot);
        }
        return Ok(());
    }
    let fifo = Fifo::new(events.virqs.len())?;
    fifo.add_control(vcpu, block)?;
    *events.fifo.write() = Some(fifo);
    // From here on senders use the new ABI. One that did not see this yet looks again after it has set its bit (`raise`).
    events.fifo_in_use.store(true, Ordering::SeqCst);
    drop(changes);
    for (port, slot) in events.ports.iter_from(1) {
        if !slot.state().is_free() && two_level::is_pending(guest, port) {
            two_level::clear_pending(guest, port);
            raise(guest, port, slot);
        }
    }
    Ok(())
}

/// EVTCHNOP_expand_array: one more page of event words. EOPNOTSUPP without the FIFO ABI, ENOSPC if every port has its word.
pub fn expand_array(guest: &impl Guest, page: SharedPage) -> Result<(), Errno> {
    let events = guest.events();
    let added = {
        let _changes = events.changes.lock();
        if !events.uses_fifo() {
            return Err(Errno::EOPNOTSUPP);
        }
        events.fifo.read().as_ref().ok_or(Errno::EOPNOTSUPP)?.add_words(page)?
    };
    let within = events.ports.iter_from(added.start).take_while(|(port, _)| port.0 < added.end);
    for (port, slot) in within {
        raise_early(guest, port, slot);
    }
    Ok(())
}

/// Delivers what was kept for a port because its word or its vCPU's control block was missing.
fn raise_early(guest: &impl Guest, port: Port, slot: &Slot) {
    if !slot.early.load(Ordering::SeqCst) {
        return;
    }
    let raised = guest.events().fifo.read().as_ref().map(|fifo| fifo.raise_early(port, slot));
    if let Some(raised) = raised {
        conclude(guest, port, raised);
    }
}
