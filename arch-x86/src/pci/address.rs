//! Where a PCI function is.

use core::fmt;

/// A function's address: segment, bus, device and function, packed as in the routing ids of PCI Express.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf(u32);

impl Sbdf {
    /// Devices have five bits and functions three; what is above is cut off.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Sbdf {
        Sbdf::from_devfn(segment, bus, (device & 0x1f) << 3 | function & 0x7)
    }

    /// Device and function in one byte, as PHYSDEVOP has them.
    pub const fn from_devfn(segment: u16, bus: u8, devfn: u8) -> Sbdf {
        Sbdf((segment as u32) << 16 | (bus as u32) << 8 | devfn as u32)
    }

    /// The PCI segment group.
    pub const fn segment(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The bus in its segment.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device on its bus.
    pub const fn device(self) -> u8 {
        self.0 as u8 >> 3
    }

    /// The function of its device.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 0x7
    }

    /// Bus, device and function: the requester id.
    pub const fn bdf(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment(), self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_prints_as_lspci_prints_it() {
        assert_eq!(std::format!("{}", Sbdf::new(1, 0xa0, 0x1f, 3)), "0001:a0:1f.3");
        assert_eq!(Sbdf::from_devfn(0, 2, 0xfb), Sbdf::new(0, 2, 0x1f, 3));
        assert_eq!(Sbdf::new(1, 2, 3, 4).bdf(), 0x021c);
    }
}
