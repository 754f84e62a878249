//! Configuration mechanism #1: an address at port 0xcf8, data at 0xcfc to 0xcff (PCI 3.0, 3.2.2.3.2).

use super::config::join;
use super::{Effects, Vpci};
use crate::pci::{ConfigAccess, PciHost, Sbdf, Width};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const DATA_END: u16 = 0xcff;
const ENABLE: u32 = 1 << 31;

impl Vpci {
    /// Dom0 reads a port from 0xcf8 to 0xcff. Only a long at 0xcf8 is the address; anything else there belongs to other
    /// devices, and is answered with all ones if it comes here.
    #[inline]
    pub fn port_read(&self, host: &impl ConfigAccess, port: u16, width: Width) -> u32 {
        match (port, width) {
            (ADDRESS, Width::Long) => self.latch,
            (DATA..=DATA_END, _) => match self.target(port) {
                Some((sbdf, register)) if fits(port, width) => self.config_read(host, sbdf, register, width),
                // What lies beyond the data port is another device's, and there is none.
                Some((sbdf, _)) => join(port, width, |at| match self.target(at) {
                    Some((_, register)) if at <= DATA_END => self.config_read(host, sbdf, register, Width::Byte),
                    _ => 0xff,
                }),
                None => width.ones() as u32,
            },
            _ => width.ones() as u32,
        }
    }

    /// Dom0 writes a port from 0xcf8 to 0xcff.
    #[inline]
    pub fn port_write(&mut self, host: &impl PciHost, port: u16, width: Width, value: u32, out: &mut Effects) {
        match (port, width) {
            (ADDRESS, Width::Long) => {
                let extension = if self.extended_ports { 0x0f00_0000 } else { 0 };
                self.latch = value & (ENABLE | extension | 0x00ff_fffc);
            }
            (DATA..=DATA_END, _) if fits(port, width) => {
                if let Some((sbdf, register)) = self.target(port) {
                    self.config_write(host, sbdf, register, width, value, out);
                }
            }
            (DATA..=DATA_END, _) => {
                for (at, byte) in (port..=DATA_END).zip(value.to_le_bytes()).take(width.bytes().into()) {
                    if let Some((sbdf, register)) = self.target(at) {
                        self.config_write(host, sbdf, register, Width::Byte, byte.into(), out);
                    }
                }
            }
            _ => {}
        }
    }

    /// The register that a data port stands for, while the address is enabled.
    #[inline]
    fn target(&self, port: u16) -> Option<(Sbdf, u16)> {
        let register = (self.latch >> 16 & 0xf00 | self.latch & 0xfc) as u16 | port & 0b11;
        let sbdf = Sbdf::from_devfn(0, (self.latch >> 16) as u8, (self.latch >> 8) as u8);
        (self.latch & ENABLE != 0).then_some((sbdf, register))
    }
}

/// Whether the access ends within the data port.
#[inline]
fn fits(port: u16, width: Width) -> bool {
    (port & 0b11).saturating_add(width.bytes().into()) <= 4
}
