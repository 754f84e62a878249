//! What the boot loader tells, whichever protocol it speaks: plain values, with nothing left to read from its memory.

use core::ops::Range;

use arrayvec::ArrayVec;
use mm::HostPhys;

use crate::memory::Region;

/// Regions that the memory map holds at most. UEFI's maps run to a few hundred descriptors, most of which merge.
pub const MAX_REGIONS: usize = 128;
/// Modules that are taken notice of: Dom0's kernel, its initrd, and room for microcode, policies and other domains.
pub const MAX_MODULES: usize = 64;

/// The machine as the boot loader leaves it.
#[derive(Clone, Debug, Default)]
pub struct BootInfo {
    /// The loader's name for itself.
    pub loader_name: &'static str,
    /// Corten's own command line.
    pub cmdline: &'static str,
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// The memory map: sorted, without overlaps, in the manner of an e820 (holes are nothing, or devices).
    pub memory_map: ArrayVec<Region, MAX_REGIONS>,
    /// ACPI's root pointer, or the loader's copy of it.
    pub rsdp: Option<HostPhys>,
    /// Started through UEFI (and its boot services are over).
    pub efi: bool,
    pub framebuffer: Option<Framebuffer>,
    /// Where the image is, its zeroed part included.
    pub image: Range<u64>,
    /// The loader's own information: kept out of free memory, for the copy of the root pointer.
    pub loader: Range<u64>,
}

/// A file that the boot loader loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    pub start: HostPhys,
    pub len: u64,
    pub cmdline: &'static str,
}

impl Module {
    pub fn range(&self) -> Range<u64> {
        self.start.0..self.start.0.saturating_add(self.len)
    }
}

/// A linear framebuffer with packed pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    pub at: HostPhys,
    /// Bytes from one line to the next.
    pub pitch: u32,
    pub width: u32,
    pub height: u32,
    pub bits_per_pixel: u8,
    /// Position and size in bits of red, green and blue.
    pub channels: [(u8, u8); 3],
}
