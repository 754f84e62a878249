//! Interrupt messages, and how they are written into the devices (SDM Vol. 3, 11.11).

use mm::addr::HostPhys;

use super::capability::{MSI_ENABLE, MSI_VECTORS, MSIX_ENTRY, Msi, Msix};
use super::{ConfigAccess, PciHost, Sbdf, Width};

/// A message signalled interrupt: a write of `data` to `address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The message address, 0xfeexxxxx for an interrupt.
    pub address: u64,
    /// The message data.
    pub data: u32,
}

impl Message {
    /// Whether the address is one at which interrupts are taken.
    pub const fn is_interrupt(&self) -> bool {
        self.address >> 20 == 0xfee
    }

    /// The local APIC that is meant. Bits 11:5 extend the id to 15 bits (XEN_HVM_CPUID_EXT_DEST_ID).
    pub const fn destination(&self) -> u32 {
        (self.address >> 12 & 0xff | (self.address >> 5 & 0x7f) << 8) as u32
    }

    /// The destination is a logical one.
    pub const fn is_logical(&self) -> bool {
        self.address & 1 << 2 != 0
    }

    /// The destination may be any one of several (redirection hint).
    pub const fn is_redirectable(&self) -> bool {
        self.address & 1 << 3 != 0
    }

    /// The vector.
    pub const fn vector(&self) -> u8 {
        self.data as u8
    }

    /// The delivery mode, as in an ICR.
    pub const fn delivery_mode(&self) -> u8 {
        (self.data >> 8 & 0b111) as u8
    }

    /// The interrupt is level-triggered.
    pub const fn is_level(&self) -> bool {
        self.data & 1 << 15 != 0
    }

    /// The message of the vector that is `index` further on, of a function that uses several.
    pub const fn nth(&self, index: u8) -> Message {
        Message { data: self.data.wrapping_add(index as u32), ..*self }
    }
}

/// Has a function send this message for its MSI, with `log2_vectors` low bits of the data its own to vary, and turns its
/// MSI on. An address beyond 32 bits does not fit every function; Corten's own has none.
pub fn program_msi(access: &impl ConfigAccess, sbdf: Sbdf, msi: &Msi, message: Message, log2_vectors: u8) {
    let control = access.read(sbdf, msi.control(), Width::Word) as u16;
    // Off while it changes: a message made of two halves goes astray.
    access.write(sbdf, msi.control(), Width::Word, (control & !MSI_ENABLE).into());
    access.write(sbdf, msi.address(), Width::Long, message.address as u32);
    if msi.is_64 {
        access.write(sbdf, msi.address().saturating_add(4), Width::Long, (message.address >> 32) as u32);
    }
    access.write(sbdf, msi.data(), Width::Word, message.data & 0xffff);
    let vectors = u16::from(log2_vectors.min(msi.log2_vectors)) << 4;
    access.write(sbdf, msi.control(), Width::Word, (control & !MSI_VECTORS | vectors | MSI_ENABLE).into());
}

/// Has a function send this message for an entry of its MSI-X table, and masks or unmasks the entry. `table` is where
/// the table is.
pub fn program_msix_entry(host: &impl PciHost, table: HostPhys, entry: u16, message: Message, masked: bool) {
    let Some(at) = entry_address(table, entry) else { return };
    // Masked while it changes (PCIe 5.0, 6.1.4.5).
    write_long(host, at, 12, 1);
    write_long(host, at, 0, message.address as u32);
    write_long(host, at, 4, (message.address >> 32) as u32);
    write_long(host, at, 8, message.data);
    if !masked {
        write_long(host, at, 12, 0);
    }
}

/// Masks or unmasks an entry of an MSI-X table.
pub fn mask_msix_entry(host: &impl PciHost, table: HostPhys, entry: u16, masked: bool) {
    if let Some(at) = entry_address(table, entry) {
        write_long(host, at, 12, masked.into());
    }
}

fn entry_address(table: HostPhys, entry: u16) -> Option<HostPhys> {
    Some(HostPhys(table.0.checked_add(MSIX_ENTRY.checked_mul(entry.into())?)?))
}

fn write_long(host: &impl PciHost, at: HostPhys, offset: u64, value: u32) {
    host.write_memory(HostPhys(at.0.saturating_add(offset)), Width::Long, value.into());
}

/// Where the MSI-X table is, given where its BAR is.
pub fn msix_table(msix: &Msix, bar: HostPhys) -> HostPhys {
    HostPhys(bar.0.saturating_add(msix.table.1.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_destination_and_vector() {
        let message = Message { address: 0xfee0_500c, data: 0x4041 };
        assert!(message.is_interrupt());
        assert_eq!((message.destination(), message.vector(), message.delivery_mode()), (5, 0x41, 0));
        assert!(message.is_logical() && message.is_redirectable() && !message.is_level());
        assert_eq!(message.nth(3).vector(), 0x44);
    }

    #[test]
    fn the_extended_destination_has_fifteen_bits() {
        let message = Message { address: 0xfee0_0000 | 0x34 << 12 | 0x12 << 5, data: 0 };
        assert_eq!(message.destination(), 0x1234);
    }

    #[test]
    fn a_write_to_memory_is_no_interrupt() {
        assert!(!Message { address: 0x1_fee0_0000, data: 0 }.is_interrupt());
        assert!(!Message { address: 0xfed0_0000, data: 0 }.is_interrupt());
    }
}
