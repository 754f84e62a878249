//! The interrupt command register: from the bits that the guest wrote to a message (SDM Vol. 3, 11.6.1).

use super::{Delivery, Destination, Effect, LapicInbox, Message, Numbering, Target, Vlapic, error};

const LOGICAL: u64 = 1 << 11;
const ASSERT: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const SHORTHAND_SHIFT: u32 = 18;

/// Every bit of the lower half that means something; in x2APIC mode the others are reserved.
pub(super) const DEFINED: u32 = 0xff | 7 << 8 | LOGICAL as u32 | ASSERT as u32 | LEVEL as u32 | 3 << SHORTHAND_SHIFT;

#[inline]
const fn destination_id(icr: u64, numbering: Numbering) -> u32 {
    match numbering {
        Numbering::X2apic => (icr >> 32) as u32,
        _ => (icr >> 56) as u32,
    }
}

impl Vlapic {
    /// The vCPU has written its ICR. A fixed interrupt to itself is requested at once, anything else is for the run
    /// loop to send.
    #[inline]
    pub(super) fn send(&mut self, icr: u64, numbering: Numbering, inbox: &LapicInbox) -> Effect {
        const SIMPLE: u64 = 3 << SHORTHAND_SHIFT | 7 << 8 | LOGICAL;
        const MYSELF: u64 = 1 << SHORTHAND_SHIFT;
        // Fixed, to itself or to one other: what an operating system sends all the time.
        let id = destination_id(icr, numbering);
        let vector = icr as u8;
        if vector >= 16
            && self.enabled
            && (icr & SIMPLE == MYSELF || icr & SIMPLE == 0 && self.is_myself(id, numbering))
        {
            // This vCPU is about to be entered: nobody needs to be told.
            let _ = inbox.post(vector, false);
            return Effect::Nothing;
        }
        if vector >= 16 && icr & SIMPLE == 0 {
            let target = Target::Destination(Destination { id, logical: false, numbering });
            return Effect::Ipi(Message { vector, delivery: Delivery::Fixed, level: false, target });
        }
        self.send_unusual(icr, numbering, inbox)
    }

    #[inline]
    const fn is_myself(&self, id: u32, numbering: Numbering) -> bool {
        // 0xff is everyone in xAPIC mode, whoever has that id.
        id == self.x2apic_id && (id != 0xff || matches!(numbering, Numbering::X2apic))
    }

    #[cold]
    fn send_unusual(&mut self, icr: u64, numbering: Numbering, inbox: &LapicInbox) -> Effect {
        let id = destination_id(icr, numbering);
        let delivery = Delivery::from_bits(icr);
        let vector = icr as u8;
        let target = match (icr >> SHORTHAND_SHIFT) & 3 {
            0 => Target::Destination(Destination { id, logical: icr & LOGICAL != 0, numbering }),
            1 => Target::Myself,
            2 => Target::Everyone,
            _ => Target::EveryoneElse,
        };
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                if vector < 16 {
                    self.fail(error::SEND_ILLEGAL_VECTOR, inbox);
                    return Effect::Nothing;
                }
            }
            // A deassertion concerned APICs of the 1990s only.
            Delivery::Init if icr & (ASSERT | LEVEL) == LEVEL => return Effect::Nothing,
            Delivery::Nmi | Delivery::Init | Delivery::StartUp => {
                // Table 11-3: these shorthands are for fixed interrupts.
                if matches!(target, Target::Myself | Target::Everyone) {
                    return Effect::Nothing;
                }
            }
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => return Effect::Nothing,
        }
        if target == Target::Myself {
            // Lowest priority, or the APIC is off.
            if self.enabled {
                let _ = inbox.post(vector, false);
            }
            return Effect::Nothing;
        }
        // Table 11-3: whatever the trigger mode says, an IPI is edge-triggered.
        Effect::Ipi(Message { vector, delivery, level: false, target })
    }
}
