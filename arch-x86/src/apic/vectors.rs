//! Which host vector means what. Device vectors are handed out one a GSI or message, the highest are Corten's own.

use core::sync::atomic::{AtomicU32, Ordering};

/// The first and last vector for devices.
const FIRST_DEVICE: u8 = 0x30;
const LAST_DEVICE: u8 = 0xef;

/// Local APIC timer.
pub const TIMER: u8 = 0xf0;
/// Makes a CPU look at its queues.
pub const KICK: u8 = 0xf1;
pub const APIC_ERROR: u8 = 0xfe;
pub const SPURIOUS: u8 = 0xff;

/// Where a device interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Corten's own console.
    Console,
    /// An I/O APIC pin that Dom0 has bound.
    Gsi(u32),
    /// A message-signalled interrupt of Dom0's: an index into its bindings.
    Message(u32),
}

impl Source {
    fn pack(self) -> u32 {
        match self {
            Source::Console => 1 << 30,
            Source::Gsi(gsi) => 2 << 30 | gsi,
            Source::Message(index) => 3 << 30 | index,
        }
    }

    fn unpack(word: u32) -> Option<Source> {
        let value = word & 0x3fff_ffff;
        match word >> 30 {
            1 => Some(Source::Console),
            2 => Some(Source::Gsi(value)),
            3 => Some(Source::Message(value)),
            _ => None,
        }
    }
}

static SOURCES: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// A free vector for `source`; `None` if all are taken.
pub fn allocate(source: Source) -> Option<u8> {
    (FIRST_DEVICE..=LAST_DEVICE).find(|&vector| {
        SOURCES[usize::from(vector)]
            .compare_exchange(0, source.pack(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    })
}

pub fn free(vector: u8) {
    SOURCES[usize::from(vector)].store(0, Ordering::Release);
}

#[inline]
pub fn source(vector: u8) -> Option<Source> {
    Source::unpack(SOURCES[usize::from(vector)].load(Ordering::Acquire))
}
