//! The lists of capabilities, and the three that matter here (PCI 3.0, 6.7 and 6.8; PCIe 5.0, 7.6 and 7.8.6).

use pci_types::StatusRegister;

use super::config::register;
use super::function::Fault;
use super::{ConfigAccess, Sbdf, Width};

const MSI: u8 = 0x05;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
/// Extended capability: the sizes of BARs can be changed.
const RESIZABLE_BAR: u16 = 0x15;

/// A function's MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where it is in configuration space.
    pub offset: u16,
    /// The address has 64 bits.
    pub is_64: bool,
    /// Vectors can be masked one by one.
    pub maskable: bool,
    /// log2 of the vectors that the function can use.
    pub log2_vectors: u8,
}

impl Msi {
    /// The message control register.
    pub const fn control(&self) -> u16 {
        self.offset.saturating_add(2)
    }

    /// The message address.
    pub const fn address(&self) -> u16 {
        self.offset.saturating_add(4)
    }

    /// The message data.
    pub const fn data(&self) -> u16 {
        self.offset.saturating_add(if self.is_64 { 12 } else { 8 })
    }
}

/// MSI message control: on.
pub const MSI_ENABLE: u16 = 1 << 0;
/// MSI message control: log2 of the vectors in use.
pub const MSI_VECTORS: u16 = 0b111 << 4;

/// A function's MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Where it is in configuration space.
    pub offset: u16,
    /// How many entries the table has.
    pub entries: u16,
    /// Where the table is: BAR register and offset in it.
    pub table: (u16, u32),
    /// Where the array of pending bits is.
    pub pending: (u16, u32),
}

/// Bytes in an entry of the MSI-X table.
pub const MSIX_ENTRY: u64 = 16;
/// MSI-X message control: on.
pub const MSIX_ENABLE: u16 = 1 << 15;
/// MSI-X message control: all masked.
pub const MSIX_MASK_ALL: u16 = 1 << 14;

impl Msix {
    /// The message control register.
    pub const fn control(&self) -> u16 {
        self.offset.saturating_add(2)
    }

    /// Bytes in the table.
    pub fn table_size(&self) -> u64 {
        MSIX_ENTRY.saturating_mul(self.entries.into())
    }

    /// Bytes in the array of pending bits: a quadword for each 64 entries.
    pub fn pending_size(&self) -> u64 {
        u64::from(self.entries.div_ceil(64)).saturating_mul(8)
    }
}

/// The capabilities that a function has, of those that matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Message signalled interrupts.
    pub msi: Option<Msi>,
    /// The same with a table.
    pub msix: Option<Msix>,
    /// The function can change the sizes of its BARs.
    pub resizable: bool,
}

/// Walks both lists. A list that visits an offset twice or leaves its space is a [`Fault`].
pub fn walk(access: &impl ConfigAccess, sbdf: Sbdf) -> Result<Capabilities, Fault> {
    let mut found = Capabilities::default();
    let status = StatusRegister::new(access.read(sbdf, register::STATUS, Width::Word) as u16);
    if !status.has_capability_list() {
        return Ok(found);
    }
    // One bit for each place where a capability can begin.
    let mut visited = 0u64;
    let mut is_express = false;
    let mut offset = access.read(sbdf, register::CAPABILITIES, Width::Byte) as u16 & !0b11;
    while offset != 0 {
        let seen = 1u64 << (offset >> 2 & 63);
        if offset < 0x40 || visited & seen != 0 {
            return Err(Fault::Capabilities { offset });
        }
        visited |= seen;
        let header = access.read(sbdf, offset, Width::Long);
        // Hardware that has gone answers all ones, and the list would never end.
        if header == u32::MAX {
            return Err(Fault::Capabilities { offset });
        }
        let [id, next, ..] = header.to_le_bytes();
        let control = (header >> 16) as u16;
        match id {
            MSI => {
                let msi = read_msi(offset, control);
                found.msi = Some(msi);
                if msi.data() > 0xfe {
                    return Err(Fault::Capabilities { offset });
                }
            }
            EXPRESS => is_express = true,
            MSIX if offset > 0xf4 => return Err(Fault::Capabilities { offset }),
            MSIX => found.msix = Some(read_msix(access, sbdf, offset, control)?),
            _ => {}
        }
        offset = u16::from(next) & !0b11;
    }
    // Behind some bridges the space of a function without it repeats itself from here on.
    found.resizable = is_express && has_extended(access, sbdf, RESIZABLE_BAR)?;
    Ok(found)
}

fn read_msi(offset: u16, control: u16) -> Msi {
    Msi {
        offset,
        is_64: control & 1 << 7 != 0,
        maskable: control & 1 << 8 != 0,
        // Six and seven are reserved.
        log2_vectors: (control as u8 >> 1 & 0b111).min(5),
    }
}

fn read_msix(access: &impl ConfigAccess, sbdf: Sbdf, offset: u16, control: u16) -> Result<Msix, Fault> {
    let place = |at: u16| {
        let word = access.read(sbdf, offset.saturating_add(at), Width::Long);
        match word & 0b111 {
            index @ 0..6 => Ok((register::BAR.saturating_add((index as u16) << 2), word & !0b111)),
            index => Err(Fault::MsixBar { index: index as u8 }),
        }
    };
    Ok(Msix { offset, entries: (control & 0x7ff).saturating_add(1), table: place(4)?, pending: place(8)? })
}

/// Looks for an extended capability. No more fit than there are places to begin at, which ends a list that loops.
fn has_extended(access: &impl ConfigAccess, sbdf: Sbdf, wanted: u16) -> Result<bool, Fault> {
    const PLACES: usize = (4096 - 256) / 4;
    let mut offset = register::EXTENDED;
    for _ in 0..PLACES {
        let header = access.read(sbdf, offset, Width::Long);
        if header == 0 || header == u32::MAX {
            return Ok(false);
        }
        if header as u16 == wanted {
            return Ok(true);
        }
        offset = (header >> 20) as u16 & !0b11;
        match offset {
            0 => return Ok(false),
            1..register::EXTENDED => return Err(Fault::Capabilities { offset }),
            _ => {}
        }
    }
    Err(Fault::Capabilities { offset })
}
