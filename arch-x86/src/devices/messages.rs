//! Message-signalled interrupts: which host vector stands for which message of the guest's.
//!
//! A device sends the host's message, a fixed edge to one CPU; the guest receives what it wrote itself. A bound message has a
//! place in a table of routes, which is read at every interrupt and takes no lock.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use mm::lock::{Lock, Rank};

use crate::apic::vectors::{self, PLACES, Place, Source, Targets};
use crate::pci::{Message, Sbdf};
use crate::vdev::vlapic;

/// In a function's MSI, log2 of the vectors in use (PCI 3.0, 6.8.1.3).
const MOST_VECTORS: u8 = 5;

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub sbdf: Sbdf,
    /// The entry of its MSI-X table; none for MSI.
    pub entry: Option<u16>,
}

/// The messages of a function or of an entry of its table.
#[derive(Clone, Copy, Debug)]
struct Binding {
    owner: Owner,
    /// The first of its vectors.
    place: Place,
    log2_vectors: u8,
}

pub struct Messages {
    bindings: Lock<Vec<Binding>>,
    /// The guest's message for each [place](Place::index), packed; zero for none.
    routes: Box<[AtomicU64]>,
}

impl Default for Messages {
    fn default() -> Messages {
        let routes = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Messages { bindings: Lock::new(Rank::Timers, Vec::new()), routes }
    }
}

impl Messages {
    /// The guest's message behind a host vector whose source is this.
    #[inline]
    pub fn route(&self, index: u32) -> Option<vlapic::Message> {
        let packed = self.routes.get(index as usize)?.load(Ordering::Acquire);
        vlapic::Message::from_msi(packed >> 32, packed as u32)
    }

    /// Has the owner's vectors stand for `message`, and for those with its data counted up. Vectors of one of the CPUs `targets` are found for it unless it
    /// has as many already. The first of them; `None` if there are not enough.
    pub fn bind(&self, owner: Owner, message: Message, log2_vectors: u8, targets: &Targets) -> Option<Place> {
        let mut bindings = self.bindings.lock();
        let known = bindings.iter().position(|binding| binding.owner == owner);
        if let Some(at) = known
            && let Some(binding) = bindings.get(at).copied()
        {
            if binding.log2_vectors == log2_vectors {
                self.set_routes(&binding, message);
                return Some(binding.place);
            }
            self.release(&binding);
            bindings.swap_remove(at);
        }
        bindings.try_reserve(1).ok()?;
        if log2_vectors > MOST_VECTORS {
            return None;
        }
        let place = vectors::allocate_row(targets, log2_vectors, |place| Source::Message(place.index() as u32))?;
        let binding = Binding { owner, place, log2_vectors };
        self.set_routes(&binding, message);
        bindings.push(binding);
        Some(place)
    }

    /// The guest changed the message of an owner that is bound; of another one nothing is known.
    pub fn reroute(&self, owner: Owner, message: Message) {
        let bindings = self.bindings.lock();
        if let Some(binding) = bindings.iter().find(|binding| binding.owner == owner) {
            self.set_routes(binding, message);
        }
    }

    /// Whether the owner has vectors.
    pub fn is_bound(&self, owner: Owner) -> bool {
        self.bindings.lock().iter().any(|binding| binding.owner == owner)
    }

    /// Frees all vectors of a function's MSI.
    pub fn unbind(&self, sbdf: Sbdf) {
        self.retain(|owner| owner != Owner { sbdf, entry: None });
    }

    /// Frees the vectors of all entries of a function's MSI-X table.
    pub fn unbind_entries(&self, sbdf: Sbdf) {
        self.retain(|owner| owner.sbdf != sbdf || owner.entry.is_none());
    }

    fn retain(&self, keep: impl Fn(Owner) -> bool) {
        self.bindings.lock().retain(|binding| {
            let kept = keep(binding.owner);
            if !kept {
                self.release(binding);
            }
            kept
        });
    }

    /// Gives a binding's vectors back. A message that is still on its way is nobody's then.
    fn release(&self, binding: &Binding) {
        for index in 0..1 << binding.log2_vectors {
            vectors::free(binding.place.plus(index));
        }
        self.set_routes(binding, Message::default());
    }

    fn set_routes(&self, binding: &Binding, message: Message) {
        let places = self.routes.iter().skip(binding.place.index()).take(1 << binding.log2_vectors);
        for (index, place) in (0..).zip(places) {
            let Message { address, data } = message.nth(index);
            // The address of an interrupt has 32 bits. What the guest sends elsewhere is none, and goes nowhere.
            let packed = if message.is_interrupt() { address << 32 | u64::from(data) } else { 0 };
            place.store(packed, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Sbdf = Sbdf::new(0, 0, 1, 0);
    const SECOND: Sbdf = Sbdf::new(0, 0, 2, 0);

    fn msi(sbdf: Sbdf) -> Owner {
        Owner { sbdf, entry: None }
    }

    fn message(vector: u32) -> Message {
        Message { address: 0xfee0_2000, data: vector }
    }

    fn targets() -> Targets {
        [vectors::Target { cpu: sched::CpuId(0), apic_id: 0 }].into_iter().collect()
    }

    /// Which guest vector a host vector stands for.
    fn guest_vector(messages: &Messages, place: Place) -> Option<u8> {
        match vectors::source(place.target.cpu, place.vector) {
            Some(Source::Message(index)) => messages.route(index).map(|message| message.vector),
            _ => None,
        }
    }

    // The vectors are one machine's: what is freed here may be another test's at once.
    #[test]
    fn a_host_vector_stands_for_the_guests_message_while_it_is_bound() {
        let messages = Messages::default();
        let first = messages.bind(msi(FIRST), message(0x41), 0, &targets()).unwrap();
        let entry = Owner { sbdf: SECOND, entry: Some(7) };
        let second = messages.bind(entry, message(0x52), 0, &targets()).unwrap();
        assert_ne!(first, second);
        assert_eq!((guest_vector(&messages, first), guest_vector(&messages, second)), (Some(0x41), Some(0x52)));

        assert_eq!(
            messages.bind(msi(FIRST), message(0x43), 0, &targets()),
            Some(first),
            "bound again, it keeps its vector"
        );
        messages.reroute(entry, message(0x54));
        messages.reroute(msi(SECOND), message(0x55));
        assert_eq!((guest_vector(&messages, first), guest_vector(&messages, second)), (Some(0x43), Some(0x54)));

        let four = messages.bind(msi(FIRST), message(0x60), 2, &targets()).unwrap();
        let routed: Vec<_> = (0..4).map(|index| guest_vector(&messages, four.plus(index))).collect();
        assert_eq!(routed, [Some(0x60), Some(0x61), Some(0x62), Some(0x63)]);

        messages.reroute(entry, Message { address: 0x1234_5000, data: 0x54 });
        assert_eq!(guest_vector(&messages, second), None, "that is a write to memory");

        messages.unbind(SECOND);
        assert!(vectors::source(second.target.cpu, second.vector).is_some(), "MSI and MSI-X are two things");
        messages.unbind_entries(SECOND);
        messages.unbind(FIRST);
        assert!(messages.bindings.lock().is_empty());
        assert!((0..PLACES as u32).all(|index| messages.route(index).is_none()));
    }
}
