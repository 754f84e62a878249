//! Finding the functions of a segment: from its root buses through the bridges.

use super::config::register;
use super::{Function, Header, PciHost, Sbdf, Width};

/// Buses of a segment, a bit each.
#[derive(Default)]
struct Buses([u128; 2]);

impl Buses {
    /// Adds a bus; false if it was there.
    fn insert(&mut self, bus: u8) -> bool {
        let [low, high] = &mut self.0;
        let half = if bus < 128 { low } else { high };
        let bit = 1u128 << (bus & 127);
        let new = *half & bit == 0;
        *half |= bit;
        new
    }

    /// Takes the lowest bus.
    fn take(&mut self) -> Option<u8> {
        for (half, first) in self.0.iter_mut().zip([0u8, 128]) {
            if *half != 0 {
                let bus = half.trailing_zeros() as u8;
                *half &= half.wrapping_sub(1);
                return Some(first | bus);
            }
        }
        None
    }
}

/// Calls `found` with every function that is reached from `roots`, each once, faulty ones included. A machine may have several root buses,
/// and only AML says which: what is no root, or not there, may be among them, and costs a read for each of its devices. A bus that was
/// reached before is not looked at again. It stops early when `found` answers false.
pub fn scan(
    host: &impl PciHost,
    segment: u16,
    roots: impl IntoIterator<Item = u8>,
    mut found: impl FnMut(Function) -> bool,
) {
    let (mut seen, mut waiting) = (Buses::default(), Buses::default());
    let mut roots = roots.into_iter();
    while let Some(bus) = waiting.take().or_else(|| roots.find(|&bus| seen.insert(bus))) {
        for device in 0..32 {
            for function in 0..8 {
                let sbdf = Sbdf::new(segment, bus, device, function);
                if let Some(it) = Function::probe(host, sbdf) {
                    if let Header::Bridge { secondary } = it.header {
                        // Zero: not configured yet.
                        if secondary != 0 && !seen.insert(secondary) {
                            log::warn!(
                                target: "pci", "{sbdf}: bridge to bus {secondary:02x}, which was found before; not followed"
                            );
                        } else if secondary != 0 {
                            waiting.insert(secondary);
                        }
                    }
                    if let Some(fault) = it.fault {
                        log::warn!(target: "pci", "{sbdf}: {fault}; the device is hidden");
                    }
                    if !found(it) {
                        return;
                    }
                } else if function == 0 {
                    break;
                }
                // Without the multifunction bit the other seven do not exist, or are the first one again.
                if function == 0 && host.read(sbdf, register::HEADER, Width::Byte) & 0x80 == 0 {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
