//! The physical I/O APICs.

use alloc::vec::Vec;
use core::ops::Range;

use mm::lock::{Lock, Rank};

/// One I/O APIC's registers, mapped uncached.
struct IoApic {
    registers: *mut u32,
    id: u8,
    gsis: Range<u32>,
}

// SAFETY: the registers are device memory that only this module touches, under the lock.
unsafe impl Send for IoApic {}

const INDEX: usize = 0;
const WINDOW: usize = 4;
const VERSION: u32 = 1;
const FIRST_PIN: u32 = 0x10;

const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

static ALL: Lock<Vec<IoApic>> = Lock::new(Rank::Console, Vec::new());

/// How a pin is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wiring {
    pub level: bool,
    pub active_low: bool,
}

impl IoApic {
    fn read(&self, register: u32) -> u32 {
        // SAFETY: index and window are the two registers of a mapped I/O APIC; the lock keeps the pair together.
        unsafe {
            self.registers.add(INDEX).write_volatile(register);
            self.registers.add(WINDOW).read_volatile()
        }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: as for `read`.
        unsafe {
            self.registers.add(INDEX).write_volatile(register);
            self.registers.add(WINDOW).write_volatile(value);
        }
    }
}

/// Takes an I/O APIC over, all pins masked; what it is: its version and number of pins.
///
/// # Safety
/// `registers` maps an I/O APIC's page, uncached, for good.
pub unsafe fn add(registers: *mut u32, id: u8, gsi_base: u32) -> (u8, u32) {
    let mut apic = IoApic { registers, id, gsis: gsi_base..gsi_base };
    let version = apic.read(VERSION);
    let pins = (version >> 16 & 0xff) + 1;
    apic.gsis = gsi_base..gsi_base + pins;
    for pin in 0..pins {
        apic.write(FIRST_PIN + pin * 2, MASKED);
    }
    ALL.lock().push(apic);
    (version as u8, pins)
}

fn with_pin<R>(gsi: u32, act: impl FnOnce(&IoApic, u32) -> R) -> Option<R> {
    let all = ALL.lock();
    let apic = all.iter().find(|apic| apic.gsis.contains(&gsi))?;
    Some(act(apic, FIRST_PIN + (gsi - apic.gsis.start) * 2))
}

/// Routes a GSI to `vector` on the CPU with this APIC id, masked or not. False if there is no such GSI.
pub fn route(gsi: u32, vector: u8, apic_id: u32, wiring: Wiring, masked: bool) -> bool {
    with_pin(gsi, |apic, pin| {
        let mut low = u32::from(vector) | MASKED;
        if wiring.level {
            low |= LEVEL;
        }
        if wiring.active_low {
            low |= ACTIVE_LOW;
        }
        apic.write(pin, low);
        apic.write(pin + 1, apic_id << 24);
        if !masked {
            apic.write(pin, low & !MASKED);
        }
    })
    .is_some()
}

pub fn set_masked(gsi: u32, masked: bool) {
    with_pin(gsi, |apic, pin| {
        let low = apic.read(pin);
        apic.write(pin, if masked { low | MASKED } else { low & !MASKED });
    });
}

/// Each I/O APIC's id and its GSIs.
pub fn ranges() -> Vec<(u8, Range<u32>)> {
    ALL.lock().iter().map(|apic| (apic.id, apic.gsis.clone())).collect()
}
