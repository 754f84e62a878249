//! Events as EVENTINJ and EXITINTINFO have them (APM Vol. 2, 15.20 and 15.7.2).

use crate::event::Event;

const VALID: u64 = 1 << 31;
const HAS_ERROR: u64 = 1 << 11;
const TYPE_SHIFT: u32 = 8;

mod kind {
    pub const INTERRUPT: u64 = 0;
    pub const NMI: u64 = 2;
    pub const EXCEPTION: u64 = 3;
}

const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;

/// EVENTINJ for an event. A software event is none: RIP is still at its instruction, which is executed again. Without protected mode no
/// exception has an error code.
pub fn injected(event: Event, protected_mode: bool) -> u64 {
    let (kind, vector, error) = match event {
        Event::Interrupt(vector) => (kind::INTERRUPT, vector, None),
        Event::Nmi => (kind::NMI, 2, None),
        Event::Exception { vector, error } => (kind::EXCEPTION, vector, error.filter(|_| protected_mode)),
        Event::Software { .. } => return 0,
    };
    let error = error.map_or(0, |code| HAS_ERROR | u64::from(code) << 32);
    VALID | kind << TYPE_SHIFT | u64::from(vector) | error
}

/// The event whose delivery an exit interrupted, unless executing its instruction again brings it back.
#[inline]
pub fn interrupted(info: u64) -> Option<Event> {
    if info & VALID == 0 {
        return None;
    }
    let vector = info as u8;
    match info >> TYPE_SHIFT & 7 {
        kind::INTERRUPT => Some(Event::Interrupt(vector)),
        kind::NMI => Some(Event::Nmi),
        kind::EXCEPTION if vector != BREAKPOINT && vector != OVERFLOW => {
            let error = (info & HAS_ERROR != 0).then_some((info >> 32) as u32);
            Some(Event::Exception { vector, error })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SoftwareKind;

    #[test]
    fn what_an_exit_interrupted_is_injected_again_as_it_was() {
        let events = [
            Event::Interrupt(0xf3),
            Event::Nmi,
            Event::Exception { vector: 14, error: Some(0x15) },
            Event::Exception { vector: 6, error: None },
        ];
        for event in events {
            assert_eq!(interrupted(injected(event, true)), Some(event));
        }
        assert_eq!(injected(Event::Exception { vector: 13, error: Some(8) }, true), 0x8_8000_0b0d);
    }

    #[test]
    fn real_mode_pushes_no_error_code() {
        assert_eq!(injected(Event::Exception { vector: 13, error: Some(0) }, false), 0x8000_030d);
    }

    #[test]
    fn software_events_come_back_by_their_instruction() {
        let event = Event::Software { vector: 0x80, kind: SoftwareKind::Interrupt, length: 2, error: None };
        assert_eq!(injected(event, true), 0);
        assert_eq!(interrupted(0x8000_0480), None, "INT n");
        assert_eq!(interrupted(0x8000_0303), None, "INT3");
        assert_eq!(interrupted(0x0000_0030), None, "nothing was interrupted");
    }
}
