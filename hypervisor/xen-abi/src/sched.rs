//! What a guest says of its own scheduling (`sched.h`).

use crate::handle::GuestHandle;
use crate::types::{DomainId, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// `SCHEDOP_*`: the first argument of `sched_op`.
pub const SCHEDOP_YIELD: u32 = 0;
pub const SCHEDOP_BLOCK: u32 = 1;
pub const SCHEDOP_SHUTDOWN: u32 = 2;
pub const SCHEDOP_POLL: u32 = 3;
pub const SCHEDOP_REMOTE_SHUTDOWN: u32 = 4;
pub const SCHEDOP_SHUTDOWN_CODE: u32 = 5;
pub const SCHEDOP_WATCHDOG: u32 = 6;
pub const SCHEDOP_PIN_OVERRIDE: u32 = 7;

// Why a domain shut down.
pub const SHUTDOWN_POWEROFF: u32 = 0;
pub const SHUTDOWN_REBOOT: u32 = 1;
pub const SHUTDOWN_SUSPEND: u32 = 2;
pub const SHUTDOWN_CRASH: u32 = 3;
pub const SHUTDOWN_WATCHDOG: u32 = 4;
pub const SHUTDOWN_SOFT_RESET: u32 = 5;
pub const SHUTDOWN_MAX: u32 = 5;

/// `SCHEDOP_shutdown` and `SCHEDOP_shutdown_code`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shutdown {
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// `SCHEDOP_poll`: sleep until one of the ports is pending.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Poll {
    pub ports: GuestHandle<Port>,
    pub nr_ports: u32,
    pub pad: u32,
    /// System time in nanoseconds at which to give up; 0 is never.
    pub timeout: u64,
}

/// `SCHEDOP_remote_shutdown`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RemoteShutdown {
    pub domain_id: DomainId,
    pub pad: u16,
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// `SCHEDOP_watchdog`: id 0 makes a new watchdog and returns its id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Watchdog {
    pub id: u32,
    /// Seconds; 0 ends the watchdog.
    pub timeout: u32,
}

/// `SCHEDOP_pin_override`: a physical CPU, or a negative number to end it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PinOverride {
    pub pcpu: i32,
}
