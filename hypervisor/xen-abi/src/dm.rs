//! What a device model asks on behalf of its guest (`hvm/dm_op.h`), and the pages that they share (`hvm/ioreq.h`).

use crate::handle::GuestHandle;
use crate::types::Port;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const XEN_DMOP_CREATE_IOREQ_SERVER: u32 = 1;
pub const XEN_DMOP_GET_IOREQ_SERVER_INFO: u32 = 2;
pub const XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER: u32 = 3;
pub const XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER: u32 = 4;
pub const XEN_DMOP_SET_IOREQ_SERVER_STATE: u32 = 5;
pub const XEN_DMOP_DESTROY_IOREQ_SERVER: u32 = 6;
pub const XEN_DMOP_TRACK_DIRTY_VRAM: u32 = 7;
pub const XEN_DMOP_SET_PCI_INTX_LEVEL: u32 = 8;
pub const XEN_DMOP_SET_ISA_IRQ_LEVEL: u32 = 9;
pub const XEN_DMOP_SET_PCI_LINK_ROUTE: u32 = 10;
pub const XEN_DMOP_MODIFIED_MEMORY: u32 = 11;
pub const XEN_DMOP_SET_MEM_TYPE: u32 = 12;
pub const XEN_DMOP_INJECT_EVENT: u32 = 13;
pub const XEN_DMOP_INJECT_MSI: u32 = 14;
pub const XEN_DMOP_MAP_MEM_TYPE_TO_IOREQ_SERVER: u32 = 15;
pub const XEN_DMOP_REMOTE_SHUTDOWN: u32 = 16;
pub const XEN_DMOP_RELOCATE_MEMORY: u32 = 17;
pub const XEN_DMOP_PIN_MEMORY_CACHEATTR: u32 = 18;
pub const XEN_DMOP_SET_IRQ_LEVEL: u32 = 19;
pub const XEN_DMOP_NR_VCPUS: u32 = 20;

/// An argument buffer: `dm_op` takes a domain, a count and so many of these. The first holds a [`DmOp`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Buffer {
    pub h: GuestHandle<u8>,
    pub size: u64,
}

/// The first buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DmOp {
    /// `XEN_DMOP_*`.
    pub op: u32,
    pub pad: u32,
    /// By operation; the widest have 24 bytes.
    pub u: [u64; 3],
}

/// `XEN_DMOP_create_ioreq_server`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateIoreqServer {
    /// `HVM_IOREQSRV_BUFIOREQ_*`.
    pub handle_bufioreq: u8,
    pub pad: [u8; 3],
    /// Out.
    pub id: u16,
}
pub const HVM_IOREQSRV_BUFIOREQ_OFF: u8 = 0;
pub const HVM_IOREQSRV_BUFIOREQ_LEGACY: u8 = 1;
pub const HVM_IOREQSRV_BUFIOREQ_ATOMIC: u8 = 2;

/// `XEN_DMOP_get_ioreq_server_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetIoreqServerInfo {
    pub id: u16,
    /// [`XEN_DMOP_NO_GFNS`].
    pub flags: u16,
    /// Out.
    pub bufioreq_port: Port,
    /// Out.
    pub ioreq_gfn: u64,
    /// Out.
    pub bufioreq_gfn: u64,
}
/// The caller maps the pages by `XENMEM_acquire_resource`; no gfns are wanted.
pub const XEN_DMOP_NO_GFNS: u16 = 1 << 0;

/// `XEN_DMOP_map_io_range_to_ioreq_server` and `_unmap_io_range_from_ioreq_server`: both ends are in the range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoreqServerRange {
    pub id: u16,
    pub pad: u16,
    /// `XEN_DMOP_IO_RANGE_*`.
    pub r#type: u32,
    pub start: u64,
    pub end: u64,
}
pub const XEN_DMOP_IO_RANGE_PORT: u32 = 0;
pub const XEN_DMOP_IO_RANGE_MEMORY: u32 = 1;
pub const XEN_DMOP_IO_RANGE_PCI: u32 = 2;

/// `XEN_DMOP_set_ioreq_server_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetIoreqServerState {
    pub id: u16,
    pub enabled: u8,
    pub pad: u8,
}

/// `XEN_DMOP_destroy_ioreq_server`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DestroyIoreqServer {
    pub id: u16,
    pub pad: u16,
}

/// `XEN_DMOP_track_dirty_vram`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrackDirtyVram {
    pub nr: u32,
    pub pad: u32,
    pub first_pfn: u64,
}

/// `XEN_DMOP_set_pci_intx_level`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPciIntxLevel {
    pub domain: u16,
    pub bus: u8,
    pub device: u8,
    pub intx: u8,
    pub level: u8,
}

/// `XEN_DMOP_set_isa_irq_level`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetIsaIrqLevel {
    pub isa_irq: u8,
    pub level: u8,
}

/// `XEN_DMOP_set_pci_link_route`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPciLinkRoute {
    pub link: u8,
    pub isa_irq: u8,
}

/// `XEN_DMOP_modified_memory`: the second buffer holds [`ModifiedMemoryExtent`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ModifiedMemory {
    pub nr_extents: u32,
    /// Where to go on.
    pub opaque: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ModifiedMemoryExtent {
    pub nr: u32,
    pub pad: u32,
    pub first_pfn: u64,
}

/// `XEN_DMOP_set_mem_type`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetMemType {
    pub nr: u32,
    /// `HVMMEM_*`.
    pub mem_type: u16,
    pub pad: u16,
    pub first_pfn: u64,
}

/// `XEN_DMOP_inject_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InjectEvent {
    pub vcpuid: u32,
    pub vector: u8,
    /// `XEN_DMOP_EVENT_*`.
    pub r#type: u8,
    pub insn_len: u8,
    pub pad0: u8,
    pub error_code: u32,
    pub pad1: u32,
    pub cr2: u64,
}
pub const XEN_DMOP_EVENT_EXT_INT: u8 = 0;
pub const XEN_DMOP_EVENT_NMI: u8 = 2;
pub const XEN_DMOP_EVENT_HW_EXC: u8 = 3;
pub const XEN_DMOP_EVENT_SW_INT: u8 = 4;
pub const XEN_DMOP_EVENT_PRI_SW_EXC: u8 = 5;
pub const XEN_DMOP_EVENT_SW_EXC: u8 = 6;

/// `XEN_DMOP_inject_msi`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InjectMsi {
    pub data: u32,
    pub pad: u32,
    pub addr: u64,
}

/// `XEN_DMOP_map_mem_type_to_ioreq_server`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapMemTypeToIoreqServer {
    pub id: u16,
    pub r#type: u16,
    pub flags: u32,
    pub opaque: u64,
}

/// `XEN_DMOP_remote_shutdown`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RemoteShutdown {
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// `XEN_DMOP_relocate_memory`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RelocateMemory {
    pub size: u32,
    pub pad: u32,
    pub src_gfn: u64,
    pub dst_gfn: u64,
}

/// `XEN_DMOP_pin_memory_cacheattr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PinMemoryCacheattr {
    pub start: u64,
    pub end: u64,
    /// `XEN_DMOP_MEM_CACHEATTR_*`.
    pub r#type: u32,
    pub pad: u32,
}
pub const XEN_DMOP_MEM_CACHEATTR_UC: u32 = 0;
pub const XEN_DMOP_MEM_CACHEATTR_WC: u32 = 1;
pub const XEN_DMOP_MEM_CACHEATTR_WT: u32 = 4;
pub const XEN_DMOP_MEM_CACHEATTR_WP: u32 = 5;
pub const XEN_DMOP_MEM_CACHEATTR_WB: u32 = 6;
pub const XEN_DMOP_MEM_CACHEATTR_UCM: u32 = 7;
pub const XEN_DMOP_DELETE_MEM_CACHEATTR: u32 = u32::MAX;

/// `XEN_DMOP_set_irq_level`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetIrqLevel {
    pub irq: u32,
    pub level: u8,
    pub pad: [u8; 3],
}

/// `XEN_DMOP_nr_vcpus`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NrVcpus {
    /// Out.
    pub vcpus: u32,
}

/// A vCPU's request to its device model, in the page that they share.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ioreq {
    pub addr: u64,
    /// The data, or with bit 4 of [`state`](Self::state) the guest-physical address where they are.
    pub data: u64,
    /// For `rep` instructions.
    pub count: u32,
    pub size: u32,
    pub vp_eport: Port,
    pub pad0: u16,
    /// Bits 0-3: `STATE_*`; 4: `data` is an address; 5: a read; 6: downwards.
    pub state: u8,
    /// `IOREQ_TYPE_*`.
    pub r#type: u8,
}
pub const STATE_IOREQ_NONE: u8 = 0;
pub const STATE_IOREQ_READY: u8 = 1;
pub const STATE_IOREQ_INPROCESS: u8 = 2;
pub const STATE_IORESP_READY: u8 = 3;
pub const IOREQ_TYPE_PIO: u8 = 0;
pub const IOREQ_TYPE_COPY: u8 = 1;
pub const IOREQ_TYPE_PCI_CONFIG: u8 = 2;
pub const IOREQ_TYPE_TIMEOFFSET: u8 = 7;
pub const IOREQ_TYPE_INVALIDATE: u8 = 8;

/// A write that nobody waits for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BufIoreq {
    /// Bits 0-7: `IOREQ_TYPE_*`; 9: a read; 10-11: log2 of the size; 12-31: the address.
    pub head: u32,
    pub data: u32,
}
pub const IOREQ_BUFFER_SLOT_NUM: u32 = 511;
