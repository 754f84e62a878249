//! What `hypervisor` needs of a machine. `arch-x86` implements it; [`crate::fake`] does so for tests.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Debug};

use mm::addr::GuestPhys;
use mm::table::PageFormat;
use mm::{Flush, Memory, P2mCache};
use sched::{Affinity, CpuId, CpuPlace, Nanos};
use xen_abi::domctl::CreateDomain;
use xen_abi::errno::Errno;
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{CpuidLeaf, MsrEntry};

use crate::cpu_policy::{CpuPolicy, Refused};
use crate::domain::{Domain, Privilege};
use crate::vcpu::Vcpu;

/// What a hypercall argument is accessed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// The width of a hypercall's caller: the layout of its arguments follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Width {
    Bits32,
    #[default]
    Bits64,
}

/// What is to become of the machine, or why a domain stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerAction {
    PowerOff,
    Reboot,
    /// Stop all CPUs and keep the screen as it is.
    Halt,
}

/// How system time follows from the TSC, as `vcpu_time_info` of Xen's `xen.h` tells a guest:
/// `system_time + ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32` nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockScale {
    pub tsc_timestamp: u64,
    pub system_time: Nanos,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    /// The TSC runs at one rate on every CPU, so a guest may use it without asking again.
    pub stable: bool,
}

/// A PCI function, as PHYSDEVOP names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    pub segment: u16,
    pub bus: u8,
    pub devfn: u8,
}

/// Physical devices as Dom0 may steer them by PHYSDEVOP and XENPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceRequest {
    PciAdd(PciFunction),
    PciRemove(PciFunction),
    PciReset(PciFunction),
    /// An ECAM window that ACPI reserves: base address, segment, first and last bus.
    Ecam {
        base: u64,
        segment: u16,
        first_bus: u8,
        last_bus: u8,
    },
    SetupGsi {
        gsi: u32,
        level: bool,
        active_low: bool,
    },
}

/// A physical CPU as XENPF_get_cpuinfo tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysicalCpu {
    pub highest: u32,
    pub online: bool,
    pub apic_id: u32,
    pub acpi_id: u32,
    pub place: CpuPlace,
    /// How long it had nothing to do.
    pub idle: Nanos,
}

/// What XEN_SYSCTL_physinfo tells of the machine beside memory and CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Devices can be given to guests: there is an IOMMU in use.
    pub has_iommu: bool,
    /// Bits of a guest-physical address.
    pub address_bits: u8,
    /// The CPU's features, as CPUID has them: words 0 to 7 of a featureset (Xen's `cpufeatureset.h`).
    pub features: [u32; 8],
}

/// The machine under the hypervisor.
pub trait Machine: Sized + Send + Sync + 'static {
    /// The nested page tables' format (a run-time choice inside one closed set).
    type Format: PageFormat + Send + Sync + Debug;
    /// A domain's virtual devices.
    type DomainState: Send + Sync;
    /// The part of a vCPU that other CPUs may touch: its local APIC's inbox, where it runs.
    type VcpuState: Send + Sync;
    /// The part of a vCPU that belongs to the CPU that runs it: registers and controls.
    type Context;

    /// System time: nanoseconds since boot, the same on every CPU.
    fn now(&self) -> Nanos;

    fn clock_scale(&self) -> ClockScale;

    /// The TSC's rate in kHz.
    fn tsc_khz(&self) -> u32;

    /// Seconds and nanoseconds since 1970 at system time zero.
    fn wallclock_at_boot(&self) -> (u64, u32);

    /// It is `seconds` and `nanoseconds` since 1970 at system time `at`.
    fn set_wallclock(&self, seconds: u64, nanoseconds: u32, at: Nanos);

    /// Walks the running guest's own page tables: the guest-physical address behind `linear` for a supervisor access by the guest.
    /// EFAULT where the guest itself would take a page fault.
    fn translate(
        &self,
        domain: &Domain<Self>,
        context: &mut Self::Context,
        linear: u64,
        access: Access,
    ) -> Result<GuestPhys, Errno>;

    /// The running vCPU's cache of its domain's p2m.
    fn p2m_cache<'a>(&self, context: &'a mut Self::Context) -> &'a mut P2mCache;

    /// The width of the code that made the hypercall.
    fn width(&self, context: &mut Self::Context) -> Width;

    /// `evtchn_upcall_pending` of this vCPU became 1: have it take its upcall as soon as it can, wherever it is.
    fn upcall(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>);

    /// Whether an interrupt waits that the running vCPU would take at once: then it is no time to sleep.
    fn interrupt_waits(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>, context: &mut Self::Context) -> bool;

    /// The vCPU gets an NMI (VCPUOP_send_nmi).
    fn send_nmi(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>);

    /// The vCPU is runnable again (it may already be running).
    fn wake(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>);

    /// The vCPU's earliest deadline ([`Vcpu::next_deadline`]) may have changed. At that time [`crate::timer::expire`] is to be called.
    fn timer_changed(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>);

    /// The running vCPU lets others run first (SCHEDOP_yield).
    fn yield_now(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>);

    /// Brings a vCPU up (`true`) or takes it down, as VCPUOP_up and VCPUOP_down ask.
    fn set_online(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>, online: bool) -> Result<(), Errno>;

    /// Spends a flush: after it no CPU (and no device) holds a translation that was taken away.
    fn flush(&self, domain: &Domain<Self>, flush: Flush);

    /// The domain has shut down, crashed or wants to: stop its vCPUs. For the control domain the machine follows.
    fn domain_stopped(&self, domain: &Domain<Self>, reason: u32);

    /// Dom0 writes to its console. How many bytes it takes now; it waits for a few milliseconds at most, and the rest is to be offered again.
    fn console_write(&self, domain: &Domain<Self>, text: &[u8]) -> usize;

    /// Another domain has written a line to its own, without control characters. It is shown under the domain's name. False if there is no room
    /// for it, which nobody waits for.
    fn console_line(&self, domain: &Domain<Self>, line: fmt::Arguments<'_>) -> bool;

    /// Takes input for Dom0's console; the number of bytes taken.
    fn console_read(&self, into: &mut [u8]) -> usize;

    /// Copies the console ring from the index `from` on; the bytes copied and the index behind them (XEN_SYSCTL_readconsole).
    fn console_ring(&self, from: u32, into: &mut [u8]) -> (usize, u32);

    fn device(&self, domain: &Domain<Self>, request: DeviceRequest) -> Result<(), Errno>;

    fn physical_cpu(&self, cpu: u32) -> Option<PhysicalCpu>;

    /// The command line that the hypervisor was started with.
    fn command_line(&self) -> &str;

    /// What the machine is made of.
    fn hardware(&self) -> Hardware;

    /// A key of the console's debug keys.
    fn debug_key(&self, key: u8);

    // ---- domains that come and go ----

    /// Makes a domain with neither memory nor anything to run, all of whose vCPUs are offline; nobody knows of it yet. EINVAL and EOPNOTSUPP for
    /// what cannot be, ENOMEM.
    fn create(
        &self,
        memory: &'static Memory,
        id: DomainId,
        privilege: Privilege,
        config: &CreateDomain,
    ) -> Result<Domain<Self>, Errno>;

    /// Has the scheduler know a domain's vCPUs. ENOMEM.
    fn admit(&self, domain: &Arc<Domain<Self>>) -> Result<(), Errno>;

    /// Takes a domain's vCPUs, which are held for good, off the CPUs and out of the scheduler. False while a CPU may still have something of them:
    /// then this is to be asked again.
    fn retire(&self, domain: &Domain<Self>) -> bool;

    /// If the vCPU is in the guest on another CPU, it comes out and looks at what holds it.
    fn call_out(&self, domain: &Domain<Self>, vcpu: &Vcpu<Self>);

    /// The CPU on which the vCPU runs, or ran last.
    fn cpu_of(&self, vcpu: &Vcpu<Self>) -> CpuId;

    // ---- what a domain's vCPUs are like ----

    /// A policy of the machine's (`XEN_SYSCTL_CPU_POLICY_*`). EOPNOTSUPP or EINVAL for one that there is not, ENOMEM.
    fn system_policy(&self, index: u32) -> Result<CpuPolicy, Errno>;

    /// The features of such a policy (`XEN_SYSCTL_CPU_FEATURESET_*`), in the words of Xen's `cpufeatureset.h`. Errors as for the policy.
    fn system_features(&self, index: u32) -> Result<Vec<u32>, Errno>;

    /// A domain's policy. ENOMEM.
    fn policy(&self, domain: &Domain<Self>) -> Result<CpuPolicy, Errno>;

    /// Gives a domain that has never run another policy.
    fn set_policy(&self, domain: &Domain<Self>, leaves: &[CpuidLeaf], msrs: &[MsrEntry]) -> Result<(), Refused>;

    /// What the domain is told of its TSC: `XEN_CPUID_TSC_MODE_*`.
    fn tsc_mode(&self, domain: &Domain<Self>) -> u32;

    /// EEXIST once the domain has run, ENOMEM.
    fn set_tsc_mode(&self, domain: &Domain<Self>, mode: u32) -> Result<(), Errno>;

    /// The state of a domain's vCPUs and virtual devices as `hvm/save.h` has it, or the one record of this kind and instance. All of the vCPUs are
    /// held; `context` is the caller's own. ENOENT for a record that there is not, ENOMEM.
    fn save(
        &self,
        context: &mut Self::Context,
        domain: &Domain<Self>,
        record: Option<(u16, u16)>,
    ) -> Result<Vec<u8>, Errno>;

    /// Gives a domain, all of whose vCPUs are held, this state; vCPUs of which there is one are online then. EINVAL for what is no such state or
    /// cannot be, and nothing is changed then.
    fn restore(&self, context: &mut Self::Context, domain: &Domain<Self>, state: &[u8]) -> Result<(), Errno>;

    // ---- the scheduler ----

    fn scheduler(&self) -> sched::Kind;

    /// How long a vCPU runs before another may take its place; `None` if the scheduler has no such limit.
    fn ratelimit(&self) -> Option<Nanos>;

    fn set_ratelimit(&self, limit: Nanos);

    /// `None` for a vCPU that the scheduler does not know.
    fn affinity(&self, vcpu: &Vcpu<Self>) -> Option<Affinity>;

    /// EINVAL if no CPU is left to the vCPU, ESRCH for one that the scheduler does not know.
    fn set_affinity(&self, vcpu: &Vcpu<Self>, affinity: Affinity) -> Result<(), Errno>;

    /// Weight and cap of all of a domain's vCPUs are what the domain's [control](crate::control::Control::share) says now.
    fn share_changed(&self, domain: &Domain<Self>);

    /// Which of the domain's vCPUs runs with this local-APIC id, for HVMOP and tests of identity.
    fn apic_id(&self, vcpu: VcpuId) -> u32 {
        vcpu.0.wrapping_mul(2)
    }
}
