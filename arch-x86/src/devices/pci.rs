//! Dom0's PCI bus in the machine: what [`Vpci`] asks for is done to the p2m, to the interrupt vectors and to the devices.

use core::ops::{ControlFlow, RangeInclusive};

use hypervisor::domain::Domain;
use hypervisor::machine::{Machine, PciFunction};
use mm::addr::{Gfn, GuestPhys, Mfn};
use mm::lock::{Lock, Rank};
use mm::table::{MemoryType, PageFormat, PageKind};
use mm::{Flush, P2m};
use xen_abi::errno::Errno;

use super::messages::{Messages, Owner};
use crate::apic::vectors::{Place, Targets};
use crate::machine::{self, X86};
use crate::pci::config::register;
use crate::pci::{self, Function, Message, PciHost, Sbdf, Width};
use crate::pci_host::Hardware;
use crate::percpu;
use crate::vdev::vlapic;
use crate::vdev::vpci::ecam::Ecam;
use crate::vdev::vpci::{Effect, Effects, Vpci};

/// Base class and subclass of functions that Corten may keep.
mod class {
    pub const SERIAL: u32 = 0x0700;
    pub const OTHER_COMMUNICATION: u32 = 0x0780;
    pub const IOMMU: u32 = 0x0806;
}

/// A BAR of I/O space: its bits that are not address.
const IO_FLAGS: u32 = 0b11;

pub struct PciBus<H = Hardware> {
    hardware: H,
    /// Whoever holds it may map device memory, so it comes before the p2m's lock.
    functions: Lock<Vpci>,
    messages: Messages,
}

impl PciBus {
    /// Tells of a window of configuration space, which must be none of the domain's memory.
    pub fn add_window(&self, ecam: Ecam) -> Result<(), Errno> {
        let mut functions = self.functions.lock();
        if functions.knows_ecam(&ecam) {
            return Ok(());
        }
        let (start, end) = ecam.range();
        if !self.hardware.is_device_memory(Mfn(start.0 >> 12), end.0.saturating_sub(start.0) >> 12) {
            return Err(Errno::EINVAL);
        }
        functions.add_ecam(ecam)?;
        self.hardware.add_window(ecam)
    }

    // ---- what Dom0 does ----

    #[inline]
    pub fn read_port(&self, port: u16, width: Width) -> u32 {
        self.functions.lock().port_read(&self.hardware, port, width)
    }

    #[inline]
    pub fn write_port(&self, machine: &X86, domain: &Domain<X86>, port: u16, width: Width, value: u32) {
        let mut effects = Effects::new();
        self.functions.lock().port_write(&self.hardware, port, width, value, &mut effects);
        self.carry_out(machine, domain, &effects);
    }

    pub fn read_memory(&self, address: GuestPhys, width: Width) -> Option<u64> {
        self.functions.lock().memory_read(&self.hardware, address, width)
    }

    /// False if the address is not this bus's.
    pub fn write_memory(
        &self,
        machine: &X86,
        domain: &Domain<X86>,
        address: GuestPhys,
        width: Width,
        value: u64,
    ) -> bool {
        let mut effects = Effects::new();
        let known = self.functions.lock().memory_write(&self.hardware, address, width, value, &mut effects);
        self.carry_out(machine, domain, &effects);
        known
    }

    /// PHYSDEVOP_pci_device_add.
    pub fn add(&self, machine: &X86, domain: &Domain<X86>, function: PciFunction) -> Result<(), Errno> {
        self.change(machine, domain, |functions, effects| functions.add(&self.hardware, sbdf(function), effects))
    }

    /// PHYSDEVOP_pci_device_remove.
    pub fn remove(&self, machine: &X86, domain: &Domain<X86>, function: PciFunction) -> Result<(), Errno> {
        self.change(machine, domain, |functions, effects| functions.remove(sbdf(function), effects))
    }

    /// PHYSDEVOP_pci_device_reset.
    pub fn reset(&self, machine: &X86, domain: &Domain<X86>, function: PciFunction) -> Result<(), Errno> {
        self.change(machine, domain, |functions, effects| functions.reset(&self.hardware, sbdf(function), effects))
    }

    /// PHYSDEVOP_pci_mmcfg_reserved.
    pub fn reserve_window(&self, machine: &X86, domain: &Domain<X86>, ecam: Ecam) -> Result<(), Errno> {
        self.add_window(ecam)?;
        let (start, end) = ecam.range();
        let frames = (end.0 >> 12).saturating_sub(start.0 >> 12);
        machine.flush(domain, unmap(&domain.p2m, start.gfn(), frames));
        Ok(())
    }

    fn change(
        &self,
        machine: &X86,
        domain: &Domain<X86>,
        change: impl FnOnce(&mut Vpci, &mut Effects) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut effects = Effects::new();
        let result = change(&mut self.functions.lock(), &mut effects);
        self.carry_out(machine, domain, &effects);
        result
    }

    /// A device's message came.
    #[inline]
    pub fn message(&self, domain: &Domain<X86>, index: u32) {
        if let Some(message) = self.messages.route(index) {
            machine::deliver(domain, None, message);
        }
    }

    // ---- what follows ----

    #[inline]
    fn carry_out(&self, machine: &X86, domain: &Domain<X86>, effects: &Effects) {
        if !effects.is_empty() {
            self.carry_out_all(machine, domain, effects);
        }
    }

    #[cold]
    fn carry_out_all(&self, machine: &X86, domain: &Domain<X86>, effects: &Effects) {
        let mut flush = Flush::none();
        for &effect in effects {
            match effect {
                Effect::Map { .. } | Effect::Unmap { .. } => {
                    flush = flush.merge(follow_in_memory(&domain.p2m, effect));
                }
                _ => self.follow_in_messages(effect, |message| targets(domain, message)),
            }
        }
        if !flush.is_none() {
            machine.flush(domain, flush);
        }
    }
}

impl<H: PciHost> PciBus<H> {
    /// A bus without functions. `extended_ports` as for [`Vpci::new`].
    pub fn new(hardware: H, extended_ports: bool) -> PciBus<H> {
        let functions = Lock::new(Rank::DomainControl, Vpci::new(extended_ports));
        PciBus { hardware, functions, messages: Messages::default() }
    }

    /// Finds the functions that are reached from a segment's `roots` (see [`pci::scan`]), and puts into the domain's memory what they decode.
    /// The domain has not run yet. A function with one of the ports `kept`, and what else is Corten's own, is hidden.
    pub fn discover<F: PageFormat>(
        &self,
        p2m: &P2m<F>,
        segment: u16,
        roots: impl IntoIterator<Item = u8>,
        kept: &[RangeInclusive<u16>],
    ) {
        let mut count = 0u32;
        pci::scan(&self.hardware, segment, roots, |function| {
            let sbdf = function.sbdf;
            let own = self.what_corten_keeps(&function, kept);
            let mut functions = self.functions.lock();
            let mut effects = Effects::new();
            if let Err(why) = functions.insert(&self.hardware, function, &mut effects) {
                log::error!(target: "pci", "{sbdf}: cannot be given to Dom0 ({why:?})");
                return why != Errno::ENOMEM;
            }
            if let Some(own) = own {
                log::info!(target: "pci", "{sbdf}: {own}, which Corten keeps; hidden from Dom0");
                functions.hide(sbdf, &mut effects);
            }
            for effect in effects {
                // Nobody has run on these tables yet.
                let _ = follow_in_memory(p2m, effect).spend();
            }
            count = count.saturating_add(1);
            true
        });
        log::debug!(target: "pci", "segment {segment:04x}: {count} functions");
    }

    fn what_corten_keeps(&self, function: &Function, ports: &[RangeInclusive<u16>]) -> Option<&'static str> {
        match function.class >> 8 {
            class::IOMMU => Some("an IOMMU"),
            class::SERIAL | class::OTHER_COMMUNICATION if self.decodes_ports(function, ports) => Some("the console"),
            _ => None,
        }
    }

    fn decodes_ports(&self, function: &Function, ports: &[RangeInclusive<u16>]) -> bool {
        (0..pci::function::BARS as u16).any(|index| {
            let value = self.hardware.read(function.sbdf, register::BAR + index * 4, Width::Long);
            let port = u16::try_from(value & !IO_FLAGS).ok().filter(|&port| port != 0);
            value & 1 != 0 && port.is_some_and(|port| ports.iter().any(|range| range.contains(&port)))
        })
    }

    /// Binds and programs messages. `targets` tells the CPUs to which the device may send what the guest wants as that message.
    fn follow_in_messages(&self, effect: Effect, targets: impl Fn(Message) -> Targets) {
        match effect {
            Effect::Map { .. } | Effect::Unmap { .. } => {}
            Effect::MsiBind { sbdf, message, log2_vectors } => {
                self.bind_msi(sbdf, message, log2_vectors, &targets(message))
            }
            Effect::MsiRoute { sbdf, message } => self.messages.reroute(Owner { sbdf, entry: None }, message),
            Effect::MsiUnbind { sbdf } => self.messages.unbind(sbdf),
            Effect::MsixEntry { sbdf, entry, message, masked } => {
                let functions = self.functions.lock();
                self.set_entry(&functions, sbdf, (entry, message, masked), &targets);
            }
            Effect::MsixSync { sbdf } => {
                let functions = self.functions.lock();
                for entry in functions.msix_entries(sbdf) {
                    self.set_entry(&functions, sbdf, entry, &targets);
                }
            }
            Effect::MsixUnbind { sbdf } => {
                self.mask_entries(sbdf);
                self.messages.unbind_entries(sbdf);
            }
        }
    }

    fn bind_msi(&self, sbdf: Sbdf, message: Message, log2_vectors: u8, targets: &Targets) {
        let capability = self.functions.lock().function(sbdf).and_then(|function| function.msi);
        let Some(capability) = capability else { return };
        match self.messages.bind(Owner { sbdf, entry: None }, message, log2_vectors, targets) {
            Some(place) => {
                pci::program_msi(&self.hardware, sbdf, &capability, host_message(place), log2_vectors);
            }
            None => no_vector(sbdf),
        }
    }

    /// Has the device do what the guest's entry says: its index, its message, and whether it is masked.
    fn set_entry(
        &self,
        functions: &Vpci,
        sbdf: Sbdf,
        guest: (u16, Message, bool),
        targets: &impl Fn(Message) -> Targets,
    ) {
        let (entry, message, masked) = guest;
        let Some(table) = functions.msix_table(sbdf) else { return };
        if masked || !message.is_interrupt() {
            // What it sent before may still come: it stays bound.
            pci::mask_msix_entry(&self.hardware, table, entry, true);
            return;
        }
        match self.messages.bind(Owner { sbdf, entry: Some(entry) }, message, 0, &targets(message)) {
            Some(place) => pci::program_msix_entry(&self.hardware, table, entry, host_message(place), false),
            None => no_vector(sbdf),
        }
    }

    /// MSI-X is off, but the table remembers: an entry must not send a message that is another device's by then.
    fn mask_entries(&self, sbdf: Sbdf) {
        let functions = self.functions.lock();
        let Some(table) = functions.msix_table(sbdf) else { return };
        for (entry, ..) in functions.msix_entries(sbdf) {
            if self.messages.is_bound(Owner { sbdf, entry: Some(entry) }) {
                pci::mask_msix_entry(&self.hardware, table, entry, true);
            }
        }
    }
}

fn sbdf(function: PciFunction) -> Sbdf {
    Sbdf::from_devfn(function.segment, function.bus, function.devfn)
}

#[cold]
fn no_vector(sbdf: Sbdf) {
    log::error!(target: "pci", "{sbdf}: no interrupt vector is left; the device gets no interrupts");
}

/// The CPUs for a message, from the one on that its receiver runs on.
fn targets(domain: &Domain<X86>, message: Message) -> Targets {
    let message = vlapic::Message::from_msi(message.address, message.data);
    let near = message.and_then(|message| machine::cpu_near(domain, message));
    near.map_or_else(percpu::targets, percpu::targets_near)
}

/// What a device is to send for a CPU's vector: fixed, an edge.
fn host_message(place: Place) -> Message {
    Message { address: 0xfee0_0000 | u64::from(place.target.apic_id) << 12, data: place.vector.into() }
}

/// Maps or unmaps device memory, one to one.
fn follow_in_memory<F: PageFormat>(p2m: &P2m<F>, effect: Effect) -> Flush {
    match effect {
        Effect::Map { gfn, frames, .. } => map(p2m, gfn, frames),
        Effect::Unmap { gfn, frames } => unmap(p2m, gfn, frames),
        _ => Flush::none(),
    }
}

/// Maps device memory where nothing is mapped. Below 4 GiB it mostly is already, as everything there is that is not RAM; what the
/// domain has put there of its own accord (a grant, another domain's page) stays.
fn map<F: PageFormat>(p2m: &P2m<F>, gfn: Gfn, frames: u64) -> Flush {
    let (mut at, end) = (gfn.0, gfn.0.saturating_add(frames));
    let mut flush = Flush::none();
    while at < end {
        let found = match p2m.visit(Gfn(at), end.saturating_sub(at), ControlFlow::Break) {
            ControlFlow::Break(extent) => Some(extent),
            ControlFlow::Continue(()) => None,
        };
        let gap = found.map_or(end, |extent| extent.gfn.0).saturating_sub(at);
        if gap != 0 {
            match p2m.map(Gfn(at), Mfn(at), gap, PageKind::Mmio, MemoryType::Uncacheable) {
                Ok(more) => flush = flush.merge(more),
                Err(why) => {
                    log::error!(target: "pci", "device memory at {:#x} cannot be mapped ({why:?})", Gfn(at).phys().0);
                    return flush;
                }
            }
        }
        let Some(extent) = found else { break };
        if !is_device(extent.mapping.kind) || extent.mapping.mfn.0 != extent.gfn.0 {
            log::warn!(target: "pci", "device memory at {:#x} is not mapped: Dom0 has something else there", extent.gfn.phys().0);
        }
        at = extent.gfn.0.saturating_add(extent.frames);
    }
    flush
}

/// Unmaps device memory, and nothing else.
fn unmap<F: PageFormat>(p2m: &P2m<F>, gfn: Gfn, frames: u64) -> Flush {
    let (mut at, end) = (gfn.0, gfn.0.saturating_add(frames));
    let mut flush = Flush::none();
    while let ControlFlow::Break(extent) = p2m.visit(Gfn(at), end.saturating_sub(at), ControlFlow::Break) {
        if is_device(extent.mapping.kind) && extent.mapping.mfn.0 == extent.gfn.0 {
            match p2m.unmap(extent.gfn, extent.frames) {
                Ok(more) => flush = flush.merge(more),
                Err(why) => {
                    log::error!(target: "pci", "device memory at {:#x} cannot be unmapped ({why:?})", extent.gfn.phys().0);
                }
            }
        }
        at = extent.gfn.0.saturating_add(extent.frames);
    }
    flush
}

fn is_device(kind: PageKind) -> bool {
    matches!(kind, PageKind::Mmio | PageKind::MmioReadOnly)
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
