//! Scheduling policy, and the time that it is told in.
//!
//! Everything here is pure: the time is an argument, nothing reads a clock, takes a lock or touches a CPU, and after
//! its storage is reserved nothing allocates. So all of it runs in a simulator on the host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

mod cpuset;
pub mod credit2;
mod handover;
mod null;
mod policy;
mod scheduler;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod time;
mod timers;
mod topology;
mod vcpu;

pub use cpuset::CpuSet;
pub use credit2::{Credit2, Params};
pub use handover::{Hold, Milestone, Passage, Presence};
pub use null::Null;
pub use policy::{Kind, Policy, Wanted};
pub use scheduler::{Decision, Refused, Scheduler};
pub use time::{CpuId, Nanos};
pub use timers::{TimerQueue, TimerSlot};
pub use topology::{Arrangement, CpuPlace, arrange, siblings};
pub use vcpu::{Admission, Affinity, DomainKey, Figures, Rest, Terms, VcpuKey, VcpuState, Weight};

/// Storage could not be reserved. Whoever asked for it turns this into their own `-ENOMEM`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct OutOfMemory;
