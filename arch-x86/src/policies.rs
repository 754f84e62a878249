//! The CPU policies of this machine, and a domain's, which the toolstack may change until it runs.

use core::arch::x86_64::__cpuid_count;

use alloc::boxed::Box;
use alloc::sync::Arc;

use arrayvec::ArrayVec;
use hypervisor::cpu_policy::Refused;
use hypervisor::domain::Domain;
use mm::lock::{Lock, Rank};
use mm::{Memory, OutOfMemory, try_arc};
use spin::Once;
use xen_abi::errno::Errno;
use xen_abi::x86::{CpuidLeaf, MsrEntry};

use crate::cpu::model;
use crate::engine::Host;
use crate::fault::{rdmsr_safe, wrmsr_safe};
use crate::fpu;
use crate::machine::X86;
use crate::policy::GuestPolicy;
use crate::policy::cpuid::CpuidOptions;
use crate::policy::features::{self, Feature};
use crate::policy::system::SystemPolicies;

/// What every guest's policy on this machine starts from.
pub struct MachinePolicies {
    pub engine: Host,
    pub system: Box<SystemPolicies>,
    /// What no guest can have, as [`withheld`] says.
    pub withheld: Withheld,
}

static MACHINE: Once<MachinePolicies> = Once::new();

/// Asks this machine, the first time; from then on [`machine`] answers.
#[inline(never)]
pub fn find(engine: Host) -> Result<&'static MachinePolicies, OutOfMemory> {
    MACHINE.try_call_once(|| {
        let withheld = withheld(engine);
        let options =
            CpuidOptions { xcr0_limit: fpu::switched_states(), without: &withheld, ..CpuidOptions::default() };
        let cpuid = |leaf, subleaf| __cpuid_count(leaf, subleaf);
        let system = SystemPolicies::new(cpuid, read_host_msr, &options)?;
        Ok(MachinePolicies { engine, system, withheld })
    })
}

/// `None` before the first domain is made.
pub fn machine() -> Option<&'static MachinePolicies> {
    MACHINE.get()
}

pub type Withheld = ArrayVec<Feature, 7>;

/// Features of this CPU that a guest cannot have: the engine does not let them through, the state behind them is not
/// switched between guests, or they do not work.
fn withheld(engine: Host) -> Withheld {
    let broken = model::spoils_flags().then_some(features::CX16);
    if broken.is_some() {
        log::info!(target: "cpu", "CMPXCHG16B spoils RFLAGS here, as in QEMU before 8.0; guests are not told of it");
    }
    // IA32_SPEC_CTRL is not switched, and commands to the predictors and the cache are not passed on.
    let not_switched = [features::IBRSB, features::IBPB, features::L1D_FLUSH];
    engine.withheld().into_iter().chain(not_switched).chain(broken).collect()
}

/// An MSR of this CPU, for the guests' policy.
pub fn read_host_msr(msr: u32) -> Option<u64> {
    const MICROCODE_REVISION: u32 = 0x8b;
    if msr == MICROCODE_REVISION {
        // The revision is loaded by CPUID (SDM Vol. 3, 10.11.7.1).
        // SAFETY: the register holds nothing but what is loaded into it here.
        unsafe { wrmsr_safe(MICROCODE_REVISION, 0) };
        __cpuid_count(1, 0);
    }
    rdmsr_safe(msr)
}

/// A domain's policy: open to change until a vCPU of it first runs, and the same for good from then on. Reading it takes no lock then.
pub struct DomainPolicy {
    open: Lock<Arc<GuestPolicy>>,
    settled: Once<Arc<GuestPolicy>>,
}

impl DomainPolicy {
    pub const fn new(policy: Arc<GuestPolicy>) -> DomainPolicy {
        DomainPolicy { open: Lock::new(Rank::DomainControl, policy), settled: Once::new() }
    }

    /// What a vCPU runs with. It cannot be changed any more.
    #[inline]
    pub fn settle(&self) -> &GuestPolicy {
        self.settled.call_once(|| self.open.lock().clone())
    }

    /// What it is now.
    pub fn now(&self) -> Arc<GuestPolicy> {
        self.settled.get().cloned().unwrap_or_else(|| self.open.lock().clone())
    }

    /// Puts another in its place, which `change` makes of it. EEXIST once a vCPU has run.
    pub fn change(
        &self,
        change: impl FnOnce(&GuestPolicy) -> Result<Arc<GuestPolicy>, Refused>,
    ) -> Result<(), Refused> {
        let mut open = self.open.lock();
        // Whoever settles it waits for the lock, or has been here before.
        if self.settled.is_completed() {
            return Err(Errno::EEXIST.into());
        }
        *open = change(&open)?;
        Ok(())
    }
}

/// Replaces a domain's policy by what the toolstack sends (XEN_DOMCTL_set_cpu_policy); see [`GuestPolicy::with`] for what is refused. EEXIST once a
/// vCPU of it has run, ENOMEM.
pub fn change(
    domain: &Domain<X86>,
    memory: &'static Memory,
    leaves: &[CpuidLeaf],
    msrs: &[MsrEntry],
) -> Result<(), Refused> {
    let machine = machine().ok_or(Errno::ENODEV)?;
    domain.machine.policy.change(|present| {
        let policy = try_arc(present.with(leaves, msrs, &machine.system.hvm_max)?).map_err(Errno::from)?;
        machine.engine.change_msrs(memory, &domain.machine.bitmaps, &policy.msr).ok_or(Errno::ENOMEM)?;
        Ok(policy)
    })
}

/// Changes what a domain is told of its TSC (`XEN_CPUID_TSC_MODE_*`). EEXIST once a vCPU of it has run, ENOMEM.
pub fn change_tsc_mode(domain: &Domain<X86>, mode: u32) -> Result<(), Errno> {
    let changed = domain.machine.policy.change(|present| {
        let mut policy = present.clone();
        policy.cpuid.set_tsc_mode(mode);
        Ok(try_arc(policy).map_err(Errno::from)?)
    });
    changed.map_err(|refused| refused.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::cpuid::CpuidPolicy;
    use crate::policy::msr::{MsrOptions, MsrPolicy};

    fn policy() -> Arc<GuestPolicy> {
        let nothing = |_, _| core::arch::x86_64::CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        let cpuid = CpuidPolicy::for_domain(nothing, &CpuidOptions::default());
        let options = MsrOptions { hardware_domain: false, pat_switched: true, physical_bits: 36 };
        let msr = MsrPolicy::for_domain(|_| None, &cpuid, &options);
        Arc::new(GuestPolicy::new(cpuid, msr))
    }

    #[test]
    fn looking_at_a_policy_and_settling_it_takes_no_memory() {
        let domain = DomainPolicy::new(policy());
        mm::fake::with_heap_of(0, || {
            assert_eq!(domain.now().cr4_allowed, domain.settle().cr4_allowed);
            assert!(Arc::ptr_eq(&domain.now(), &domain.now()));
        });
    }

    #[test]
    fn a_policy_changes_until_it_is_settled() {
        let domain = DomainPolicy::new(policy());
        let to = |cr4_allowed| move |old: &GuestPolicy| Ok(Arc::new(GuestPolicy { cr4_allowed, ..old.clone() }));
        assert_eq!(domain.change(to(1)), Ok(()));
        assert_eq!(domain.now().cr4_allowed, 1);
        assert_eq!(domain.change(|_| Err(Errno::EINVAL.into())), Err(Errno::EINVAL.into()));
        assert_eq!(domain.change(to(2)), Ok(()));
        assert_eq!(domain.settle().cr4_allowed, 2);
        assert_eq!(domain.change(to(3)), Err(Errno::EEXIST.into()));
        assert_eq!((domain.settle().cr4_allowed, domain.now().cr4_allowed), (2, 2));
    }
}
