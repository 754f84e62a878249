//! A domain's memory (`memory.h`).

use crate::handle::GuestHandle;
use crate::types::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `XENMEM_*`: the low bits of the first argument of `memory_op`; the bits above [`MEMOP_EXTENT_SHIFT`] say where to continue.
pub const XENMEM_INCREASE_RESERVATION: u32 = 0;
pub const XENMEM_DECREASE_RESERVATION: u32 = 1;
pub const XENMEM_POPULATE_PHYSMAP: u32 = 6;
pub const XENMEM_EXCHANGE: u32 = 11;
pub const XENMEM_MAXIMUM_RAM_PAGE: u32 = 2;
pub const XENMEM_CURRENT_RESERVATION: u32 = 3;
pub const XENMEM_MAXIMUM_RESERVATION: u32 = 4;
pub const XENMEM_MAXIMUM_GPFN: u32 = 14;
pub const XENMEM_MACHPHYS_MFN_LIST: u32 = 5;
pub const XENMEM_MACHPHYS_COMPAT_MFN_LIST: u32 = 25;
pub const XENMEM_MACHPHYS_MAPPING: u32 = 12;
pub const XENMEM_ADD_TO_PHYSMAP: u32 = 7;
pub const XENMEM_ADD_TO_PHYSMAP_BATCH: u32 = 23;
pub const XENMEM_ADD_TO_PHYSMAP_RANGE: u32 = 23;
pub const XENMEM_REMOVE_FROM_PHYSMAP: u32 = 15;
pub const XENMEM_MEMORY_MAP: u32 = 9;
pub const XENMEM_MACHINE_MEMORY_MAP: u32 = 10;
pub const XENMEM_SET_MEMORY_MAP: u32 = 13;
pub const XENMEM_SET_POD_TARGET: u32 = 16;
pub const XENMEM_GET_POD_TARGET: u32 = 17;
pub const XENMEM_GET_SHARING_FREED_PAGES: u32 = 18;
pub const XENMEM_GET_SHARING_SHARED_PAGES: u32 = 19;
pub const XENMEM_PAGING_OP: u32 = 20;
pub const XENMEM_SHARING_OP: u32 = 22;
pub const XENMEM_CLAIM_PAGES: u32 = 24;
pub const XENMEM_RESERVED_DEVICE_MEMORY_MAP: u32 = 27;
pub const XENMEM_ACQUIRE_RESOURCE: u32 = 28;
pub const XENMEM_GET_VNUMAINFO: u32 = 26;

/// A continued batch starts at `cmd >> MEMOP_EXTENT_SHIFT`.
pub const MEMOP_EXTENT_SHIFT: u32 = 6;
pub const MEMOP_CMD_MASK: u32 = (1 << MEMOP_EXTENT_SHIFT) - 1;

/// `XENMEM_increase_reservation`, `_decrease_reservation`, `_populate_physmap`: `nr_extents` of `2^extent_order` frames each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryReservation {
    /// Gfns, in or out as the operation says.
    pub extent_start: GuestHandle<u64>,
    pub nr_extents: u64,
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    pub domid: DomainId,
    pub pad: [u16; 3],
}
/// In `mem_flags`, bits 0-7: the most address bits that the frames may have (0: any); bits 8-15: NUMA node + 1.
pub const XENMEMF_ADDRESS_BITS_MASK: u32 = 0xff;
pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;
pub const XENMEMF_EXACT_NODE_REQUEST: u32 = 1 << 17;
pub const XENMEMF_VNODE: u32 = 1 << 18;

/// `XENMEM_exchange`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryExchange {
    pub r#in: MemoryReservation,
    pub out: MemoryReservation,
    /// Out.
    pub nr_exchanged: u64,
}

/// `XENMEM_current_reservation`, `_maximum_reservation`, `_maximum_gpfn`: the answer is the return value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryDomain {
    pub domid: DomainId,
}

/// `XENMEM_machphys_mfn_list`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachphysMfnList {
    pub max_extents: u32,
    pub pad0: u32,
    pub extent_start: GuestHandle<u64>,
    /// Out.
    pub nr_extents: u32,
    pub pad1: u32,
}

/// `XENMEM_machphys_mapping`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachphysMapping {
    pub v_start: u64,
    pub v_end: u64,
    pub max_mfn: u64,
}

// What is put into a physmap.
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;
pub const XENMAPSPACE_GMFN: u32 = 2;
pub const XENMAPSPACE_GMFN_RANGE: u32 = 3;
pub const XENMAPSPACE_GMFN_FOREIGN: u32 = 4;
pub const XENMAPSPACE_DEV_MMIO: u32 = 5;
/// In `idx`, with `XENMAPSPACE_GRANT_TABLE`: a status frame.
pub const XENMAPIDX_GRANT_TABLE_STATUS: u32 = 0x8000_0000;

/// `XENMEM_add_to_physmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddToPhysmap {
    pub domid: DomainId,
    /// How many, for `XENMAPSPACE_GMFN_RANGE`.
    pub size: u16,
    /// `XENMAPSPACE_*`.
    pub space: u32,
    /// Which one of the space.
    pub idx: u64,
    /// Where it is to appear.
    pub gpfn: u64,
}

/// `XENMEM_add_to_physmap_batch` (`_range` by its older name).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddToPhysmapBatch {
    pub domid: DomainId,
    pub space: u16,
    pub size: u16,
    /// `XENMAPSPACE_GMFN_FOREIGN`: whose frames; otherwise zero.
    pub foreign_domid: DomainId,
    pub idxs: GuestHandle<u64>,
    pub gpfns: GuestHandle<u64>,
    /// Out: an error each.
    pub errs: GuestHandle<i32>,
}

/// `XENMEM_remove_from_physmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RemoveFromPhysmap {
    pub domid: DomainId,
    pub pad: [u16; 3],
    pub gpfn: u64,
}

/// `XENMEM_memory_map` and `XENMEM_machine_memory_map`: e820 entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryMap {
    /// In: room. Out: how many there are.
    pub nr_entries: u32,
    pub pad: u32,
    pub buffer: GuestHandle<E820Entry>,
}

/// `XENMEM_set_memory_map`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ForeignMemoryMap {
    pub domid: DomainId,
    pub pad: [u16; 3],
    pub map: MemoryMap,
}

/// A range of guest-physical memory, 20 bytes, as BIOSes report it.
#[repr(C, packed(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct E820Entry {
    pub addr: u64,
    pub size: u64,
    /// `E820_*`.
    pub r#type: u32,
}
const _: () = assert!(size_of::<E820Entry>() == 20);
const _: () = assert!(core::mem::offset_of!(E820Entry, size) == 8 && core::mem::offset_of!(E820Entry, r#type) == 16);
pub const E820_RAM: u32 = 1;
pub const E820_RESERVED: u32 = 2;
pub const E820_ACPI: u32 = 3;
pub const E820_NVS: u32 = 4;
pub const E820_UNUSABLE: u32 = 5;
pub const E820_DISABLED: u32 = 6;
pub const E820_PMEM: u32 = 7;

/// `XENMEM_set_pod_target` and `_get_pod_target`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PodTarget {
    /// In.
    pub target_pages: u64,
    /// Out.
    pub tot_pages: u64,
    pub pod_cache_pages: u64,
    pub pod_entries: u64,
    /// In.
    pub domid: DomainId,
    pub pad: [u16; 3],
}

/// `XENMEM_reserved_device_memory_map`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReservedDeviceMemoryMap {
    /// [`XENMEM_RDM_ALL`], or of the device alone.
    pub flags: u32,
    /// In: room. Out: how many there are.
    pub nr_entries: u32,
    pub buffer: GuestHandle<ReservedDeviceMemory>,
    pub pci: crate::physdev::PciDevice,
    pub pad: u32,
}
pub const XENMEM_RDM_ALL: u32 = 1;

/// One range of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReservedDeviceMemory {
    pub start_pfn: u64,
    pub nr_pages: u64,
}

/// `XENMEM_acquire_resource`: maps frames that a domain's emulators share with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AcquireResource {
    pub domid: DomainId,
    /// `XENMEM_RESOURCE_*`.
    pub r#type: u16,
    pub id: u32,
    /// In: how many; 0 with a null list asks. Out, then: how many there are.
    pub nr_frames: u32,
    pub pad: u32,
    /// The first one.
    pub frame: u64,
    /// In, for a translated caller: the gfns where they are to appear.
    pub frame_list: GuestHandle<u64>,
}
pub const XENMEM_RESOURCE_IOREQ_SERVER: u32 = 0;
pub const XENMEM_RESOURCE_GRANT_TABLE: u32 = 1;
pub const XENMEM_RESOURCE_VMTRACE_BUF: u32 = 2;
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED: u32 = 0;
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS: u32 = 1;
pub const XENMEM_RESOURCE_IOREQ_SERVER_FRAME_BUFIOREQ: u32 = 0;

/// `XENMEM_get_vnumainfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VnumaTopologyInfo {
    pub domid: DomainId,
    pub pad: u16,
    pub nr_vnodes: u32,
    pub nr_vcpus: u32,
    pub nr_vmemranges: u32,
    pub vdistance: GuestHandle<u32>,
    pub vcpu_to_vnode: GuestHandle<u32>,
    pub vmemrange: GuestHandle<Vmemrange>,
}

/// A range of memory on one virtual node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vmemrange {
    pub start: u64,
    pub end: u64,
    pub flags: u32,
    pub nid: u32,
}
