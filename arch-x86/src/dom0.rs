//! Dom0 out of a kernel and its initrd: its share of the memory one to one, its virtual hardware, its first registers.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::ops::{Range, RangeInclusive};

use hypervisor::build::dom0_mem::{Dom0Mem, Size};
use hypervisor::build::elf::Kernel;
use hypervisor::build::map::{Region, RegionKind};
use hypervisor::build::plan::{Contents, Host, Placement, Share};
use hypervisor::build::pvh::{GuestWriter, Told, VcpuStart, load_initrd, load_kernel};
use hypervisor::build::{self, initrd};
use hypervisor::domain::{Domain, Parts, Privilege};
use hypervisor::event::EventChannels;
use hypervisor::grant::{GrantTable, Limits};
use hypervisor::system::System;
use hypervisor::vcpu::{Vcpu, hold};
use hypervisor::wallclock;
use mm::addr::{Gfn, GuestPhys, HostPhys, Mfn};
use mm::table::{MemoryType, PageKind};
use mm::{Memory, P2m, P2mCache, RangeSet, SharedPage};
use xen_abi::errno::Errno;
use xen_abi::memory::E820Entry;
use xen_abi::types::{DomainId, VcpuId};
use xen_abi::x86::{XEN_HVM_CPUID_EXT_DEST_ID, XEN_HVM_CPUID_IOMMU_MAPPINGS, XEN_HVM_CPUID_UPCALL_VECTOR};

use crate::acpi;
use crate::context::{Context, SwitchedRegisters};
use crate::devices::Devices;
use crate::devices::pci::PciBus;
use crate::engine::{Host as EngineHost, Nested, Resources};
use crate::event::Pending;
use crate::fault::{rdmsr_safe, wrmsr_safe};
use crate::fpu::{self, FpuArea};
use crate::machine::{self, X86, X86Domain, X86Vcpu};
use crate::pci_host::Hardware;
use crate::percpu::{self, Resident};
use crate::policy::Vendor;
use crate::policy::cpuid::{CpuidOptions, CpuidPolicy, TscInfo};
use crate::policy::features::{self, Feature};
use crate::policy::msr::{MsrOptions, MsrPolicy, VcpuMsrs};
use crate::regs::GuestRegs;
use crate::segment::StartState;
use crate::startup::{Platform, Ready};
use crate::vdev::ports::Ports;
use crate::vdev::vioapic::{Description, Gsi, IoApics};
use crate::vdev::vlapic::Vlapic;
use crate::vdev::vpci::ecam::Ecam;

const PAGE: u64 = mm::PAGE_SIZE as u64;
const GIB: u64 = 1 << 30;

/// Local APICs, and where devices write their interrupt messages.
const MESSAGES: Range<u64> = 0xfee0_0000..0xfef0_0000;

/// What the user gives Dom0.
pub struct Wanted<'a> {
    pub kernel: &'a [u8],
    /// Where the files lie that make up its initrd, in the order in which they came, and what is in them.
    pub initrds: Vec<(Range<u64>, &'a [u8])>,
    pub cmdline: &'a str,
    pub memory: Dom0Mem,
    pub vcpus: u32,
    /// The machine's memory map.
    pub map: Vec<Region>,
    /// Where all modules lie, and what else the boot loader left: memory that is Dom0's or free once it is built.
    pub modules: Vec<Range<u64>>,
    /// The page below 1 MiB on which other CPUs start.
    pub trampoline: Range<u64>,
    /// Ports that Dom0 must not see: Corten's console.
    pub hidden_ports: Vec<RangeInclusive<u16>>,
    /// A GSI that is Corten's own.
    pub hidden_gsi: Option<u32>,
}

/// What Corten keeps free for itself beside Dom0: page tables, grant tables, other domains' beginnings.
const HEADROOM: u64 = 2 << 20;

/// Dom0's physical memory while it is built: one to one.
struct OneToOne<'a> {
    memory: &'static Memory,
    ram: &'a RangeSet,
}

impl GuestWriter for OneToOne<'_> {
    fn write(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), Errno> {
        self.check(at, bytes.len() as u64)?;
        self.memory.window().copy_to(HostPhys(at.0), bytes).map_err(|_| Errno::EFAULT)
    }

    fn zero(&mut self, at: GuestPhys, len: u64) -> Result<(), Errno> {
        self.check(at, len)?;
        let window = self.memory.window();
        let zeroes = [0u8; 64];
        let (mut at, end) = (at.0, at.0 + len);
        while at < end {
            if at.is_multiple_of(PAGE) && end - at >= PAGE {
                let frames = (end - at) / PAGE;
                window.zero_frames(Mfn(at / PAGE), frames).map_err(|_| Errno::EFAULT)?;
                at += frames * PAGE;
            } else {
                let count = (end - at).min(PAGE - at % PAGE).min(64);
                window.copy_to(HostPhys(at), &zeroes[..count as usize]).map_err(|_| Errno::EFAULT)?;
                at += count;
            }
        }
        Ok(())
    }
}

impl OneToOne<'_> {
    fn check(&self, at: GuestPhys, len: u64) -> Result<(), Errno> {
        let end = at.0.checked_add(len).ok_or(Errno::EFAULT)?;
        if len == 0 || self.ram.contains_range(at.0..end) { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

/// Builds Dom0 and makes it runnable on this CPU. Any error is one line for the user.
pub fn build(
    system: &'static System<X86>,
    platform: &Platform,
    ready: &Ready,
    wanted: Wanted<'_>,
) -> Result<Arc<Domain<X86>>, String> {
    let memory = system.memory;
    log::info!(target: "dom0", "unpacks its kernel of {} KiB", wanted.kernel.len() >> 10);
    let image = build::unpack(wanted.kernel).map_err(|why| format!("Dom0 kernel: {why}"))?;
    let kernel = Kernel::parse(&image).map_err(|why| format!("Dom0 kernel: {why}"))?;
    if let (Some(os), Some(version)) = (kernel.guest_os, kernel.guest_version) {
        log::info!(target: "dom0", "kernel: {os} {version}, entry {:#x}, {}", kernel.entry, if kernel.relocation.is_some() { "relocatable" } else { "fixed" });
    }

    // Memory that is free again before Dom0 runs.
    let scratch = match &image {
        Cow::Owned(image) => memory.block_of(image).map(|frames| frames.start.phys().0..frames.end.phys().0),
        Cow::Borrowed(_) => None,
    };
    let mut share = choose(memory, &wanted, scratch.as_ref())?;
    log::info!(target: "dom0", "{} of memory, {} vCPU{}", Size(share.size), wanted.vcpus, if wanted.vcpus == 1 { "" } else { "s" });
    let files: Vec<&[u8]> = wanted.initrds.iter().map(|(_, bytes)| *bytes).collect();
    let arranged = initrd::arrange(&files).ok_or("no memory to arrange the initrd")?;
    let initrd_size = initrd::offsets(&arranged).1;
    let acpi_size =
        acpi::dom0::size(&platform.tables, &platform.madt, wanted.vcpus).ok_or("no memory for Dom0's ACPI tables")?;
    let told = Told { flags: 3, cmdline: wanted.cmdline, map: &share.map, initrd: None, rsdp: 0 };
    let start_info_size = told.size(8);
    let parts: Vec<Range<u64>> = wanted.initrds.iter().map(|(range, _)| range.clone()).collect();
    let place = share
        .place(&Contents {
            kernel: kernel.extent(),
            relocation: kernel.relocation,
            initrd: initrd_size,
            initrd_parts: &parts,
            start_info: start_info_size,
            acpi: acpi_size as u64,
            busy: scratch.as_slice(),
        })
        .map_err(|why| why.to_string())?;

    let mut guest = OneToOne { memory, ram: &share.ram };
    let bad = |what: &str| format!("Dom0: {what} does not fit its memory");
    if let Some(initrd) = place.initrd.as_ref().filter(|_| !place.initrd_in_place) {
        load_initrd(&mut guest, initrd.start, &arranged).map_err(|_| bad("the initrd"))?;
    }
    let entry = load_kernel(&mut guest, place.kernel.start, &kernel).map_err(|_| bad("the kernel"))?;
    let tables = acpi::dom0::build(&platform.tables, &platform.madt, wanted.vcpus, place.acpi.start)
        .ok_or("no memory for Dom0's ACPI tables")?;
    guest.write(GuestPhys(place.acpi.start), &tables.bytes).map_err(|_| bad("ACPI"))?;
    let told =
        Told { flags: 3, cmdline: wanted.cmdline, map: &share.map, initrd: place.initrd.as_ref(), rsdp: tables.rsdp };
    told.write(&mut guest, place.start_info.start).map_err(|_| bad("the start info"))?;
    drop(kernel);
    drop(image);
    report(&place);

    claim(memory, &wanted, &share)?;
    memory.take_from_top(false);
    let start = VcpuStart::new(entry, place.start_info.start).map_err(|_| bad("the start info"))?;
    let domain = assemble(system, platform, ready, &wanted, share)?;
    let domain = Arc::new(domain);
    system.add(domain.clone()).map_err(|why| format!("Dom0 cannot be added: {why:?}"))?;
    wallclock::update_wallclock(system, &domain);
    for vcpu in &domain.vcpus {
        wallclock::update_vcpu_time(system, &domain, vcpu);
        let resident = Resident { domain: domain.clone(), vcpu: vcpu.id };
        percpu::adopt(resident).map_err(|_| "no memory for the run queue")?;
    }
    let first = domain.vcpu(VcpuId(0)).ok_or("Dom0 has no vCPU")?;
    start_first(first, &start)?;
    first.clear_hold(hold::OFFLINE);
    let (_, key) = first.machine.place();
    percpu::wake(key);
    Ok(domain)
}

fn report(place: &Placement) {
    log::debug!(target: "dom0", "kernel at {:#x}-{:#x}, start info at {:#x}, ACPI at {:#x}", place.kernel.start, place.kernel.end, place.start_info.start, place.acpi.start);
    if let Some(initrd) = &place.initrd {
        log::debug!(target: "dom0", "initrd at {:#x}-{:#x}{}", initrd.start, initrd.end, if place.initrd_in_place { ", where it was" } else { "" });
    }
}

/// Everything that Corten has taken is not Dom0's; everything else may be, also what it gives back before Dom0 runs: modules and `scratch`.
fn choose(memory: &'static Memory, wanted: &Wanted<'_>, scratch: Option<&Range<u64>>) -> Result<Share, String> {
    let nothing_left = |_| String::from("no memory to plan Dom0");
    let mut kept = RangeSet::new();
    for region in wanted.map.iter().filter(|region| region.kind == RegionKind::Ram) {
        kept.insert(region.start.next_multiple_of(PAGE)..region.end & !(PAGE - 1)).map_err(nothing_left)?;
    }
    let mut free = RangeSet::new();
    memory.free_ranges(&mut free).map_err(nothing_left)?;
    for range in free.iter() {
        kept.remove(range.start * PAGE..range.end * PAGE).map_err(nothing_left)?;
    }
    for module in wanted.modules.iter().chain(scratch) {
        kept.remove(module.start & !(PAGE - 1)..module.end.next_multiple_of(PAGE)).map_err(nothing_left)?;
    }
    // Low memory is not Corten's to use: it is Dom0's but for the page on which CPUs start.
    kept.remove(0..1 << 20).map_err(nothing_left)?;
    let kept: Vec<Range<u64>> = kept.iter().collect();
    let host = Host { map: &wanted.map, kept: &kept, trampoline: wanted.trampoline.clone(), headroom: HEADROOM };
    Share::choose(&host, &wanted.memory).map_err(|why| why.to_string())
}

/// Takes Dom0's RAM out of what is free.
fn claim(memory: &'static Memory, wanted: &Wanted<'_>, share: &Share) -> Result<(), String> {
    for module in &wanted.modules {
        memory.add_ram(Mfn(module.start / PAGE)..Mfn(module.end.div_ceil(PAGE)));
    }
    const LOW: u64 = (1 << 20) / PAGE;
    for range in share.ram.iter() {
        // Frame 0 is nobody's to give: it has no state, and stays Dom0's for good.
        let frames = Mfn((range.start / PAGE).max(1))..Mfn(range.end / PAGE);
        if frames.start.0 < LOW {
            memory.add_ram(frames.start..Mfn(frames.end.0.min(LOW)));
        }
        memory
            .claim_range(frames, DomainId::DOM0)
            .map_err(|why| format!("Dom0's memory at {:#x}-{:#x} is not free ({why:?})", range.start, range.end))?;
    }
    Ok(())
}

fn assemble(
    system: &'static System<X86>,
    platform: &Platform,
    ready: &Ready,
    wanted: &Wanted<'_>,
    share: Share,
) -> Result<Domain<X86>, String> {
    let memory = system.memory;
    let out_of_memory = |_| String::from("no memory for Dom0's tables");
    let p2m = P2m::new(ready.engine.format(), memory, DomainId::DOM0)
        .map_err(|why| format!("Dom0's page tables: {why:?}"))?;
    map_memory(&p2m, platform, wanted, &share)?;
    let pci = find_pci(&p2m, platform, wanted)?;

    let clock = machine::clock();
    let scale = clock.scale();
    let cpuid = CpuidPolicy::for_domain(
        |leaf, subleaf| -> CpuidResult { __cpuid_count(leaf, subleaf) },
        &CpuidOptions {
            domain: DomainId::DOM0,
            max_vcpus: wanted.vcpus,
            tsc: TscInfo {
                emulated: false,
                reliable: true,
                mode: 2,
                khz: clock.khz,
                host_khz: clock.khz,
                incarnation: 0,
                offset: 0,
                multiplier: scale.tsc_to_system_mul,
                shift: scale.tsc_shift,
            },
            xcr0_limit: fpu::switched_states(),
            without: &withheld(ready.engine),
            // As Xen answers where the hardware does not virtualise the local APIC; IOMMU_MAPPINGS it sets whatever IOMMU there is.
            // With EXT_DEST_ID beside it, interrupts reach more than 127 vCPUs.
            hvm_features: XEN_HVM_CPUID_IOMMU_MAPPINGS | XEN_HVM_CPUID_UPCALL_VECTOR | XEN_HVM_CPUID_EXT_DEST_ID,
            ..CpuidOptions::default()
        },
    );
    let physical_bits = cpuid.answer(0x8000_0008, 0, &Default::default())[0] as u8;
    let msr = MsrPolicy::for_domain(
        read_host_msr,
        &cpuid,
        &MsrOptions { hardware_domain: true, pat_switched: true, physical_bits },
    );
    // Corten's own clock is Dom0's: the PM timer reads as ones, as it does on Xen, and kernels leave it alone.
    let mut hidden = wanted.hidden_ports.clone();
    hidden.extend(
        platform.fadt.as_ref().and_then(|fadt| fadt.pm_timer?.port()).map(|port| port..=port.saturating_add(3)),
    );
    let power = platform.power_ports();
    // Status is the first half of an event block.
    let status = [|fadt: &acpi::Fadt| fadt.pm1a_event, |fadt: &acpi::Fadt| fadt.pm1b_event]
        .map(|block| platform.fadt.as_ref().and_then(|fadt| block(fadt)?.port()).unwrap_or(0));
    let ports = Ports::dom0(None, &hidden)
        .ok_or("too many ports to hide")?
        .with_power_management([power.pm1a, power.pm1b], status);
    let descriptions: Vec<Description> = ready
        .io_apics
        .iter()
        .map(|found| Description {
            base: found.address,
            id: found.id,
            version: found.version,
            gsi_base: Gsi(found.gsi_base),
            pins: found.pins,
        })
        .collect();
    let io_apics = IoApics::new(&descriptions).map_err(|why| format!("virtual I/O APICs: {why:?}"))?;

    let bitmaps = ready.engine.bitmaps(memory, &ports, &msr).ok_or("no memory for Dom0's bitmaps")?;
    let cr4_allowed = !cpuid.cr4_reserved();
    let devices = Devices::new(io_apics, ports, Some(pci), wanted.hidden_gsi);

    let mut vcpus = Vec::new();
    for id in 0..wanted.vcpus {
        let resources = Resources {
            ports: bitmaps.ports.mfn(),
            msrs: bitmaps.msrs.mfn(),
            root: p2m.root(),
            number: id as u16 + 1,
            cr4_allowed,
        };
        // SAFETY: the bitmaps and tables live as long as the domain, which its vCPUs are part of; the engine is on.
        let engine = unsafe { ready.engine.vcpu(memory, resources) }.ok_or("no memory for Dom0's vCPUs")?;
        let (vlapic, inbox) = Vlapic::new(machine::APIC_IDS_A_VCPU * id, id == 0);
        let size = if crate::host::has_xsave() { __cpuid_count(0xd, 0).ecx as usize } else { 512 };
        let context = Context {
            regs: GuestRegs::default(),
            engine,
            pending: Pending::default(),
            vlapic,
            msrs: VcpuMsrs::default(),
            xcr0: 1,
            fpu: FpuArea::new(memory, fpu::switched_states(), size).map_err(out_of_memory)?,
            switched: SwitchedRegisters::default(),
            cache: P2mCache::new(),
            triple_fault: false,
        };
        vcpus.push(Vcpu::new(VcpuId(id), X86Vcpu::new(inbox, Box::new(context))));
    }

    let events = EventChannels::new(DomainId::DOM0, wanted.vcpus, u32::MAX)
        .map_err(|why| format!("Dom0's event channels: {why:?}"))?;
    let grants = GrantTable::new(DomainId::DOM0, Limits::default(), wanted.vcpus as usize)
        .map_err(|why| format!("Dom0's grant table: {why:?}"))?;
    let shared_info = SharedPage::allocate(memory, DomainId::DOM0).map_err(|_| "no memory for shared_info")?;
    let memory_map = share
        .map
        .regions()
        .iter()
        .map(|region| E820Entry { addr: region.start, size: region.end - region.start, r#type: region.kind.to_e820() })
        .collect();
    Ok(Domain::new(Parts {
        id: DomainId::DOM0,
        privilege: Privilege::Control,
        name: String::from("Dom0"),
        vcpus,
        p2m,
        one_to_one: true,
        shared_info,
        events,
        grants,
        memory_map,
        pages: share.size / PAGE,
        max_pages: share.limit.map_or(u64::MAX, |bytes| bytes / PAGE).max(share.size / PAGE),
        machine: X86Domain::new(cpuid, msr, bitmaps, devices),
    }))
}

/// RAM and devices, each at its own address.
fn map_memory(p2m: &P2m<Nested>, platform: &Platform, wanted: &Wanted<'_>, share: &Share) -> Result<(), String> {
    let failed = |at: u64, why: Errno| format!("Dom0's memory at {at:#x} cannot be mapped ({why:?})");
    let map = |range: &Range<u64>, kind, memory| -> Result<(), String> {
        let (first, frames) = (range.start / PAGE, (range.end - range.start) / PAGE);
        if frames == 0 {
            return Ok(());
        }
        let flush = p2m.map(Gfn(first), Mfn(first), frames, kind, memory).map_err(|why| failed(range.start, why))?;
        // Nobody has run on these tables yet.
        let _ = flush.spend();
        Ok(())
    };
    for range in share.ram.iter() {
        map(&range, PageKind::Ram, MemoryType::WriteBack)?;
    }
    let mut devices = RangeSet::new();
    let no_memory = |_| String::from("no memory to lay out Dom0's devices");
    devices.insert(0..4 * GIB).map_err(no_memory)?;
    for region in &wanted.map {
        match region.kind {
            RegionKind::Ram => {}
            // Firmware's tables are memory; they may lie beyond 4 GiB.
            RegionKind::AcpiReclaim | RegionKind::AcpiNvs => {
                let range = region.start & !(PAGE - 1)..region.end.next_multiple_of(PAGE);
                map(&range, PageKind::Ram, MemoryType::WriteBack)?;
                devices.remove(range).map_err(no_memory)?;
                continue;
            }
            _ => continue,
        }
        devices.remove(region.start & !(PAGE - 1)..region.end.next_multiple_of(PAGE)).map_err(no_memory)?;
    }
    // What Corten owns: local APIC and the window of messages, I/O APICs, configuration space, IOMMUs, and the HPET but for reading.
    devices.remove(MESSAGES).map_err(no_memory)?;
    for io_apic in &platform.madt.io_apics {
        let at = u64::from(io_apic.address) & !(PAGE - 1);
        devices.remove(at..at + PAGE).map_err(no_memory)?;
    }
    for segment in &platform.mcfg.segments {
        devices.remove(segment.range()).map_err(no_memory)?;
    }
    for registers in &platform.iommus {
        devices.remove(registers.clone()).map_err(no_memory)?;
    }
    if let Some(hpet) = &platform.hpet {
        let at = hpet.registers.address & !(PAGE - 1);
        devices.remove(at..at + PAGE).map_err(no_memory)?;
        map(&(at..at + PAGE), PageKind::MmioReadOnly, MemoryType::Uncacheable)?;
    }
    for range in devices.iter() {
        map(&range, PageKind::Mmio, MemoryType::Uncacheable)?;
    }
    Ok(())
}

/// The PCI functions, and what they decode in Dom0's memory. Kept apart, as what it needs of the stack is much.
#[inline(never)]
fn find_pci(p2m: &P2m<Nested>, platform: &Platform, wanted: &Wanted<'_>) -> Result<Box<PciBus>, String> {
    let no_memory = |_| String::from("no memory to lay out the PCI devices");
    let mut reserved = RangeSet::new();
    for region in wanted.map.iter().filter(|region| region.kind != RegionKind::Reserved) {
        reserved.insert(region.start & !(PAGE - 1)..region.end.next_multiple_of(PAGE)).map_err(no_memory)?;
    }
    reserved.insert(MESSAGES).map_err(no_memory)?;
    for io_apic in &platform.madt.io_apics {
        let at = u64::from(io_apic.address) & !(PAGE - 1);
        reserved.insert(at..at + PAGE).map_err(no_memory)?;
    }
    for registers in &platform.iommus {
        reserved.insert(registers.clone()).map_err(no_memory)?;
    }
    let bus = Box::new(PciBus::new(Hardware::new(reserved), has_extended_ports()));
    // Bus 0 is reached by ports alone. What other root buses there are only AML says: any bus of a window may be one.
    let mut buses: Vec<(u16, RangeInclusive<u8>)> = vec![(0, 0..=0)];
    for segment in &platform.mcfg.segments {
        let acpi::Ecam { base, segment, first_bus, last_bus } = *segment;
        match bus.add_window(Ecam { base: GuestPhys(base), segment, first_bus, last_bus }) {
            Ok(()) => buses.push((segment, first_bus..=last_bus)),
            Err(why) => {
                log::warn!(target: "pci", "segment {segment:04x}: its configuration space at {base:#x} cannot be used ({why:?})");
            }
        }
    }
    let mut segments: Vec<u16> = buses.iter().map(|(segment, _)| *segment).collect();
    segments.sort_unstable();
    segments.dedup();
    for segment in segments {
        let of_segment = buses.iter().filter(|(of, _)| *of == segment);
        bus.discover(p2m, segment, of_segment.flat_map(|(_, buses)| buses.clone()), &wanted.hidden_ports);
    }
    Ok(bus)
}

/// AMD since family 10h: port 0xcf8 takes four more bits of the register.
fn has_extended_ports() -> bool {
    let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(0, 0);
    let signature = __cpuid_count(1, 0).eax;
    let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
    Vendor::of([eax, ebx, ecx, edx]) == Vendor::Amd && family >= 0x10
}

/// Features of this CPU that a guest cannot have: the engine does not let them through, or the state behind them is not
/// switched between guests.
fn withheld(engine: EngineHost) -> Vec<Feature> {
    // IA32_SPEC_CTRL is not switched, and commands to the predictors and the cache are not passed on.
    let mut withheld = engine.withheld();
    withheld.extend([features::IBRSB, features::IBPB, features::L1D_FLUSH]);
    withheld
}

/// An MSR of this CPU, for the guests' policy.
fn read_host_msr(msr: u32) -> Option<u64> {
    const MICROCODE_REVISION: u32 = 0x8b;
    if msr == MICROCODE_REVISION {
        // The revision is loaded by CPUID (SDM Vol. 3, 10.11.7.1).
        // SAFETY: the register holds nothing but what is loaded into it here.
        unsafe { wrmsr_safe(MICROCODE_REVISION, 0) };
        __cpuid_count(1, 0);
    }
    rdmsr_safe(msr)
}

/// Gives the first vCPU its registers. Its control structure is loaded for that, and taken off the CPU again.
fn start_first(vcpu: &Vcpu<X86>, start: &VcpuStart) -> Result<(), String> {
    let mut held = vcpu.machine.context.lock();
    let context = held.as_mut().ok_or("Dom0's first vCPU has no registers")?;
    let loads = percpu::this().host().is_some_and(|host| context.engine.load(host).is_ok());
    if !loads {
        return Err(String::from("Dom0's first vCPU cannot be loaded"));
    }
    context.engine.reset(&StartState::pvh(start.eip, start.ebx));
    context.regs.rbx = u64::from(start.ebx);
    context.engine.unload();
    Ok(())
}
