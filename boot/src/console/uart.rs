//! The serial port. Nothing here waits for it: what it does not take now, it takes later.

use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{IER, LSR, Parity as UartParity, WordLength};
use uart_16550::{BaudRate, Config, Uart16550};

use crate::options::{Parity, SerialOptions};

/// How often an answer is awaited before a port is given up. A read of a port takes about a microsecond, so this is a second.
const PATIENCE: u32 = 1_000_000;

/// A 16550 that answered.
pub struct Uart {
    device: Uart16550<PioBackend>,
    base: u16,
    interrupts: IER,
}

impl Uart {
    /// Sets a port up. `None` if nothing is there, or nothing that works.
    pub fn open(options: &SerialOptions) -> Option<Self> {
        // SAFETY: the port is the console's alone (the user says so), and Dom0 is kept off it.
        let mut device = unsafe { Uart16550::new_port(options.port).ok()? };
        if !device.check_present() {
            return None;
        }
        // The boot loader's last words may still be on their way; the driver would wait for them, and on a broken device for ever.
        let mut tries = 0;
        while !device.lsr().contains(LSR::TRANSMITTER_EMPTY) {
            tries += 1;
            if tries == PATIENCE {
                return None;
            }
        }
        let baud = options.baud.unwrap_or_else(|| match device.dll_dlm() {
            (low, high) if (low, high) != (0, 0) => 115_200 / (u32::from(high) << 8 | u32::from(low)),
            _ => 115_200,
        });
        let config = Config {
            baud_rate: BaudRate::from_integer(baud),
            data_bits: match options.data_bits {
                5 => WordLength::FiveBits,
                6 => WordLength::SixBits,
                7 => WordLength::SevenBits,
                _ => WordLength::EightBits,
            },
            parity: match options.parity {
                Parity::None => UartParity::Disabled,
                Parity::Odd => UartParity::Odd,
                Parity::Even => UartParity::Even,
                Parity::Mark => UartParity::Forced1,
                Parity::Space => UartParity::Forced0,
            },
            extra_stop_bits: options.two_stop_bits,
            ..Config::DEFAULT
        };
        device.init(config).ok()?;
        Some(Self { device, base: options.port, interrupts: IER::empty() })
    }

    /// Its first I/O port.
    pub fn base(&self) -> u16 {
        self.base
    }

    /// Everything that it was given is on the line: not even its FIFO holds anything.
    pub fn is_idle(&self) -> bool {
        const LINE_STATUS: u16 = 5;
        const TRANSMITTER_EMPTY: u8 = 1 << 6;
        // SAFETY: reading the status of the console's own port changes nothing that is not read elsewhere.
        unsafe { x86_64::instructions::port::Port::<u8>::new(self.base + LINE_STATUS).read() & TRANSMITTER_EMPTY != 0 }
    }

    /// A byte that it has received.
    pub fn receive(&mut self) -> Option<u8> {
        self.device.try_receive_byte().ok()
    }

    /// Reads the reason for an interrupt, which is how the device knows that it was taken.
    pub fn acknowledge(&mut self) {
        let _ = self.device.isr();
    }
}

impl super::Port for Uart {
    /// None, or up to a FIFO's worth.
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.device.send_bytes(bytes)
    }

    /// It also interrupts for received bytes.
    fn set_interrupts(&mut self, more: bool) {
        let wanted = if more { IER::DATA_READY | IER::THR_EMPTY } else { IER::DATA_READY };
        if wanted != self.interrupts {
            self.device.disable_interrupts(self.interrupts - wanted);
            self.device.enable_interrupts(wanted);
            self.interrupts = wanted;
        }
    }
}

/// Writes to a port that was set up before, waiting for it, but not for ever; no lock, no state. For when Corten is going down.
pub fn send_now(base: u16, text: &[u8]) {
    const LINE_STATUS: u16 = 5;
    const CAN_TAKE_MORE: u8 = 1 << 5;
    use x86_64::instructions::port::Port;
    for &byte in text {
        let mut tries = 0;
        // SAFETY: the console's own port; reading its status changes nothing that matters now.
        while unsafe { Port::<u8>::new(base + LINE_STATUS).read() } & CAN_TAKE_MORE == 0 {
            tries += 1;
            if tries == PATIENCE {
                return;
            }
        }
        // SAFETY: as above; a byte to be sent.
        unsafe { Port::<u8>::new(base).write(byte) };
    }
}
