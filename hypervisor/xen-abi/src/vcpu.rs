//! Operations on a vCPU (`vcpu.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `VCPUOP_*`: the first argument of `vcpu_op`; the second is the vCPU, the third the structure below.
pub const VCPUOP_INITIALISE: u32 = 0;
pub const VCPUOP_UP: u32 = 1;
pub const VCPUOP_DOWN: u32 = 2;
pub const VCPUOP_IS_UP: u32 = 3;
pub const VCPUOP_GET_RUNSTATE_INFO: u32 = 4;
pub const VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5;
pub const VCPUOP_SET_PERIODIC_TIMER: u32 = 6;
pub const VCPUOP_STOP_PERIODIC_TIMER: u32 = 7;
pub const VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8;
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9;
pub const VCPUOP_REGISTER_VCPU_INFO: u32 = 10;
pub const VCPUOP_SEND_NMI: u32 = 11;
pub const VCPUOP_GET_PHYSID: u32 = 12;
pub const VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA: u32 = 13;
pub const VCPUOP_REGISTER_RUNSTATE_PHYS_AREA: u32 = 14;
pub const VCPUOP_REGISTER_VCPU_TIME_PHYS_AREA: u32 = 15;

// What a vCPU is doing: indices of [`RunstateInfo::time`].
pub const RUNSTATE_RUNNING: u32 = 0;
pub const RUNSTATE_RUNNABLE: u32 = 1;
pub const RUNSTATE_BLOCKED: u32 = 2;
pub const RUNSTATE_OFFLINE: u32 = 3;

/// In [`RunstateInfo::state_entry_time`]: an update is under way (`VMASST_TYPE_RUNSTATE_UPDATE_FLAG`).
pub const XEN_RUNSTATE_UPDATE: u64 = 1 << 63;

/// `VCPUOP_get_runstate_info`, and the area that is registered to be kept up to date.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RunstateInfo {
    /// `RUNSTATE_*`.
    pub state: u32,
    pub pad: u32,
    /// System time in nanoseconds when this state began.
    pub state_entry_time: u64,
    /// Nanoseconds in each state so far.
    pub time: [u64; 4],
}

/// `VCPUOP_register_runstate_memory_area`, `..._vcpu_time_memory_area` (a linear address) and the two `..._phys_area`
/// operations (a guest-physical one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterArea {
    pub addr: u64,
}

/// `VCPUOP_set_periodic_timer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetPeriodicTimer {
    pub period_ns: u64,
}

/// `VCPUOP_set_singleshot_timer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetSingleshotTimer {
    /// System time.
    pub timeout_abs_ns: u64,
    /// [`VCPU_SSHOTTMR_FUTURE`].
    pub flags: u32,
    pub pad: u32,
}
/// A time in the past is refused with -ETIME.
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1 << 0;

/// `VCPUOP_register_vcpu_info`: moves a vCPU's `vcpu_info` out of the shared page, once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterVcpuInfo {
    /// The frame; a gfn for a translated domain.
    pub mfn: u64,
    /// Where in it.
    pub offset: u32,
    pub reserved: u32,
}

/// `VCPUOP_get_physid`: APIC id in the low half, ACPI id in the high half; for pinned vCPUs only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetPhysid {
    pub phys_id: u64,
}
