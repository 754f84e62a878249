//! Nested page tables as a format of `mm`'s walker: the host's own format, walked as user accesses (APM Vol. 2, 15.25).

use mm::addr::{Mfn, PageSize};
use mm::table::{Entry, Mapping, MemoryType, PageFormat, PageKind};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// Every nested access counts as a user's (15.25.5).
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
/// Set from the beginning, so that the CPU never writes to an entry.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// Software's in every entry: the page's kind, counted from one, and its memory type.
const KIND_SHIFT: u32 = 52;
const KIND_MASK: u64 = 0xf;
const TYPE_SHIFT: u32 = 56;
const TYPE_MASK: u64 = 0x7;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

/// Nested page tables with four levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    /// The CPU has 1 GiB pages.
    pub gigabyte_pages: bool,
}

/// A nested walk takes its memory types from the *host's* PAT ([`crate::paging::PAT`]: 0 is write-back, 1 write-combining, 2 UC-), and the
/// guest's is combined with it (15.25.8). Uncached memory is UC-, which the guest's PAT may still make write-combining. Write-through and
/// write-protected have no entry there, and become what is safe for both.
fn caching(memory: MemoryType) -> u64 {
    match memory {
        MemoryType::WriteBack => 0,
        MemoryType::WriteCombining => WRITE_THROUGH,
        MemoryType::Uncacheable | MemoryType::WriteThrough | MemoryType::WriteProtected => CACHE_DISABLE,
    }
}

fn access(kind: PageKind) -> u64 {
    if !kind.readable() {
        return 0;
    }
    let writable = if kind.writable() { WRITABLE } else { 0 };
    let executable = if kind.executable() { 0 } else { NO_EXECUTE };
    PRESENT | USER | ACCESSED | DIRTY | writable | executable
}

impl PageFormat for Npt {
    const LEVELS: u8 = 4;

    fn leaf(&self, frame: Mfn, size: PageSize, kind: PageKind, memory: MemoryType) -> u64 {
        let large = if size == PageSize::Size4K { 0 } else { LARGE };
        (frame.phys().0 & FRAME_MASK)
            | access(kind)
            | caching(memory)
            | large
            | (kind as u64 + 1) << KIND_SHIFT
            | (memory as u64) << TYPE_SHIFT
    }

    fn table(&self, table: Mfn) -> u64 {
        (table.phys().0 & FRAME_MASK) | PRESENT | WRITABLE | USER | ACCESSED
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry {
        let kind = entry >> KIND_SHIFT & KIND_MASK;
        if kind == 0 {
            if entry & PRESENT == 0 {
                return Entry::Empty;
            }
            return Entry::Table(Mfn((entry & FRAME_MASK) >> 12));
        }
        let size = match level {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        };
        let Some(kind) = PageKind::from_bits(kind as u8 - 1) else { return Entry::Empty };
        let Some(memory) = MemoryType::from_bits((entry >> TYPE_SHIFT & TYPE_MASK) as u8) else { return Entry::Empty };
        Entry::Leaf(Mapping { mfn: Mfn((entry & FRAME_MASK) >> 12), size, kind, memory })
    }

    fn largest(&self) -> PageSize {
        if self.gigabyte_pages { PageSize::Size1G } else { PageSize::Size2M }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Npt = Npt { gigabyte_pages: true };
    const SIZES: [(PageSize, u8); 3] = [(PageSize::Size4K, 1), (PageSize::Size2M, 2), (PageSize::Size1G, 3)];
    const TYPES: [MemoryType; 5] = [
        MemoryType::Uncacheable,
        MemoryType::WriteCombining,
        MemoryType::WriteThrough,
        MemoryType::WriteProtected,
        MemoryType::WriteBack,
    ];

    fn kinds() -> impl Iterator<Item = PageKind> {
        (0..16).filter_map(PageKind::from_bits)
    }

    #[test]
    fn every_mapping_comes_back_from_its_entry() {
        let mfn = Mfn(0x3_4567_8000);
        for (size, level) in SIZES {
            for kind in kinds() {
                for memory in TYPES {
                    let entry = FORMAT.leaf(mfn, size, kind, memory);
                    assert_eq!(FORMAT.decode(entry, level), Entry::Leaf(Mapping { mfn, size, kind, memory }));
                }
            }
        }
        assert_eq!(FORMAT.decode(FORMAT.table(mfn), 3), Entry::Table(mfn));
        assert_eq!(FORMAT.decode(0, 1), Entry::Empty);
    }

    #[test]
    fn access_follows_from_the_kind() {
        for kind in kinds() {
            let entry = FORMAT.leaf(Mfn(5), PageSize::Size4K, kind, MemoryType::WriteBack);
            assert_eq!(entry & PRESENT != 0, kind.readable(), "{kind:?}");
            assert_eq!(entry & WRITABLE != 0, kind.writable(), "{kind:?}");
            assert_eq!(entry & PRESENT != 0 && entry & NO_EXECUTE == 0, kind.executable(), "{kind:?}");
        }
    }

    #[test]
    fn every_present_entry_is_the_users_and_needs_no_write_by_the_cpu() {
        let leaf = FORMAT.leaf(Mfn(5), PageSize::Size2M, PageKind::Ram, MemoryType::WriteBack);
        assert_eq!(leaf & (USER | ACCESSED | DIRTY | LARGE), USER | ACCESSED | DIRTY | LARGE);
        assert_eq!(FORMAT.table(Mfn(5)) & (USER | ACCESSED), USER | ACCESSED);
    }

    #[test]
    fn memory_types_are_what_the_hosts_pat_calls_them() {
        // The type in the PAT's entry that PWT and PCD choose; 7 is UC-.
        let chosen = |memory| {
            let entry = FORMAT.leaf(Mfn(5), PageSize::Size4K, PageKind::Mmio, memory);
            let index = entry >> 3 & 3 | (entry >> 7 & 1) << 2;
            crate::paging::PAT >> (index * 8) & 0xff
        };
        assert_eq!(chosen(MemoryType::WriteBack), 6);
        assert_eq!(chosen(MemoryType::WriteCombining), 1);
        for memory in [MemoryType::Uncacheable, MemoryType::WriteThrough, MemoryType::WriteProtected] {
            assert_eq!(chosen(memory), 7, "{memory:?}");
        }
    }
}
