//! The host's PCI bus: addresses, configuration space, and what each function says that it is.
//!
//! Devices are trusted as little as guests. A capability list that loops, a BAR over RAM, an MSI-X table outside its BAR
//! are a [`Fault`], named in one line; such a function stays hidden.
//!
//! References are to the PCI Local Bus Specification 3.0 and the PCI Express Base Specification 5.0.
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

pub mod address;
pub mod bar;
pub mod capability;
pub mod config;
pub mod function;
pub mod message;
pub mod scan;

#[cfg(test)]
pub mod fake;

pub use address::Sbdf;
pub use bar::{Bar, Place};
pub use config::{ConfigAccess, PciHost, Width};
pub use function::{Fault, Function, Header};
pub use message::{Message, mask_msix_entry, program_msi, program_msix_entry};
pub use scan::scan;
