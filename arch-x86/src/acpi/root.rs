//! From the root pointer to the tables (ACPI 6.5, 5.2.5).

use alloc::vec::Vec;

use mm::HostPhys;

use super::table::{self, HEADER, Signature, Table, field, sum};
use super::{PhysRead, Problem, Problems};

const MAGIC: &[u8; 8] = b"RSD PTR ";
const V1_LENGTH: usize = 20;
const V2_LENGTH: usize = 36;

/// Machines have some thirty.
const MAX_TABLES: usize = 256;

/// Where BIOSes put the root pointer: at a multiple of 16 here, or in the first KiB of the EBDA, whose segment is told at 0x40e.
const BIOS_AREA: (u64, u64) = (0xe_0000, 0x10_0000);
const EBDA_SEGMENT: HostPhys = HostPhys(0x40e);
const EBDA_SEARCHED: u64 = 1024;
const ROOT_ALIGN: usize = 16;

/// The RSDP: where the root table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootPointer {
    /// 0 if there is none.
    pub xsdt: u64,
    pub rsdt: u32,
}

impl RootPointer {
    /// Reads a root pointer out of `bytes`, which begin with it: those in memory, or a bootloader's copy of them. `None` if they are none
    /// or their checksum is bad. A version 2 pointer of which only the first part checks out is taken as version 1.
    pub fn parse(bytes: &[u8]) -> Option<RootPointer> {
        let first = bytes.get(..V1_LENGTH)?;
        if !first.starts_with(MAGIC) || sum(first) != 0 {
            return None;
        }
        let rsdt = field(first, 16).map(u32::from_le_bytes)?;
        let revision = field(first, 15).map(u8::from_le_bytes)?;
        let whole = bytes.get(..V2_LENGTH).filter(|whole| revision >= 2 && sum(whole) == 0);
        let xsdt = whole.and_then(|whole| field(whole, 24)).map_or(0, u64::from_le_bytes);
        Some(RootPointer { xsdt, rsdt })
    }

    /// Reads the root pointer at `at`.
    pub fn read(memory: &impl PhysRead, at: HostPhys) -> Result<RootPointer, Problem> {
        let mut bytes = [0; V2_LENGTH];
        let (first, _) = bytes.split_at_mut(V1_LENGTH);
        memory.read(at, first).map_err(|_| Problem::RootTable { at })?;
        // What follows a version 1 pointer need not be readable.
        let _ = memory.read(at, &mut bytes);
        RootPointer::parse(&bytes).ok_or(Problem::RootChecksum { at })
    }

    /// Looks for the root pointer where BIOSes put it. Under UEFI only the bootloader knows.
    pub fn search(memory: &impl PhysRead) -> Result<RootPointer, Problem> {
        let mut segment = [0; 2];
        let _ = memory.read(EBDA_SEGMENT, &mut segment);
        let ebda = u64::from(u16::from_le_bytes(segment)) << 4;
        let ebda = (ebda, ebda.saturating_add(EBDA_SEARCHED));
        for (start, end) in [ebda, BIOS_AREA] {
            for at in (start..end).step_by(ROOT_ALIGN).filter(|at| *at != 0) {
                let mut magic = [0; MAGIC.len()];
                if memory.read(HostPhys(at), &mut magic).is_ok()
                    && magic == *MAGIC
                    && let Ok(root) = RootPointer::read(memory, HostPhys(at))
                {
                    return Ok(root);
                }
            }
        }
        Err(Problem::NoRoot)
    }
}

/// A table that the root table lists and whose checksum is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    pub signature: Signature,
    pub at: HostPhys,
    pub length: u32,
}

/// The machine's tables.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The RSDT or XSDT itself.
    pub root: Table,
    pub list: Vec<TableEntry>,
    /// What was wrong on the way.
    pub problems: Problems,
}

impl Tables {
    /// Walks the XSDT, or the RSDT if there is no good XSDT.
    pub fn find(memory: &impl PhysRead, root: RootPointer) -> Result<Tables, Problem> {
        let mut problems = Problems::default();
        let candidates =
            [(root.xsdt, Signature::XSDT, size_of::<u64>()), (root.rsdt.into(), Signature::RSDT, size_of::<u32>())];
        for (at, signature, width) in candidates {
            if at == 0 {
                continue;
            }
            match Table::read(memory, HostPhys(at)) {
                Ok(table) if table.signature == signature => return Tables::walk(memory, table, width, problems),
                Ok(_) => problems.add(Problem::RootTable { at: HostPhys(at) }),
                Err(problem) => problems.add(problem),
            }
        }
        Err(problems.iter().next().copied().unwrap_or(Problem::NoRoot))
    }

    fn walk(memory: &impl PhysRead, root: Table, width: usize, mut problems: Problems) -> Result<Tables, Problem> {
        let entries = root.bytes().get(HEADER..).unwrap_or_default().chunks_exact(width);
        let count = entries.len().min(MAX_TABLES);
        if entries.len() > MAX_TABLES {
            problems.add(Problem::TooManyTables);
        }
        let mut list = Vec::new();
        list.try_reserve_exact(count).map_err(|_| Problem::OutOfMemory { table: root.signature })?;
        for entry in entries.take(count) {
            let mut at = [0; size_of::<u64>()];
            for (to, from) in at.iter_mut().zip(entry) {
                *to = *from;
            }
            let at = HostPhys(u64::from_le_bytes(at));
            if at.0 == 0 {
                continue;
            }
            match table::check(memory, at) {
                Ok((signature, length)) => list.push(TableEntry { signature, at, length }),
                Err(problem) => problems.add(problem),
            }
        }
        Ok(Tables { root, list, problems })
    }

    /// Reads the first table of this signature.
    pub fn read(&self, memory: &impl PhysRead, signature: Signature) -> Result<Table, Problem> {
        let entry = self.list.iter().find(|t| t.signature == signature).ok_or(Problem::Missing { table: signature })?;
        Table::read(memory, entry.at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Memory, rsdp_v1, rsdp_v2, table};
    use super::*;
    use proptest::prelude::*;

    fn signatures(tables: &Tables) -> Vec<String> {
        tables.list.iter().map(|t| t.signature.to_string()).collect()
    }

    #[test]
    fn the_tables_are_those_of_the_xsdt() {
        let mut memory = Memory::new();
        let ssdt = memory.place(0x2001, &table(b"SSDT", b"aml"));
        let xsdt = memory.place(0x1000, &table(b"XSDT", &ssdt.to_le_bytes()));
        memory.place(0xf_0010, &rsdp_v2(0, xsdt));
        let tables = Tables::find(&memory, RootPointer::search(&memory).unwrap()).unwrap();
        assert_eq!(tables.list, [TableEntry { signature: Signature(*b"SSDT"), at: HostPhys(0x2001), length: 39 }]);
        assert_eq!(tables.problems.iter().count(), 0);
        assert_eq!(tables.read(&memory, Signature(*b"SSDT")).unwrap().bytes()[36..], *b"aml");
        assert_eq!(tables.read(&memory, Signature::MADT).unwrap_err(), Problem::Missing { table: Signature::MADT });
    }

    #[test]
    fn without_a_good_xsdt_the_rsdt_will_do() {
        let mut memory = Memory::new();
        let ssdt = memory.place(0x2000, &table(b"SSDT", b""));
        let rsdt = memory.place(0x3000, &table(b"RSDT", &(ssdt as u32).to_le_bytes())) as u32;
        memory.place(0x9_fc00, &rsdp_v1(rsdt));
        memory.place(0x40e, &0x9fc0u16.to_le_bytes());
        let root = RootPointer::search(&memory).unwrap();
        assert_eq!(root, RootPointer { xsdt: 0, rsdt });
        assert_eq!(signatures(&Tables::find(&memory, root).unwrap()), ["SSDT"]);

        let mut broken = table(b"XSDT", &[]);
        broken[9] ^= 1;
        let xsdt = memory.place(0x4000, &broken);
        let tables = Tables::find(&memory, RootPointer { xsdt, rsdt }).unwrap();
        assert_eq!(signatures(&tables), ["SSDT"]);
        assert_eq!(tables.problems.iter().count(), 1);
    }

    #[test]
    fn a_broken_table_is_named_and_skipped() {
        let mut memory = Memory::new();
        let mut ssdt = table(b"SSDT", b"aml");
        ssdt[36] = ssdt[36].wrapping_add(0x12);
        let bad_sum = memory.place(0x2000, &ssdt);
        let short = memory.place(0x2100, b"DSDT\x05\0\0\0");
        let good = memory.place(0x2200, &table(b"FACP", &[0; 100]));
        let outside = 0x123_4567_8000u64;
        let list: Vec<u8> = [bad_sum, short, 0, outside, good].iter().flat_map(|a| a.to_le_bytes()).collect();
        let xsdt = memory.place(0x1000, &table(b"XSDT", &list));
        let tables = Tables::find(&memory, RootPointer { xsdt, rsdt: 0 }).unwrap();
        assert_eq!(signatures(&tables), ["FACP"]);
        let said: Vec<String> = tables.problems.iter().map(Problem::to_string).collect();
        assert_eq!(said[0], "ACPI: table SSDT at 0x2000 has a bad checksum (0x12); ignored");
        assert!(said[1].contains("DSDT") && said[1].contains("5 bytes"));
        assert!(said[2].contains("0x12345678000"));
    }

    #[test]
    fn a_root_pointer_with_a_bad_checksum_is_none() {
        let mut root = rsdp_v2(0x1000, 0x2000);
        assert_eq!(RootPointer::parse(&root), Some(RootPointer { xsdt: 0x2000, rsdt: 0x1000 }));
        root[30] ^= 1;
        assert_eq!(RootPointer::parse(&root), Some(RootPointer { xsdt: 0, rsdt: 0x1000 }));
        root[9] ^= 1;
        assert_eq!(RootPointer::parse(&root), None);
        assert_eq!(RootPointer::search(&Memory::new()), Err(Problem::NoRoot));
    }

    proptest! {
        #[test]
        fn no_memory_can_panic_the_walk(
            junk in proptest::collection::vec((0x1000usize..0x2800, any::<u8>()), 0..40),
            reseal: bool,
        ) {
            let mut memory = Memory::new();
            let ssdt = memory.place(0x2000, &table(b"SSDT", &[1; 600]));
            let xsdt = memory.place(0x1000, &table(b"XSDT", &[ssdt.to_le_bytes(), ssdt.to_le_bytes()].concat()));
            for (at, byte) in junk {
                memory.place(at as u64, &[byte]);
            }
            if reseal {
                memory.reseal(0x1000);
            }
            let _ = Tables::find(&memory, RootPointer { xsdt, rsdt: 0x1234 });
        }
    }
}
