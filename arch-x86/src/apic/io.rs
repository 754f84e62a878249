//! The physical I/O APICs.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use mm::lock::{Lock, Rank};

use super::vectors::Place;
use crate::vdev::vioapic::MOST_PINS;

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

/// GSIs that a machine may have: some ten times those of the largest. What firmware numbers higher is a mistake.
pub const MOST_GSIS: u32 = 4096;

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

/// Why an I/O APIC that firmware tells of is left alone. Written, it is the end of a line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its registers read as ones.
    NotThere,
    /// Its GSIs would go beyond [`MOST_GSIS`].
    Gsis { base: u32, pins: u32 },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::NotThere => f.write_str("nothing answers there"),
            Unusable::Gsis { base, pins } => {
                write!(f, "its {pins} GSIs begin at {base}, and Corten has room for no more than {MOST_GSIS} of them")
            }
        }
    }
}

/// The GSIs of an I/O APIC whose version register reads `version`. It may claim more pins than its registers can name; the rest
/// are out of reach.
fn gsis(version: u32, base: u32) -> Result<Range<u32>, Unusable> {
    if version == u32::MAX {
        return Err(Unusable::NotThere);
    }
    let pins = ((version >> 16 & 0xff) + 1).min(MOST_PINS as u32);
    match base.checked_add(pins) {
        Some(end) if end <= MOST_GSIS => Ok(base..end),
        _ => Err(Unusable::Gsis { base, pins }),
    }
}

/// Takes an I/O APIC over, all pins masked; what it is: its version and its GSIs.
///
/// # Safety
/// `registers` maps an I/O APIC's page, uncached, for good.
pub unsafe fn add(registers: *mut u32, id: u8, gsi_base: u32) -> Result<(u8, Range<u32>), Unusable> {
    let mut apic = IoApic { registers, id, gsis: gsi_base..gsi_base };
    let version = apic.read(VERSION);
    apic.gsis = gsis(version, gsi_base)?;
    for pin in 0..apic.gsis.len() as u32 {
        apic.write(FIRST_PIN + pin * 2, MASKED);
    }
    let gsis = apic.gsis.clone();
    ALL.lock().push(apic);
    Ok((version as u8, gsis))
}

fn with_pin<R>(gsi: u32, act: impl FnOnce(&IoApic, u32) -> R) -> Option<R> {
    let all = ALL.lock();
    let apic = all.iter().find(|apic| apic.gsis.contains(&gsi))?;
    Some(act(apic, FIRST_PIN + (gsi - apic.gsis.start) * 2))
}

/// Routes a GSI to a vector of a CPU's, masked or not. False if there is no such GSI.
pub fn route(gsi: u32, place: Place, wiring: Wiring, masked: bool) -> bool {
    with_pin(gsi, |apic, pin| {
        let mut low = u32::from(place.vector) | MASKED;
        if wiring.level {
            low |= LEVEL;
        }
        if wiring.active_low {
            low |= ACTIVE_LOW;
        }
        apic.write(pin, low);
        apic.write(pin + 1, u32::from(place.target.apic_id) << 24);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_apic_that_is_not_there_is_left_alone() {
        let mut page = [u32::MAX; 8];
        // SAFETY: memory that this test alone refers to, for as long as `add` looks at it: it does not keep what is not there.
        let added = unsafe { add(page.as_mut_ptr(), 7, 24) };
        assert_eq!(added, Err(Unusable::NotThere));
        assert!(ranges().iter().all(|(id, _)| *id != 7));
    }

    #[test]
    fn pins_are_those_that_registers_can_name() {
        assert_eq!(gsis(0x0017_0011, 0), Ok(0..24));
        assert_eq!(gsis(0x0000_0011, 24), Ok(24..25));
        assert_eq!(gsis(0x00ef_0020, 100), Ok(100..220));
        assert_eq!(gsis(0x00ff_0020, 0), Ok(0..120));
        let last = FIRST_PIN + 119 * 2 + 1;
        assert_eq!(last, 0xff, "the index register has 8 bits");
    }

    #[test]
    fn gsis_are_within_what_is_kept_of_them() {
        let version = 0x0017_0011;
        assert_eq!(gsis(version, MOST_GSIS - 24), Ok(MOST_GSIS - 24..MOST_GSIS));
        for base in [MOST_GSIS - 23, u32::MAX - 24, u32::MAX - 23, u32::MAX] {
            assert_eq!(gsis(version, base), Err(Unusable::Gsis { base, pins: 24 }));
        }
    }
}
