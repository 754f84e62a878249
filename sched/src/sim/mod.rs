//! A machine that is not there: CPUs and vCPUs that do nothing but take time, under a real scheduler.
//!
//! Time is counted in nanoseconds and advances from event to event, so that ten seconds of a busy machine take a fraction of one. The same
//! machine with the same seed does the same. What must hold whatever happens is checked at every step and panics where it does not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "nothing of it runs on a machine"
)]

mod fair;
mod machine;
mod rules;
mod workload;

#[cfg(test)]
mod tests;

pub use fair::{entitlements, worst_error};
pub use machine::{Guest, Machine, Setup};
pub use workload::{Pattern, Random};
