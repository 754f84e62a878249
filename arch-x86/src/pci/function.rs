//! What a PCI function says of itself.

use core::fmt;

use arrayvec::ArrayVec;
use mm::addr::HostPhys;
use pci_types::CommandRegister;

use super::bar::{self, Bar, Place};
use super::capability::{self, Msi, Msix};
use super::config::register;
use super::{ConfigAccess, PciHost, Sbdf, Width};

/// BARs of an ordinary function; a bridge has two.
pub const BARS: usize = 6;
const BRIDGE_BARS: usize = 2;
const BAR_REGISTERS: [u16; BARS] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];
const HOST_BRIDGE: u32 = 0x0600;

/// The layout of a function's configuration header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Six BARs.
    Ordinary,
    /// A bridge to another PCI bus.
    Bridge {
        /// The bus behind it; zero while it has none.
        secondary: u8,
    },
    /// CardBus bridges, and layouts yet unknown: passed through, nothing of theirs is mapped.
    Other(u8),
}

/// Why a function is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A list of capabilities comes back to this offset, or leaves its place there.
    Capabilities {
        /// The offset.
        offset: u16,
    },
    /// MSI-X names a BAR that does not exist.
    MsixBar {
        /// Its index.
        index: u8,
    },
    /// The MSI-X table or the pending bits lie beyond their BAR.
    MsixBeyondBar {
        /// The BAR's register.
        register: u16,
        /// The offset in it.
        offset: u32,
    },
    /// A BAR decodes RAM or what is Corten's.
    Overlap {
        /// The BAR's register.
        register: u16,
        /// Where it is.
        start: HostPhys,
        /// Its size in bytes.
        size: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Fault::Capabilities { offset } => write!(f, "its list of capabilities is broken at {offset:#x}"),
            Fault::MsixBar { index } => write!(f, "its MSI-X table is said to be in BAR {index}, which does not exist"),
            Fault::MsixBeyondBar { register, offset } => {
                write!(f, "its MSI-X table at {offset:#x} does not fit into the BAR of register {register:#x}")
            }
            Fault::Overlap { register, start, size } => {
                write!(
                    f,
                    "its BAR {register:#x} ({size:#x} bytes at {:#x}) lies over memory that is not a device's",
                    start.0
                )
            }
        }
    }
}

/// A function of a device, and what it says of itself.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where it is.
    pub sbdf: Sbdf,
    /// Who made it.
    pub vendor: u16,
    /// What it is, to its maker.
    pub device: u16,
    /// Base class, subclass and interface, in three bytes.
    pub class: u32,
    /// The layout of its header.
    pub header: Header,
    /// The memory that it decodes. I/O space is not listed: nothing has to be mapped for it.
    pub bars: ArrayVec<Bar, BARS>,
    /// Its expansion ROM.
    pub rom: Option<Bar>,
    /// MSI.
    pub msi: Option<Msi>,
    /// MSI-X.
    pub msix: Option<Msix>,
    /// The sizes of its BARs can change.
    pub resizable: bool,
    /// Why it must be hidden, if it must.
    pub fault: Option<Fault>,
}

impl Function {
    /// Asks a function what it is; none if there is none. Its BARs are sized with memory decoding off, and left as they
    /// were.
    pub fn probe(host: &impl PciHost, sbdf: Sbdf) -> Option<Function> {
        let id = host.read(sbdf, register::VENDOR, Width::Long);
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        // The second is what a bridge may answer for a function that does not exist.
        if vendor == 0xffff || id == 0 {
            return None;
        }
        let header = match host.read(sbdf, register::HEADER, Width::Byte) as u8 & 0x7f {
            0 => Header::Ordinary,
            1 => Header::Bridge { secondary: host.read(sbdf, register::SECONDARY_BUS, Width::Byte) as u8 },
            other => Header::Other(other),
        };
        let mut function = Function {
            sbdf,
            vendor,
            device,
            class: host.read(sbdf, register::CLASS, Width::Long) >> 8,
            header,
            bars: ArrayVec::new(),
            rom: None,
            msi: None,
            msix: None,
            resizable: false,
            fault: None,
        };
        function.size_bars(host);
        function.fault = function.find_capabilities(host).and_then(|()| function.check_places(host)).err();
        Some(function)
    }

    /// Sizes the BARs anew. A host bridge is left alone: it decodes the memory of everything behind it.
    pub fn size_bars(&mut self, access: &impl ConfigAccess) {
        let (count, rom) = match self.header {
            Header::Ordinary => (BARS, register::ROM),
            Header::Bridge { .. } => (BRIDGE_BARS, register::BRIDGE_ROM),
            Header::Other(_) => return,
        };
        if self.class >> 8 == HOST_BRIDGE {
            return;
        }
        let sbdf = self.sbdf;
        let sized = bar::with_decoding_off(access, sbdf, || {
            let mut bars = ArrayVec::new();
            let mut registers = BAR_REGISTERS.iter().copied().take(count);
            while let Some(register) = registers.next() {
                if let Some(bar) = bar::probe(access, sbdf, register, registers.len() == 0) {
                    // There are no more registers than the list has room for.
                    let _ = bars.try_push(bar);
                }
                if bar::takes_two(access, sbdf, register) {
                    registers.next();
                }
            }
            (bars, bar::probe_rom(access, sbdf, rom))
        });
        if let Some((bars, rom)) = sized {
            (self.bars, self.rom) = (bars, rom);
        }
    }

    /// Whether the function decodes memory now.
    pub fn decodes_memory(&self, access: &impl ConfigAccess) -> bool {
        bar::command(access, self.sbdf).contains(CommandRegister::MEMORY_ENABLE)
    }

    /// Whether it is a bridge to another bus.
    pub fn is_bridge(&self) -> bool {
        matches!(self.header, Header::Bridge { .. })
    }

    /// The places that the BARs have now, with the register of each; the ROM among them if it is enabled.
    pub fn places(&self, access: &impl ConfigAccess) -> ArrayVec<(u16, Place), { BARS + 1 }> {
        let bars = self.bars.iter().filter_map(|bar| Some((bar.register, bar.place(access, self.sbdf)?)));
        let rom = self.rom.and_then(|rom| {
            let value = access.read(self.sbdf, rom.register, Width::Long);
            Some((rom.register, bar::rom_place(&rom, value)?))
        });
        bars.chain(rom).collect()
    }

    /// Checks that no BAR lies where no device may be.
    pub fn check_places(&self, host: &impl PciHost) -> Result<(), Fault> {
        if !self.decodes_memory(host) {
            return Ok(());
        }
        check_overlap(host, &self.places(host))
    }

    fn find_capabilities(&mut self, access: &impl ConfigAccess) -> Result<(), Fault> {
        let found = capability::walk(access, self.sbdf)?;
        self.resizable = found.resizable;
        self.msi = found.msi;
        if let Some(msix) = found.msix {
            self.check_msix(&msix)?;
            self.msix = Some(msix);
        }
        Ok(())
    }

    fn check_msix(&self, msix: &Msix) -> Result<(), Fault> {
        for ((register, offset), size) in [(msix.table, msix.table_size()), (msix.pending, msix.pending_size())] {
            let room = self.bars.iter().find(|bar| bar.register == register).map_or(0, |bar| bar.size);
            if u64::from(offset).saturating_add(size) > room {
                return Err(Fault::MsixBeyondBar { register, offset });
            }
        }
        Ok(())
    }
}

/// Checks that none of the places is where no device may be.
pub fn check_overlap(host: &impl PciHost, places: &[(u16, Place)]) -> Result<(), Fault> {
    for &(register, place) in places {
        let (first, end) = place.frames();
        if !host.is_device_memory(first, end.0.saturating_sub(first.0)) {
            return Err(Fault::Overlap { register, start: place.start, size: place.size });
        }
    }
    Ok(())
}
