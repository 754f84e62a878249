//! MSI: Dom0 keeps a message of its own, and the device sends Corten's (PCI 3.0, 6.8.1).
//!
//! The mask and the pending bits are the device's.

use super::config::Write;
use super::{Effect, Effects, Slot, push};
use crate::pci::capability::{MSI_ENABLE, MSI_VECTORS, Msi};
use crate::pci::{ConfigAccess, Message, Width};

/// What Dom0 believes to be in a function's MSI capability.
#[derive(Clone, Copy, Debug, Default)]
pub struct MsiState {
    message: Message,
    /// Message control, of which enable and the vectors in use are Dom0's.
    control: u16,
    /// MSI is on, and bound.
    pub(super) enabled: bool,
}

/// What Dom0 can set in the control register.
const CONTROL: u16 = MSI_ENABLE | MSI_VECTORS;

impl MsiState {
    fn log2_vectors(&self, msi: &Msi) -> u8 {
        ((self.control & MSI_VECTORS) >> 4).min(msi.log2_vectors.into()) as u8
    }

    /// The long at `register`, where `hardware` is what the device has there.
    fn long(&self, msi: &Msi, register: u16, hardware: u32) -> u32 {
        if register == msi.offset {
            hardware & !(u32::from(CONTROL) << 16) | u32::from(self.control & CONTROL) << 16
        } else if register == msi.address() {
            self.message.address as u32
        } else if register == msi.data() {
            hardware & 0xffff_0000 | self.message.data & 0xffff
        } else {
            (self.message.address >> 32) as u32
        }
    }
}

impl Slot {
    /// What Dom0 reads at a long of the capability that is not passed through.
    pub(super) fn msi_read(&self, access: &impl ConfigAccess, register: u16) -> u32 {
        let hardware = access.read(self.function.sbdf, register, Width::Long);
        self.function.msi.map_or(hardware, |msi| self.msi.long(&msi, register, hardware))
    }

    /// Dom0 writes a long of the capability that is not passed through.
    pub(super) fn msi_write(&mut self, access: &impl ConfigAccess, write: Write, out: &mut Effects) {
        const LOW: u8 = 0b0011;
        const HIGH: u8 = 0b1100;
        let Some(msi) = self.function.msi else { return };
        let long = write.long();
        let merged = write.merge(self.msi_read(access, long));
        let message = &mut self.msi.message;
        if long == msi.offset {
            if write.touches(HIGH) {
                self.msi_control_write(access, &msi, (merged >> 16) as u16, out);
            }
            return;
        } else if long == msi.address() {
            message.address = message.address & !0xffff_ffff | u64::from(merged & !0b11);
        } else if long == msi.data() {
            message.data = merged & 0xffff;
            // Beside 16 bits of data there may be another register.
            if write.touches(HIGH) {
                let high = Write { register: long | 0b10, width: Width::Word, value: merged >> 16 };
                self.pass(access, high);
            }
            if !write.touches(LOW) {
                return;
            }
        } else {
            message.address = message.address & 0xffff_ffff | u64::from(merged) << 32;
        }
        if self.msi.enabled {
            push(out, Effect::MsiRoute { sbdf: self.function.sbdf, message: self.msi.message });
        }
    }

    fn msi_control_write(&mut self, access: &impl ConfigAccess, msi: &Msi, control: u16, out: &mut Effects) {
        let sbdf = self.function.sbdf;
        let hardware = access.read(sbdf, msi.control(), Width::Word) as u16;
        let vectors_before = self.msi.log2_vectors(msi);
        self.msi.control = control & CONTROL;
        let vectors = self.msi.log2_vectors(msi);
        if control & MSI_ENABLE != 0 {
            // Also if the device has forgotten, in a reset, that it was on.
            if !self.msi.enabled || hardware & MSI_ENABLE == 0 || vectors != vectors_before {
                self.msi.enabled = true;
                push(out, Effect::MsiBind { sbdf, message: self.msi.message, log2_vectors: vectors });
            }
        } else {
            if hardware & MSI_ENABLE != 0 {
                access.write(sbdf, msi.control(), Width::Word, (hardware & !MSI_ENABLE).into());
            }
            if core::mem::take(&mut self.msi.enabled) {
                push(out, Effect::MsiUnbind { sbdf });
            }
        }
    }
}
