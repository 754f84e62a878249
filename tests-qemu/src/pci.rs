//! PCI configuration space: by the ports, and by memory where the MCFG says that it is.

use crate::{acpi, cpu};

pub const VENDOR: u16 = 0;
pub const COMMAND: u16 = 4;
pub const CLASS: u16 = 8;
pub const BAR: u16 = 0x10;
pub const CAPABILITIES: u16 = 0x34;

/// A function of segment 0: bus << 8 | device << 3 | function.
pub type Function = u16;

/// All functions there can be on the first bus.
pub const FIRST_BUS: core::ops::Range<Function> = 0..256;

pub fn read(function: Function, register: u16) -> u32 {
    cpu::out32(0xcf8, 1 << 31 | u32::from(function) << 8 | u32::from(register & 0xfc));
    cpu::in32(0xcfc)
}

pub fn write(function: Function, register: u16, value: u32) {
    cpu::out32(0xcf8, 1 << 31 | u32::from(function) << 8 | u32::from(register & 0xfc));
    cpu::out32(0xcfc, value);
}

/// Where a function's configuration space is in memory.
pub fn in_memory(function: Function) -> Option<u64> {
    let mcfg = acpi::table(b"MCFG")?;
    let (base, bus) = (acpi::field::<u64>(mcfg + 44), acpi::field::<u8>(mcfg + 54));
    Some(base - (u64::from(bus) << 20) + (u64::from(function) << 12))
}

pub fn find(mut wanted: impl FnMut(Function) -> bool) -> Option<Function> {
    FIRST_BUS.clone().find(|function| read(*function, VENDOR) != u32::MAX && wanted(*function))
}
