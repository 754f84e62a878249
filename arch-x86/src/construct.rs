//! What making a domain takes, whichever one it is: its kernel's first moments, its vCPUs, what they see of the machine, and its start.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::ops::Range;

use hypervisor::build::elf::Kernel;
use hypervisor::build::map::Region;
use hypervisor::build::plan::{Contents, Placement, Share};
use hypervisor::build::pvh::{GuestWriter, Told, VcpuStart, load_initrd, load_kernel};
use hypervisor::build::{self, initrd};
use hypervisor::control::Control;
use hypervisor::domain::{Domain, Parts, Privilege};
use hypervisor::event::EventChannels;
use hypervisor::grant::{GrantTable, Limits};
use hypervisor::system::System;
use hypervisor::vcpu::{Vcpu, hold};
use hypervisor::wallclock;
use mm::addr::{GuestPhys, Mfn};
use mm::{Memory, P2m, P2mCache, SharedPage};
use sched::{CpuSet, Terms};
use xen_abi::memory::E820Entry;
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{XEN_HVM_CPUID_EXT_DEST_ID, XEN_HVM_CPUID_IOMMU_MAPPINGS, XEN_HVM_CPUID_UPCALL_VECTOR};

use crate::acpi::MadeTables;
use crate::context::{Context, SwitchedRegisters};
use crate::devices::Devices;
use crate::engine::{Host as EngineHost, Nested, Resources};
use crate::event::Pending;
use crate::fpu::{self, FpuArea};
use crate::machine::{self, Number, X86, X86Domain, X86Vcpu};
use crate::percpu;
use crate::policies;
use crate::policy::GuestPolicy;
use crate::policy::cpuid::{CpuidOptions, CpuidPolicy, Topology, TscInfo};
use crate::policy::msr::{MsrOptions, MsrPolicy, VcpuMsrs};
use crate::regs::GuestRegs;
use crate::state::CpuState;
use crate::vdev::vlapic::Vlapic;

/// The image of the kernel in `file`. The error is one line for the user, as all here, without the domain's name.
pub fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    build::unpack(file).map_err(|why| why.to_string())
}

/// The kernel that an image holds.
pub fn parse(image: &[u8]) -> Result<Kernel<'_>, String> {
    Kernel::parse(image).map_err(|why| why.to_string())
}

/// What a domain's memory holds when it starts.
pub struct Beginning<'a> {
    pub kernel: &'a Kernel<'a>,
    /// The parts of its initrd, in the order in which they came.
    pub initrds: &'a [&'a [u8]],
    /// Where they lie if the domain could have them there.
    pub initrd_parts: &'a [Range<u64>],
    /// What must not be written over meanwhile.
    pub busy: &'a [Range<u64>],
    pub cmdline: &'a str,
    /// `SIF_*`.
    pub flags: u32,
    /// Makes the ACPI tables for an address; as many bytes for each. `None` if memory runs out.
    pub acpi: &'a dyn Fn(u64) -> Option<MadeTables>,
}

/// A [`Beginning`] with a place for everything.
pub struct Placed<'a> {
    beginning: Beginning<'a>,
    arranged: Vec<&'a [u8]>,
    pub place: Placement,
}

impl<'a> Beginning<'a> {
    /// Finds a place in the domain's memory for all of it.
    pub fn place(self, share: &mut Share) -> Result<Placed<'a>, String> {
        let arranged = initrd::arrange(self.initrds).ok_or("no memory to arrange the initrd")?;
        let acpi = (self.acpi)(0).ok_or(NO_MEMORY_FOR_ACPI)?.bytes.len() as u64;
        let told = Told { flags: self.flags, cmdline: self.cmdline, map: &share.map, initrd: None, rsdp: 0 };
        // The map has yet to tell of the ACPI tables.
        let start_info = told.size(8);
        let contents = Contents {
            kernel: self.kernel.extent(),
            relocation: self.kernel.relocation,
            initrd: initrd::offsets(&arranged).1,
            initrd_parts: self.initrd_parts,
            start_info,
            acpi,
            busy: self.busy,
        };
        let place = share.place(&contents).map_err(|why| why.to_string())?;
        Ok(Placed { beginning: self, arranged, place })
    }
}

const NO_MEMORY_FOR_ACPI: &str = "no memory for its ACPI tables";

impl Placed<'_> {
    /// Writes it all, in the order that [`build::plan`] asks for, and says how the first vCPU starts.
    pub fn write(&self, guest: &mut impl GuestWriter, share: &Share) -> Result<VcpuStart, String> {
        let Placed { beginning, arranged, place } = self;
        let bad = |what: &str| format!("{what} does not fit its memory");
        if let Some(initrd) = place.initrd.as_ref().filter(|_| !place.initrd_in_place) {
            load_initrd(guest, initrd.start, arranged).map_err(|_| bad("the initrd"))?;
        }
        let entry = load_kernel(guest, place.kernel.start, beginning.kernel).map_err(|_| bad("the kernel"))?;
        let tables = (beginning.acpi)(place.acpi.start).ok_or(NO_MEMORY_FOR_ACPI)?;
        guest.write(GuestPhys(place.acpi.start), &tables.bytes).map_err(|_| bad("ACPI"))?;
        let told = Told {
            flags: beginning.flags,
            cmdline: beginning.cmdline,
            map: &share.map,
            initrd: place.initrd.as_ref(),
            rsdp: tables.rsdp,
        };
        told.write(guest, place.start_info.start).map_err(|_| bad("the start info"))?;
        VcpuStart::new(entry, place.start_info.start).map_err(|_| bad("the start info"))
    }
}

/// What a domain is, apart from its memory's contents.
pub struct Plan {
    pub id: DomainId,
    pub privilege: Privilege,
    pub name: String,
    pub vcpus: u32,
    /// `XEN_CPUID_TSC_MODE_*`.
    pub tsc_mode: u32,
    /// The highest port of its event channels.
    pub most_ports: u32,
    pub devices: Devices,
    pub grants: Limits,
    pub control: Control,
    /// Pages that it has, and that it may have.
    pub pages: u64,
    pub max_pages: u64,
}

/// The memory map of a domain with this share of the machine's memory, as XENMEM_memory_map has it.
pub fn memory_map(share: &Share) -> Vec<E820Entry> {
    let entry = |region: &Region| E820Entry {
        addr: region.start,
        size: region.end - region.start,
        r#type: region.kind.to_e820(),
    };
    share.map.regions().iter().map(entry).collect()
}

/// Makes the domain around an address space whose root is `root`; `p2m` gives it away once nothing can fail any more but that.
pub fn assemble(
    memory: &'static Memory,
    host: EngineHost,
    plan: Plan,
    root: Mfn,
    p2m: impl FnOnce() -> Option<P2m<Nested>>,
) -> Result<Domain<X86>, String> {
    let Plan { id, privilege, name, vcpus: count, .. } = plan;
    let is_control = privilege == Privilege::Control;
    let policy = guest_policy(host, id, count, plan.tsc_mode, is_control);
    let bitmaps = host.bitmaps(memory, &plan.devices.ports.lock(), &policy.msr).ok_or("no memory for its bitmaps")?;
    let mut vcpus = Vec::new();
    vcpus.try_reserve_exact(count as usize).map_err(|_| NO_MEMORY_FOR_VCPUS)?;
    for id in 0..count {
        let number = Number::take().ok_or("there is no VPID left for its vCPUs; give it fewer")?;
        let (ports, msrs) = (bitmaps.ports.mfn(), bitmaps.msrs.mfn());
        let resources = Resources { ports, msrs, root, number: number.get() };
        // SAFETY: the bitmaps and tables live as long as the domain, which its vCPUs are part of; the engine is on.
        let engine = unsafe { host.vcpu(memory, resources) }.ok_or(NO_MEMORY_FOR_VCPUS)?;
        let (vlapic, inbox) = Vlapic::new(machine::APIC_IDS_A_VCPU * id, id == 0);
        let size = if crate::host::has_xsave() { __cpuid_count(0xd, 0).ecx as usize } else { 512 };
        let context = Context {
            regs: GuestRegs::default(),
            engine,
            pending: Pending::default(),
            vlapic,
            msrs: VcpuMsrs::default(),
            xcr0: 1,
            fpu: FpuArea::new(memory, fpu::switched_states(), size).map_err(|_| NO_MEMORY_FOR_VCPUS)?,
            switched: SwitchedRegisters::default(),
            seen: CpuSet::EMPTY,
            cache: P2mCache::new(),
            triple_fault: false,
            waiting: Some(Box::new(CpuState::sipi(0))),
        };
        vcpus.push(Vcpu::new(VcpuId(id), X86Vcpu::new(inbox, number, Box::new(context))));
    }

    let events =
        EventChannels::new(id, count, plan.most_ports).map_err(|why| format!("its event channels: {why:?}"))?;
    let grants = GrantTable::new(id, plan.grants, count as usize).map_err(|why| format!("its grant table: {why:?}"))?;
    let shared_info = SharedPage::allocate(memory, id).map_err(|_| "no memory for shared_info")?;
    Ok(Domain::new(Parts {
        id,
        privilege,
        name,
        vcpus,
        p2m: p2m().ok_or("its memory is gone")?,
        one_to_one: is_control,
        shared_info,
        events,
        grants,
        control: plan.control,
        pages: plan.pages,
        max_pages: plan.max_pages,
        machine: X86Domain::new(policy, bitmaps, plan.devices),
    }))
}

const NO_MEMORY_FOR_VCPUS: &str = "no memory for its vCPUs";

/// What the domain has before the toolstack says anything.
#[inline(never)]
fn guest_policy(host: EngineHost, domain: DomainId, vcpus: u32, tsc_mode: u32, is_control: bool) -> Box<GuestPolicy> {
    policies::find(host);
    let cpuid = cpuid_policy(host, domain, vcpus, tsc_mode);
    let physical_bits = cpuid.physical_bits();
    let options = MsrOptions { hardware_domain: is_control, pat_switched: true, physical_bits };
    let msr = MsrPolicy::for_domain(policies::read_host_msr, &cpuid, &options);
    Box::new(GuestPolicy::new(cpuid, msr))
}

fn cpuid_policy(host: EngineHost, domain: DomainId, vcpus: u32, tsc_mode: u32) -> CpuidPolicy {
    let clock = machine::clock();
    let scale = clock.scale();
    CpuidPolicy::for_domain(
        |leaf, subleaf| -> CpuidResult { __cpuid_count(leaf, subleaf) },
        &CpuidOptions {
            domain,
            topology: Topology::Vcpus(vcpus),
            tsc: TscInfo {
                emulated: false,
                reliable: true,
                mode: tsc_mode,
                khz: clock.khz,
                host_khz: clock.khz,
                incarnation: 0,
                offset: 0,
                multiplier: scale.tsc_to_system_mul,
                shift: scale.tsc_shift,
            },
            xcr0_limit: fpu::switched_states(),
            without: &policies::withheld(host),
            // As Xen answers where the hardware does not virtualise the local APIC; IOMMU_MAPPINGS it sets whatever IOMMU there is.
            // With EXT_DEST_ID beside it, interrupts reach more than 127 vCPUs.
            hvm_features: XEN_HVM_CPUID_IOMMU_MAPPINGS | XEN_HVM_CPUID_UPCALL_VECTOR | XEN_HVM_CPUID_EXT_DEST_ID,
            ..CpuidOptions::default()
        },
    )
}

/// Makes a domain known, has its vCPUs scheduled on these terms, and wakes the first one.
pub fn start(
    system: &'static System<X86>,
    domain: &Arc<Domain<X86>>,
    start: &VcpuStart,
    terms: Terms,
) -> Result<(), String> {
    system.add(domain.clone()).map_err(|why| format!("cannot be added ({why:?})"))?;
    wallclock::update_wallclock(system, domain);
    for vcpu in &domain.vcpus {
        wallclock::update_vcpu_time(system, domain, vcpu);
    }
    domain.control.set_share(terms.weight, terms.cap as u16);
    percpu::adopt(domain, terms).map_err(|_| "no memory for the run queue")?;
    domain.control.admit();
    let first = domain.vcpu(VcpuId(0)).ok_or("it has no vCPU")?;
    start_first(first, start)?;
    first.clear_hold(hold::OFFLINE);
    let (_, key) = first.machine.place();
    percpu::wake(key);
    Ok(())
}

/// Gives the first vCPU its registers.
fn start_first(vcpu: &Vcpu<X86>, start: &VcpuStart) -> Result<(), String> {
    let mut held = vcpu.machine.context.lock();
    let context = held.as_mut().ok_or("its first vCPU has no registers")?;
    context.waiting = Some(Box::new(CpuState::pvh(start.eip, start.ebx)));
    Ok(())
}
