//! The policies that are the machine's and no domain's: what there is, what a guest may have, and what it has unless told otherwise.

use core::arch::x86_64::CpuidResult;

use alloc::boxed::Box;

use hypervisor::cpu_policy::CpuPolicy;
use mm::{OutOfMemory, try_box, try_concat};
use xen_abi::errno::Errno;
use xen_abi::sysctl::*;
use xen_abi::x86::MsrEntry;

use super::cpuid::{CpuidOptions, CpuidPolicy, Topology, within};
use super::features::{self, FeatureSet};
use super::guest::GuestPolicy;
use super::msr::{MsrOptions, MsrPolicy};
use super::wire;

/// The policies of one machine. There is no paravirtual guest, and no policy for one.
#[derive(Debug)]
pub struct SystemPolicies {
    host: CpuPolicy,
    host_features: FeatureSet,
    /// The most that a guest may have.
    pub hvm_max: Box<GuestPolicy>,
    /// What a guest has of it unless it asks for more.
    pub hvm_default: Box<GuestPolicy>,
}

impl SystemPolicies {
    /// `cpuid` and `msr` ask this machine; `options` is what limits every guest on it.
    pub fn new(
        cpuid: impl Fn(u32, u32) -> CpuidResult + Copy,
        msr: impl Fn(u32) -> Option<u64> + Copy,
        options: &CpuidOptions,
    ) -> Result<Box<SystemPolicies>, OutOfMemory> {
        let policy = |options: &CpuidOptions| {
            let shown = CpuidPolicy::for_domain(cpuid, options);
            let options =
                MsrOptions { hardware_domain: false, pat_switched: true, physical_bits: shown.physical_bits() };
            let msrs = MsrPolicy::for_domain(msr, &shown, &options);
            try_box(GuestPolicy::new(shown, msrs))
        };
        let most = CpuidOptions { topology: Topology::Host, ..*options };
        // A guest that moves to another machine cannot count on the TSC's rate: it is for those that stay.
        let without = try_concat(&[options.without, &[features::ITSC]])?;
        let host = &within(cpuid);
        let has_capabilities = FeatureSet::of_host(host).has(features::ARCH_CAPS);
        let capabilities = if has_capabilities { msr(wire::ARCH_CAPABILITIES).unwrap_or_default() } else { 0 };
        let platform = MsrEntry { idx: wire::PLATFORM_INFO, flags: 0, val: 0 };
        let [_, capabilities_entry] = wire::msrs(capabilities);
        try_box(SystemPolicies {
            host: CpuPolicy { leaves: wire::serialise(host)?, msrs: try_concat(&[&[platform, capabilities_entry]])? },
            host_features: FeatureSet::raw(host).with_capabilities(capabilities),
            hvm_max: policy(&most)?,
            hvm_default: policy(&CpuidOptions { without: &without, ..most })?,
        })
    }

    /// `XEN_SYSCTL_get_cpu_policy` with an index of `XEN_SYSCTL_CPU_POLICY_*`. EOPNOTSUPP for those of paravirtual guests, EINVAL for others that
    /// there are not, ENOMEM.
    pub fn policy(&self, index: u32) -> Result<CpuPolicy, Errno> {
        match index {
            XEN_SYSCTL_CPU_POLICY_RAW | XEN_SYSCTL_CPU_POLICY_HOST => Ok(self.host.copy()?),
            XEN_SYSCTL_CPU_POLICY_HVM_MAX => Ok(self.hvm_max.to_wire()?),
            XEN_SYSCTL_CPU_POLICY_HVM_DEFAULT => Ok(self.hvm_default.to_wire()?),
            XEN_SYSCTL_CPU_POLICY_PV_MAX | XEN_SYSCTL_CPU_POLICY_PV_DEFAULT => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `XEN_SYSCTL_get_cpu_featureset` with an index of `XEN_SYSCTL_CPU_FEATURESET_*`; errors as of [`policy`](Self::policy).
    pub fn features(&self, index: u32) -> Result<FeatureSet, Errno> {
        let of = |policy: &GuestPolicy| policy.cpuid.features().with_capabilities(policy.msr.capabilities());
        match index {
            XEN_SYSCTL_CPU_FEATURESET_RAW | XEN_SYSCTL_CPU_FEATURESET_HOST => Ok(self.host_features),
            XEN_SYSCTL_CPU_FEATURESET_HVM => Ok(of(&self.hvm_default)),
            XEN_SYSCTL_CPU_FEATURESET_HVM_MAX => Ok(of(&self.hvm_max)),
            XEN_SYSCTL_CPU_FEATURESET_PV | XEN_SYSCTL_CPU_FEATURESET_PV_MAX => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EINVAL),
        }
    }
}

#[cfg(test)]
#[path = "system_tests.rs"]
mod tests;
