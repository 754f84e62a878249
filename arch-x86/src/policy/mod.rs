//! What a guest is told of its CPU: the CPUID leaves it reads and the MSRs it may touch.
//!
//! Both are tables. A feature, a leaf or an MSR that no row names is not there: a leaf reads as zero and an MSR faults.
//! Nothing here touches hardware; what the CPU says comes in through closures when a policy is made, and what has to be
//! done to the virtual machine goes out as a value.
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

pub mod cpuid;
pub mod features;
pub mod guest;
pub mod msr;
mod msr_table;
pub mod mtrr;
pub mod system;
pub mod wire;
pub mod xstate;

pub use cpuid::{CpuidOptions, CpuidPolicy, Dynamic, Topology, TscInfo};
pub use guest::GuestPolicy;
pub use msr::{DeviceMsr, MsrOptions, MsrPolicy, MsrRead, MsrWrite, Passthrough, VcpuMsrs};

/// Who made the CPU, as far as CPUID and MSRs differ by it. Hygon counts as AMD, Zhaoxin as Intel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel and what follows its architecture.
    Intel,
    /// AuthenticAMD and what follows its architecture.
    Amd,
}

impl Vendor {
    /// The vendor that CPUID leaf 0 names in EBX, EDX and ECX.
    pub fn of(leaf0: [u32; 4]) -> Vendor {
        const AUTH: u32 = u32::from_le_bytes(*b"Auth");
        const HYGO: u32 = u32::from_le_bytes(*b"Hygo");
        match leaf0 {
            [_, AUTH | HYGO, _, _] => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }
}
