//! Memory that Dom0 touches and that is not mapped: configuration space (ECAM, PCIe 5.0, 7.2.2), and the frames that
//! hold an MSI-X table.

use mm::addr::{GuestPhys, HostPhys};
use xen_abi::errno::Errno;

use super::{Effects, Vpci};
use crate::pci::{PciHost, Sbdf, Width};

/// Windows that are remembered; a machine has one a segment.
pub const WINDOWS: usize = 16;

/// A window of configuration space, as ACPI's MCFG or PHYSDEVOP_pci_mmcfg_reserved tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Where bus 0 is, or would be.
    pub base: GuestPhys,
    /// The segment.
    pub segment: u16,
    /// The first bus that the window has.
    pub first_bus: u8,
    /// The last one.
    pub last_bus: u8,
}

impl Ecam {
    /// The first address, and the first beyond.
    pub fn range(&self) -> (GuestPhys, GuestPhys) {
        let bus = |number: u64| GuestPhys(self.base.0.saturating_add(number << 20));
        (bus(self.first_bus.into()), bus(u64::from(self.last_bus).saturating_add(1)))
    }

    #[inline]
    fn target(&self, address: GuestPhys) -> Option<(Sbdf, u16)> {
        let (start, end) = self.range();
        if address < start || address >= end {
            return None;
        }
        let offset = address.0.wrapping_sub(self.base.0);
        let sbdf = Sbdf::from_devfn(self.segment, (offset >> 20) as u8, (offset >> 12) as u8);
        Some((sbdf, offset as u16 & 0xfff))
    }
}

/// What an address in unmapped memory is.
enum Target {
    Config(Sbdf, u16),
    /// The index of the function whose MSI-X table is in the frame.
    Table(usize),
}

impl Vpci {
    /// Whether a window is known, or a part of one that is.
    pub fn knows_ecam(&self, window: &Ecam) -> bool {
        self.ecam.iter().any(|known| {
            (known.base, known.segment) == (window.base, window.segment)
                && known.first_bus <= window.first_bus
                && window.last_bus <= known.last_bus
        })
    }

    /// Remembers a window. Nothing happens if it is known. `-EINVAL` if it overlaps another one or wraps, `-ENOSPC` if there
    /// are too many.
    pub fn add_ecam(&mut self, window: Ecam) -> Result<(), Errno> {
        if self.knows_ecam(&window) {
            return Ok(());
        }
        let (start, end) = window.range();
        let overlaps = |other: &Ecam| start < other.range().1 && other.range().0 < end;
        if window.first_bus > window.last_bus || end.0 == u64::MAX || self.ecam.iter().any(overlaps) {
            return Err(Errno::EINVAL);
        }
        self.ecam.try_push(window).map_err(|_| Errno::ENOSPC)
    }

    /// The windows that are known.
    pub fn ecam(&self) -> &[Ecam] {
        &self.ecam
    }

    /// Whether an address that is not mapped is this bus's to answer.
    #[inline]
    pub fn owns(&self, address: GuestPhys) -> bool {
        self.locate(address).is_some()
    }

    /// Dom0 reads memory that is not mapped; none if it is not this bus's.
    pub fn memory_read(&self, host: &impl PciHost, address: GuestPhys, width: Width) -> Option<u64> {
        let target = self.locate(address)?;
        if address.0 & u64::from(width.bytes()).wrapping_sub(1) != 0 {
            let mut bytes = [0; 8];
            for (byte, at) in bytes.iter_mut().zip(address.0..).take(width.bytes().into()) {
                *byte = self.memory_read(host, GuestPhys(at), Width::Byte).unwrap_or(0xff) as u8;
            }
            return Some(u64::from_le_bytes(bytes));
        }
        Some(match (target, width) {
            (Target::Config(sbdf, register), Width::Quad) => {
                let low = self.config_read(host, sbdf, register, Width::Long);
                let high = self.config_read(host, sbdf, register.wrapping_add(4), Width::Long);
                u64::from(high) << 32 | u64::from(low)
            }
            (Target::Config(sbdf, register), _) => self.config_read(host, sbdf, register, width).into(),
            (Target::Table(at), _) => {
                let virtual_table = self.slots.get(at).and_then(|slot| slot.msix.as_ref()?.read(address, width));
                virtual_table.unwrap_or_else(|| host.read_memory(HostPhys(address.0), width))
            }
        })
    }

    /// Dom0 writes memory that is not mapped; false if it is not this bus's.
    pub fn memory_write(
        &mut self,
        host: &impl PciHost,
        address: GuestPhys,
        width: Width,
        value: u64,
        out: &mut Effects,
    ) -> bool {
        let Some(target) = self.locate(address) else { return false };
        if address.0 & u64::from(width.bytes()).wrapping_sub(1) != 0 {
            for (at, byte) in (address.0..).zip(value.to_le_bytes()).take(width.bytes().into()) {
                self.memory_write(host, GuestPhys(at), Width::Byte, byte.into(), out);
            }
            return true;
        }
        match (target, width) {
            (Target::Config(sbdf, register), Width::Quad) => {
                self.config_write(host, sbdf, register, Width::Long, value as u32, out);
                self.config_write(host, sbdf, register.wrapping_add(4), Width::Long, (value >> 32) as u32, out);
            }
            (Target::Config(sbdf, register), _) => self.config_write(host, sbdf, register, width, value as u32, out),
            (Target::Table(at), _) => {
                let table = self.slots.get_mut(at);
                if !table.is_some_and(|slot| slot.msix_table_write(address, width, value, out)) {
                    host.write_memory(HostPhys(address.0), width, value);
                }
            }
        }
        true
    }

    #[inline]
    fn locate(&self, address: GuestPhys) -> Option<Target> {
        if let Some((sbdf, register)) = self.ecam.iter().find_map(|window| window.target(address)) {
            return Some(Target::Config(sbdf, register));
        }
        let holds = |slot: &super::Slot| slot.msix.as_ref().is_some_and(|msix| msix.traps(HostPhys(address.0).mfn()));
        self.slots.iter().position(holds).map(Target::Table)
    }
}
