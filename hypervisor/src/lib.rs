//! What a hypervisor is: domains, vCPUs, hypercalls, event channels, grants and the building of domains.
//!
//! No hardware and no `unsafe` here. What is needed of a machine is stated by [`machine::Machine`]; the guest's ABI is
//! `xen-abi`'s, memory is `mm`'s. Every line that a guest can reach returns an [`xen_abi::errno::Errno`] or crashes the domain that
//! asked; none can panic (the lints below say so).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unreachable,
        clippy::todo
    )
)]

extern crate alloc;

pub mod area;
pub mod build;
pub mod call;
pub mod console;
pub mod control;
pub mod cpu_policy;
pub mod domain;
pub mod event;
#[cfg(test)]
mod fake;
pub mod grant;
pub mod hypercall;
pub mod machine;
pub mod params;
pub mod physmap;
pub mod runstate;
pub mod system;
pub mod teardown;
pub mod timer;
pub mod vcpu;
pub mod wallclock;
pub mod watchdog;
