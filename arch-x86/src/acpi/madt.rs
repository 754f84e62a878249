//! The MADT: processors, IO-APICs, and how ISA interrupts and NMIs reach them (ACPI 6.5, 5.2.12).

use alloc::vec::Vec;

use super::table::{HEADER, Signature, Table, field};
use super::{Problem, Problems};

// Types of the structures that are read.
pub(super) const LOCAL_APIC: u8 = 0;
pub(super) const IO_APIC: u8 = 1;
pub(super) const OVERRIDE: u8 = 2;
pub(super) const NMI_SOURCE: u8 = 3;
const LOCAL_NMI: u8 = 4;
const LOCAL_APIC_ADDRESS: u8 = 5;
pub(super) const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;

/// Where the structures begin: behind the local APIC's address and the flags.
pub(super) const STRUCTURES: usize = HEADER.saturating_add(8);
const LOCAL_ADDRESS_AT: usize = HEADER;
const FLAGS_AT: usize = HEADER.saturating_add(4);

const PCAT_COMPAT: u32 = 1 << 0;
pub(super) const CPU_ENABLED: u32 = 1 << 0;
const CPU_ONLINE_CAPABLE: u32 = 1 << 1;

/// An 8-bit APIC id that says "none".
const NO_APIC_ID: u8 = 0xff;
/// An 8-bit processor UID that says "all".
const ALL_CPUS: u8 = 0xff;

/// A processor, by its local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// What AML knows the processor by.
    pub uid: u32,
    pub apic_id: u32,
    /// Ready for use. Otherwise it may be switched on later, if `online_capable`.
    pub enabled: bool,
    pub online_capable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    pub id: u8,
    pub address: u32,
    /// The global interrupt number of its first pin.
    pub gsi_base: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// As the bus has it: active high on ISA.
    Bus,
    ActiveHigh,
    ActiveLow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As the bus has it: edge on ISA.
    Bus,
    Edge,
    Level,
}

impl Polarity {
    fn from_flags(flags: u16) -> Polarity {
        match flags & 3 {
            1 => Polarity::ActiveHigh,
            3 => Polarity::ActiveLow,
            _ => Polarity::Bus,
        }
    }
}

impl Trigger {
    fn from_flags(flags: u16) -> Trigger {
        match (flags >> 2) & 3 {
            1 => Trigger::Edge,
            3 => Trigger::Level,
            _ => Trigger::Bus,
        }
    }
}

/// An ISA interrupt that is not the global interrupt of the same number, edge and active high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptOverride {
    pub irq: u8,
    pub gsi: u32,
    /// As in the table; [`polarity`](Self::polarity) and [`trigger`](Self::trigger) say what it means.
    pub flags: u16,
}

impl InterruptOverride {
    pub fn polarity(&self) -> Polarity {
        Polarity::from_flags(self.flags)
    }

    pub fn trigger(&self) -> Trigger {
        Trigger::from_flags(self.flags)
    }
}

/// A global interrupt that is an NMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmiSource {
    pub gsi: u32,
    pub flags: u16,
}

/// Which processors something concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyCpu {
    All,
    Uid(u32),
}

/// A local APIC's pin that an NMI comes in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNmi {
    pub cpu: AnyCpu,
    pub lint: u8,
    pub flags: u16,
}

/// The MADT, read.
#[derive(Clone, Debug, Default)]
pub struct Madt {
    pub local_apic_address: u64,
    /// There are two 8259 PICs too.
    pub has_pics: bool,
    pub revision: u8,
    /// In the table's order; the bootstrap processor is usually first. An APIC id appears once.
    pub cpus: Vec<Cpu>,
    pub io_apics: Vec<IoApic>,
    pub overrides: Vec<InterruptOverride>,
    pub nmi_sources: Vec<NmiSource>,
    pub local_nmis: Vec<LocalNmi>,
}

impl Madt {
    /// Reads `table`. A structure that is broken ends the reading: what came before it stands.
    pub fn parse(table: &Table, problems: &mut Problems) -> Result<Madt, Problem> {
        let short = Problem::Structure { table: Signature::MADT, offset: table.bytes().len() };
        let mut madt = Madt {
            local_apic_address: table.get(LOCAL_ADDRESS_AT).map(u32::from_le_bytes).ok_or(short)?.into(),
            has_pics: table.get(FLAGS_AT).map(u32::from_le_bytes).ok_or(short)? & PCAT_COMPAT != 0,
            revision: table.revision(),
            ..Madt::default()
        };
        let mut rest = table.bytes().get(STRUCTURES..).unwrap_or_default();
        while let [kind, length, ..] = *rest {
            let broken =
                Problem::Structure { table: Signature::MADT, offset: table.bytes().len().saturating_sub(rest.len()) };
            let Some((structure, after)) = rest.split_at_checked(length.into()).filter(|_| length >= 2) else {
                problems.add(broken);
                break;
            };
            if madt.add(kind, structure).is_none() {
                problems.add(broken);
            }
            rest = after;
        }
        Ok(madt)
    }

    /// `None` if the structure is shorter than its type must be.
    fn add(&mut self, kind: u8, structure: &[u8]) -> Option<()> {
        let byte = |at| field(structure, at).map(u8::from_le_bytes);
        let half = |at| field(structure, at).map(u16::from_le_bytes);
        let word = |at| field(structure, at).map(u32::from_le_bytes);
        match kind {
            LOCAL_APIC => {
                let apic_id = byte(3)?;
                if apic_id != NO_APIC_ID {
                    self.add_cpu(byte(2)?.into(), apic_id.into(), word(4)?);
                }
            }
            LOCAL_X2APIC => self.add_cpu(word(12)?, word(4)?, word(8)?),
            IO_APIC => self.io_apics.push(IoApic { id: byte(2)?, address: word(4)?, gsi_base: word(8)? }),
            OVERRIDE => self.overrides.push(InterruptOverride { irq: byte(3)?, gsi: word(4)?, flags: half(8)? }),
            NMI_SOURCE => self.nmi_sources.push(NmiSource { flags: half(2)?, gsi: word(4)? }),
            LOCAL_NMI => {
                let cpu = match byte(2)? {
                    ALL_CPUS => AnyCpu::All,
                    uid => AnyCpu::Uid(uid.into()),
                };
                self.local_nmis.push(LocalNmi { cpu, flags: half(3)?, lint: byte(5)? });
            }
            LOCAL_X2APIC_NMI => {
                let cpu = match word(4)? {
                    u32::MAX => AnyCpu::All,
                    uid => AnyCpu::Uid(uid),
                };
                self.local_nmis.push(LocalNmi { cpu, flags: half(2)?, lint: byte(8)? });
            }
            LOCAL_APIC_ADDRESS => self.local_apic_address = field(structure, 4).map(u64::from_le_bytes)?,
            _ => {}
        }
        Some(())
    }

    /// Some firmware lists a processor both by its APIC and by its x2APIC: the first counts, but an enabled one before one that is not.
    fn add_cpu(&mut self, uid: u32, apic_id: u32, flags: u32) {
        let enabled = flags & CPU_ENABLED != 0;
        let cpu = Cpu { uid, apic_id, enabled, online_capable: flags & CPU_ONLINE_CAPABLE != 0 };
        match self.cpus.iter_mut().find(|known| known.apic_id == apic_id) {
            Some(known) if enabled && !known.enabled => *known = cpu,
            Some(_) => {}
            None => self.cpus.push(cpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Memory, table};
    use super::*;
    use mm::HostPhys;
    use proptest::prelude::*;

    fn parse(structures: &[u8]) -> (Madt, Vec<Problem>) {
        let mut content = 0xfee0_0000u32.to_le_bytes().to_vec();
        content.extend(1u32.to_le_bytes());
        content.extend(structures);
        let mut memory = Memory::new();
        memory.place(0x1000, &table(b"APIC", &content));
        let table = Table::read(&memory, HostPhys(0x1000)).unwrap();
        let mut problems = Problems::default();
        let madt = Madt::parse(&table, &mut problems).unwrap();
        (madt, problems.iter().copied().collect())
    }

    #[test]
    fn processors_are_listed_once_whichever_way_they_are_told() {
        let (madt, problems) = parse(
            &[
                &[0u8, 8, 1, 0, 1, 0, 0, 0][..],                    // UID 1, APIC 0, enabled
                &[0, 8, 2, 2, 0, 0, 0, 0],                          // UID 2, APIC 2, disabled
                &[0, 8, 3, 0xff, 0, 0, 0, 0],                       // no APIC
                &[9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0], // x2APIC 2, enabled, UID 7
                &[9, 16, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0], // x2APIC 256, can be enabled, UID 9
            ]
            .concat(),
        );
        assert!(problems.is_empty());
        assert_eq!(
            madt.cpus,
            [
                Cpu { uid: 1, apic_id: 0, enabled: true, online_capable: false },
                Cpu { uid: 7, apic_id: 2, enabled: true, online_capable: false },
                Cpu { uid: 9, apic_id: 256, enabled: false, online_capable: true },
            ]
        );
        assert!(madt.has_pics && madt.local_apic_address == 0xfee0_0000);
    }

    #[test]
    fn interrupts_are_told_with_their_polarity_and_trigger() {
        let (madt, _) = parse(
            &[
                &[1u8, 12, 4, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0][..],
                &[2, 10, 0, 9, 20, 0, 0, 0, 0xf, 0],
                &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
                &[3, 8, 5, 0, 17, 0, 0, 0],
                &[4, 6, 0xff, 5, 0, 1],
                &[10, 12, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0],
                &[5, 12, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
                &[77, 2],
            ]
            .concat(),
        );
        assert_eq!(madt.io_apics, [IoApic { id: 4, address: 0xfec0_0000, gsi_base: 24 }]);
        assert_eq!(madt.overrides[0], InterruptOverride { irq: 9, gsi: 20, flags: 0xf });
        assert_eq!((madt.overrides[0].polarity(), madt.overrides[0].trigger()), (Polarity::ActiveLow, Trigger::Level));
        assert_eq!((madt.overrides[1].polarity(), madt.overrides[1].trigger()), (Polarity::Bus, Trigger::Bus));
        assert_eq!(madt.nmi_sources, [NmiSource { gsi: 17, flags: 5 }]);
        assert_eq!(madt.local_nmis[0], LocalNmi { cpu: AnyCpu::All, lint: 1, flags: 5 });
        assert_eq!(madt.local_nmis[1], LocalNmi { cpu: AnyCpu::Uid(3), lint: 1, flags: 0 });
        assert_eq!(madt.local_apic_address, 0x1_0000_0000);
    }

    #[test]
    fn a_broken_structure_is_named_and_what_came_before_it_stands() {
        let good = [0u8, 8, 1, 0, 1, 0, 0, 0];
        for bad in [&[0u8, 0][..], &[0, 1], &[0, 200, 1]] {
            let (madt, problems) = parse(&[&good[..], bad].concat());
            assert_eq!(madt.cpus.len(), 1);
            assert_eq!(problems, [Problem::Structure { table: Signature::MADT, offset: 52 }]);
        }
        let (madt, problems) = parse(&[&[1u8, 4, 0, 0][..], &good].concat());
        assert_eq!((madt.cpus.len(), problems.len()), (1, 1));
    }

    proptest! {
        #[test]
        fn no_structures_can_panic_the_parser(junk in proptest::collection::vec(0u8..20, 0..200)) {
            let _ = parse(&junk);
        }
    }
}
