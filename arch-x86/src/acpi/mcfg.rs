//! The MCFG, where PCI's memory-mapped configuration space is (PCI Firmware Specification 3.0, 4.1.2), and the HPET's table.

use alloc::vec::Vec;

use super::fadt::GenericAddress;
use super::table::{HEADER, Signature, Table, field};
use super::{Problem, Problems};

const ALLOCATIONS: usize = HEADER.saturating_add(8);
const ALLOCATION: usize = 16;
const BYTES_A_BUS: u64 = 1 << 20;

/// The configuration space of a segment's buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Where bus 0 is, or would be if `first_bus` is not 0.
    pub base: u64,
    pub segment: u16,
    pub first_bus: u8,
    pub last_bus: u8,
}

impl Ecam {
    /// The physical memory that it takes.
    pub fn range(&self) -> core::ops::Range<u64> {
        let at = |bus: u64| self.base.saturating_add(bus.saturating_mul(BYTES_A_BUS));
        at(self.first_bus.into())..at(u64::from(self.last_bus).saturating_add(1))
    }
}

/// The MCFG, read.
#[derive(Clone, Debug, Default)]
pub struct Mcfg {
    pub segments: Vec<Ecam>,
}

impl Mcfg {
    /// Reads `table`. An entry that makes no sense is named and skipped.
    pub fn parse(table: &Table, problems: &mut Problems) -> Mcfg {
        let mut mcfg = Mcfg::default();
        let entries = table.bytes().get(ALLOCATIONS..).unwrap_or_default().chunks_exact(ALLOCATION);
        for (index, entry) in entries.enumerate() {
            let ecam = field(entry, 0).map(u64::from_le_bytes).zip(field(entry, 8).map(u16::from_le_bytes));
            let buses = field(entry, 10).map(|[first, last]: [u8; 2]| (first, last));
            match ecam.zip(buses) {
                Some(((base, segment), (first_bus, last_bus)))
                    if first_bus <= last_bus && base != 0 && base & BYTES_A_BUS.wrapping_sub(1) == 0 =>
                {
                    mcfg.segments.push(Ecam { base, segment, first_bus, last_bus });
                }
                _ => problems.add(Problem::Structure {
                    table: Signature::MCFG,
                    offset: index.saturating_mul(ALLOCATION).saturating_add(ALLOCATIONS),
                }),
            }
        }
        mcfg
    }
}

/// The HPET, from its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hpet {
    pub id: u32,
    pub registers: GenericAddress,
    pub number: u8,
    pub minimum_tick: u16,
}

impl Hpet {
    pub fn parse(table: &Table) -> Result<Hpet, Problem> {
        let registers_at = HEADER.saturating_add(4);
        let number_at = registers_at.saturating_add(GenericAddress::SIZE);
        let short = Problem::Structure { table: Signature::HPET, offset: registers_at };
        Ok(Hpet {
            id: table.get(HEADER).map(u32::from_le_bytes).ok_or(short)?,
            registers: GenericAddress::parse(table.bytes(), registers_at).ok_or(short)?,
            number: table.get(number_at).map(u8::from_le_bytes).ok_or(short)?,
            minimum_tick: table.get(number_at.saturating_add(1)).map(u16::from_le_bytes).ok_or(short)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fadt::AddressSpace;
    use super::super::sample::{Memory, table};
    use super::*;
    use mm::HostPhys;

    fn read(signature: &[u8; 4], content: &[u8]) -> Table {
        let mut memory = Memory::new();
        memory.place(0x1000, &table(signature, content));
        Table::read(&memory, HostPhys(0x1000)).unwrap()
    }

    #[test]
    fn a_segment_says_where_its_buses_are() {
        let mut content = [0u8; 8].to_vec();
        content.extend([0, 0, 0, 0xb0, 0, 0, 0, 0, 1, 0, 2, 0xff, 0, 0, 0, 0]);
        let mut problems = Problems::default();
        let mcfg = Mcfg::parse(&read(b"MCFG", &content), &mut problems);
        assert_eq!(mcfg.segments, [Ecam { base: 0xb000_0000, segment: 1, first_bus: 2, last_bus: 0xff }]);
        assert_eq!(mcfg.segments[0].range(), 0xb020_0000..0xc000_0000);
        assert_eq!(problems.iter().count(), 0);
    }

    #[test]
    fn a_segment_that_makes_no_sense_is_skipped() {
        let mut content = [0u8; 8].to_vec();
        content.extend([0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0]);
        content.extend([1, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        content.extend([0, 0, 0, 0xb0, 0, 0]);
        let mut problems = Problems::default();
        assert!(Mcfg::parse(&read(b"MCFG", &content), &mut problems).segments.is_empty());
        assert_eq!(problems.iter().count(), 2);
        assert!(Mcfg::parse(&read(b"MCFG", &[]), &mut problems).segments.is_empty());
    }

    #[test]
    fn the_hpet_says_where_its_registers_are() {
        let content = [1, 0xa7, 0x86, 0x80, 0, 64, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0, 3, 0x80, 0, 0];
        let hpet = Hpet::parse(&read(b"HPET", &content)).unwrap();
        assert_eq!((hpet.registers.address, hpet.registers.space), (0xfed0_0000, AddressSpace::Memory));
        assert_eq!((hpet.id, hpet.number, hpet.minimum_tick), (0x8086_a701, 3, 0x80));
        assert!(Hpet::parse(&read(b"HPET", &content[..10])).is_err());
    }
}
