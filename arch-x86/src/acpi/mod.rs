//! ACPI's static tables: what firmware says of the machine, and the few tables that are made for domains.
//!
//! [`Tables::find`] walks from the root pointer to the tables; [`Madt`], [`Fadt`], [`Mcfg`] and [`Hpet`] read those that Corten itself needs;
//! [`dom0`] makes Dom0's, [`guest`] other domains'. AML is Dom0's business, but for the one constant that switches the machine off ([`SleepType`]). Firmware's word is not taken for anything: every length is bounded, every checksum
//! checked, and what is broken is named and skipped.
#![deny(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unreachable
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod dom0;
mod fadt;
pub mod guest;
pub mod iommu;
mod made;
mod madt;
mod mcfg;
mod problem;
mod root;
#[cfg(test)]
pub(crate) mod sample;
mod sleep;
mod table;

pub use fadt::{AddressSpace, Fadt, GenericAddress};
pub use made::MadeTables;
pub use madt::{AnyCpu, Cpu, InterruptOverride, IoApic, LocalNmi, Madt, NmiSource, Polarity, Trigger};
pub use mcfg::{Ecam, Hpet, Mcfg};
pub use mm::window::BadAddress;
pub use problem::{Problem, Problems};
pub use root::{RootPointer, TableEntry, Tables};
pub use sleep::{SleepType, has_waking_vector};
pub use table::{Signature, Table};

use mm::HostPhys;

/// The door to the machine's physical memory, firmware's tables included.
pub trait PhysRead {
    /// Fills `into` from `at` on.
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BadAddress>;
}
