//! What only the control domain asks of the machine (`platform.h`).

use crate::argument::Union128;
use crate::handle::GuestHandle;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const XENPF_INTERFACE_VERSION: u32 = 0x0300_0001;

pub const XENPF_SETTIME32: u32 = 17;
pub const XENPF_SETTIME64: u32 = 62;
pub const XENPF_SETTIME: u32 = 17;
pub const XENPF_ADD_MEMTYPE: u32 = 31;
pub const XENPF_DEL_MEMTYPE: u32 = 32;
pub const XENPF_READ_MEMTYPE: u32 = 33;
pub const XENPF_MICROCODE_UPDATE: u32 = 35;
pub const XENPF_PLATFORM_QUIRK: u32 = 39;
pub const XENPF_EFI_RUNTIME_CALL: u32 = 49;
pub const XENPF_FIRMWARE_INFO: u32 = 50;
pub const XENPF_ENTER_ACPI_SLEEP: u32 = 51;
pub const XENPF_CHANGE_FREQ: u32 = 52;
pub const XENPF_GETIDLETIME: u32 = 53;
pub const XENPF_SET_PROCESSOR_PMINFO: u32 = 54;
pub const XENPF_GET_CPUINFO: u32 = 55;
pub const XENPF_GET_CPU_VERSION: u32 = 48;
pub const XENPF_CPU_ONLINE: u32 = 56;
pub const XENPF_CPU_OFFLINE: u32 = 57;
pub const XENPF_CPU_HOTADD: u32 = 58;
pub const XENPF_MEM_HOTADD: u32 = 59;
pub const XENPF_CORE_PARKING: u32 = 60;
pub const XENPF_RESOURCE_OP: u32 = 61;
pub const XENPF_GET_SYMBOL: u32 = 63;
pub const XENPF_GET_DOM0_CONSOLE: u32 = 64;
pub const XENPF_GET_UCODE_REVISION: u32 = 65;
pub const XENPF_MICROCODE_UPDATE2: u32 = 66;

/// The argument of `platform_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PlatformOp {
    /// `XENPF_*`.
    pub cmd: u32,
    /// [`XENPF_INTERFACE_VERSION`], or -EACCES.
    pub interface_version: u32,
    pub u: Union128,
}

/// `XENPF_settime32`: the wall clock at a system time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Settime32 {
    pub secs: u32,
    pub nsecs: u32,
    pub system_time: u64,
}

/// `XENPF_settime64`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Settime64 {
    pub secs: u64,
    pub nsecs: u32,
    /// Zero.
    pub mbz: u32,
    pub system_time: u64,
}

/// `XENPF_add_memtype`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddMemtype {
    pub mfn: u64,
    pub nr_mfns: u64,
    pub r#type: u32,
    /// Out.
    pub handle: u32,
    /// Out.
    pub reg: u32,
    pub pad: u32,
}

/// `XENPF_del_memtype`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DelMemtype {
    pub handle: u32,
    pub reg: u32,
}

/// `XENPF_read_memtype`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadMemtype {
    pub reg: u32,
    pub pad0: u32,
    /// Out.
    pub mfn: u64,
    pub nr_mfns: u64,
    pub r#type: u32,
    pub pad1: u32,
}

/// `XENPF_microcode_update`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MicrocodeUpdate {
    pub data: GuestHandle<u8>,
    pub length: u32,
    pub pad: u32,
}

/// `XENPF_platform_quirk`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PlatformQuirk {
    pub quirk_id: u32,
}

/// `XENPF_efi_runtime_call`; `u` by function.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EfiRuntimeCall {
    /// `XEN_EFI_*`.
    pub function: u32,
    pub misc: u32,
    /// Out.
    pub status: u64,
    pub u: [u64; 5],
}
pub const XEN_EFI_GET_TIME: u32 = 1;
pub const XEN_EFI_SET_TIME: u32 = 2;
pub const XEN_EFI_GET_WAKEUP_TIME: u32 = 3;
pub const XEN_EFI_SET_WAKEUP_TIME: u32 = 4;
pub const XEN_EFI_GET_NEXT_HIGH_MONOTONIC_COUNT: u32 = 5;
pub const XEN_EFI_GET_VARIABLE: u32 = 6;
pub const XEN_EFI_SET_VARIABLE: u32 = 7;
pub const XEN_EFI_GET_NEXT_VARIABLE_NAME: u32 = 8;
pub const XEN_EFI_QUERY_VARIABLE_INFO: u32 = 9;
pub const XEN_EFI_QUERY_CAPSULE_CAPABILITIES: u32 = 10;
pub const XEN_EFI_UPDATE_CAPSULE: u32 = 11;

/// `XENPF_firmware_info`; `u` by type and index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FirmwareInfo {
    /// `XEN_FW_*`.
    pub r#type: u32,
    pub index: u32,
    pub u: [u64; 4],
}
pub const XEN_FW_DISK_INFO: u32 = 1;
pub const XEN_FW_DISK_MBR_SIGNATURE: u32 = 2;
pub const XEN_FW_VBEDDC_INFO: u32 = 3;
pub const XEN_FW_EFI_INFO: u32 = 4;
pub const XEN_FW_EFI_VERSION: u32 = 0;
pub const XEN_FW_EFI_CONFIG_TABLE: u32 = 1;
pub const XEN_FW_EFI_VENDOR: u32 = 2;
pub const XEN_FW_EFI_MEM_INFO: u32 = 3;
pub const XEN_FW_EFI_RT_VERSION: u32 = 4;
pub const XEN_FW_EFI_PCI_ROM: u32 = 5;
pub const XEN_FW_EFI_APPLE_PROPERTIES: u32 = 6;
pub const XEN_FW_KBD_SHIFT_FLAGS: u32 = 5;

/// `u` of [`XEN_FW_EFI_INFO`] with index [`XEN_FW_EFI_CONFIG_TABLE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EfiConfigTable {
    pub addr: u64,
    pub nent: u32,
    pub pad: u32,
}

/// `u` of [`XEN_FW_EFI_INFO`] with index [`XEN_FW_EFI_VENDOR`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EfiVendor {
    pub revision: u32,
    /// In: room, in bytes.
    pub bufsz: u32,
    /// UTF-16.
    pub name: GuestHandle<u16>,
}

/// `u` of [`XEN_FW_EFI_INFO`] with index [`XEN_FW_EFI_MEM_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EfiMemInfo {
    pub addr: u64,
    pub size: u64,
    pub attr: u64,
    pub r#type: u32,
    pub pad: u32,
}

/// `XENPF_enter_acpi_sleep`: values for the PM1 (or sleep) control registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EnterAcpiSleep {
    pub val_a: u16,
    pub val_b: u16,
    pub sleep_state: u32,
    /// `XENPF_ACPI_SLEEP_EXTENDED`.
    pub flags: u32,
}
pub const XENPF_ACPI_SLEEP_EXTENDED: u32 = 1;

/// `XENPF_getidletime`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Getidletime {
    pub cpumap_bitmap: GuestHandle<u8>,
    pub cpumap_nr_cpus: u32,
    pub pad: u32,
    pub idletime: GuestHandle<u64>,
    /// Out.
    pub now: u64,
}

/// `XENPF_change_freq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ChangeFreq {
    pub flags: u32,
    pub cpu: u32,
    pub freq: u64,
}

/// `XENPF_set_processor_pminfo`; `u` by type.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetProcessorPminfo {
    /// The ACPI id.
    pub id: u32,
    /// `XEN_PM_*`.
    pub r#type: u32,
    pub u: [u64; 13],
}
pub const XEN_PM_CX: u32 = 0;
pub const XEN_PM_PX: u32 = 1;
pub const XEN_PM_TX: u32 = 2;
pub const XEN_PM_PDC: u32 = 3;

/// `XENPF_get_cpuinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PcpuInfo {
    /// In.
    pub xen_cpuid: u32,
    /// Out: the highest that exists.
    pub max_present: u32,
    /// Out: `XEN_PCPU_FLAGS_*`.
    pub flags: u32,
    pub apic_id: u32,
    pub acpi_id: u32,
}
pub const XEN_PCPU_FLAGS_ONLINE: u32 = 1;
pub const XEN_PCPU_FLAGS_INVALID: u32 = 2;

/// `XENPF_get_cpu_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PcpuVersion {
    /// In.
    pub xen_cpuid: u32,
    /// Out.
    pub max_present: u32,
    pub vendor_id: [u8; 12],
    pub family: u32,
    pub model: u32,
    pub stepping: u32,
}

/// `XENPF_cpu_online` and `XENPF_cpu_offline`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuOl {
    pub cpuid: u32,
}

/// `XENPF_cpu_hotadd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuHotadd {
    pub apic_id: u32,
    pub acpi_id: u32,
    pub pxm: u32,
}

/// `XENPF_mem_hotadd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemHotadd {
    pub spfn: u64,
    pub epfn: u64,
    pub pxm: u32,
    pub flags: u32,
}

/// `XENPF_core_parking`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CoreParking {
    /// `XEN_CORE_PARKING_*`.
    pub r#type: u32,
    pub idle_nums: u32,
}
pub const XEN_CORE_PARKING_SET: u32 = 1;
pub const XEN_CORE_PARKING_GET: u32 = 2;

/// `XENPF_resource_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ResourceOp {
    pub nr_entries: u32,
    pub cpu: u32,
    pub entries: GuestHandle<ResourceEntry>,
}

/// One access of a [`ResourceOp`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ResourceEntry {
    /// In: `XEN_RESOURCE_OP_*`. Out: an error.
    pub cmd: u32,
    pub reserved: u32,
    pub idx: u64,
    pub val: u64,
}
pub const XEN_RESOURCE_OP_MSR_READ: u32 = 0;
pub const XEN_RESOURCE_OP_MSR_WRITE: u32 = 1;

/// `XENPF_get_symbol`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Symdata {
    /// In: room. Out: the length.
    pub namelen: u32,
    /// In: which one. Out: the next one.
    pub symnum: u32,
    pub name: GuestHandle<u8>,
    /// Out.
    pub address: u64,
    pub r#type: u8,
    pub pad: [u8; 7],
}

/// `XENPF_get_dom0_console`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dom0VgaConsoleInfo {
    /// `XEN_VGATYPE_*`.
    pub video_type: u8,
    pub pad: [u8; 3],
    pub u: [u32; 9],
}
pub const XEN_VGATYPE_TEXT_MODE_3: u8 = 0x03;
pub const XEN_VGATYPE_VESA_LFB: u8 = 0x23;
pub const XEN_VGATYPE_EFI_LFB: u8 = 0x70;

/// `XENPF_get_ucode_revision`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UcodeRevision {
    pub cpu: u32,
    /// Out.
    pub signature: u32,
    pub pf: u32,
    pub revision: u32,
}

/// `XENPF_microcode_update2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MicrocodeUpdate2 {
    pub flags: u32,
    pub length: u32,
    pub data: GuestHandle<u8>,
}
