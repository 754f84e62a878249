//! CPU policies as the toolstack exchanges them: what a domain, or this machine, says of its CPU by CPUID and MSRs.

use alloc::vec::Vec;

use mm::{OutOfMemory, try_concat};
use xen_abi::errno::Errno;
use xen_abi::x86::{CpuidLeaf, MsrEntry};

/// No policy has more leaves: basic ones to 0xD with the subleaves of 4, 7, 0xB and 0xD, two of hypervisors, extended ones to 0x80000021.
pub const MAX_LEAVES: u32 = 14 + (6 - 1) + (3 - 1) + (2 - 1) + (63 - 1) + 2 + 34;
/// No policy has more MSRs: MSR_PLATFORM_INFO, IA32_ARCH_CAPABILITIES.
pub const MAX_MSRS: u32 = 2;

/// A policy in the order that libxenguest writes and reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CpuPolicy {
    pub leaves: Vec<CpuidLeaf>,
    pub msrs: Vec<MsrEntry>,
}

impl CpuPolicy {
    pub fn copy(&self) -> Result<CpuPolicy, OutOfMemory> {
        Ok(CpuPolicy { leaves: try_concat(&[&self.leaves])?, msrs: try_concat(&[&self.msrs])? })
    }
}

/// Nothing in particular.
pub const NOTHING: u32 = u32::MAX;

/// Why a domain cannot have a policy; the leaf or the MSR that it fails at is [`NOTHING`] where it is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub error: Errno,
    pub leaf: u32,
    pub subleaf: u32,
    pub msr: u32,
}

impl Refused {
    pub fn leaf(error: Errno, leaf: u32, subleaf: u32) -> Refused {
        Refused { error, leaf, subleaf, msr: NOTHING }
    }

    pub fn msr(error: Errno, msr: u32) -> Refused {
        Refused { error, leaf: NOTHING, subleaf: NOTHING, msr }
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Refused {
        Refused { error, leaf: NOTHING, subleaf: NOTHING, msr: NOTHING }
    }
}
