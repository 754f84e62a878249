//! Base address registers: what they decode, and how large it is (PCI 3.0, 6.2.5).

use mm::addr::{HostPhys, Mfn};
use pci_types::CommandRegister;

use super::config::register;
use super::{ConfigAccess, Sbdf, Width};

/// Bits of a memory BAR that are not address.
const MEMORY_FLAGS: u32 = 0xf;
/// Bits of a ROM BAR that are not address.
const ROM_FLAGS: u32 = 0x7ff;
const IO_SPACE: u32 = 1 << 0;
const TYPE_MASK: u32 = 0b110;
const TYPE_64: u32 = 0b100;
const PREFETCHABLE: u32 = 1 << 3;
/// A ROM is decoded only with this bit and memory decoding both on.
pub const ROM_ENABLE: u32 = 1 << 0;

/// Memory that a function decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its register.
    pub register: u16,
    /// It takes two registers.
    pub is_64: bool,
    /// Reads have no effect.
    pub prefetchable: bool,
    /// In bytes, a power of two; zero where the register is not implemented.
    pub size: u64,
}

/// A piece of memory: where a BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first byte.
    pub start: HostPhys,
    /// Bytes, not zero.
    pub size: u64,
}

impl Place {
    /// The first byte beyond.
    pub fn end(self) -> HostPhys {
        HostPhys(self.start.0.saturating_add(self.size))
    }

    /// The frames that it touches, the last one excluded.
    pub fn frames(self) -> (Mfn, Mfn) {
        (self.start.mfn(), Mfn(self.end().0.saturating_add(0xfff) >> 12))
    }

    /// Whether any frame belongs to both.
    pub fn shares_frame_with(self, other: Place) -> bool {
        let ((first, end), (other_first, other_end)) = (self.frames(), other.frames());
        first < other_end && other_first < end
    }
}

impl Bar {
    /// Where the BAR is now; none while it has no address. Address zero is none: no machine has device memory there, and
    /// it is what a register holds that nobody has assigned.
    pub fn place(&self, access: &impl ConfigAccess, sbdf: Sbdf) -> Option<Place> {
        let low = access.read(sbdf, self.register, Width::Long);
        let high = if self.is_64 { access.read(sbdf, self.register.saturating_add(4), Width::Long) } else { 0 };
        let start = u64::from(high) << 32 | u64::from(low & !MEMORY_FLAGS);
        (start != 0 && self.size != 0 && start.checked_add(self.size).is_some())
            .then_some(Place { start: HostPhys(start), size: self.size })
    }
}

/// Asks a BAR what it is and how large. None for I/O space, for a register that is not implemented, and for one that
/// claims a second half where `is_last` says that no BAR follows. Memory decoding must be off (see [`with_decoding_off`]).
pub fn probe(access: &impl ConfigAccess, sbdf: Sbdf, register: u16, is_last: bool) -> Option<Bar> {
    let low = access.read(sbdf, register, Width::Long);
    if low & IO_SPACE != 0 {
        return None;
    }
    let is_64 = low & TYPE_MASK == TYPE_64;
    // What follows the last BAR of a bridge are its bus numbers.
    if is_64 && is_last {
        return None;
    }
    let mut mask = u64::from(size_mask(access, sbdf, register) & !MEMORY_FLAGS);
    if is_64 {
        mask |= u64::from(size_mask(access, sbdf, register.saturating_add(4))) << 32;
    } else if mask != 0 {
        mask |= 0xffff_ffff << 32;
    }
    // The lowest address bit that can be set is the size.
    (mask != 0).then_some(Bar {
        register,
        is_64,
        prefetchable: low & PREFETCHABLE != 0,
        size: mask & mask.wrapping_neg(),
    })
}

/// Whether a register that [`probe`] says nothing of takes the next one with it nevertheless.
pub fn takes_two(access: &impl ConfigAccess, sbdf: Sbdf, register: u16) -> bool {
    access.read(sbdf, register, Width::Long) & (IO_SPACE | TYPE_MASK) == TYPE_64
}

/// The expansion ROM behind `register`.
pub fn probe_rom(access: &impl ConfigAccess, sbdf: Sbdf, register: u16) -> Option<Bar> {
    let before = access.read(sbdf, register, Width::Long);
    access.write(sbdf, register, Width::Long, !ROM_FLAGS);
    let mask = access.read(sbdf, register, Width::Long) & !ROM_FLAGS;
    access.write(sbdf, register, Width::Long, before);
    (mask != 0).then_some(Bar {
        register,
        is_64: false,
        prefetchable: true,
        size: u64::from(mask & mask.wrapping_neg()),
    })
}

/// Where the ROM is once its register has this value, if its own enable bit is on. Bits below its size cannot be set.
pub fn rom_place(rom: &Bar, value: u32) -> Option<Place> {
    let start = u64::from(value & !ROM_FLAGS) & rom.size.wrapping_neg();
    (value & ROM_ENABLE != 0 && start != 0).then_some(Place { start: HostPhys(start), size: rom.size })
}

fn size_mask(access: &impl ConfigAccess, sbdf: Sbdf, register: u16) -> u32 {
    let before = access.read(sbdf, register, Width::Long);
    access.write(sbdf, register, Width::Long, u32::MAX);
    let mask = access.read(sbdf, register, Width::Long);
    access.write(sbdf, register, Width::Long, before);
    mask
}

/// The function's command register, as it is.
pub fn command(access: &impl ConfigAccess, sbdf: Sbdf) -> CommandRegister {
    CommandRegister::from_bits_retain(access.read(sbdf, register::COMMAND, Width::Word) as u16)
}

/// Runs `probe` with memory decoding off, so that no BAR answers at a wrong address meanwhile, and puts it back. None
/// if the function does not let its decoding be turned off.
pub fn with_decoding_off<T>(access: &impl ConfigAccess, sbdf: Sbdf, probe: impl FnOnce() -> T) -> Option<T> {
    let before = command(access, sbdf);
    let on = before.contains(CommandRegister::MEMORY_ENABLE);
    if on {
        let off = before.difference(CommandRegister::MEMORY_ENABLE);
        access.write(sbdf, register::COMMAND, Width::Word, off.bits().into());
        if command(access, sbdf).contains(CommandRegister::MEMORY_ENABLE) {
            return None;
        }
    }
    let result = probe();
    if on {
        access.write(sbdf, register::COMMAND, Width::Word, before.bits().into());
    }
    Some(result)
}
