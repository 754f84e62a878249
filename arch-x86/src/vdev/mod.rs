//! The devices that a guest believes to have.
//!
//! Each is a plain value: no locks, no clock, no access to the machine. The time is an argument, and what has to happen elsewhere is
//! returned for the run loop to carry out. Where Xen has an HVM save record, the state converts to it and back.
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

pub mod cmos;
pub mod ports;
pub mod vioapic;
pub mod vlapic;
pub mod vpci;
