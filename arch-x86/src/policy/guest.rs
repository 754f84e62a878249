//! A domain's policy: its CPUID, its MSRs, and what follows from both.

use hypervisor::cpu_policy::{CpuPolicy, Refused};
use mm::{OutOfMemory, try_concat};
use xen_abi::errno::Errno;
use xen_abi::x86::{CpuidLeaf, MsrEntry};

use super::cpuid::CpuidPolicy;
use super::msr::MsrPolicy;
use super::wire::{self, Leaves};

/// What a domain's vCPUs are told and allowed.
#[derive(Clone, Debug)]
pub struct GuestPolicy {
    pub cpuid: CpuidPolicy,
    pub msr: MsrPolicy,
    /// CR4 bits that the guest may set.
    pub cr4_allowed: u64,
}

impl GuestPolicy {
    pub fn new(cpuid: CpuidPolicy, msr: MsrPolicy) -> GuestPolicy {
        let cr4_allowed = !cpuid.cr4_reserved();
        GuestPolicy { cpuid, msr, cr4_allowed }
    }

    /// As the toolstack reads it.
    pub fn to_wire(&self) -> Result<CpuPolicy, OutOfMemory> {
        Ok(CpuPolicy { leaves: self.cpuid.leaves()?, msrs: try_concat(&[&wire::msrs(self.msr.capabilities())])? })
    }

    /// This policy with what the toolstack sends in its place, of which no more is taken than `most` has. ERANGE: a leaf or an MSR that no policy
    /// has. EINVAL: what cannot be had, and cannot be cut off either. EOVERFLOW: a bit of an MSR that no policy knows.
    pub fn with(&self, leaves: &[CpuidLeaf], msrs: &[MsrEntry], most: &GuestPolicy) -> Result<GuestPolicy, Refused> {
        let mut wanted = Leaves::of(&self.cpuid);
        for sent in leaves {
            wanted.put(sent).map_err(|_| Refused::leaf(Errno::ERANGE, sent.leaf, sent.subleaf))?;
        }
        let mut capabilities = self.msr.capabilities();
        for sent in msrs {
            wire::take_msr(sent, &mut capabilities).map_err(|error| Refused::msr(error, sent.idx))?;
        }
        let cpuid = self
            .cpuid
            .with(&wanted, &most.cpuid)
            .map_err(|(leaf, subleaf)| Refused::leaf(Errno::EINVAL, leaf, subleaf))?;
        let msr = most.msr.narrowed(&cpuid, capabilities);
        Ok(GuestPolicy::new(cpuid, msr))
    }
}
