//! Events on their way into a guest: what is injected at the next entry, and what an exit interrupted and must be injected again.
//! One state machine for both engines.

/// A fault, trap, interrupt or NMI for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    Nmi,
    /// A hardware exception with its error code.
    Exception {
        vector: u8,
        error: Option<u32>,
    },
    /// INT n, INT1 or INT3/INTO, interrupted on its way: with the instruction's length.
    Software {
        vector: u8,
        kind: SoftwareKind,
        length: u8,
        error: Option<u32>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftwareKind {
    Interrupt,
    Privileged,
    Exception,
}

pub mod exception {
    pub const DEBUG: u8 = 1;
    pub const UNDEFINED: u8 = 6;
    pub const DOUBLE_FAULT: u8 = 8;
    pub const GENERAL_PROTECTION: u8 = 13;
    pub const PAGE_FAULT: u8 = 14;
    pub const ALIGNMENT_CHECK: u8 = 17;
}

/// What raising an exception came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    Pending,
    /// An exception on the way to a double fault's handler: the vCPU shuts down.
    TripleFault,
}

/// At most one event is on its way; an exception that meets another combines with it (SDM Vol. 3, table 6-5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    event: Option<Event>,
}

fn contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

impl Pending {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.event.is_none()
    }

    #[inline]
    pub fn peek(&self) -> Option<Event> {
        self.event
    }

    /// Takes the event for injection.
    #[inline]
    pub fn take(&mut self) -> Option<Event> {
        self.event.take()
    }

    /// An event whose delivery an exit interrupted: it comes again at the next entry.
    #[inline]
    pub fn redeliver(&mut self, event: Event) {
        self.event = Some(event);
    }

    /// Raises an exception in the guest. An external interrupt, NMI or software interrupt that was on its way is given up for it, except that its own cause
    /// recurs: a software event's instruction is executed again; an external interrupt must be put back by the caller ([`Pending::displaced`]).
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Raised {
        if let Some(Event::Exception { vector: first, .. }) = self.event {
            let page_fault = exception::PAGE_FAULT;
            if first == exception::DOUBLE_FAULT && (contributory(vector) || vector == page_fault) {
                return Raised::TripleFault;
            }
            let double = (contributory(first) && contributory(vector))
                || (first == page_fault && (contributory(vector) || vector == page_fault));
            if double {
                self.event = Some(Event::Exception { vector: exception::DOUBLE_FAULT, error: Some(0) });
                return Raised::Pending;
            }
        }
        self.event = Some(Event::Exception { vector, error });
        Raised::Pending
    }

    /// The external interrupt or NMI that [`Pending::raise`] is about to displace.
    pub fn displaced(&self) -> Option<Event> {
        self.event.filter(|event| matches!(event, Event::Interrupt(_) | Event::Nmi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_within_a_page_fault_is_a_double_fault() {
        let mut pending = Pending::default();
        pending.raise(exception::PAGE_FAULT, Some(2));
        assert_eq!(pending.raise(exception::GENERAL_PROTECTION, Some(0)), Raised::Pending);
        assert_eq!(pending.take(), Some(Event::Exception { vector: exception::DOUBLE_FAULT, error: Some(0) }));
    }

    #[test]
    fn a_fault_within_a_double_fault_shuts_down() {
        let mut pending = Pending::default();
        pending.raise(exception::DOUBLE_FAULT, Some(0));
        assert_eq!(pending.raise(exception::PAGE_FAULT, Some(0)), Raised::TripleFault);
    }

    #[test]
    fn a_page_fault_after_a_general_protection_fault_is_just_that() {
        let mut pending = Pending::default();
        pending.raise(exception::GENERAL_PROTECTION, Some(0));
        pending.raise(exception::PAGE_FAULT, Some(4));
        assert_eq!(pending.take(), Some(Event::Exception { vector: exception::PAGE_FAULT, error: Some(4) }));
    }

    #[test]
    fn an_interrupt_that_a_fault_displaces_is_not_forgotten() {
        let mut pending = Pending::default();
        pending.redeliver(Event::Interrupt(0x51));
        assert_eq!(pending.displaced(), Some(Event::Interrupt(0x51)));
    }
}
