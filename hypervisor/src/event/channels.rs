//! A domain's event channels, and sending.
//!
//! Everything here works on a [`Guest`], so that it runs against a few pages of memory in a test as well as against a domain.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use mm::SharedPage;
use mm::lock::{Lock, Rank};
use spin::RwLock;
use xen_abi::errno::Errno;
use xen_abi::event::{NR_VIRQS, VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};
use xen_abi::types::{DomainId, Port, VcpuId};

use super::fifo::{self, Fifo};
use super::ports::{Binding, MAX_VCPUS, Slot, State, Table};
use super::{bind, two_level};
use crate::machine::Width;

/// What a domain shares with its guest for events.
pub trait Shared {
    fn events(&self) -> &EventChannels;

    fn shared_info(&self) -> &SharedPage;

    /// The layout of shared_info and vcpu_info.
    fn width(&self) -> Width;

    /// Where a vCPU's vcpu_info is now: a page and an offset there. `None` if it has none yet.
    fn info(&self, vcpu: VcpuId) -> Option<(&SharedPage, usize)>;
}

/// How vCPUs are told. None of this is called with a lock of the event channels held.
pub trait Guest: Shared {
    /// `evtchn_upcall_pending` of this vCPU became 1.
    fn upcall(&self, vcpu: VcpuId);

    /// An event of `port` became pending; this vCPU may be in a SCHEDOP_poll for it.
    fn wake_poller(&self, vcpu: VcpuId, port: Port);

    /// An event arrived at a port whose consumer is the hypervisor, on behalf of this vCPU.
    fn hypervisor_event(&self, vcpu: VcpuId, port: Port);
}

/// Offset of `evtchn_upcall_pending` in vcpu_info.
const UPCALL_PENDING: usize = core::mem::offset_of!(xen_abi::x86::VcpuInfo, evtchn_upcall_pending);

/// What making an event pending came to.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// It was not pending before: whoever polls for it is to be woken.
    pub newly: bool,
    /// This vCPU is to take its upcall.
    pub notify: Option<VcpuId>,
}

impl Raised {
    pub const NOTHING: Raised = Raised { newly: false, notify: None };
}

/// Who uses a port: the guest that has it, or the hypervisor, whose ports a guest can neither send by nor close nor move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    Guest,
    Hypervisor,
}

/// The events of one domain.
pub struct EventChannels {
    pub(super) domain: DomainId,
    pub(super) ports: Table,
    /// Ports that the domain may have, by its creator's limit: those below this one.
    pub(super) port_limit: u32,
    /// The port that each virq of each vCPU is bound to, 0 where it is not. Global virqs are vCPU 0's.
    pub(super) virqs: Vec<[AtomicU32; NR_VIRQS as usize]>,
    /// vCPUs that may be in SCHEDOP_poll, a bit each. Only the vCPU itself changes its bit; one that is set too long costs a look.
    pollers: Vec<AtomicU64>,
    /// The FIFO ABI is in use. Senders look here first, so that nobody enters `fifo` while it is about to go.
    pub(super) fifo_in_use: AtomicBool,
    /// Write-locked only while the FIFO ABI is taken into use or given up.
    pub(super) fifo: RwLock<Option<Fifo>>,
    pub(super) changes: Lock<bind::Changes>,
}

/// Where an event goes.
#[derive(Clone, Copy)]
pub enum Route<'a> {
    /// Nobody is at the other end.
    Nowhere,
    /// To the same port: an IPI.
    Own(&'a Slot),
    /// To a port of this domain, which may be the sender itself, if it is still connected to the sender's.
    Peer { domain: DomainId, port: Port },
}

/// Whether a virq is the domain's, bound on vCPU 0 and movable, or each vCPU's own (Xen's `xen.h`).
pub const fn is_global(virq: u32) -> bool {
    !matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

impl EventChannels {
    /// The events of a domain with so many vCPUs, whose highest port is `max_port` (as XEN_DOMCTL_createdomain's max_evtchn_port).
    /// EINVAL for more vCPUs than [`MAX_VCPUS`], ENOMEM where memory is short.
    pub fn new(domain: DomainId, vcpus: u32, max_port: u32) -> Result<EventChannels, Errno> {
        if vcpus > MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        let mut virqs = Vec::new();
        virqs.try_reserve_exact(vcpus as usize).map_err(|_| Errno::ENOMEM)?;
        virqs.resize_with(vcpus as usize, || [const { AtomicU32::new(0) }; NR_VIRQS as usize]);
        let mut pollers = Vec::new();
        let words = vcpus.div_ceil(u64::BITS) as usize;
        pollers.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
        pollers.resize_with(words, || AtomicU64::new(0));
        let ports = Table::new()?;
        ports.get_or_grow(Port(0))?.set(State::new(Binding::Reserved, VcpuId(0)));
        Ok(EventChannels {
            domain,
            ports,
            port_limit: max_port.saturating_add(1).min(fifo::PORTS),
            virqs,
            pollers,
            fifo_in_use: AtomicBool::new(false),
            fifo: RwLock::new(None),
            changes: Lock::new(Rank::Events, bind::Changes::default()),
        })
    }

    #[inline]
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// A port's state. EINVAL for a port that the domain's table does not reach.
    #[inline]
    pub fn state(&self, port: Port) -> Result<State, Errno> {
        self.ports.get(port).map(Slot::state).ok_or(Errno::EINVAL)
    }

    /// Where an event sent by this port goes. EINVAL for a port that cannot send, or that is not this party's.
    #[inline]
    pub fn route(&self, port: Port, by: Party) -> Result<Route<'_>, Errno> {
        let slot = self.ports.get(port).ok_or(Errno::EINVAL)?;
        let state = slot.state();
        if state.is_hypervisors() != (by == Party::Hypervisor) {
            return Err(Errno::EINVAL);
        }
        match state.binding() {
            Binding::Interdomain { remote, port } => Ok(Route::Peer { domain: remote, port }),
            Binding::Ipi => Ok(Route::Own(slot)),
            Binding::Unbound { .. } => Ok(Route::Nowhere),
            Binding::Free | Binding::Reserved | Binding::Virq(_) => Err(Errno::EINVAL),
        }
    }

    #[inline]
    pub(super) fn uses_fifo(&self) -> bool {
        self.fifo_in_use.load(Ordering::SeqCst)
    }

    /// The vCPU is about to look whether its ports are pending, and to sleep if none is (SCHEDOP_poll). It says so first, so that
    /// a sender that it does not see yet sees it.
    pub fn poll_begins(&self, vcpu: VcpuId) {
        if let Some((word, bit)) = self.poller(vcpu) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// The vCPU runs on. Only it may say so.
    pub fn poll_ended(&self, vcpu: VcpuId) {
        if let Some((word, bit)) = self.poller(vcpu) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    fn poller(&self, vcpu: VcpuId) -> Option<(&AtomicU64, u64)> {
        Some((self.pollers.get((vcpu.0 / u64::BITS) as usize)?, 1u64.wrapping_shl(vcpu.0)))
    }
}

/// Whether an event is pending, masked or not. EINVAL for a port that the domain's table does not reach.
pub fn is_pending(guest: &impl Shared, port: Port) -> Result<bool, Errno> {
    let events = guest.events();
    let slot = events.ports.get(port).ok_or(Errno::EINVAL)?;
    Ok(match &*events.fifo.read() {
        Some(fifo) => fifo.is_pending(port, slot),
        None => two_level::is_pending(guest, port),
    })
}

/// Makes an event pending at one of the guest's own ports and tells whoever waits for it.
#[inline]
pub(super) fn raise(guest: &impl Guest, port: Port, slot: &Slot) {
    let events = guest.events();
    if !events.uses_fifo() {
        conclude(guest, port, two_level::raise(guest, port, slot));
        // Asked again: if the ABI changed in between, then what was set above may have been missed by the migration, which sets the flag
        // first and then looks at the bits.
        if !events.uses_fifo() {
            return;
        }
    }
    let raised = events.fifo.read().as_ref().map(|fifo| fifo.raise(port, slot));
    if let Some(raised) = raised {
        conclude(guest, port, raised);
    }
}

#[inline]
pub(super) fn conclude(guest: &impl Guest, port: Port, raised: Raised) {
    if let Some(vcpu) = raised.notify {
        mark_upcall(guest, vcpu);
    }
    if raised.newly {
        wake_pollers(guest, port);
    }
}

/// Sets `evtchn_upcall_pending`, and has the vCPU take its upcall if it was clear.
#[inline]
fn mark_upcall(guest: &impl Guest, vcpu: VcpuId) {
    // The place is looked up after the event was made visible: if vcpu_info moves now, `info_moved` has the vCPU look at everything.
    let Some((page, info)) = guest.info(vcpu) else { return };
    let Some(pending) = page.atomic_u8(info.wrapping_add(UPCALL_PENDING)) else { return };
    if pending.swap(1, Ordering::SeqCst) == 0 {
        guest.upcall(vcpu);
    }
}

#[inline]
fn wake_pollers(guest: &impl Guest, port: Port) {
    for (index, word) in guest.events().pollers.iter().enumerate() {
        let polling = word.load(Ordering::SeqCst);
        if polling != 0 {
            wake_each(guest, port, index as u32, polling);
        }
    }
}

#[cold]
fn wake_each(guest: &impl Guest, port: Port, word: u32, mut polling: u64) {
    while polling != 0 {
        let vcpu = word.wrapping_mul(u64::BITS).wrapping_add(polling.trailing_zeros());
        guest.wake_poller(VcpuId(vcpu), port);
        polling &= polling.wrapping_sub(1);
    }
}

/// Delivers an event to one of the guest's own ports: what [`Route::Own`] asks for.
#[inline]
pub fn deliver(guest: &impl Guest, port: Port, slot: &Slot) {
    raise(guest, port, slot);
}

/// Delivers an event that came from `sender`'s port `from`: what [`Route::Peer`] asks for. Nothing happens if the two are no longer
/// connected.
#[inline]
pub fn deliver_from(guest: &impl Guest, sender: DomainId, from: Port, port: Port) {
    let Some(slot) = guest.events().ports.get(port) else { return };
    let state = slot.state();
    if !state.is_peer_of(sender, from) {
        return;
    }
    if state.is_hypervisors() {
        guest.hypervisor_event(state.vcpu(), port);
    } else {
        raise(guest, port, slot);
    }
}

/// Sends a virq to one vCPU, or a global one (`vcpu` 0) to the domain. False if the guest has not bound it.
#[inline]
pub fn send_virq(guest: &impl Guest, vcpu: VcpuId, virq: u32) -> bool {
    let events = guest.events();
    let bound = events.virqs.get(vcpu.0 as usize).and_then(|virqs| virqs.get(virq as usize));
    let port = Port(bound.map_or(0, |port| port.load(Ordering::Acquire)));
    match events.ports.get(port) {
        Some(slot) if slot.state().is_virq(virq) => {
            raise(guest, port, slot);
            true
        }
        _ => false,
    }
}

/// EVTCHNOP_unmask: delivers what was held back. EINVAL for a port that the domain's table does not reach.
#[inline]
pub fn unmask(guest: &impl Guest, port: Port) -> Result<(), Errno> {
    let events = guest.events();
    let slot = events.ports.get(port).ok_or(Errno::EINVAL)?;
    if slot.state().is_free() {
        return Ok(());
    }
    let notify = if events.uses_fifo() {
        events.fifo.read().as_ref().and_then(|fifo| fifo.unmask(port, slot))
    } else {
        two_level::unmask(guest, port, slot)
    };
    if let Some(vcpu) = notify {
        mark_upcall(guest, vcpu);
    }
    Ok(())
}

/// A vCPU's vcpu_info is in a new place now. An event may just have been noted in the old one: the vCPU is made to look at
/// everything, as Xen does, and copes with finding nothing.
pub fn info_moved(guest: &impl Guest, vcpu: VcpuId) {
    two_level::select_all(guest, vcpu);
    let Some((page, info)) = guest.info(vcpu) else { return };
    if let Some(pending) = page.atomic_u8(info.wrapping_add(UPCALL_PENDING)) {
        pending.store(1, Ordering::SeqCst);
        guest.upcall(vcpu);
    }
}
