//! A domain's ports: what each is bound to, in one word that is read without a lock.
//!
//! Words change only under the domain's lock ([`super::channels`]); whoever sends reads one and acts on it. Slots come
//! in chunks, are never moved and live as long as the domain, so a reference to one stays good.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Once;
use xen_abi::errno::Errno;
use xen_abi::event::{EVTCHN_FIFO_NR_CHANNELS, EVTCHN_FIFO_PRIORITY_DEFAULT};
use xen_abi::types::{DomainId, Port, VcpuId};

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    Free,
    /// Port 0, which no one gets.
    Reserved,
    /// Waits for `remote` to connect.
    Unbound {
        remote: DomainId,
    },
    Interdomain {
        remote: DomainId,
        port: Port,
    },
    Virq(u32),
    Ipi,
}

/// A port's state, packed: binding, the vCPU that is notified, priority, and whether the hypervisor itself is at this end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct State(u64);

mod kind {
    pub const FREE: u64 = 0;
    pub const RESERVED: u64 = 1;
    pub const UNBOUND: u64 = 2;
    pub const INTERDOMAIN: u64 = 3;
    pub const VIRQ: u64 = 4;
    pub const IPI: u64 = 5;
}

/// Where a field of the packed word is.
struct Field {
    shift: u32,
    mask: u64,
}

const KIND: Field = Field { shift: 0, mask: 0x7 };
const HYPERVISOR: Field = Field { shift: 3, mask: 1 };
const PRIORITY: Field = Field { shift: 4, mask: 0xf };
const VCPU: Field = Field { shift: 8, mask: 0x1fff };
/// The remote port (17 bits in the FIFO ABI), or the number of the virq.
const NUMBER: Field = Field { shift: 24, mask: 0xf_ffff };
const REMOTE: Field = Field { shift: 48, mask: 0xffff };

/// vCPUs that the packed word can name.
pub const MAX_VCPUS: u32 = VCPU.mask as u32;

impl State {
    #[inline]
    const fn get(self, field: Field) -> u64 {
        self.0.wrapping_shr(field.shift) & field.mask
    }

    #[inline]
    const fn with(self, field: Field, value: u64) -> State {
        let cleared = self.0 & !field.mask.wrapping_shl(field.shift);
        State(cleared | (value & field.mask).wrapping_shl(field.shift))
    }

    /// A port as it is when nobody has it: on vCPU 0 and at the default priority.
    pub const FREE: State = State(0).with(PRIORITY, EVTCHN_FIFO_PRIORITY_DEFAULT as u64);

    pub const fn new(binding: Binding, vcpu: VcpuId) -> State {
        Self::FREE.with(VCPU, vcpu.0 as u64).bound_to(binding)
    }

    pub const fn bound_to(self, binding: Binding) -> State {
        let (kind, number, remote) = match binding {
            Binding::Free => (kind::FREE, 0, 0),
            Binding::Reserved => (kind::RESERVED, 0, 0),
            Binding::Unbound { remote } => (kind::UNBOUND, 0, remote.0),
            Binding::Interdomain { remote, port } => (kind::INTERDOMAIN, port.0, remote.0),
            Binding::Virq(virq) => (kind::VIRQ, virq, 0),
            Binding::Ipi => (kind::IPI, 0, 0),
        };
        self.with(KIND, kind).with(NUMBER, number as u64).with(REMOTE, remote as u64)
    }

    pub const fn notifying(self, vcpu: VcpuId) -> State {
        self.with(VCPU, vcpu.0 as u64)
    }

    pub const fn at_priority(self, priority: u32) -> State {
        self.with(PRIORITY, priority as u64)
    }

    /// The hypervisor takes what arrives here, and only it may close or send.
    pub const fn of_hypervisor(self) -> State {
        self.with(HYPERVISOR, 1)
    }

    #[inline]
    pub const fn binding(self) -> Binding {
        let remote = DomainId(self.get(REMOTE) as u16);
        let number = self.get(NUMBER) as u32;
        match self.get(KIND) {
            kind::RESERVED => Binding::Reserved,
            kind::UNBOUND => Binding::Unbound { remote },
            kind::INTERDOMAIN => Binding::Interdomain { remote, port: Port(number) },
            kind::VIRQ => Binding::Virq(number),
            kind::IPI => Binding::Ipi,
            _ => Binding::Free,
        }
    }

    /// Connected to exactly this remote end.
    #[inline]
    pub const fn is_peer_of(self, remote: DomainId, port: Port) -> bool {
        self.get(KIND) == kind::INTERDOMAIN && self.get(REMOTE) == remote.0 as u64 && self.get(NUMBER) == port.0 as u64
    }

    #[inline]
    pub const fn is_free(self) -> bool {
        self.get(KIND) == kind::FREE
    }

    #[inline]
    pub const fn is_virq(self, virq: u32) -> bool {
        self.get(KIND) == kind::VIRQ && self.get(NUMBER) == virq as u64
    }

    #[inline]
    pub const fn is_hypervisors(self) -> bool {
        self.get(HYPERVISOR) != 0
    }

    #[inline]
    pub const fn vcpu(self) -> VcpuId {
        VcpuId(self.get(VCPU) as u32)
    }

    /// 0 (first) to 15.
    #[inline]
    pub const fn priority(self) -> u32 {
        self.get(PRIORITY) as u32
    }
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} on vCPU {}, priority {}", self.binding(), self.vcpu().0, self.priority())?;
        if self.is_hypervisors() { f.write_str(", the hypervisor's") } else { Ok(()) }
    }
}

/// One port.
pub struct Slot {
    state: AtomicU64,
    /// The FIFO queue that the port was linked into last, to begin with the first; see [`super::fifo`].
    pub last_queue: AtomicU32,
    /// An event that is pending here because the guest has given no page, or no control block, to show it in.
    pub early: AtomicBool,
}

impl Slot {
    const fn new() -> Slot {
        Slot { state: AtomicU64::new(State::FREE.0), last_queue: AtomicU32::new(0), early: AtomicBool::new(false) }
    }

    #[inline]
    pub fn state(&self) -> State {
        // SeqCst, as is the store: a sender makes an event pending and then looks where it goes; a vCPU that moves the port
        // stores and then looks whether an event is pending.
        State(self.state.load(Ordering::SeqCst))
    }

    /// Only under the domain's lock.
    pub fn set(&self, state: State) {
        self.state.store(state.0, Ordering::SeqCst);
    }
}

/// Slots in a chunk: two pages' worth.
const CHUNK: usize = 512;
const CHUNKS: usize = EVTCHN_FIFO_NR_CHANNELS as usize / CHUNK;

/// All slots that the domain has needed so far.
pub struct Table {
    chunks: Vec<Once<Box<[Slot; CHUNK]>>>,
}

impl Table {
    /// ENOMEM where memory is short.
    pub fn new() -> Result<Table, Errno> {
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(CHUNKS).map_err(|_| Errno::ENOMEM)?;
        chunks.resize_with(CHUNKS, Once::new);
        Ok(Table { chunks })
    }

    /// The slot of a port, if the table has grown that far.
    #[inline]
    pub fn get(&self, port: Port) -> Option<&Slot> {
        self.chunks.get(port.0 as usize / CHUNK)?.get()?.get(port.0 as usize % CHUNK)
    }

    /// The slot of a port; grows the table if it must. Only under the domain's lock, and never by more than one chunk beyond what
    /// there is. ENOSPC beyond the last port of the ABI, ENOMEM where memory is short.
    pub fn get_or_grow(&self, port: Port) -> Result<&Slot, Errno> {
        let chunk = self.chunks.get(port.0 as usize / CHUNK).ok_or(Errno::ENOSPC)?;
        chunk.try_call_once(new_chunk)?.get(port.0 as usize % CHUNK).ok_or(Errno::ENOSPC)
    }

    /// How many ports have a slot. They are the first ones.
    pub fn len(&self) -> u32 {
        let chunks = self.chunks.iter().take_while(|chunk| chunk.is_completed()).count();
        chunks.wrapping_mul(CHUNK) as u32
    }

    /// The ports that have a slot, from `from` on.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (Port, &Slot)> {
        (from..self.len()).map(Port).filter_map(|port| Some((port, self.get(port)?)))
    }
}

fn new_chunk() -> Result<Box<[Slot; CHUNK]>, Errno> {
    let mut slots = Vec::new();
    slots.try_reserve_exact(CHUNK).map_err(|_| Errno::ENOMEM)?;
    slots.resize_with(CHUNK, Slot::new);
    slots.try_into().map_err(|_| Errno::ENOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_says_what_was_put_into_it() {
        let bindings = [
            Binding::Free,
            Binding::Reserved,
            Binding::Unbound { remote: DomainId(0x7fef) },
            Binding::Interdomain { remote: DomainId(3), port: Port(EVTCHN_FIFO_NR_CHANNELS - 1) },
            Binding::Virq(23),
            Binding::Ipi,
        ];
        for binding in bindings {
            let state = State::new(binding, VcpuId(MAX_VCPUS)).at_priority(15);
            assert_eq!(state.binding(), binding);
            assert_eq!((state.vcpu(), state.priority()), (VcpuId(MAX_VCPUS), 15));
            assert!(!state.is_hypervisors() && state.of_hypervisor().is_hypervisors());
            assert_eq!(state.notifying(VcpuId(0)).at_priority(7).binding(), binding);
            assert_eq!(state.bound_to(Binding::Ipi).bound_to(binding), state);
        }
    }

    #[test]
    fn every_port_of_the_abi_has_one_slot_and_the_next_has_none() {
        let table = Table::new().unwrap();
        let mut last = core::ptr::null();
        for port in (0..EVTCHN_FIFO_NR_CHANNELS).map(Port) {
            assert_eq!(table.get(port).is_some(), port.0 < table.len());
            let slot = core::ptr::from_ref(table.get_or_grow(port).unwrap());
            assert_ne!(slot, last);
            last = slot;
        }
        assert_eq!(table.len(), EVTCHN_FIFO_NR_CHANNELS);
        assert_eq!(table.get_or_grow(Port(EVTCHN_FIFO_NR_CHANNELS)).err(), Some(Errno::ENOSPC));
        assert!(table.get(Port(u32::MAX)).is_none());
    }

    #[test]
    fn growing_keeps_what_was_there() {
        let table = Table::new().unwrap();
        table.get_or_grow(Port(511)).unwrap().set(State::new(Binding::Ipi, VcpuId(5)));
        table.get_or_grow(Port(512)).unwrap();
        assert_eq!(table.len(), 1024);
        assert_eq!(table.get(Port(511)).unwrap().state().binding(), Binding::Ipi);
        assert_eq!(table.iter_from(1022).map(|(port, _)| port).collect::<Vec<_>>(), [Port(1022), Port(1023)]);
    }

    #[test]
    fn a_slot_takes_no_more_than_sixteen_bytes() {
        assert_eq!(size_of::<Slot>(), 16);
    }
}
