//! Physical devices (`physdev.h`).

use crate::types::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `PHYSDEVOP_*`: the first argument of `physdev_op`.
pub const PHYSDEVOP_EOI: u32 = 12;
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V1: u32 = 17;
pub const PHYSDEVOP_PIRQ_EOI_GMFN_V2: u32 = 28;
pub const PHYSDEVOP_IRQ_STATUS_QUERY: u32 = 5;
pub const PHYSDEVOP_SET_IOPL: u32 = 6;
pub const PHYSDEVOP_SET_IOBITMAP: u32 = 7;
pub const PHYSDEVOP_APIC_READ: u32 = 8;
pub const PHYSDEVOP_APIC_WRITE: u32 = 9;
pub const PHYSDEVOP_ALLOC_IRQ_VECTOR: u32 = 10;
pub const PHYSDEVOP_FREE_IRQ_VECTOR: u32 = 11;
pub const PHYSDEVOP_MAP_PIRQ: u32 = 13;
pub const PHYSDEVOP_UNMAP_PIRQ: u32 = 14;
pub const PHYSDEVOP_MANAGE_PCI_ADD: u32 = 15;
pub const PHYSDEVOP_MANAGE_PCI_REMOVE: u32 = 16;
pub const PHYSDEVOP_RESTORE_MSI: u32 = 19;
pub const PHYSDEVOP_MANAGE_PCI_ADD_EXT: u32 = 20;
pub const PHYSDEVOP_SETUP_GSI: u32 = 21;
pub const PHYSDEVOP_GET_FREE_PIRQ: u32 = 23;
pub const PHYSDEVOP_PCI_MMCFG_RESERVED: u32 = 24;
pub const PHYSDEVOP_PCI_DEVICE_ADD: u32 = 25;
pub const PHYSDEVOP_PCI_DEVICE_REMOVE: u32 = 26;
pub const PHYSDEVOP_RESTORE_MSI_EXT: u32 = 27;
pub const PHYSDEVOP_PREPARE_MSIX: u32 = 30;
pub const PHYSDEVOP_RELEASE_MSIX: u32 = 31;
pub const PHYSDEVOP_PCI_DEVICE_RESET: u32 = 32;
pub const PHYSDEVOP_DBGP_OP: u32 = 29;
pub const PHYSDEVOP_PIRQ_EOI_GMFN: u32 = 17;

/// `PHYSDEVOP_eoi`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Eoi {
    pub irq: u32,
}

/// `PHYSDEVOP_pirq_eoi_gmfn_v1` and `_v2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PirqEoiGmfn {
    pub gmfn: u64,
}

/// `PHYSDEVOP_irq_status_query`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqStatusQuery {
    pub irq: u32,
    /// Out: `XENIRQSTAT_*`.
    pub flags: u32,
}
pub const XENIRQSTAT_NEEDS_EOI: u32 = 1 << 0;
pub const XENIRQSTAT_SHARED: u32 = 1 << 1;

/// `PHYSDEVOP_set_iopl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetIopl {
    pub iopl: u32,
}

/// `PHYSDEVOP_apic_read` and `_write`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Apic {
    pub apic_physbase: u64,
    pub reg: u32,
    pub value: u32,
}

/// `PHYSDEVOP_alloc_irq_vector` and `_free_irq_vector`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Irq {
    pub irq: u32,
    pub vector: u32,
}

/// `PHYSDEVOP_map_pirq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapPirq {
    pub domid: DomainId,
    pub pad0: u16,
    /// `MAP_PIRQ_TYPE_*`.
    pub r#type: i32,
    /// The GSI.
    pub index: i32,
    /// In: the one wanted, or negative. Out.
    pub pirq: i32,
    pub bus: i32,
    pub devfn: i32,
    pub entry_nr: i32,
    pub pad1: u32,
    pub table_base: u64,
}
pub const MAP_PIRQ_TYPE_MSI: i32 = 0x0;
pub const MAP_PIRQ_TYPE_GSI: i32 = 0x1;
pub const MAP_PIRQ_TYPE_UNKNOWN: i32 = 0x2;
pub const MAP_PIRQ_TYPE_MSI_SEG: i32 = 0x3;
pub const MAP_PIRQ_TYPE_MULTI_MSI: i32 = 0x4;

/// `PHYSDEVOP_unmap_pirq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapPirq {
    pub domid: DomainId,
    pub pad: u16,
    pub pirq: i32,
}

/// `PHYSDEVOP_manage_pci_add`, `_remove`, `PHYSDEVOP_restore_msi`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ManagePci {
    pub bus: u8,
    pub devfn: u8,
}

/// `PHYSDEVOP_manage_pci_add_ext`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ManagePciExt {
    pub bus: u8,
    pub devfn: u8,
    pub pad0: u16,
    pub is_extfn: u32,
    pub is_virtfn: u32,
    pub physfn: ManagePci,
    pub pad1: u16,
}

/// `PHYSDEVOP_setup_gsi`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetupGsi {
    pub gsi: i32,
    /// 0 edge, 1 level.
    pub triggering: u8,
    /// 0 active high, 1 active low.
    pub polarity: u8,
    pub pad: u16,
}

/// `PHYSDEVOP_get_free_pirq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetFreePirq {
    pub r#type: i32,
    /// Out.
    pub pirq: u32,
}

/// `PHYSDEVOP_pci_mmcfg_reserved`: the kernel found this configuration space to be reserved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciMmcfgReserved {
    pub address: u64,
    pub segment: u16,
    pub start_bus: u8,
    pub end_bus: u8,
    /// [`XEN_PCI_MMCFG_RESERVED`].
    pub flags: u32,
}
pub const XEN_PCI_MMCFG_RESERVED: u32 = 1;

/// `PHYSDEVOP_pci_device_add`; with [`XEN_PCI_DEV_PXM`] a `u32` proximity domain follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciDeviceAdd {
    pub seg: u16,
    pub bus: u8,
    pub devfn: u8,
    /// `XEN_PCI_DEV_*`.
    pub flags: u32,
    /// The physical function of a virtual one.
    pub physfn: ManagePci,
    pub pad: u16,
}
pub const XEN_PCI_DEV_EXTFN: u32 = 0x1;
pub const XEN_PCI_DEV_VIRTFN: u32 = 0x2;
pub const XEN_PCI_DEV_PXM: u32 = 0x4;

/// `PHYSDEVOP_pci_device_remove`, `_restore_msi_ext`, `_prepare_msix`, `_release_msix`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciDevice {
    pub seg: u16,
    pub bus: u8,
    pub devfn: u8,
}

/// `PHYSDEVOP_pci_device_reset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PciDeviceReset {
    pub dev: PciDevice,
    /// `PCI_DEVICE_RESET_*`.
    pub flags: u32,
}
pub const PCI_DEVICE_RESET_COLD: u32 = 0x0;
pub const PCI_DEVICE_RESET_WARM: u32 = 0x1;
pub const PCI_DEVICE_RESET_HOT: u32 = 0x2;
pub const PCI_DEVICE_RESET_FLR: u32 = 0x3;
pub const PCI_DEVICE_RESET_MASK: u32 = 0x3;

/// `PHYSDEVOP_dbgp_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DbgpOp {
    pub op: u8,
    pub bus: u8,
    pub pci: PciDevice,
}
