#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod pci;
pub mod policy;
pub mod vdev;
