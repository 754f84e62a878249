//! What making a domain takes, whichever one it is: its kernel's first moments, its vCPUs, what they see of the machine, and its start.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::fmt;
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
use mm::{Memory, OutOfMemory, P2m, P2mCache, SharedPage, try_arc, try_box, try_vec};
use sched::{CpuSet, Terms};
use xen_abi::errno::Errno;
use xen_abi::memory::E820Entry;
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{XEN_HVM_CPUID_EXT_DEST_ID, XEN_HVM_CPUID_IOMMU_MAPPINGS, XEN_HVM_CPUID_UPCALL_VECTOR};

use crate::acpi::MadeTables;
use crate::context::{Context, SwitchedRegisters};
use crate::devices::Devices;
use crate::engine::{Engine, Host as EngineHost, Nested, Resources};
use crate::event::Pending;
use crate::fpu::{self, FpuArea};
use crate::machine::{self, Number, X86, X86Domain, X86Vcpu};
use crate::percpu;
use crate::policies::{self, MachinePolicies};
use crate::policy::GuestPolicy;
use crate::policy::cpuid::{CpuidOptions, CpuidPolicy, Topology, TscInfo};
use crate::policy::msr::{MsrOptions, MsrPolicy, VcpuMsrs};
use crate::regs::GuestRegs;
use crate::state::CpuState;
use crate::vdev::vlapic::Vlapic;

// BOOT: the toolstack unpacks kernels itself.
/// The image of the kernel in `file`. The error is one line for the user, as all here, without the domain's name.
pub fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    build::unpack(file).map_err(|why| why.to_string())
}

// BOOT: as above.
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

// BOOT: the toolstack fills memory itself.
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

// BOOT: as above.
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

/// What of a domain cannot be had, and why. It is said without memory, as that may be what is lacking.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    what: &'static str,
    pub why: Errno,
}

impl Failure {
    fn of<E: Into<Errno>>(what: &'static str) -> impl FnOnce(E) -> Failure {
        move |why| Failure { what, why: why.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.what, self.why)
    }
}

/// Chunks for Dom0's mappings of grants, 256 in each: a domain with two disks and a network has more than 512 of its grants mapped by Linux 7.3.
const DOM0_CHUNKS: usize = 8;

/// Makes the domain around an address space whose root is `root`; `p2m` gives it away once nothing can fail any more but that.
pub fn assemble(
    memory: &'static Memory,
    host: EngineHost,
    plan: Plan,
    root: Mfn,
    p2m: impl FnOnce() -> Option<P2m<Nested>>,
) -> Result<Domain<X86>, Failure> {
    let Plan { id, privilege, name, vcpus: count, .. } = plan;
    let is_control = privilege == Privilege::Control;
    let policy = guest_policy(host, id, count, plan.tsc_mode, is_control).map_err(Failure::of("its CPU policy"))?;
    let bitmaps = host.bitmaps(memory, &plan.devices.ports.lock(), &policy.msr);
    let bitmaps = bitmaps.ok_or(OutOfMemory).map_err(Failure::of("its bitmaps"))?;
    let mut vcpus = try_vec(count as usize).map_err(Failure::of("its vCPUs"))?;
    for id in 0..count {
        let number = Number::take().ok_or(OutOfMemory).map_err(Failure::of("VPIDs for its vCPUs"))?;
        let resources = Resources { ports: bitmaps.ports.mfn(), msrs: bitmaps.msrs.mfn(), root, number: number.get() };
        // SAFETY: the bitmaps and tables live as long as the domain, which its vCPUs are part of; the engine is on.
        let engine = unsafe { host.vcpu(memory, resources) }.ok_or(OutOfMemory);
        let vcpu = engine.and_then(|engine| vcpu(memory, VcpuId(id), number, engine));
        vcpus.push(vcpu.map_err(Failure::of("its vCPUs"))?);
    }

    let events = EventChannels::new(id, count, plan.most_ports).map_err(Failure::of("its event channels"))?;
    let grants = GrantTable::new(id, plan.grants, count as usize).map_err(Failure::of("its grant table"))?;
    if is_control {
        grants.maptrack().make_first_chunks(DOM0_CHUNKS).map_err(Failure::of("its mappings of grants"))?;
    }
    let shared_info = SharedPage::allocate(memory, id).map_err(Failure::of("its shared_info"))?;
    Ok(Domain::new(Parts {
        id,
        privilege,
        name,
        vcpus,
        p2m: p2m().ok_or(Errno::EIO).map_err(Failure::of("its memory"))?,
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

/// A vCPU that waits to be started.
fn vcpu(memory: &'static Memory, id: VcpuId, number: Number, engine: Engine) -> Result<Vcpu<X86>, OutOfMemory> {
    let (vlapic, inbox) = Vlapic::new(machine::APIC_IDS_A_VCPU * id.0, id.0 == 0);
    let size = if crate::host::has_xsave() { __cpuid_count(0xd, 0).ecx as usize } else { 512 };
    let context = Context {
        regs: GuestRegs::default(),
        engine,
        pending: Pending::default(),
        vlapic,
        msrs: VcpuMsrs::default(),
        xcr0: 1,
        fpu: FpuArea::new(memory, fpu::switched_states(), size)?,
        switched: SwitchedRegisters::default(),
        seen: CpuSet::EMPTY,
        cache: P2mCache::new(),
        triple_fault: false,
        waiting: Some(try_box(CpuState::sipi(0))?),
    };
    Ok(Vcpu::new(id, X86Vcpu::new(inbox, number, try_box(context)?)))
}

/// What the domain has before the toolstack says anything.
#[inline(never)]
fn guest_policy(
    host: EngineHost,
    domain: DomainId,
    vcpus: u32,
    tsc_mode: u32,
    is_control: bool,
) -> Result<Arc<GuestPolicy>, OutOfMemory> {
    let machine = policies::find(host)?;
    let cpuid = cpuid_policy(machine, domain, vcpus, tsc_mode);
    let physical_bits = cpuid.physical_bits();
    let options = MsrOptions { hardware_domain: is_control, pat_switched: true, physical_bits };
    let msr = MsrPolicy::for_domain(policies::read_host_msr, &cpuid, &options);
    try_arc(GuestPolicy::new(cpuid, msr))
}

fn cpuid_policy(machine: &MachinePolicies, domain: DomainId, vcpus: u32, tsc_mode: u32) -> CpuidPolicy {
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
            without: &machine.withheld,
            // As Xen answers where the hardware does not virtualise the local APIC; IOMMU_MAPPINGS it sets whatever IOMMU there is.
            // With EXT_DEST_ID beside it, interrupts reach more than 127 vCPUs.
            hvm_features: XEN_HVM_CPUID_IOMMU_MAPPINGS | XEN_HVM_CPUID_UPCALL_VECTOR | XEN_HVM_CPUID_EXT_DEST_ID,
            ..CpuidOptions::default()
        },
    )
}

// BOOT: the toolstack starts domains itself.
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
    context.waiting = Some(try_box(CpuState::pvh(start.eip, start.ebx)).map_err(|_| "no memory for its registers")?);
    Ok(())
}
