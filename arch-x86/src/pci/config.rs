//! Access to configuration space, and what else the PCI code asks of the machine.

use mm::addr::{HostPhys, Mfn};

use super::Sbdf;

/// How wide an access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    Byte = 1,
    /// Two bytes.
    Word = 2,
    /// Four bytes.
    Long = 4,
    /// Eight bytes: to memory only.
    Quad = 8,
}

impl Width {
    /// The width of that many bytes.
    #[inline]
    pub const fn from_bytes(bytes: u8) -> Option<Width> {
        match bytes {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Long),
            8 => Some(Width::Quad),
            _ => None,
        }
    }

    /// How many bytes.
    #[inline]
    pub const fn bytes(self) -> u8 {
        self as u8
    }

    /// A value with all bits of this width set: what a bus without a device answers.
    #[inline]
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64u32.wrapping_sub(8u32.wrapping_mul(self as u32)) & 63)
    }
}

/// The configuration space of every function, by whichever mechanism the machine has.
///
/// An access is aligned to its width, is no [`Width::Quad`], and lies within 4096 bytes. What cannot be reached (beyond
/// 256 bytes without ECAM, or no such function) reads as all ones and drops writes.
pub trait ConfigAccess {
    /// Reads a register.
    fn read(&self, sbdf: Sbdf, register: u16, width: Width) -> u32;
    /// Writes a register.
    fn write(&self, sbdf: Sbdf, register: u16, width: Width, value: u32);
}

/// What the PCI code asks of the machine besides configuration space.
pub trait PciHost: ConfigAccess {
    /// Whether a device may have its memory in these frames: neither RAM, nor anything that Corten keeps for itself.
    fn is_device_memory(&self, first: Mfn, frames: u64) -> bool;
    /// Reads device memory, uncached. The address is aligned to the width.
    fn read_memory(&self, address: HostPhys, width: Width) -> u64;
    /// Writes device memory, uncached. The address is aligned to the width.
    fn write_memory(&self, address: HostPhys, width: Width, value: u64);
}

/// Registers of the header that is common to all functions (PCI 3.0, 6.1).
pub mod register {
    /// Vendor; all ones where no function is.
    pub const VENDOR: u16 = 0x00;
    /// Device.
    pub const DEVICE: u16 = 0x02;
    /// Command.
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// Revision, and class code above it.
    pub const CLASS: u16 = 0x08;
    /// Header type; bit 7 says that there are more functions.
    pub const HEADER: u16 = 0x0e;
    /// The first base address register.
    pub const BAR: u16 = 0x10;
    /// A bridge's secondary bus.
    pub const SECONDARY_BUS: u16 = 0x19;
    /// The expansion ROM of an ordinary function.
    pub const ROM: u16 = 0x30;
    /// The first capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// The expansion ROM of a bridge.
    pub const BRIDGE_ROM: u16 = 0x38;
    /// The first extended capability.
    pub const EXTENDED: u16 = 0x100;
}
