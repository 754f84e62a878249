//! What the hypervisor says of itself (`version.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `XENVER_*`: the first argument of `xen_version`.
pub const XENVER_VERSION: u32 = 0;
pub const XENVER_EXTRAVERSION: u32 = 1;
pub const XENVER_COMPILE_INFO: u32 = 2;
pub const XENVER_CAPABILITIES: u32 = 3;
pub const XENVER_CHANGESET: u32 = 4;
pub const XENVER_PLATFORM_PARAMETERS: u32 = 5;
pub const XENVER_GET_FEATURES: u32 = 6;
pub const XENVER_PAGESIZE: u32 = 7;
pub const XENVER_GUEST_HANDLE: u32 = 8;
pub const XENVER_COMMANDLINE: u32 = 9;
pub const XENVER_BUILD_ID: u32 = 10;
pub const XENVER_EXTRAVERSION2: u32 = 11;
pub const XENVER_CAPABILITIES2: u32 = 12;
pub const XENVER_CHANGESET2: u32 = 13;
pub const XENVER_COMMANDLINE2: u32 = 14;

/// The most that `XENVER_extraversion` copies.
pub const EXTRAVERSION_LEN: usize = 16;
/// The most that `XENVER_capabilities` copies.
pub const CAPABILITIES_INFO_LEN: usize = 1024;
/// The most that `XENVER_changeset` copies.
pub const CHANGESET_INFO_LEN: usize = 64;
/// The most that `XENVER_commandline` copies.
pub const COMMANDLINE_LEN: usize = 1024;

/// `XENVER_compile_info`: NUL-terminated strings.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CompileInfo {
    pub compiler: [u8; 64],
    pub compile_by: [u8; 16],
    pub compile_domain: [u8; 32],
    pub compile_date: [u8; 32],
}

/// `XENVER_platform_parameters`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PlatformParameters {
    pub virt_start: u64,
}

/// `XENVER_get_features`: 32 bits of `XENFEAT_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureInfo {
    /// In: which 32.
    pub submap_idx: u32,
    /// Out.
    pub submap: u32,
}

/// The fixed head of `XENVER_build_id`, `_extraversion2`, `_capabilities2`, `_changeset2` and `_commandline2`: the bytes
/// follow. A null argument asks for the length alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VarBuf {
    /// In: room for the bytes. Out: how many there are.
    pub len: u32,
}
