//! What a PVH kernel is started with (`arch-x86/hvm/start_info.h`): its guest-physical address is in EBX.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`StartInfo::magic`].
pub const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;

// Flags (`xen.h`).
/// The domain may do privileged operations.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// The domain is the first one.
pub const SIF_INITDOMAIN: u32 = 1 << 1;

/// `struct hvm_start_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StartInfo {
    pub magic: u32,
    /// 0, or 1 if the memory map below is there.
    pub version: u32,
    /// `SIF_*`.
    pub flags: u32,
    pub nr_modules: u32,
    /// Guest-physical address of [`ModlistEntry`]s.
    pub modlist_paddr: u64,
    /// A NUL-terminated string.
    pub cmdline_paddr: u64,
    /// The ACPI root pointer.
    pub rsdp_paddr: u64,
    /// Guest-physical address of [`MemmapTableEntry`]s.
    pub memmap_paddr: u64,
    pub memmap_entries: u32,
    pub reserved: u32,
}

/// `struct hvm_modlist_entry`: one module, such as an initrd.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ModlistEntry {
    pub paddr: u64,
    pub size: u64,
    pub cmdline_paddr: u64,
    pub reserved: u64,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemmapTableEntry {
    pub addr: u64,
    pub size: u64,
    /// `XEN_HVM_MEMMAP_TYPE_*`, as in e820.
    pub r#type: u32,
    pub reserved: u32,
}
pub const XEN_HVM_MEMMAP_TYPE_RAM: u32 = 1;
pub const XEN_HVM_MEMMAP_TYPE_RESERVED: u32 = 2;
pub const XEN_HVM_MEMMAP_TYPE_ACPI: u32 = 3;
pub const XEN_HVM_MEMMAP_TYPE_NVS: u32 = 4;
pub const XEN_HVM_MEMMAP_TYPE_UNUSABLE: u32 = 5;
pub const XEN_HVM_MEMMAP_TYPE_DISABLED: u32 = 6;
pub const XEN_HVM_MEMMAP_TYPE_PMEM: u32 = 7;
