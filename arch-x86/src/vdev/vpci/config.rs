//! Configuration space: which registers are passed through, and the way to those that are not.

use super::{Effects, Slot, Vpci};
use crate::pci::config::register;
use crate::pci::{Bar, ConfigAccess, Function, PciHost, Sbdf, Width};

/// The bit of a register in a set of traps; none above 256 bytes, where everything is passed through.
#[inline]
const fn bit(register: u16) -> u64 {
    if register < 0x100 { 1 << (register >> 2) } else { 0 }
}

/// Which registers of a function do not simply read, and which do not simply write.
pub(super) fn traps(function: &Function) -> (u64, u64) {
    let mut read = 0;
    if let Some(msi) = &function.msi {
        read |= bit(msi.offset) | bit(msi.address()) | bit(msi.data());
        if msi.is_64 {
            read |= bit(msi.address().saturating_add(4));
        }
    }
    let mut write = read | bit(register::COMMAND);
    for bar in function.bars.iter().chain(&function.rom) {
        write |= bit(bar.register);
        if bar.is_64 {
            write |= bit(bar.register.saturating_add(4));
        }
    }
    if let Some(msix) = &function.msix {
        write |= bit(msix.offset);
    }
    (read, write)
}

/// A write to one long of configuration space: all of it, or a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub register: u16,
    pub width: Width,
    pub value: u32,
}

impl Write {
    /// The register of the long.
    pub const fn long(&self) -> u16 {
        self.register & !0b11
    }

    /// What the long becomes, if it was `old`.
    pub const fn merge(&self, old: u32) -> u32 {
        let shift = (self.register as u32 & 0b11) << 3;
        let mask = (self.width.ones() as u32) << shift;
        old & !mask | self.value << shift & mask
    }

    /// Whether it touches one of these bytes of the long (a bit each).
    pub const fn touches(&self, bytes: u8) -> bool {
        let written = (1u8 << (self.width.bytes() & 7)).wrapping_sub(1) << (self.register & 0b11);
        written & bytes != 0
    }
}

impl Vpci {
    /// What Dom0 reads at a register. The access may be unaligned; then it is made byte by byte.
    #[inline]
    pub fn config_read(&self, host: &impl ConfigAccess, sbdf: Sbdf, register: u16, width: Width) -> u32 {
        if register & (width.bytes() as u16).wrapping_sub(1) != 0 || width == Width::Quad {
            return join(register, width, |at| self.config_read(host, sbdf, at, Width::Byte));
        }
        match self.slot(sbdf) {
            Some(slot) if slot.hidden => width.ones() as u32,
            Some(slot) if slot.read_traps & bit(register) != 0 => {
                let long = slot.msi_read(host, register & !0b11);
                long >> ((register & 0b11) << 3) & width.ones() as u32
            }
            // A function that is not known may have been plugged in: Dom0 looks for it here before it tells of it.
            _ => host.read(sbdf, register, width),
        }
    }

    /// Dom0 writes a register. What has to follow is appended to `out`.
    #[inline]
    pub fn config_write(
        &mut self,
        host: &impl PciHost,
        sbdf: Sbdf,
        register: u16,
        width: Width,
        value: u32,
        out: &mut Effects,
    ) {
        if register & (width.bytes() as u16).wrapping_sub(1) != 0 || width == Width::Quad {
            for (at, byte) in (register..).zip(value.to_le_bytes()).take(width.bytes().into()) {
                self.config_write(host, sbdf, at & 0xfff, Width::Byte, byte.into(), out);
            }
            return;
        }
        let Ok(at) = self.find(sbdf) else { return host.write(sbdf, register, width, value) };
        match self.slots.get(at) {
            Some(slot) if slot.hidden => {}
            Some(slot) if slot.write_traps & bit(register) != 0 => {
                self.trapped_write(host, at, Write { register, width, value }, out);
            }
            _ => host.write(sbdf, register, width, value),
        }
    }

    fn trapped_write(&mut self, host: &impl PciHost, at: usize, write: Write, out: &mut Effects) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        let long = write.long();
        if long == register::COMMAND {
            self.command_write(host, at, write, out);
        } else if slot.function.rom.is_some_and(|rom| rom.register == long) {
            self.rom_write(host, at, write, out);
        } else if slot.function.bars.iter().any(|bar| has(bar, long)) {
            self.bar_write(host, at, write, out);
        } else if slot.function.msix.is_some_and(|msix| msix.offset == long) {
            slot.msix_control_write(host, write, out);
        } else {
            slot.msi_write(host, write, out);
        }
    }
}

impl Slot {
    /// Writes through to the device.
    pub(super) fn pass(&self, access: &impl ConfigAccess, write: Write) {
        access.write(self.function.sbdf, write.register, write.width, write.value);
    }
}

fn has(bar: &Bar, long: u16) -> bool {
    bar.register == long || (bar.is_64 && bar.register.saturating_add(4) == long)
}

/// Makes an access of bytes.
pub(super) fn join(at: u16, width: Width, read: impl Fn(u16) -> u32) -> u32 {
    let mut bytes = [0; 4];
    for (byte, at) in bytes.iter_mut().zip(at..).take(width.bytes().into()) {
        *byte = read(at & 0xfff) as u8;
    }
    u32::from_le_bytes(bytes)
}
