//! The PCI bus as Dom0 sees it: the host's configuration space, with Corten between Dom0 and what is not Dom0's alone.
//!
//! Almost every register is passed through. Corten keeps to itself
//! - memory decoding: turning it on or off maps or unmaps the function's BARs in Dom0's memory, and while it is on a BAR
//!   does not move ([`header`]);
//! - the messages of MSI and MSI-X: Dom0 reads back the message that it wrote, the device sends Corten's ([`msi`],
//!   [`msix`]);
//! - functions that are hidden: they read as all ones and drop writes, as an empty slot does.
//!
//! The hardware is asked rather than remembered wherever a device may have been reset behind Corten's back.
//!
//! What has to be done elsewhere is appended to a list of [`Effect`]s, for the caller to carry out in that order before
//! the guest goes on.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use mm::addr::{Gfn, HostPhys, Mfn};
use xen_abi::errno::Errno;

use self::ecam::Ecam;
use self::msi::MsiState;
use self::msix::MsixState;
use crate::pci::function::BARS;
use crate::pci::{ConfigAccess, Function, Message, PciHost, Place, Sbdf, Width};

pub mod config;
pub mod ecam;
pub mod header;
pub mod msi;
pub mod msix;
pub mod ports;

#[cfg(test)]
mod tests;

/// What a configuration write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Map device memory, uncached, where the device has it.
    Map {
        /// Where Dom0 sees it.
        gfn: Gfn,
        /// Where it is; the same number.
        mfn: Mfn,
        /// How many frames.
        frames: u64,
    },
    /// Unmap device memory.
    Unmap {
        /// The first frame.
        gfn: Gfn,
        /// How many.
        frames: u64,
    },
    /// MSI goes on: find 2^`log2_vectors` vectors for the function, route them to the guest's message (its data counted
    /// up for each), and have the device send them with [`crate::pci::program_msi`], which turns its MSI on. If the
    /// function is bound already, as after a reset, it is programmed anew.
    MsiBind {
        /// The function.
        sbdf: Sbdf,
        /// What the guest wants to receive.
        message: Message,
        /// log2 of the vectors in use.
        log2_vectors: u8,
    },
    /// The guest changed the message of a function that is bound. The device goes on sending what it sends.
    MsiRoute {
        /// The function.
        sbdf: Sbdf,
        /// What the guest wants to receive from now on.
        message: Message,
    },
    /// MSI went off, in the device as well: the vectors are free.
    MsiUnbind {
        /// The function.
        sbdf: Sbdf,
    },
    /// An entry of an MSI-X table that is on changed. Unmasked: bind it if it is not bound, route it to the message, have
    /// the device send it ([`crate::pci::program_msix_entry`]), and unmask it. Masked: mask it in the device.
    MsixEntry {
        /// The function.
        sbdf: Sbdf,
        /// The index in the table.
        entry: u16,
        /// What the guest wants to receive.
        message: Message,
        /// Whether it is masked.
        masked: bool,
    },
    /// MSI-X went on: bind and program every entry that [`Vpci::msix_entries`] says is not masked.
    MsixSync {
        /// The function.
        sbdf: Sbdf,
    },
    /// MSI-X went off, in the device as well: the vectors of all its entries are free.
    MsixUnbind {
        /// The function.
        sbdf: Sbdf,
    },
}

/// The effects of one access. Seven places, cut by two tables, are mapped and unmapped once at most, tables are unmapped once,
/// and MSI and MSI-X have an effect each: they fit.
pub type Effects = ArrayVec<Effect, 24>;

fn push(out: &mut Effects, effect: Effect) {
    let fits = out.try_push(effect).is_ok();
    debug_assert!(fits, "more effects than an access can have");
}

/// A function, and what Dom0 made of it.
#[derive(Debug)]
struct Slot {
    function: Function,
    hidden: bool,
    /// Registers that do not read from the device, a bit for each long of the first 256 bytes.
    read_traps: u64,
    /// Registers that are not simply written.
    write_traps: u64,
    /// What of it Dom0 has in its memory: the register and the place.
    mapped: ArrayVec<(u16, Place), { BARS + 1 }>,
    msi: MsiState,
    msix: Option<MsixState>,
}

/// Dom0's PCI bus.
#[derive(Debug, Default)]
pub struct Vpci {
    /// What was last written to port 0xcf8.
    latch: u32,
    /// Bits 27:24 of the latch extend the register number, as on AMD since family 10h.
    extended_ports: bool,
    ecam: ArrayVec<Ecam, { ecam::WINDOWS }>,
    /// Sorted by address.
    slots: Vec<Slot>,
}

impl Vpci {
    /// A bus without functions. `extended_ports`: an AMD machine, where 0xcf8 reaches 4096 bytes.
    pub fn new(extended_ports: bool) -> Vpci {
        Vpci { extended_ports, ..Vpci::default() }
    }

    /// Adds a function that a scan has found, and maps what it decodes; `out` is to be emptied between two of them.
    /// One with a fault is hidden. `-EEXIST` if it is there; `-ENOMEM`. MSI and
    /// MSI-X go off: nobody has bound them yet.
    pub fn insert(&mut self, host: &impl PciHost, function: Function, out: &mut Effects) -> Result<(), Errno> {
        let Err(at) = self.find(function.sbdf) else { return Err(Errno::EEXIST) };
        self.slots.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let slot = Slot::new(function)?;
        if !slot.hidden {
            slot.silence(host);
        }
        let decodes = !slot.hidden && slot.function.decodes_memory(host);
        self.slots.insert(at, slot);
        if decodes {
            self.map_all(host, at, out);
        }
        Ok(())
    }

    /// PHYSDEVOP_pci_device_add: Dom0 has found a function. Nothing happens if it is known; `-ENODEV` if it is not there.
    pub fn add(&mut self, host: &impl PciHost, sbdf: Sbdf, out: &mut Effects) -> Result<(), Errno> {
        if self.find(sbdf).is_ok() {
            return Ok(());
        }
        let function = Function::probe(host, sbdf).ok_or(Errno::ENODEV)?;
        if let Some(fault) = function.fault {
            log::warn!(target: "pci", "{sbdf}: {fault}; the device is hidden");
        }
        self.insert(host, function, out)
    }

    /// PHYSDEVOP_pci_device_remove: the function has gone, or is about to. `-ENODEV` if it is not known. A hidden one
    /// stays hidden.
    pub fn remove(&mut self, sbdf: Sbdf, out: &mut Effects) -> Result<(), Errno> {
        let at = self.find(sbdf).map_err(|_| Errno::ENODEV)?;
        if self.slots.get(at).is_some_and(|slot| slot.hidden) {
            return Ok(());
        }
        self.forget(at, out);
        self.slots.remove(at);
        Ok(())
    }

    /// PHYSDEVOP_pci_device_reset: the function has been reset, and remembers nothing of its interrupts. `-ENODEV` if it is
    /// not known.
    pub fn reset(&mut self, host: &impl PciHost, sbdf: Sbdf, out: &mut Effects) -> Result<(), Errno> {
        let at = self.find(sbdf).map_err(|_| Errno::ENODEV)?;
        let Some(slot) = self.slots.get(at).filter(|slot| !slot.hidden) else { return Ok(()) };
        slot.silence(host);
        let decodes = slot.function.decodes_memory(host);
        self.forget(at, out);
        if decodes {
            self.map_all(host, at, out);
        }
        Ok(())
    }

    /// Hides a function that Corten keeps to itself. What was mapped or bound of it is given up.
    pub fn hide(&mut self, sbdf: Sbdf, out: &mut Effects) {
        if let Ok(at) = self.find(sbdf) {
            self.forget(at, out);
            if let Some(slot) = self.slots.get_mut(at) {
                slot.hidden = true;
            }
        }
    }

    /// The function, if it is known and not hidden.
    pub fn function(&self, sbdf: Sbdf) -> Option<&Function> {
        self.slot(sbdf).filter(|slot| !slot.hidden).map(|slot| &slot.function)
    }

    /// Every function that is known, hidden ones included.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.slots.iter().map(|slot| &slot.function)
    }

    /// The guest's MSI-X table: index, message, whether it is masked.
    pub fn msix_entries(&self, sbdf: Sbdf) -> impl Iterator<Item = (u16, Message, bool)> + '_ {
        self.slot(sbdf).and_then(|slot| slot.msix.as_ref()).into_iter().flat_map(MsixState::entries)
    }

    /// Where the function's MSI-X table is in the machine's memory; none while it does not decode memory.
    pub fn msix_table(&self, sbdf: Sbdf) -> Option<HostPhys> {
        self.slot(sbdf)?.msix.as_ref()?.table()
    }

    /// Where a function is among the slots, or where it would be.
    #[inline]
    fn find(&self, sbdf: Sbdf) -> Result<usize, usize> {
        self.slots.binary_search_by_key(&sbdf, |slot| slot.function.sbdf)
    }

    #[inline]
    fn slot(&self, sbdf: Sbdf) -> Option<&Slot> {
        self.slots.get(self.find(sbdf).ok()?)
    }

    /// Gives up everything that is mapped and bound of a slot, without touching the device.
    fn forget(&mut self, at: usize, out: &mut Effects) {
        self.unmap_all(at, out);
        let Some(slot) = self.slots.get_mut(at) else { return };
        let sbdf = slot.function.sbdf;
        if core::mem::take(&mut slot.msi).enabled {
            push(out, Effect::MsiUnbind { sbdf });
        }
        if let Some(msix) = &mut slot.msix
            && msix.forget()
        {
            push(out, Effect::MsixUnbind { sbdf });
        }
    }
}

impl Slot {
    fn new(function: Function) -> Result<Slot, Errno> {
        let hidden = function.fault.is_some();
        let msix = function.msix.filter(|_| !hidden).map(MsixState::new).transpose()?;
        let (read_traps, write_traps) = config::traps(&function);
        let mapped = ArrayVec::new();
        Ok(Slot { function, hidden, read_traps, write_traps, mapped, msi: MsiState::default(), msix })
    }

    /// Turns the function's MSI and MSI-X off.
    fn silence(&self, access: &impl ConfigAccess) {
        use crate::pci::capability::{MSI_ENABLE, MSIX_ENABLE};
        let sbdf = self.function.sbdf;
        let msi = self.function.msi.map(|msi| (msi.control(), MSI_ENABLE));
        let msix = self.function.msix.map(|msix| (msix.control(), MSIX_ENABLE));
        for (register, enable) in msi.into_iter().chain(msix) {
            let control = access.read(sbdf, register, Width::Word) as u16;
            if control & enable != 0 {
                access.write(sbdf, register, Width::Word, (control & !enable).into());
            }
        }
    }
}
