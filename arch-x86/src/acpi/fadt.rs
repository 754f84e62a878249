//! The FADT: the fixed hardware (ACPI 6.5, 5.2.9).

use super::Problem;
use super::table::{Signature, Table, field};

/// Where a register is. An unknown space is data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    Memory,
    Io,
    PciConfig,
    Other(u8),
}

/// A register's place: a Generic Address Structure (ACPI 6.5, 5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenericAddress {
    pub space: AddressSpace,
    /// In bits.
    pub width: u8,
    pub offset: u8,
    /// 1 to 4 for accesses of 1, 2, 4, 8 bytes; 0 if it is not told.
    pub access: u8,
    pub address: u64,
}

impl GenericAddress {
    pub(super) const SIZE: usize = 12;

    /// `None` if the table has no such register, which it also says by an address of 0.
    pub(super) fn parse(bytes: &[u8], at: usize) -> Option<GenericAddress> {
        let [space, width, offset, access] = field(bytes, at)?;
        let address = field(bytes, at.checked_add(4)?).map(u64::from_le_bytes)?;
        let space = match space {
            0 => AddressSpace::Memory,
            1 => AddressSpace::Io,
            2 => AddressSpace::PciConfig,
            other => AddressSpace::Other(other),
        };
        (address != 0).then_some(GenericAddress { space, width, offset, access, address })
    }

    /// The I/O port, if it is one.
    pub fn port(&self) -> Option<u16> {
        (self.space == AddressSpace::Io).then(|| u16::try_from(self.address).ok()).flatten()
    }
}

const TIMER_IS_32_BITS: u32 = 1 << 8;
const HAS_RESET: u32 = 1 << 10;
pub(super) const HARDWARE_REDUCED: u32 = 1 << 20;

/// The smallest FADT that says what is needed: ACPI 1.0's.
const LEAST: usize = 116;

/// The FADT, read. Registers that are not there are `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fadt {
    pub facs: u64,
    pub dsdt: u64,
    /// The interrupt that ACPI events come in by: a PIC's number, to be put through the MADT's overrides.
    pub sci: u16,
    /// The port that firmware's SMI handler listens at, and what switches ACPI on and off; 0 if there is nothing to switch.
    pub smi_command: u32,
    pub acpi_enable: u8,
    pub acpi_disable: u8,
    pub pm1a_event: Option<GenericAddress>,
    pub pm1b_event: Option<GenericAddress>,
    pub pm1a_control: Option<GenericAddress>,
    pub pm1b_control: Option<GenericAddress>,
    pub pm_timer: Option<GenericAddress>,
    pub pm_timer_32_bits: bool,
    pub reset: Option<GenericAddress>,
    pub reset_value: u8,
    /// The century's index in CMOS, 0 for none.
    pub century: u8,
    /// IAPC_BOOT_ARCH: what legacy devices there are.
    pub boot_flags: u16,
    pub flags: u32,
}

impl Fadt {
    pub fn parse(table: &Table) -> Result<Fadt, Problem> {
        let bytes = table.bytes();
        if bytes.len() < LEAST {
            return Err(Problem::Structure { table: Signature::FADT, offset: bytes.len() });
        }
        let byte = |at| field(bytes, at).map_or(0, u8::from_le_bytes);
        let half = |at| field(bytes, at).map_or(0, u16::from_le_bytes);
        let word = |at| field(bytes, at).map_or(0, u32::from_le_bytes);
        let long = |at| field(bytes, at).map_or(0, u64::from_le_bytes);
        // A register has a 32-bit port with its length elsewhere, and since ACPI 2.0 a generic address, which counts if it is there.
        let register = |extended: usize, port: usize, length: usize| {
            GenericAddress::parse(bytes, extended).or_else(|| {
                let address = u64::from(word(port));
                let width = byte(length).saturating_mul(8);
                let space = AddressSpace::Io;
                (address != 0).then_some(GenericAddress { space, width, offset: 0, access: 0, address })
            })
        };
        let wide_or = |wide: u64, narrow: u32| if wide != 0 { wide } else { narrow.into() };
        let flags = word(112);
        Ok(Fadt {
            facs: wide_or(long(132), word(36)),
            dsdt: wide_or(long(140), word(40)),
            sci: half(46),
            smi_command: word(48),
            acpi_enable: byte(52),
            acpi_disable: byte(53),
            pm1a_event: register(148, 56, 88),
            pm1b_event: register(160, 60, 88),
            pm1a_control: register(172, 64, 89),
            pm1b_control: register(184, 68, 89),
            pm_timer: register(208, 76, 91),
            pm_timer_32_bits: flags & TIMER_IS_32_BITS != 0,
            reset: GenericAddress::parse(bytes, 116).filter(|_| flags & HAS_RESET != 0),
            reset_value: byte(128),
            century: byte(108),
            boot_flags: half(109),
            flags,
        })
    }

    /// The machine has none of the fixed hardware, and no legacy devices.
    pub fn hardware_reduced(&self) -> bool {
        self.flags & HARDWARE_REDUCED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Memory, table};
    use super::*;
    use alloc::vec::Vec;
    use mm::HostPhys;

    fn parse(fields: &[(usize, &[u8])], length: usize) -> Result<Fadt, Problem> {
        let mut content: Vec<u8> = vec![0; length - 36];
        for (at, bytes) in fields {
            content[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
        }
        let mut memory = Memory::new();
        memory.place(0x1000, &table(b"FACP", &content));
        Fadt::parse(&Table::read(&memory, HostPhys(0x1000)).unwrap())
    }

    #[test]
    fn an_old_fadt_has_ports() {
        let fields: &[(usize, &[u8])] = &[
            (40, &[0, 0, 0, 0x7f]),
            (46, &[9, 0]),
            (56, &[0, 6, 0, 0]),
            (64, &[4, 6, 0, 0]),
            (76, &[8, 6, 0, 0]),
            (88, &[4, 2, 0, 4]),
        ];
        let fadt = parse(fields, 116).unwrap();
        assert_eq!((fadt.sci, fadt.dsdt), (9, 0x7f00_0000));
        let control = fadt.pm1a_control.unwrap();
        assert_eq!((control.port(), control.width), (Some(0x604), 16));
        assert_eq!(fadt.pm_timer.unwrap().width, 32);
        assert_eq!((fadt.pm1b_control, fadt.reset), (None, None));
    }

    #[test]
    fn a_newer_fadt_has_generic_addresses_and_they_count() {
        let fields: &[(usize, &[u8])] = &[
            (64, &[4, 6, 0, 0]),
            (112, &(HAS_RESET | TIMER_IS_32_BITS).to_le_bytes()),
            (116, &[1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0]),
            (128, &[0xf]),
            (140, &0x1_2345_6789u64.to_le_bytes()),
            (172, &[1, 16, 0, 2, 4, 0x18, 0, 0, 0, 0, 0, 0]),
        ];
        let fadt = parse(fields, 244).unwrap();
        assert_eq!(fadt.pm1a_control.unwrap().port(), Some(0x1804));
        assert_eq!((fadt.reset.unwrap().port(), fadt.reset_value), (Some(0xcf9), 0xf));
        assert_eq!(fadt.dsdt, 0x1_2345_6789);
        assert!(fadt.pm_timer_32_bits && !fadt.hardware_reduced());
    }

    #[test]
    fn a_register_in_memory_is_no_port() {
        let fields: &[(usize, &[u8])] = &[(172, &[0, 16, 0, 2, 4, 0x18, 0, 0, 0, 0, 0, 0])];
        assert_eq!(parse(fields, 244).unwrap().pm1a_control.unwrap().port(), None);
    }

    #[test]
    fn a_fadt_that_is_too_short_is_refused() {
        assert_eq!(parse(&[], 100), Err(Problem::Structure { table: Signature::FADT, offset: 100 }));
    }
}
