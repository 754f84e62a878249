//! Grant tables (`grant_table.h`).

use crate::handle::GuestHandle;
use crate::types::{DomainId, GrantRef};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `GNTTABOP_*`: the first argument of `grant_table_op`; the second is an array, the third its length.
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
pub const GNTTABOP_DUMP_TABLE: u32 = 3;
pub const GNTTABOP_TRANSFER: u32 = 4;
pub const GNTTABOP_COPY: u32 = 5;
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
pub const GNTTABOP_UNMAP_AND_REPLACE: u32 = 7;
pub const GNTTABOP_SET_VERSION: u32 = 8;
pub const GNTTABOP_GET_STATUS_FRAMES: u32 = 9;
pub const GNTTABOP_GET_VERSION: u32 = 10;
pub const GNTTABOP_SWAP_GRANT_REF: u32 = 11;
pub const GNTTABOP_CACHE_FLUSH: u32 = 12;

// `GNTST_*`: an element's status.
pub const GNTST_OKAY: i16 = 0;
pub const GNTST_GENERAL_ERROR: i16 = -1;
pub const GNTST_BAD_DOMAIN: i16 = -2;
pub const GNTST_BAD_GNTREF: i16 = -3;
pub const GNTST_BAD_HANDLE: i16 = -4;
pub const GNTST_BAD_VIRT_ADDR: i16 = -5;
pub const GNTST_BAD_DEV_ADDR: i16 = -6;
pub const GNTST_NO_DEVICE_SPACE: i16 = -7;
pub const GNTST_PERMISSION_DENIED: i16 = -8;
pub const GNTST_BAD_PAGE: i16 = -9;
pub const GNTST_BAD_COPY_ARG: i16 = -10;
pub const GNTST_ADDRESS_TOO_BIG: i16 = -11;
pub const GNTST_EAGAIN: i16 = -12;
pub const GNTST_NO_SPACE: i16 = -13;

/// Entries that have a fixed meaning at the start of the table.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;
pub const GNTTAB_RESERVED_CONSOLE: GrantRef = GrantRef(0);
pub const GNTTAB_RESERVED_XENSTORE: GrantRef = GrantRef(1);

/// An entry of a version-1 table. The guest writes all but `GTF_READING` and `GTF_WRITING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntryV1 {
    /// `GTF_*`.
    pub flags: u16,
    /// Who may use it.
    pub domid: DomainId,
    /// The frame: a gfn for a translated domain. Frame numbers have 32 bits here.
    pub frame: u32,
}

/// An entry of a version-2 table that grants a whole page (`full_page`) or a part of it (`sub_page`). The status is in an array
/// of its own, of 16-bit words with `GTF_READING` and `GTF_WRITING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntryV2 {
    /// `GTF_*`.
    pub flags: u16,
    /// Who may use it.
    pub domid: DomainId,
    /// With `GTF_SUB_PAGE`: where the granted part begins.
    pub page_off: u16,
    /// With `GTF_SUB_PAGE`: how long it is.
    pub length: u16,
    /// The frame: a gfn for a translated domain.
    pub frame: u64,
}

/// A version-2 entry of type `GTF_TRANSITIVE`: passes on what `trans_domid` granted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntryV2Transitive {
    pub flags: u16,
    pub domid: DomainId,
    pub trans_domid: DomainId,
    pub pad0: u16,
    pub gref: GrantRef,
    pub pad1: u32,
}

/// The type, in the low two bits of an entry's flags.
pub const GTF_INVALID: u16 = 0;
pub const GTF_PERMIT_ACCESS: u16 = 1;
pub const GTF_ACCEPT_TRANSFER: u16 = 2;
pub const GTF_TRANSITIVE: u16 = 3;
pub const GTF_TYPE_MASK: u16 = 3;
pub const GTF_READONLY: u16 = 1 << 2;
pub const GTF_READING: u16 = 1 << 3;
pub const GTF_WRITING: u16 = 1 << 4;
pub const GTF_PWT: u16 = 1 << 5;
pub const GTF_PCD: u16 = 1 << 6;
pub const GTF_PAT: u16 = 1 << 7;
pub const GTF_SUB_PAGE: u16 = 1 << 8;
pub const GTF_TRANSFER_COMMITTED: u16 = 1 << 2;
pub const GTF_TRANSFER_COMPLETED: u16 = 1 << 3;

/// `GNTTABOP_map_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapGrantRef {
    /// Where to map it: the guest-physical address for a translated domain.
    pub host_addr: u64,
    /// `GNTMAP_*`.
    pub flags: u32,
    #[doc(alias = "ref")]
    pub gref: GrantRef,
    /// Who granted it.
    pub dom: DomainId,
    /// Out: `GNTST_*`.
    pub status: i16,
    /// Out: what `unmap_grant_ref` takes.
    pub handle: u32,
    /// Out: the address for devices.
    pub dev_bus_addr: u64,
}

/// `GNTTABOP_unmap_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapGrantRef {
    pub host_addr: u64,
    pub dev_bus_addr: u64,
    pub handle: u32,
    /// Out.
    pub status: i16,
    pub pad: u16,
}

// Flags of a mapping.
pub const GNTMAP_DEVICE_MAP: u32 = 1 << 0;
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
pub const GNTMAP_READONLY: u32 = 1 << 2;
pub const GNTMAP_APPLICATION_MAP: u32 = 1 << 3;
pub const GNTMAP_CONTAINS_PTE: u32 = 1 << 4;
pub const GNTMAP_GUEST_AVAIL_MASK: u32 = 0xffff0000;

/// `GNTTABOP_setup_table`: grows the table to `nr_frames` and lists its frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetupTable {
    pub dom: DomainId,
    pub pad0: u16,
    pub nr_frames: u32,
    /// Out.
    pub status: i16,
    pub pad1: [u16; 3],
    pub frame_list: GuestHandle<u64>,
}

/// `GNTTABOP_dump_table`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DumpTable {
    pub dom: DomainId,
    /// Out.
    pub status: i16,
}

/// `GNTTABOP_transfer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Transfer {
    pub mfn: u64,
    pub domid: DomainId,
    pub pad0: u16,
    pub gref: GrantRef,
    /// Out.
    pub status: i16,
    pub pad1: [u16; 3],
}

/// One side of a [`GrantCopy`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CopyPtr {
    /// A frame of `domid`, or (low 32 bits) a grant reference, as [`GrantCopy::flags`] says.
    pub frame_or_ref: u64,
    pub domid: DomainId,
    pub offset: u16,
    pub pad: u32,
}

impl CopyPtr {
    /// The grant reference, where this side is one.
    #[inline]
    pub const fn gref(&self) -> GrantRef {
        GrantRef(self.frame_or_ref as u32)
    }
}

/// `GNTTABOP_copy`: bytes from one page to another, neither side crossing its page's end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GrantCopy {
    pub source: CopyPtr,
    pub dest: CopyPtr,
    pub len: u16,
    /// `GNTCOPY_*`.
    pub flags: u16,
    /// Out.
    pub status: i16,
    pub pad: u16,
}
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

/// `GNTTABOP_query_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct QuerySize {
    pub dom: DomainId,
    pub pad0: u16,
    /// Out.
    pub nr_frames: u32,
    /// Out.
    pub max_nr_frames: u32,
    /// Out.
    pub status: i16,
    pub pad1: u16,
}

/// `GNTTABOP_unmap_and_replace`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapAndReplace {
    pub host_addr: u64,
    pub new_addr: u64,
    pub handle: u32,
    /// Out.
    pub status: i16,
    pub pad: u16,
}

/// `GNTTABOP_set_version`: in, the one wanted; out, the one in force.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetVersion {
    pub version: u32,
}

/// `GNTTABOP_get_status_frames`: lists the status frames of a version-2 table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetStatusFrames {
    pub nr_frames: u32,
    pub dom: DomainId,
    /// Out.
    pub status: i16,
    pub frame_list: GuestHandle<u64>,
}

/// `GNTTABOP_get_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVersion {
    pub dom: DomainId,
    pub pad: u16,
    /// Out.
    pub version: u32,
}

/// `GNTTABOP_swap_grant_ref`: exchanges two entries of the caller's table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SwapGrantRef {
    pub ref_a: GrantRef,
    pub ref_b: GrantRef,
    /// Out.
    pub status: i16,
    pub pad: u16,
}

/// `GNTTABOP_cache_flush`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CacheFlush {
    /// A bus address, or (low 32 bits) a grant reference with `GNTTAB_CACHE_SOURCE_GREF`.
    pub address_or_ref: u64,
    pub offset: u16,
    pub length: u16,
    /// `GNTTAB_CACHE_*`.
    pub op: u32,
}
pub const GNTTAB_CACHE_CLEAN: u32 = 1 << 0;
pub const GNTTAB_CACHE_INVAL: u32 = 1 << 1;
pub const GNTTAB_CACHE_SOURCE_GREF: u32 = 1 << 31;
