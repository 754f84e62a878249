//! CMOS and real-time clock, shared between Corten and Dom0.
//!
//! The chip is reached through an index and a data port, so two users of it must not interleave. Dom0's index is kept
//! here; each access to the data port becomes one whole physical access, index and data, that the run loop makes under
//! its lock. Bit 7 of the index port masks the machine's NMIs: Dom0's setting is kept and never reaches the machine.

/// Index and data of the standard bank, and of the extended one that chipsets add.
pub const PORTS: core::ops::RangeInclusive<u16> = 0x70..=0x73;

const NMI_MASK: u8 = 1 << 7;

/// Which of the two 128-byte banks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Bank {
    /// Ports 0x70 and 0x71: the clock and its RAM.
    Standard,
    /// Ports 0x72 and 0x73: RAM only.
    Extended,
}

impl Bank {
    pub const fn index_port(self) -> u16 {
        match self {
            Bank::Standard => 0x70,
            Bank::Extended => 0x72,
        }
    }

    pub const fn data_port(self) -> u16 {
        self.index_port() | 1
    }

    const fn of(port: u16) -> Bank {
        if port & 2 == 0 { Bank::Standard } else { Bank::Extended }
    }
}

/// One byte of the chip. The standard bank's index never carries the NMI mask.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub bank: Bank,
    pub index: u8,
}

/// What a guest's access comes to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// An index port: read back what was written.
    Known(u8),
    /// A data port.
    Physical(Cell),
}

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmos {
    standard: u8,
    extended: u8,
}

impl Cmos {
    pub const fn new() -> Cmos {
        Cmos { standard: 0, extended: 0 }
    }

    const fn index(self, bank: Bank) -> u8 {
        match bank {
            Bank::Standard => self.standard,
            Bank::Extended => self.extended,
        }
    }

    const fn cell(self, bank: Bank) -> Cell {
        let index = match bank {
            Bank::Standard => self.standard & !NMI_MASK,
            Bank::Extended => self.extended,
        };
        Cell { bank, index }
    }

    /// Reads one of [`PORTS`].
    pub const fn read(self, port: u16) -> Access {
        let bank = Bank::of(port);
        if port & 1 == 0 { Access::Known(self.index(bank)) } else { Access::Physical(self.cell(bank)) }
    }

    /// Writes one of [`PORTS`]: the byte of the chip that the value is to be written to, if it was a data port.
    pub const fn write(&mut self, port: u16, value: u8) -> Option<Cell> {
        let bank = Bank::of(port);
        if port & 1 != 0 {
            return Some(self.cell(bank));
        }
        match bank {
            Bank::Standard => self.standard = value,
            Bank::Extended => self.extended = value,
        }
        None
    }

    /// Whether the guest believes that it has masked NMIs.
    pub const fn masks_nmi(self) -> bool {
        self.standard & NMI_MASK != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nmi_mask_is_kept_and_never_reaches_the_machine() {
        let mut cmos = Cmos::default();
        assert_eq!(cmos.write(0x70, 0x8b), None);
        assert!(cmos.masks_nmi());
        assert_eq!(cmos.read(0x70), Access::Known(0x8b));
        let cell = Cell { bank: Bank::Standard, index: 0x0b };
        assert_eq!(cmos.read(0x71), Access::Physical(cell));
        assert_eq!(cmos.write(0x71, 0x02), Some(cell));
    }

    #[test]
    fn the_banks_have_an_index_each() {
        let mut cmos = Cmos::default();
        cmos.write(0x70, 0x0a);
        cmos.write(0x72, 0xf0);
        assert_eq!(cmos.read(0x71), Access::Physical(Cell { bank: Bank::Standard, index: 0x0a }));
        assert_eq!(cmos.read(0x73), Access::Physical(Cell { bank: Bank::Extended, index: 0xf0 }));
        assert_eq!((Bank::Extended.index_port(), Bank::Extended.data_port()), (0x72, 0x73));
        assert!(!cmos.masks_nmi());
    }
}
