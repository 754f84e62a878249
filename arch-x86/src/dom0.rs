//! Dom0 out of a kernel and its initrd: its share of the memory one to one, its virtual hardware, its first registers.
//!
//! BOOT: it is built before anyone runs.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::{Range, RangeInclusive};

use hypervisor::build::dom0_mem::{Dom0Mem, Size};
use hypervisor::build::map::{Region, RegionKind};
use hypervisor::build::plan::{Host, Placement, Share};
use hypervisor::build::pvh::GuestWriter;
use hypervisor::control::{Control, Made};
use hypervisor::domain::{Domain, Privilege};
use hypervisor::grant::Limits;
use hypervisor::system::System;
use mm::addr::{Gfn, GuestPhys, HostPhys, Mfn};
use mm::table::{MemoryType, PageKind};
use mm::{Memory, P2m, RangeSet};
use sched::Terms;
use xen_abi::errno::Errno;
use xen_abi::start_info::{SIF_INITDOMAIN, SIF_PRIVILEGED};
use xen_abi::types::DomainId;
use xen_abi::x86::XEN_CPUID_TSC_MODE_NEVER_EMULATE;

use crate::acpi;
use crate::construct::{self, Beginning, Plan};
use crate::cpu::model::Model;
use crate::devices::Devices;
use crate::devices::pci::PciBus;
use crate::engine::Nested;
use crate::machine::X86;
use crate::pci_host::Hardware;
use crate::policy::Vendor;
use crate::startup::{Platform, Ready};
use crate::vdev::ports::Ports;
use crate::vdev::vioapic::{Description, Gsi, IoApics};
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
const HEADROOM: u64 = (2 << 20) + SPARE_TABLES * PAGE;

/// Page tables that Dom0 has in reserve, so that it can map pages of other domains however full the machine is: each serves for 2 MiB of gfns.
const SPARE_TABLES: u64 = 128;

/// What Dom0's kernel is told. Without an IOMMU a device that is given the address of a granted page reaches another page of Dom0's: Linux has to have
/// devices use memory that is its own, and copy. A user who says something about that knows better.
fn told<'a>(cmdline: &'a str, guest_os: Option<&str>, memory: u64) -> Cow<'a, str> {
    const SLAB: u64 = 2 << 10;
    const LEAST: u64 = 8 << 20;
    /// What Linux takes by itself.
    const MOST: u64 = 64 << 20;
    let is_linux = guest_os == Some("linux");
    if !is_linux || cmdline.split_whitespace().any(|word| word.starts_with("swiotlb=")) {
        return Cow::Borrowed(cmdline);
    }
    let slabs = (memory / 16).clamp(LEAST, MOST) / SLAB;
    let told = format!("swiotlb={slabs},force {cmdline}");
    Cow::Owned(String::from(told.trim_end()))
}

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

/// What other domains may take of the memory before Dom0 is built, in bytes. What Dom0 is asked to have does not change with it.
pub fn leave_room(memory: &'static Memory, wanted: &mut Wanted<'_>) -> Result<u64, String> {
    let kept = kept(memory, wanted, None)?;
    let (bytes, fixed) = host(wanted, &kept).beside_dom0(&wanted.memory).map_err(|why| why.to_string())?;
    wanted.memory = fixed;
    Ok(bytes)
}

/// Builds Dom0 and makes it runnable. Any error is one line for the user, without its name.
pub fn build(
    system: &'static System<X86>,
    platform: &Platform,
    ready: &Ready,
    wanted: Wanted<'_>,
) -> Result<Arc<Domain<X86>>, String> {
    let memory = system.memory;
    log::info!(target: "dom0", "unpacks its kernel of {} KiB", wanted.kernel.len() >> 10);
    let image = construct::unpack(wanted.kernel)?;
    let kernel = construct::parse(&image)?;
    if let (Some(os), Some(version)) = (kernel.guest_os, kernel.guest_version) {
        log::info!(target: "dom0", "kernel: {os} {version}, entry {:#x}, {}", kernel.entry, if kernel.relocation.is_some() { "relocatable" } else { "fixed" });
    }

    // Memory that is free again before Dom0 runs.
    let scratch = match &image {
        Cow::Owned(image) => memory.block_of(image).map(|frames| frames.start.phys().0..frames.end.phys().0),
        Cow::Borrowed(_) => None,
    };
    let mut share = choose(memory, &wanted, scratch.as_ref())?;
    log::info!(target: "dom0", "{} of memory, {} vCPU{}", Size(share.given.bytes), wanted.vcpus, if wanted.vcpus == 1 { "" } else { "s" });
    let (parts, files): (Vec<Range<u64>>, Vec<&[u8]>) = wanted.initrds.iter().cloned().unzip();
    let tables = |base| acpi::dom0::build(&platform.tables, &platform.madt, wanted.vcpus, base);
    let cmdline = told(wanted.cmdline, kernel.guest_os, share.given.bytes);
    let placed = Beginning {
        kernel: &kernel,
        initrds: &files,
        initrd_parts: &parts,
        busy: scratch.as_slice(),
        cmdline: &cmdline,
        flags: SIF_PRIVILEGED | SIF_INITDOMAIN,
        acpi: &tables,
    }
    .place(&mut share)?;
    let start = placed.write(&mut OneToOne { memory, ram: &share.ram }, &share)?;
    report(&placed.place);
    drop(placed);
    drop(kernel);
    drop(image);

    claim(memory, &wanted, &share)?;
    memory.take_from_top(false);
    let domain = Arc::new(assemble(system, platform, ready, &wanted, share)?);
    construct::start(system, &domain, &start, Terms::default())?;
    Ok(domain)
}

fn report(place: &Placement) {
    log::debug!(target: "dom0", "kernel at {:#x}-{:#x}, start info at {:#x}, ACPI at {:#x}", place.kernel.start, place.kernel.end, place.start_info.start, place.acpi.start);
    if let Some(initrd) = &place.initrd {
        log::debug!(target: "dom0", "initrd at {:#x}-{:#x}{}", initrd.start, initrd.end, if place.initrd_in_place { ", where it was" } else { "" });
    }
}

/// Everything that Corten has taken is not Dom0's; everything else may be, also what it gives back before Dom0 runs: modules and `scratch`.
fn kept(memory: &'static Memory, wanted: &Wanted<'_>, scratch: Option<&Range<u64>>) -> Result<Vec<Range<u64>>, String> {
    let nothing_left = |_| String::from("no memory to plan it");
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
    Ok(kept.iter().collect())
}

fn host<'a>(wanted: &'a Wanted<'_>, kept: &'a [Range<u64>]) -> Host<'a> {
    Host { map: &wanted.map, kept, trampoline: wanted.trampoline.clone(), headroom: HEADROOM }
}

fn choose(memory: &'static Memory, wanted: &Wanted<'_>, scratch: Option<&Range<u64>>) -> Result<Share, String> {
    let kept = kept(memory, wanted, scratch)?;
    Share::choose(&host(wanted, &kept), &wanted.memory).map_err(|why| why.to_string())
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
            .map_err(|why| format!("its memory at {:#x}-{:#x} is not free ({why:?})", range.start, range.end))?;
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
    let p2m = P2m::new(ready.engine.format().with_large_code(), system.memory, DomainId::DOM0)
        .map_err(|why| format!("its page tables: {why:?}"))?;
    map_memory(&p2m, platform, wanted, &share)?;
    p2m.keep_tables(SPARE_TABLES).map_err(|why| format!("spare page tables: {why:?}"))?;
    let pci = find_pci(&p2m, platform, wanted)?;
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

    let pages = share.given.bytes / PAGE;
    let plan = Plan {
        id: DomainId::DOM0,
        privilege: Privilege::Control,
        name: String::from("Dom0"),
        vcpus: wanted.vcpus,
        tsc_mode: XEN_CPUID_TSC_MODE_NEVER_EMULATE,
        most_ports: u32::MAX,
        devices: Devices::new(io_apics, ports, Some(pci), wanted.hidden_gsi),
        grants: Limits::default(),
        control: Control::new(Made::AT_BOOT, Default::default(), construct::memory_map(&share)),
        pages,
        // It may grow as far as it is told.
        max_pages: share.limit.map_or(u64::MAX, |bytes| bytes / PAGE).max(pages),
    };
    let root = p2m.root();
    construct::assemble(system.memory, ready.engine, plan, root, move || Some(p2m)).map_err(|why| why.to_string())
}

/// RAM and devices, each at its own address.
fn map_memory(p2m: &P2m<Nested>, platform: &Platform, wanted: &Wanted<'_>, share: &Share) -> Result<(), String> {
    let failed = |at: u64, why: Errno| format!("its memory at {at:#x} cannot be mapped ({why:?})");
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
    let no_memory = |_| String::from("no memory to lay out its devices");
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
    let here = Model::here();
    here.vendor == Vendor::Amd && here.family >= 0x10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_told_to_copy_for_devices_unless_the_user_says_something_else() {
        let linux = Some("linux");
        assert_eq!(told("console=hvc0 -- x", linux, 512 << 20), "swiotlb=16384,force console=hvc0 -- x");
        assert_eq!(told("", linux, 64 << 20), "swiotlb=4096,force");
        assert_eq!(told("a", linux, 64 << 30), "swiotlb=32768,force a");
        assert_eq!(told("a swiotlb=noforce", linux, GIB), "a swiotlb=noforce");
        assert_eq!(told("wait=1", None, GIB), "wait=1");
    }
}
