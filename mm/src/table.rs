//! Page-table formats as data: what an entry's bits mean is a format's business; walking, splitting and merging is done once,
//! in [`crate::p2m`].

use crate::addr::{Mfn, PageSize};

/// What lies behind a gfn. A format keeps it in the bits that the hardware ignores; the guest's access follows from it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageKind {
    /// The domain's own memory.
    Ram = 0,
    /// The domain's own memory, which it may read and execute only.
    RamReadOnly = 1,
    /// Memory whose next write is to be noted: as read-only, but a write is let through once it is noted.
    LogDirty = 2,
    /// A device's registers.
    Mmio = 3,
    /// A device's registers, to be read only.
    MmioReadOnly = 4,
    /// Another domain's frame by a grant.
    GrantRw = 5,
    /// Another domain's frame by a read-only grant.
    GrantRo = 6,
    /// Another domain's frame, mapped by a control domain.
    Foreign = 7,
    /// Another domain's frame, mapped by a control domain to be read only.
    ForeignRo = 8,
    /// An access goes to a device model; there is no frame.
    Ioreq = 9,
    /// The frame's memory has failed; there is no access.
    Broken = 10,
    /// The domain's own memory, once it is touched: there is no frame yet.
    OnDemand = 11,
    /// The domain's own memory, taken from its sight for as long as it is looked at, or until it is touched.
    Withheld = 12,
}

impl PageKind {
    /// The kind with this number, as a format finds it in an entry.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Ram,
            1 => Self::RamReadOnly,
            2 => Self::LogDirty,
            3 => Self::Mmio,
            4 => Self::MmioReadOnly,
            5 => Self::GrantRw,
            6 => Self::GrantRo,
            7 => Self::Foreign,
            8 => Self::ForeignRo,
            9 => Self::Ioreq,
            10 => Self::Broken,
            11 => Self::OnDemand,
            12 => Self::Withheld,
            _ => return None,
        })
    }

    /// Whether the guest may read what is there without an exit.
    #[inline]
    pub const fn readable(self) -> bool {
        !matches!(self, Self::Ioreq | Self::Broken | Self::OnDemand | Self::Withheld)
    }

    /// Whether the guest may write there without an exit.
    #[inline]
    pub const fn writable(self) -> bool {
        matches!(self, Self::Ram | Self::Mmio | Self::GrantRw | Self::Foreign)
    }

    /// Whether the guest may execute what is there.
    #[inline]
    pub const fn executable(self) -> bool {
        // Device memory as well: an option ROM is there to be executed, and what a process is given of a device's it may try.
        matches!(
            self,
            Self::Ram
                | Self::RamReadOnly
                | Self::LogDirty
                | Self::Foreign
                | Self::ForeignRo
                | Self::Mmio
                | Self::MmioReadOnly
        )
    }

    /// Whether memory is there, which the host may copy from on the guest's behalf; devices' registers are not.
    #[inline]
    pub const fn is_memory(self) -> bool {
        !matches!(self, Self::Mmio | Self::MmioReadOnly | Self::Ioreq | Self::Broken | Self::OnDemand | Self::Withheld)
    }

    /// Whether there is memory as soon as it is touched ([`P2m::populate`](crate::P2m::populate)).
    #[inline]
    pub const fn comes_when_touched(self) -> bool {
        matches!(self, Self::OnDemand | Self::Withheld)
    }

    /// Whether the frame is the domain's own.
    #[inline]
    pub const fn is_own_memory(self) -> bool {
        matches!(self, Self::Ram | Self::RamReadOnly | Self::LogDirty)
    }
}

/// How the CPU caches a page. The numbers are those of the PAT (SDM Vol. 3, 12.12).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    Uncacheable = 0,
    WriteCombining = 1,
    WriteThrough = 4,
    WriteProtected = 5,
    WriteBack = 6,
}

impl MemoryType {
    /// The type with this number; 2, 3 and 7 are none.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Uncacheable,
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => return None,
        })
    }
}

/// What a leaf says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first frame of the page; from [`P2m::lookup`](crate::P2m::lookup), the frame of the gfn that was asked for. It means nothing where
    /// there is none.
    pub mfn: Mfn,
    pub size: PageSize,
    pub kind: PageKind,
    pub memory: MemoryType,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    Empty,
    Table(Mfn),
    Leaf(Mapping),
}

/// A format of page tables with 512 entries of 64 bits. The all-zero entry must be `Empty`, and what `leaf` and `table` build
/// must decode as what it was built from, whatever accessed and dirty bits the hardware has added.
pub trait PageFormat: Copy {
    /// Levels from the root to the tables of 4 KiB pages, which are level 1.
    const LEVELS: u8;

    /// The entry that maps a page of this size, in the table of [`PageSize::level`].
    fn leaf(&self, mfn: Mfn, size: PageSize, kind: PageKind, memory: MemoryType) -> u64;

    /// The entry that leads to a table of the next level down.
    fn table(&self, mfn: Mfn) -> u64;

    /// What an entry of a table at `level` says. Where there is no frame (`Ioreq`, `OnDemand`), any mfn will do.
    fn decode(&self, entry: u64, level: u8) -> Entry;

    /// The largest page that this machine's CPUs can map.
    fn largest(&self) -> PageSize;

    /// Code runs in pages of any size. Elsewhere a page of 4 KiB is needed where code is to run: [`P2m::split_at`](crate::P2m::split_at).
    fn runs_large_code(&self) -> bool {
        true
    }
}
