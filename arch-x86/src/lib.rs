//! The x86 machine: its CPUs, their virtualisation engines, interrupt controllers and clocks, and the virtual devices that guests see.
//!
//! What needs no hardware (`vdev`, `policy`, `acpi`, `pci`, `decode`) is safe code, tested on the host. What does is a thin shell around it.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod apic;
pub mod construct;
pub mod context;
pub mod cpu;
pub mod decode;
pub mod devices;
pub mod dom0;
pub mod domu;
pub mod dump;
pub mod engine;
pub mod event;
pub mod exit;
pub mod fault;
pub mod fpu;
pub mod guest_paging;
pub mod host;
pub mod hvm_context;
pub mod keys;
pub mod machine;
pub mod msr;
#[cfg(test)]
mod oracle_tests;
pub mod paging;
pub mod pci;
pub mod pci_host;
pub mod percpu;
pub mod policies;
pub mod policy;
pub mod port;
pub mod power;
pub mod ratelimit;
pub mod reap;
pub mod regs;
pub mod rtc;
pub mod run;
pub mod segment;
pub mod smp;
pub mod startup;
pub mod state;
pub mod svm;
pub mod time;
pub mod vdev;
pub mod vmx;
