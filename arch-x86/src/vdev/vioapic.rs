//! Virtual I/O APICs (82093AA and its successors), one for each of the host's in Dom0.
//!
//! Unmasking a pin asks for the physical interrupt to be bound to it ([`Effect::Unmasked`]). When that interrupt comes,
//! the physical layer masks it if it is level-triggered and says [`assert`](IoApics::assert); it unmasks it when both
//! the guest has ended the interrupt ([`Effect::Eoi`]) and the virtual pin is unmasked. If the device still holds the
//! line, the physical interrupt simply comes again: so a line counts as released at its EOI.
//!
//! A domain's I/O APICs are shared by its vCPUs; whoever holds them locks them.
extern crate alloc;

use alloc::vec::Vec;
use arrayvec::ArrayVec;
use xen_abi::Errno;
use xen_abi::hvm_save;

use super::vlapic::{Delivery, Destination, Message, Numbering, Target};

/// A global system interrupt, as ACPI numbers the pins of all I/O APICs.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gsi(pub u32);

/// Bytes of address space that one I/O APIC answers in.
pub const WINDOW: u64 = 0x1000;

/// The version register's number of an I/O APIC with an EOI register. 0x11 has none.
pub const VERSION_WITH_EOI: u8 = 0x20;

/// The last redirection entry's number has 8 bits, but registers end at 0xff.
pub const MOST_PINS: usize = 120;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const REGISTER_ID: u8 = 0;
const REGISTER_VERSION: u8 = 1;
const REGISTER_ARBITRATION: u8 = 2;
const REGISTER_TABLE: u8 = 0x10;

/// What the run loop has to do.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Send this within the domain.
    Deliver(Message),
    /// Bind the physical interrupt, with this trigger and polarity, and let it come. Said again if one of the two
    /// changes: what has become edge-triggered awaits no EOI any more.
    Unmasked { gsi: Gsi, level: bool, active_low: bool },
    /// Keep the physical interrupt from coming.
    Masked(Gsi),
    /// The guest has ended this level-triggered interrupt.
    Eoi(Gsi),
}

/// A redirection entry, as the hardware lays it out.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const LOGICAL: u64 = 1 << 11;
    const STATUS: u64 = 1 << 12;
    const ACTIVE_LOW: u64 = 1 << 13;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// Vector to mask, the extended destination (XEN_HVM_CPUID_EXT_DEST_ID), the destination.
    const WRITABLE: u64 = 0x1_ffff & !(Entry::STATUS | Entry::REMOTE_IRR) | 0x7f << 49 | 0xff << 56;

    const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    const fn vector(self) -> u8 {
        self.0 as u8
    }

    const fn message(self) -> Message {
        let id = (self.0 >> 56) as u32 | ((self.0 >> 49) as u32 & 0x7f) << 8;
        let destination = Destination { id, logical: self.has(Entry::LOGICAL), numbering: Numbering::Message };
        Message {
            vector: self.vector(),
            delivery: Delivery::from_bits(self.0),
            level: self.has(Entry::LEVEL),
            target: Target::Destination(destination),
        }
    }
}

#[derive(Copy, Clone, Debug)]
struct Pin {
    gsi: Gsi,
    entry: Entry,
    /// An interrupt has come and is not yet delivered.
    asserted: bool,
}

impl Pin {
    const fn new(gsi: Gsi) -> Pin {
        Pin { gsi, entry: Entry(Entry::MASKED), asserted: false }
    }

    /// Delivers what has come, unless the pin is masked or the interrupt before it has not been ended.
    fn deliver(&mut self) -> Option<Effect> {
        if !self.asserted || self.entry.has(Entry::MASKED) || self.entry.has(Entry::REMOTE_IRR) {
            return None;
        }
        self.asserted = false;
        if self.entry.has(Entry::LEVEL) {
            self.entry.0 |= Entry::REMOTE_IRR;
        }
        Some(Effect::Deliver(self.entry.message()))
    }

    fn eoi(&mut self) -> Effect {
        self.entry.0 &= !Entry::REMOTE_IRR;
        self.asserted = false;
        Effect::Eoi(self.gsi)
    }

    /// The guest writes the entry; three things may follow.
    fn write(&mut self, value: u64) -> ArrayVec<Effect, 3> {
        let old = self.entry;
        self.entry.0 = value & Entry::WRITABLE | old.0 & Entry::REMOTE_IRR;
        let new = self.entry;
        let mut effects = ArrayVec::new();
        // Without an EOI register, software ends an interrupt by switching the pin to edge and back.
        if new.has(Entry::REMOTE_IRR) && !new.has(Entry::LEVEL) {
            effects.push(self.eoi());
        }
        let changed = (old.0 ^ new.0) & (Entry::MASKED | Entry::LEVEL | Entry::ACTIVE_LOW);
        if new.has(Entry::MASKED) {
            if changed & Entry::MASKED != 0 {
                effects.push(Effect::Masked(self.gsi));
            }
        } else if changed != 0 {
            effects.push(Effect::Unmasked {
                gsi: self.gsi,
                level: new.has(Entry::LEVEL),
                active_low: new.has(Entry::ACTIVE_LOW),
            });
        }
        effects.extend(self.deliver());
        effects
    }
}

/// How an I/O APIC looks; Dom0's mirror the host's.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Guest-physical address of its registers.
    pub base: u64,
    pub id: u8,
    pub version: u8,
    pub gsi_base: Gsi,
    pub pins: u32,
}

/// One I/O APIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    base: u64,
    id: u8,
    version: u8,
    select: u8,
    pins: Vec<Pin>,
}

impl IoApic {
    /// EINVAL: no pins, more than the registers can name, or GSIs beyond 32 bits. ENOMEM.
    pub fn new(description: &Description) -> Result<IoApic, Errno> {
        let Description { base, id, version, gsi_base, pins: count } = *description;
        let end = gsi_base.0.checked_add(count).ok_or(Errno::EINVAL)?;
        let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
        if count == 0 || count > MOST_PINS {
            return Err(Errno::EINVAL);
        }
        let mut pins = Vec::new();
        pins.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        pins.extend((gsi_base.0..end).map(|gsi| Pin::new(Gsi(gsi))));
        Ok(IoApic { base, id, version, select: 0, pins })
    }

    pub const fn base(&self) -> u64 {
        self.base
    }

    fn pin(&mut self, gsi: Gsi) -> Option<&mut Pin> {
        let first = self.pins.first()?.gsi;
        let index = gsi.0.checked_sub(first.0)?;
        self.pins.get_mut(index as usize)
    }

    /// Which half of which redirection entry a register is.
    fn half(register: u8) -> Option<(usize, bool)> {
        let number = register.checked_sub(REGISTER_TABLE)?;
        Some((usize::from(number >> 1), number & 1 != 0))
    }

    /// Reads at an offset from the base.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            IOREGSEL => self.select.into(),
            IOWIN => self.read_register(),
            _ => 0,
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            REGISTER_ID | REGISTER_ARBITRATION => u32::from(self.id) << 24,
            REGISTER_VERSION => u32::from(self.version) | (self.pins.len().saturating_sub(1) as u32) << 16,
            register => {
                let Some((index, upper)) = IoApic::half(register) else { return 0 };
                let entry = self.pins.get(index).map_or(0, |pin| pin.entry.0);
                if upper { (entry >> 32) as u32 } else { entry as u32 }
            }
        }
    }

    /// Writes 32 bits at an offset from the base. The effects come as the iterator is walked: walk it to its end.
    pub fn write(&mut self, offset: u64, value: u32) -> impl Iterator<Item = Effect> {
        let mut effects = ArrayVec::new();
        let mut ended = None;
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => effects = self.write_register(value),
            EOI if self.version >= VERSION_WITH_EOI => ended = Some(value as u8),
            _ => {}
        }
        effects.into_iter().chain(self.eoi(ended))
    }

    fn write_register(&mut self, value: u32) -> ArrayVec<Effect, 3> {
        let nothing = ArrayVec::new();
        if self.select == REGISTER_ID {
            self.id = (value >> 24) as u8 & if self.version >= VERSION_WITH_EOI { 0xff } else { 0xf };
            return nothing;
        }
        let Some((index, upper)) = IoApic::half(self.select) else { return nothing };
        let Some(pin) = self.pins.get_mut(index) else { return nothing };
        let entry = pin.entry.0;
        pin.write(if upper {
            entry & 0xffff_ffff | u64::from(value) << 32
        } else {
            entry & !0xffff_ffff | u64::from(value)
        })
    }

    fn eoi(&mut self, ended: Option<u8>) -> impl Iterator<Item = Effect> {
        let pins = if ended.is_some() { self.pins.as_mut_slice() } else { &mut [] };
        pins.iter_mut()
            .filter(move |pin| pin.entry.has(Entry::REMOTE_IRR) && ended == Some(pin.entry.vector()))
            .map(Pin::eoi)
    }

    /// As the record of an HVM context, which has room for 48 pins. None if there are more.
    pub fn save(&self) -> Option<hvm_save::Vioapic> {
        let mut record = hvm_save::Vioapic {
            base_address: self.base,
            ioregsel: self.select.into(),
            id: self.id.into(),
            redirtbl: [Entry::MASKED; hvm_save::VIOAPIC_NUM_PINS],
        };
        record.redirtbl.get_mut(..self.pins.len())?.iter_mut().zip(&self.pins).for_each(|(to, pin)| *to = pin.entry.0);
        Some(record)
    }

    /// Puts a saved state back. What interrupts had come and were not delivered is not in the record: whoever drives
    /// the lines asserts them again.
    pub fn restore(&mut self, record: &hvm_save::Vioapic) {
        self.base = record.base_address;
        self.select = record.ioregsel as u8;
        self.id = record.id as u8;
        for (pin, entry) in self.pins.iter_mut().zip(record.redirtbl) {
            let remote_irr = if entry & Entry::LEVEL != 0 { Entry::REMOTE_IRR } else { 0 };
            *pin = Pin { entry: Entry(entry & (Entry::WRITABLE | remote_irr)), ..Pin::new(pin.gsi) };
        }
    }
}

/// All I/O APICs of a domain.
#[derive(Clone, Debug, Default)]
pub struct IoApics {
    units: Vec<IoApic>,
}

impl IoApics {
    /// ENOMEM, and EINVAL as [`IoApic::new`].
    pub fn new(descriptions: &[Description]) -> Result<IoApics, Errno> {
        let mut units = Vec::new();
        units.try_reserve_exact(descriptions.len()).map_err(|_| Errno::ENOMEM)?;
        for description in descriptions {
            units.push(IoApic::new(description)?);
        }
        Ok(IoApics { units })
    }

    /// The I/O APIC whose registers hold this guest-physical address.
    pub fn at(&mut self, address: u64) -> Option<&mut IoApic> {
        self.units.iter_mut().find(|unit| address.checked_sub(unit.base).is_some_and(|offset| offset < WINDOW))
    }

    /// The interrupt has come. The message to deliver, if the guest lets it through now; otherwise it is kept until it
    /// does.
    pub fn assert(&mut self, gsi: Gsi) -> Option<Message> {
        let pin = self.units.iter_mut().find_map(|unit| unit.pin(gsi))?;
        pin.asserted = true;
        match pin.deliver()? {
            Effect::Deliver(message) => Some(message),
            _ => None,
        }
    }

    /// A local APIC of the domain has broadcast the end of a level-triggered interrupt. The effects come as the
    /// iterator is walked: walk it to its end.
    pub fn eoi(&mut self, vector: u8) -> impl Iterator<Item = Effect> {
        self.units.iter_mut().flat_map(move |unit| unit.eoi(Some(vector)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 0xfec0_0000;
    const SECOND: u64 = 0xfec2_8000;

    fn io_apics() -> IoApics {
        IoApics::new(&[
            Description { base: BASE, id: 0, version: 0x11, gsi_base: Gsi(0), pins: 24 },
            Description { base: SECOND, id: 9, version: 0x20, gsi_base: Gsi(24), pins: 32 },
        ])
        .unwrap()
    }

    fn write(apics: &mut IoApics, base: u64, register: u8, value: u32) -> Vec<Effect> {
        let unit = apics.at(base).unwrap();
        assert_eq!(unit.write(IOREGSEL, register.into()).count(), 0);
        unit.write(IOWIN, value).collect()
    }

    fn read(apics: &mut IoApics, base: u64, register: u8) -> u32 {
        let unit = apics.at(base).unwrap();
        assert_eq!(unit.write(IOREGSEL, register.into()).count(), 0);
        unit.read(IOWIN)
    }

    /// Unmasks pin 16 of the first unit for vector 0x51, level, active low, to APIC id 2.
    fn level_pin_16(apics: &mut IoApics) {
        assert_eq!(write(apics, BASE, 0x31, 2 << 24), []);
        assert_eq!(
            write(apics, BASE, 0x30, 0xa051),
            [Effect::Unmasked { gsi: Gsi(16), level: true, active_low: true }]
        );
    }

    fn message(vector: u8, level: bool, id: u32) -> Message {
        Message {
            vector,
            delivery: Delivery::Fixed,
            level,
            target: Target::Destination(Destination::physical(id, Numbering::Message)),
        }
    }

    #[test]
    fn every_pin_starts_masked_and_the_units_tell_what_they_are() {
        let mut apics = io_apics();
        assert_eq!(read(&mut apics, BASE, 1), 0x0017_0011);
        assert_eq!(read(&mut apics, SECOND, 1), 0x001f_0020);
        assert_eq!(read(&mut apics, SECOND, 0), 9 << 24);
        for pin in 0..24 {
            assert_eq!(read(&mut apics, BASE, 0x10 + 2 * pin), 0x10000);
        }
        assert_eq!(read(&mut apics, BASE, 0x10 + 2 * 24), 0, "there is no such pin");
        assert!(apics.at(BASE + WINDOW).is_none());
        assert!(apics.at(BASE - 1).is_none());
    }

    #[test]
    fn a_level_interrupt_comes_again_only_after_its_eoi() {
        let mut apics = io_apics();
        level_pin_16(&mut apics);
        assert_eq!(apics.assert(Gsi(16)), Some(message(0x51, true, 2)));
        assert_eq!(read(&mut apics, BASE, 0x30), 0xe051, "remote IRR is set");
        assert_eq!(apics.assert(Gsi(16)), None);
        assert_eq!(apics.eoi(0x50).count(), 0);
        assert_eq!(apics.eoi(0x51).collect::<Vec<_>>(), [Effect::Eoi(Gsi(16))]);
        assert_eq!(read(&mut apics, BASE, 0x30), 0xa051);
        assert_eq!(apics.eoi(0x51).count(), 0);
        assert_eq!(apics.assert(Gsi(16)), Some(message(0x51, true, 2)));
    }

    #[test]
    fn an_edge_interrupt_needs_no_eoi() {
        let mut apics = io_apics();
        write(&mut apics, BASE, 0x13, 4 << 24);
        assert_eq!(
            write(&mut apics, BASE, 0x12, 0x31),
            [Effect::Unmasked { gsi: Gsi(1), level: false, active_low: false }]
        );
        for _ in 0..3 {
            assert_eq!(apics.assert(Gsi(1)), Some(message(0x31, false, 4)));
        }
        assert_eq!(apics.eoi(0x31).count(), 0);
    }

    #[test]
    fn an_interrupt_that_crossed_the_mask_is_delivered_when_unmasked() {
        let mut apics = io_apics();
        level_pin_16(&mut apics);
        assert_eq!(write(&mut apics, BASE, 0x30, 0x1a051), [Effect::Masked(Gsi(16))]);
        assert_eq!(write(&mut apics, BASE, 0x30, 0x1a051), [], "masked already");
        assert_eq!(apics.assert(Gsi(16)), None);
        assert_eq!(
            write(&mut apics, BASE, 0x30, 0xa051),
            [Effect::Unmasked { gsi: Gsi(16), level: true, active_low: true }, Effect::Deliver(message(0x51, true, 2))]
        );
    }

    #[test]
    fn a_pin_may_be_masked_while_its_interrupt_is_served() {
        let mut apics = io_apics();
        level_pin_16(&mut apics);
        assert!(apics.assert(Gsi(16)).is_some());
        assert_eq!(write(&mut apics, BASE, 0x30, 0x1a051), [Effect::Masked(Gsi(16))]);
        assert_eq!(apics.eoi(0x51).collect::<Vec<_>>(), [Effect::Eoi(Gsi(16))]);
        assert_eq!(
            write(&mut apics, BASE, 0x30, 0xa051),
            [Effect::Unmasked { gsi: Gsi(16), level: true, active_low: true }]
        );
    }

    #[test]
    fn switching_to_edge_and_back_ends_an_interrupt() {
        let mut apics = io_apics();
        level_pin_16(&mut apics);
        assert!(apics.assert(Gsi(16)).is_some());
        assert_eq!(write(&mut apics, BASE, 0x30, 0x12051), [Effect::Eoi(Gsi(16)), Effect::Masked(Gsi(16))]);
        assert_eq!(
            write(&mut apics, BASE, 0x30, 0xa051),
            [Effect::Unmasked { gsi: Gsi(16), level: true, active_low: true }]
        );
        assert!(apics.assert(Gsi(16)).is_some());
    }

    #[test]
    fn remote_irr_and_delivery_status_are_not_the_guests_to_write() {
        let mut apics = io_apics();
        write(&mut apics, BASE, 0x30, 0x1d051);
        assert_eq!(read(&mut apics, BASE, 0x30), 0x18051);
        write(&mut apics, BASE, 0x30, 0x8051);
        assert!(apics.assert(Gsi(16)).is_some());
        write(&mut apics, BASE, 0x30, 0x8051);
        assert_eq!(read(&mut apics, BASE, 0x30), 0xc051, "remote IRR survives a write");
    }

    #[test]
    fn only_a_newer_unit_has_an_eoi_register() {
        let mut apics = io_apics();
        level_pin_16(&mut apics);
        assert!(apics.assert(Gsi(16)).is_some());
        assert_eq!(apics.at(BASE).unwrap().write(EOI, 0x51).count(), 0);
        write(&mut apics, SECOND, 0x10, 0x8051);
        assert!(apics.assert(Gsi(24)).is_some());
        let unit = apics.at(SECOND).unwrap();
        assert_eq!(unit.write(EOI, 0x51).collect::<Vec<_>>(), [Effect::Eoi(Gsi(24))], "and ends its own pins only");
    }

    #[test]
    fn pins_that_share_a_vector_are_ended_together() {
        let mut apics = io_apics();
        level_pin_16(&mut apics);
        write(&mut apics, SECOND, 0x12, 0x8051);
        assert!(apics.assert(Gsi(16)).is_some() && apics.assert(Gsi(25)).is_some());
        assert_eq!(apics.eoi(0x51).collect::<Vec<_>>(), [Effect::Eoi(Gsi(16)), Effect::Eoi(Gsi(25))]);
    }

    #[test]
    fn the_extended_destination_reaches_beyond_255() {
        let mut apics = io_apics();
        write(&mut apics, BASE, 0x11, 0x02 << 24 | 1 << 17);
        write(&mut apics, BASE, 0x10, 0x40);
        assert_eq!(apics.assert(Gsi(0)), Some(message(0x40, false, 0x102)));
    }

    #[test]
    fn a_gsi_of_no_pin_goes_nowhere() {
        assert_eq!(io_apics().assert(Gsi(56)), None);
        assert_eq!(io_apics().assert(Gsi(u32::MAX)), None);
    }

    #[test]
    fn a_saved_unit_goes_on_where_it_was() {
        let mut apics = io_apics();
        level_pin_16(&mut apics);
        assert!(apics.assert(Gsi(16)).is_some());
        let record = apics.at(BASE).unwrap().save().unwrap();
        let mut copy = io_apics();
        copy.at(BASE).unwrap().restore(&record);
        assert_eq!(read(&mut copy, BASE, 0x30), 0xe051);
        assert_eq!(copy.eoi(0x51).collect::<Vec<_>>(), [Effect::Eoi(Gsi(16))]);
    }

    #[test]
    fn an_impossible_unit_is_refused() {
        let good = Description { base: BASE, id: 0, version: 0x20, gsi_base: Gsi(0), pins: 120 };
        assert!(IoApic::new(&good).is_ok());
        for bad in [
            Description { pins: 0, ..good },
            Description { pins: 121, ..good },
            Description { gsi_base: Gsi(u32::MAX), pins: 24, ..good },
        ] {
            assert_eq!(IoApic::new(&bad).err(), Some(Errno::EINVAL));
        }
    }

    proptest! {
        /// The physical layer as the module's head describes it: it must never lose a held line, nor see a level
        /// interrupt delivered twice without an EOI between.
        #[test]
        fn a_held_line_is_always_served_again(steps in prop::collection::vec(0..5u8, 1..100)) {
            let mut apics = io_apics();
            let (mut bound, mut awaits_eoi, mut in_service) = (false, false, false);
            for step in steps.into_iter().chain([1, 3, 1, 3, 2]) {
                let effects = match step {
                    0 => write(&mut apics, BASE, 0x30, 0x18051),
                    1 => write(&mut apics, BASE, 0x30, 0x8051),
                    // The device holds its line all the time: it fires whenever the physical pin is open.
                    2 if bound && !awaits_eoi => {
                        awaits_eoi = true;
                        apics.assert(Gsi(16)).map(Effect::Deliver).into_iter().collect()
                    }
                    3 if in_service => {
                        in_service = false;
                        apics.eoi(0x51).collect()
                    }
                    4 => write(&mut apics, BASE, 0x31, 0x0400_0000),
                    _ => vec![],
                };
                for effect in effects {
                    match effect {
                        Effect::Deliver(_) => {
                            prop_assert!(!in_service);
                            in_service = true;
                        }
                        Effect::Unmasked { .. } => bound = true,
                        Effect::Masked(_) => bound = false,
                        Effect::Eoi(_) => awaits_eoi = false,
                    }
                }
            }
            prop_assert!(in_service, "unmasked, ended and fired: it must have been delivered");
        }
    }
}
