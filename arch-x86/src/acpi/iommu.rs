//! Where the IOMMUs' registers are: Intel's by the DMAR (VT-d 4.1, 8.1 and 8.3), AMD's by the IVRS (AMD I/O Virtualization Technology 3.08,
//! 5.2). Corten does not use them yet, and keeps them all the same: whoever has their registers can send DMA anywhere.
//!
//! BOOT: firmware is asked once.

use alloc::vec::Vec;
use core::ops::Range;

use super::table::{HEADER, Signature, Table, field};
use super::{Problem, Problems};

/// Both tables have twelve bytes before their first structure.
const STRUCTURES: usize = HEADER.saturating_add(12);
const PAGE: u64 = 4096;

/// The remapping hardware unit definition of the DMAR.
const DRHD: u16 = 0;
/// The definition blocks of the IVRS: as it first was, with the features that the unit has, and with ACPI names.
const IVHD: u8 = 0x10;
const IVHD_WITH_FEATURES: u8 = 0x11;
const IVHD_WITH_NAMES: u8 = 0x40;
/// AMD's registers, without and with performance counters.
const AMD_REGISTERS: u64 = 16 << 10;
const AMD_REGISTERS_AND_COUNTERS: u64 = 512 << 10;

/// The registers of each IOMMU in a DMAR or an IVRS, none of them twice. A structure that makes no sense is named and skipped.
pub fn registers(table: &Table, problems: &mut Problems) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut offset = STRUCTURES;
    while let Some(rest) = table.bytes().get(offset..).filter(|rest| !rest.is_empty()) {
        let broken = Problem::Structure { table: table.signature, offset };
        // The length is at the same place in both.
        let length = field(rest, 2).map_or(0, u16::from_le_bytes).into();
        let Some(structure) = rest.get(..length).filter(|structure| structure.len() >= 4) else {
            problems.add(broken);
            break;
        };
        match unit(table.signature, structure) {
            Ok(Some(range)) if !found.contains(&range) => found.push(range),
            Ok(_) => {}
            Err(Nonsense) => problems.add(broken),
        }
        offset = offset.saturating_add(length);
    }
    found
}

struct Nonsense;

/// The registers that a structure tells of, if it is one of a unit.
fn unit(table: Signature, structure: &[u8]) -> Result<Option<Range<u64>>, Nonsense> {
    let size = if table == Signature::DMAR {
        if field(structure, 0).map(u16::from_le_bytes) != Some(DRHD) {
            return Ok(None);
        }
        // Since VT-d 4.0 a unit may have more than a page.
        PAGE << (structure.get(5).ok_or(Nonsense)? & 0xf)
    } else {
        let counters = match structure.first() {
            // Feature reporting: how many counters a bank has.
            Some(&IVHD) => field(structure, 20).map(u32::from_le_bytes).ok_or(Nonsense)? >> 13 & 0xf != 0,
            // The extended feature register: PCSup.
            Some(&(IVHD_WITH_FEATURES | IVHD_WITH_NAMES)) => {
                field(structure, 24).map(u64::from_le_bytes).ok_or(Nonsense)? >> 9 & 1 != 0
            }
            _ => return Ok(None),
        };
        if counters { AMD_REGISTERS_AND_COUNTERS } else { AMD_REGISTERS }
    };
    let base = field(structure, 8).map(u64::from_le_bytes).ok_or(Nonsense)?;
    let end = base.checked_add(size).ok_or(Nonsense)?;
    if base == 0 || base.checked_rem(PAGE) != Some(0) { Err(Nonsense) } else { Ok(Some(base..end)) }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Memory, table};
    use super::*;
    use mm::HostPhys;

    fn read(signature: &[u8; 4], structures: &[&[u8]]) -> (Vec<Range<u64>>, usize) {
        let mut memory = Memory::new();
        memory.place(0x1000, &table(signature, &[&[0; 12][..], &structures.concat()].concat()));
        let mut problems = Problems::default();
        let found = registers(&Table::read(&memory, HostPhys(0x1000)).unwrap(), &mut problems);
        (found, problems.iter().count())
    }

    /// As QEMU has it, with a device scope behind; `pages` is log2.
    fn drhd(base: u64, pages: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, 24, 0, 1, pages, 0, 0];
        bytes.extend(base.to_le_bytes());
        bytes.extend([3, 8, 0, 0, 0, 0xff, 0, 0]);
        bytes
    }

    fn ivhd(kind: u8, base: u64, features: u32, extended: u64) -> Vec<u8> {
        let mut bytes = vec![kind, 0, if kind == IVHD { 24 } else { 40 }, 0, 0x18, 0, 0x40, 0];
        bytes.extend(base.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(features.to_le_bytes());
        if kind != IVHD {
            bytes.extend(extended.to_le_bytes());
            bytes.extend([0; 8]);
        }
        bytes
    }

    #[test]
    fn each_unit_of_a_dmar_has_its_registers() {
        // Reserved memory, type 1, is none.
        let reserved = [1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0x1f, 0, 0, 0, 0, 0];
        let (found, problems) = read(b"DMAR", &[&drhd(0xfed9_0000, 0), &reserved, &drhd(0x80_fed9_2000, 1)]);
        assert_eq!(found, [0xfed9_0000..0xfed9_1000, 0x80_fed9_2000..0x80_fed9_4000]);
        assert_eq!(problems, 0);
    }

    #[test]
    fn a_unit_of_an_ivrs_that_is_told_of_twice_is_one() {
        let blocks = [
            ivhd(IVHD, 0xfeb8_0000, 4 << 13, 0),
            ivhd(IVHD_WITH_FEATURES, 0xfeb8_0000, 4 << 13, 1 << 9),
            ivhd(IVHD_WITH_NAMES, 0xfd00_0000, 0, 0),
        ];
        // Memory that is unity mapped, type 0x20, is none.
        let memory = [&[0x20, 0, 32, 0][..], &[0xff; 28]].concat();
        let (found, problems) = read(b"IVRS", &[&blocks[0], &memory, &blocks[1], &blocks[2]]);
        assert_eq!(found, [0xfeb8_0000..0xfec0_0000, 0xfd00_0000..0xfd00_4000]);
        assert_eq!(problems, 0);
    }

    #[test]
    fn what_makes_no_sense_is_named_and_skipped() {
        let (found, problems) =
            read(b"DMAR", &[&drhd(0, 0), &drhd(0x1234, 0), &drhd(u64::MAX - 0xfff, 0), &drhd(0x1000, 0)]);
        assert_eq!(found.as_slice(), core::slice::from_ref(&(0x1000..0x2000)));
        assert_eq!(problems, 3);
        assert_eq!(read(b"DMAR", &[&[0, 0, 0, 0, 1, 0, 0, 0]]), (vec![], 1), "no length");
        assert_eq!(read(b"DMAR", &[&[0, 0, 200, 0, 1, 0, 0, 0]]), (vec![], 1), "beyond the end");
        assert_eq!(read(b"DMAR", &[&[0, 0, 8, 0, 1, 0, 0, 0]]), (vec![], 1), "cut short");
        assert_eq!(read(b"IVRS", &[&[0x10]]), (vec![], 1));
        assert_eq!(read(b"IVRS", &[]), (vec![], 0));
    }
}
