//! Extended page tables as a format of `mm`'s walker (SDM Vol. 3, 29.3).

use mm::addr::{Mfn, PageSize};
use mm::table::{Entry, Mapping, MemoryType, PageFormat, PageKind};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const MEMORY_TYPE_SHIFT: u32 = 3;
const LEAF: u64 = 1 << 7;
/// Ignored by the CPU in every entry: the page's kind lives here.
const KIND_SHIFT: u32 = 52;
const KIND_MASK: u64 = 0xf;
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

/// EPT with four levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    /// The CPU has 1 GiB pages.
    pub gigabyte_pages: bool,
    /// Code may run in pages larger than 4 KiB.
    pub large_code: bool,
}

fn access(kind: PageKind) -> u64 {
    let bit = |allowed, bit| if allowed { bit } else { 0 };
    bit(kind.readable(), READ) | bit(kind.writable(), WRITE) | bit(kind.executable(), EXECUTE)
}

impl PageFormat for Ept {
    const LEVELS: u8 = 4;

    fn leaf(&self, frame: Mfn, size: PageSize, kind: PageKind, memory: MemoryType) -> u64 {
        // IPAT (bit 6) stays clear: the guest's PAT may still make uncached memory write-combining.
        let large = if size == PageSize::Size4K { 0 } else { LEAF };
        let withheld = if large != 0 && !self.large_code { EXECUTE } else { 0 };
        (frame.phys().0 & FRAME_MASK)
            | access(kind) & !withheld
            | (memory as u64) << MEMORY_TYPE_SHIFT
            | large
            // Kinds count from one here, so that an entry without access is still not an empty one.
            | (kind as u64 + 1) << KIND_SHIFT
    }

    fn table(&self, table: Mfn) -> u64 {
        (table.phys().0 & FRAME_MASK) | READ | WRITE | EXECUTE
    }

    #[inline]
    fn decode(&self, entry: u64, level: u8) -> Entry {
        let kind = entry >> KIND_SHIFT & KIND_MASK;
        if kind == 0 {
            if entry & (READ | WRITE | EXECUTE) == 0 {
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
        let Some(memory) = MemoryType::from_bits((entry >> MEMORY_TYPE_SHIFT & 7) as u8) else { return Entry::Empty };
        Entry::Leaf(Mapping { mfn: Mfn((entry & FRAME_MASK) >> 12), size, kind, memory })
    }

    fn largest(&self) -> PageSize {
        if self.gigabyte_pages { PageSize::Size1G } else { PageSize::Size2M }
    }

    #[inline]
    fn runs_large_code(&self) -> bool {
        self.large_code
    }
}
