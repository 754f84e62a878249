//! The command register and the BARs: what of a device Dom0 has in its memory.
//!
//! Device memory is mapped one to one while the function decodes it. A BAR can be sized and moved while decoding is off,
//! with the device itself answering; turning decoding on is what fixes it.

use arrayvec::ArrayVec;
use mm::addr::{Gfn, Mfn};
use pci_types::CommandRegister;

use super::config::Write;
use super::msix::MsixState;
use super::{Effect, Effects, Slot, Vpci, push};
use crate::pci::bar::{ROM_ENABLE, command, rom_place};
use crate::pci::function::check_overlap;
use crate::pci::{ConfigAccess, PciHost, Place, Width};

/// BARs smaller than this can share a frame with others.
const FRAME: u64 = 4096;

impl Vpci {
    /// A write that touches the command or the status register.
    pub(super) fn command_write(&mut self, host: &impl PciHost, at: usize, write: Write, out: &mut Effects) {
        const COMMAND_BYTES: u8 = 0b0011;
        self.follow_reset(host, at, out);
        let Some(slot) = self.slots.get_mut(at) else { return };
        if !write.touches(COMMAND_BYTES) {
            return slot.pass(host, write);
        }
        let memory = CommandRegister::MEMORY_ENABLE;
        let before = command(host, slot.function.sbdf);
        let after = CommandRegister::from_bits_retain(write.merge(before.bits().into()) as u16);
        match (before.contains(memory), after.contains(memory)) {
            (false, true) => {
                // Decoding is off: a good time to see whether a BAR has changed its size.
                if slot.function.resizable {
                    slot.function.size_bars(host);
                }
                if self.map_all(host, at, out) {
                    self.pass(host, at, write);
                } else {
                    let off = !(u32::from(memory.bits()) >> ((write.register & 0b11) << 3));
                    self.pass(host, at, Write { value: write.value & off, ..write });
                }
            }
            (true, false) => {
                slot.pass(host, write);
                self.unmap_all(at, out);
            }
            _ => slot.pass(host, write),
        }
    }

    /// A write to a memory BAR. While the function decodes memory it has no effect.
    pub(super) fn bar_write(&mut self, host: &impl PciHost, at: usize, write: Write, out: &mut Effects) {
        if self.follow_reset(host, at, out) {
            self.pass(host, at, write);
        }
    }

    /// A write to the expansion ROM's BAR, which has an enable bit of its own.
    pub(super) fn rom_write(&mut self, host: &impl PciHost, at: usize, write: Write, out: &mut Effects) {
        let decoding_off = self.follow_reset(host, at, out);
        let Some(slot) = self.slots.get_mut(at) else { return };
        let Some(rom) = slot.function.rom else { return };
        if decoding_off {
            return slot.pass(host, write);
        }
        let before = host.read(slot.function.sbdf, rom.register, Width::Long);
        let after = write.merge(before);
        match (before & ROM_ENABLE != 0, after & ROM_ENABLE != 0) {
            // As with the other BARs, what is mapped does not move.
            (true, true) => {}
            (false, false) => slot.pass(host, write),
            (false, true) => {
                if let Some(place) = rom_place(&rom, after) {
                    if let Err(fault) = check_overlap(host, &[(rom.register, place)]) {
                        log::warn!(target: "pci", "{}: {fault}; it stays off", slot.function.sbdf);
                        return;
                    }
                    self.map(at, rom.register, place, out);
                }
                self.pass(host, at, write);
            }
            (true, false) => {
                slot.pass(host, write);
                if let Some(index) = slot.mapped.iter().position(|&(register, _)| register == rom.register) {
                    let (_, place) = slot.mapped.swap_remove(index);
                    self.unmap(at, rom.register, place, out);
                }
            }
        }
    }

    /// Maps everything that a function decodes, or is about to. False, and nothing mapped, if some of it lies where no
    /// device may be.
    pub(super) fn map_all(&mut self, host: &impl PciHost, at: usize, out: &mut Effects) -> bool {
        let Some(slot) = self.slots.get(at) else { return false };
        let places = slot.function.places(host);
        if let Err(fault) = check_overlap(host, &places) {
            log::warn!(target: "pci", "{}: {fault}; its memory stays off", slot.function.sbdf);
            return false;
        }
        for (register, place) in places {
            self.map(at, register, place, out);
        }
        true
    }

    /// Unmaps everything of a function.
    pub(super) fn unmap_all(&mut self, at: usize, out: &mut Effects) {
        while let Some((register, place)) = self.slots.get_mut(at).and_then(|slot| slot.mapped.pop()) {
            self.unmap(at, register, place, out);
        }
    }

    /// Whether decoding is off. If a reset turned it off, what was mapped goes.
    fn follow_reset(&mut self, host: &impl ConfigAccess, at: usize, out: &mut Effects) -> bool {
        let off = self.slots.get(at).is_some_and(|slot| !slot.function.decodes_memory(host));
        if off {
            self.unmap_all(at, out);
        }
        off
    }

    fn pass(&self, host: &impl ConfigAccess, at: usize, write: Write) {
        if let Some(slot) = self.slots.get(at) {
            slot.pass(host, write);
        }
    }

    fn map(&mut self, at: usize, register: u16, place: Place, out: &mut Effects) {
        let shared = self.is_shared(place);
        let Some(slot) = self.slots.get_mut(at) else { return };
        if let Some(msix) = &mut slot.msix {
            msix.place(register, place);
        }
        // The list has room for every BAR and the ROM.
        let _ = slot.mapped.try_push((register, place));
        if !shared {
            // Dom0's memory may show what lies between devices. A table is not to be seen there.
            for (first, frames) in holes(place, slot.msix.as_ref()) {
                push(out, Effect::Unmap { gfn: Gfn(first), frames });
            }
            for (first, frames) in pieces(place, slot.msix.as_ref()) {
                push(out, Effect::Map { gfn: Gfn(first), mfn: Mfn(first), frames });
            }
        } else if slot.msix.as_ref().is_some_and(|msix| msix.traps(place.start.mfn())) {
            // Another function's memory is in the frame with this table: its accesses are passed on one by one.
            push(out, Effect::Unmap { gfn: Gfn(place.start.mfn().0), frames: 1 });
        }
    }

    /// Unmaps a place that has been taken from the list of what is mapped.
    fn unmap(&mut self, at: usize, register: u16, place: Place, out: &mut Effects) {
        let shared = self.is_shared(place);
        let Some(slot) = self.slots.get_mut(at) else { return };
        let first = place.start.mfn();
        if !shared {
            for (first, frames) in pieces(place, slot.msix.as_ref()) {
                push(out, Effect::Unmap { gfn: Gfn(first), frames });
            }
        } else if slot.msix.as_ref().is_some_and(|msix| msix.traps(first)) {
            push(out, Effect::Map { gfn: Gfn(first.0), mfn: first, frames: 1 });
        }
        if let Some(msix) = &mut slot.msix {
            msix.displace(register);
        }
    }

    /// Whether a place is in a frame that something else of what is mapped has as well. BARs are aligned to their size, so
    /// only small ones can be.
    fn is_shared(&self, place: Place) -> bool {
        let here = |slot: &Slot| slot.mapped.iter().any(|&(_, other)| other.shares_frame_with(place));
        place.size < FRAME && self.slots.iter().any(here)
    }
}

/// The runs of frames of a place that hold an MSI-X table or its pending bits: first frame and count.
fn holes(place: Place, msix: Option<&MsixState>) -> ArrayVec<(u64, u64), 2> {
    let (Mfn(mut start), Mfn(end)) = place.frames();
    let holes = msix.map(MsixState::holes).unwrap_or_default();
    let clipped = holes.into_iter().filter_map(|(Mfn(hole), Mfn(after))| {
        let (first, after) = (hole.max(start), after.min(end));
        start = start.max(after);
        Some((first, after.checked_sub(first).filter(|&frames| frames != 0)?))
    });
    clipped.collect()
}

/// The other runs of frames of a place.
fn pieces(place: Place, msix: Option<&MsixState>) -> ArrayVec<(u64, u64), 3> {
    let (Mfn(mut start), Mfn(end)) = place.frames();
    let mut pieces = ArrayVec::new();
    for (hole, frames) in holes(place, msix).into_iter().chain([(end, 0)]) {
        if let Some(before @ 1..) = hole.checked_sub(start) {
            // Two holes leave three pieces at most.
            let _ = pieces.try_push((start, before));
        }
        start = hole.saturating_add(frames);
    }
    pieces
}
