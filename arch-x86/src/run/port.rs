//! I/O exits: what is trapped of a domain's ports.

use hypervisor::console;
use hypervisor::machine::{Machine, PowerAction};

use super::{Next, Running};
use crate::exit::PortAccess;
use crate::port::{inb, outb};
use crate::power;
use crate::startup::Physical;
use crate::vdev::cmos::Cell;
use crate::vdev::ports::{Effect, Read, Reset};

impl Running<'_> {
    #[inline]
    pub(super) fn port(&mut self, access: PortAccess) -> Next {
        if access.string {
            return self.string_port(access);
        }
        let PortAccess { port, size, input, .. } = access;
        if input {
            let value = self.read_port(port, size);
            let rax = self.context.regs.rax;
            self.context.regs.rax = match size {
                1 => (rax & !0xff) | u64::from(value as u8),
                2 => (rax & !0xffff) | u64::from(value as u16),
                _ => u64::from(value),
            };
        } else {
            let value = self.context.regs.rax as u32;
            let value = match size {
                1 => value & 0xff,
                2 => value & 0xffff,
                _ => value,
            };
            self.write_port(port, size, value);
        }
        self.context.engine.advance();
        Next::Enter
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        let devices = &self.domain.machine.devices;
        let answer = devices.ports.lock().read(port, size, self.system.machine.now());
        match answer {
            Read::Value(value) => value,
            Read::Cmos(cell) => u32::from(read_cmos(cell)),
            Read::Physical { and } => crate::port::input(port, size) | and,
            Read::Pci => devices.read_pci_port(port, size),
        }
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        let devices = &self.domain.machine.devices;
        let effect = devices.ports.lock().write(port, size, value);
        match effect {
            Effect::Nothing => {}
            Effect::Cmos { cell, value } => write_cmos(cell, value),
            Effect::Pci => devices.write_pci_port(self.system, self.domain, port, size, value),
            Effect::Reset(kind) => {
                log::info!(target: "power", "{} resets the machine", self.domain.name);
                match kind {
                    Reset::Soft | Reset::Hard | Reset::PowerCycle => {
                        power::stop(&self.system.machine, PowerAction::Reboot)
                    }
                }
            }
            Effect::PowerControl { sleep } => {
                if let Some(sleep) = sleep {
                    if power::resumes(&Physical(*self.system.memory.window()), sleep) {
                        if crate::ratelimit::guest_message() {
                            log::warn!(target: "power", "{}: suspend to RAM is not supported; use suspend to idle (s2idle)", self.domain.name);
                        }
                        devices.ports.lock().wake();
                        return;
                    }
                    // The machine may be off with this write: what Dom0 said last is to be out.
                    (self.system.machine.hooks.console_flush)();
                }
                crate::port::output(port, size, value);
            }
            Effect::PowerStatus => crate::port::output(port, size, value),
            // What Dom0's console does not take in a few milliseconds is lost: a port cannot say so.
            Effect::DebugConsole(byte) => drop(console::write(&self.system.machine, self.domain, &[byte])),
        }
    }

    /// For string instructions: an element in or out.
    pub(super) fn port_element(&mut self, access: &PortAccess, value: Option<u32>) -> u32 {
        match value {
            Some(value) => {
                self.write_port(access.port, access.size, value);
                0
            }
            None => self.read_port(access.port, access.size),
        }
    }
}

/// The chip is one for the machine; interrupts are off and one CPU has the domain's ports, but other CPUs may be here too.
static CMOS: mm::Lock<()> = mm::Lock::new(mm::Rank::Console, ());

pub(crate) fn read_cmos(cell: Cell) -> u8 {
    let _held = CMOS.lock();
    outb(cell.bank.index_port(), cell.index);
    inb(cell.bank.data_port())
}

fn write_cmos(cell: Cell, value: u8) {
    let _held = CMOS.lock();
    outb(cell.bank.index_port(), cell.index);
    outb(cell.bank.data_port(), value);
}
