//! A domain's virtual devices together, and how they hold on to the physical ones behind them.

mod messages;
pub mod pci;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use hypervisor::domain::Domain;
use hypervisor::machine::DeviceRequest;
use hypervisor::system::System;
use mm::addr::GuestPhys;
use mm::lock::{Lock, Rank};
use xen_abi::errno::Errno;

use self::pci::PciBus;
use crate::apic::io::{self, MOST_GSIS, Wiring};
use crate::apic::vectors::{self, Place, Source};
use crate::machine::{self, X86};
use crate::pci::Width;
use crate::percpu;
use crate::vdev::ports::Ports;
use crate::vdev::vioapic::{Effect, Gsi, IoApics};
use crate::vdev::vpci::ecam::Ecam;

/// Which GSIs are level-triggered: a bit each, for all that an I/O APIC of this machine can have.
struct Levels([AtomicU64; MOST_GSIS as usize / 64]);

impl Levels {
    const fn new() -> Levels {
        Levels([const { AtomicU64::new(0) }; MOST_GSIS as usize / 64])
    }

    #[inline]
    fn has(&self, gsi: u32) -> bool {
        self.0.get(gsi as usize / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (gsi % 64) & 1 != 0)
    }

    fn set(&self, gsi: u32, level: bool) {
        let Some(word) = self.0.get(gsi as usize / 64) else { return };
        let bit = 1u64 << (gsi % 64);
        if level {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

pub struct Devices {
    pub io_apics: Lock<IoApics>,
    pub ports: Lock<Ports>,
    /// The machine's, for the domain that has its devices.
    pci: Option<Box<PciBus>>,
    /// The GSI of Corten's own console.
    hidden_gsi: Option<u32>,
    gsis: Lock<Vec<Binding>>,
    /// Of the bound GSIs; read at every device interrupt.
    levels: Levels,
}

/// A physical pin that a domain has bound.
#[derive(Clone, Copy, Debug)]
struct Binding {
    gsi: u32,
    place: Place,
    wiring: Wiring,
    /// The guest has the virtual pin unmasked.
    wanted: bool,
    /// A level interrupt is on its way or being served: the pin stays masked.
    serving: bool,
}

impl Devices {
    pub fn new(io_apics: IoApics, ports: Ports, pci: Option<Box<PciBus>>, hidden_gsi: Option<u32>) -> Devices {
        Devices {
            io_apics: Lock::new(Rank::Events, io_apics),
            ports: Lock::new(Rank::Events, ports),
            pci,
            hidden_gsi,
            gsis: Lock::new(Rank::Timers, Vec::new()),
            levels: Levels::new(),
        }
    }

    #[inline]
    pub fn is_level(&self, gsi: u32) -> bool {
        self.levels.has(gsi)
    }

    /// A physical interrupt of this GSI came (and is masked, if it is a level).
    #[inline]
    pub fn assert(&self, domain: &Domain<X86>, gsi: u32) {
        if self.is_level(gsi) {
            self.with_binding(gsi, |binding| binding.serving = true);
        }
        let message = self.io_apics.lock().assert(Gsi(gsi));
        if let Some(message) = message {
            machine::deliver(domain, None, message);
        }
    }

    /// An edge on a virtual pin that has no physical one behind it (HVM_PARAM_CALLBACK_IRQ's GSI).
    pub fn pulse(&self, domain: &Domain<X86>, gsi: u32) {
        let message = self.io_apics.lock().assert(Gsi(gsi));
        if let Some(message) = message {
            machine::deliver(domain, None, message);
        }
    }

    /// A guest's local APIC broadcasts the end of a level interrupt.
    pub fn end_of_interrupt(&self, domain: &Domain<X86>, vector: u8) {
        let effects: ArrayVec<Effect, 16> = self.io_apics.lock().eoi(vector).take(16).collect();
        self.carry_out(domain, effects);
    }

    /// A register of a virtual I/O APIC is read; `None` if there is none at this address.
    pub fn read_io_apic(&self, address: u64) -> Option<u32> {
        let mut all = self.io_apics.lock();
        let unit = all.at(address)?;
        let offset = address - unit.base();
        Some(unit.read(offset))
    }

    pub fn write_io_apic(&self, domain: &Domain<X86>, address: u64, value: u32) -> Option<()> {
        let effects: ArrayVec<Effect, 16> = {
            let mut all = self.io_apics.lock();
            let unit = all.at(address)?;
            let offset = address - unit.base();
            unit.write(offset, value).take(16).collect()
        };
        self.carry_out(domain, effects);
        Some(())
    }

    fn carry_out(&self, domain: &Domain<X86>, effects: ArrayVec<Effect, 16>) {
        for effect in effects {
            match effect {
                Effect::Deliver(message) => machine::deliver(domain, None, message),
                Effect::Unmasked { gsi, level, active_low } => {
                    self.bind(domain, gsi.0, Wiring { level, active_low });
                }
                Effect::Masked(gsi) => {
                    // A physical pin that the domain never had is not its to mask.
                    if self.with_binding(gsi.0, |binding| binding.wanted = false).is_some() {
                        io::set_masked(gsi.0, true);
                    }
                }
                Effect::Eoi(gsi) => self.finish(gsi.0),
            }
        }
    }

    /// The guest has served a level interrupt: the line may interrupt again.
    fn finish(&self, gsi: u32) {
        let unmask = self.with_binding(gsi, |binding| {
            binding.serving = false;
            binding.wanted
        });
        if unmask == Some(true) {
            io::set_masked(gsi, false);
        }
    }

    fn with_binding<R>(&self, gsi: u32, act: impl FnOnce(&mut Binding) -> R) -> Option<R> {
        self.gsis.lock().iter_mut().find(|binding| binding.gsi == gsi).map(act)
    }

    /// The guest has unmasked a pin: the physical one is routed here, if the domain may have it.
    fn bind(&self, domain: &Domain<X86>, gsi: u32, wiring: Wiring) {
        if !domain.is_control() || self.hidden_gsi == Some(gsi) {
            return;
        }
        let known = self.with_binding(gsi, |binding| {
            let rewired = binding.wiring != wiring;
            binding.wiring = wiring;
            binding.wanted = true;
            if rewired {
                binding.serving = false;
            }
            (*binding, rewired)
        });
        let (binding, reroute) = match known {
            Some(known) => known,
            None => {
                let Some(place) = vectors::allocate(&percpu::targets(), Source::Gsi(gsi)) else {
                    log::error!(target: "irq", "GSI {gsi}: no interrupt vector is left; the device behind it gets no interrupts");
                    return;
                };
                let binding = Binding { gsi, place, wiring, wanted: true, serving: false };
                let mut all = self.gsis.lock();
                if all.try_reserve(1).is_err() {
                    vectors::free(place);
                    return;
                }
                all.push(binding);
                (binding, true)
            }
        };
        self.levels.set(gsi, wiring.level);
        if !reroute {
            if !binding.serving {
                io::set_masked(gsi, false);
            }
        } else if !io::route(gsi, binding.place, wiring, false) {
            log::warn!(target: "irq", "GSI {gsi}: no I/O APIC of this machine has it");
        }
    }

    /// What answers at ports 0xcf8 to 0xcff.
    #[inline]
    pub fn read_pci_port(&self, port: u16, size: u8) -> u32 {
        match (&self.pci, Width::from_bytes(size)) {
            (Some(pci), Some(width)) => pci.read_port(port, width),
            _ => u32::MAX,
        }
    }

    #[inline]
    pub fn write_pci_port(&self, system: &System<X86>, domain: &Domain<X86>, port: u16, size: u8, value: u32) {
        if let (Some(pci), Some(width)) = (&self.pci, Width::from_bytes(size)) {
            pci.write_port(&system.machine, domain, port, width, value);
        }
    }

    /// Memory of virtual PCI devices: configuration windows and MSI-X tables. `None` if nothing answers.
    pub fn read_memory(&self, address: u64, size: u8) -> Option<u64> {
        self.pci.as_ref()?.read_memory(GuestPhys(address), Width::from_bytes(size)?)
    }

    pub fn write_memory(&self, system: &System<X86>, domain: &Domain<X86>, address: u64, size: u8, value: u64) {
        if let (Some(pci), Some(width)) = (&self.pci, Width::from_bytes(size)) {
            // Where no device answers, a write goes nowhere.
            let _ = pci.write_memory(&system.machine, domain, GuestPhys(address), width, value);
        }
    }

    /// A message-signalled interrupt came.
    #[inline]
    pub fn message(&self, domain: &Domain<X86>, index: u32) {
        if let Some(pci) = &self.pci {
            pci.message(domain, index);
        }
    }

    /// What a control domain asks by PHYSDEVOP. `-ENODEV` from a domain without a PCI bus; else see [`PciBus`].
    pub fn request(&self, machine: &X86, domain: &Domain<X86>, request: DeviceRequest) -> Result<(), Errno> {
        let pci = self.pci.as_ref().ok_or(Errno::ENODEV);
        match request {
            DeviceRequest::PciAdd(function) => pci?.add(machine, domain, function),
            DeviceRequest::PciRemove(function) => pci?.remove(machine, domain, function),
            DeviceRequest::PciReset(function) => pci?.reset(machine, domain, function),
            DeviceRequest::Ecam { base, segment, first_bus, last_bus } => {
                let ecam = Ecam { base: GuestPhys(base), segment, first_bus, last_bus };
                pci?.reserve_window(machine, domain, ecam)
            }
            // The guest's own redirection entry says the same when it unmasks the pin; nothing is bound before that.
            DeviceRequest::SetupGsi { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gsi_that_an_io_apic_can_have_is_level_or_edge_on_its_own() {
        let levels = Levels::new();
        for gsi in [0, 63, 64, 255, 256, 300, MOST_GSIS - 1] {
            assert!(!levels.has(gsi));
            levels.set(gsi, true);
            assert!(levels.has(gsi) && !levels.has(gsi ^ 1), "{gsi}");
            levels.set(gsi, false);
            assert!(!levels.has(gsi), "{gsi}");
        }
        levels.set(MOST_GSIS, true);
        assert!(!levels.has(MOST_GSIS));
    }
}
