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

/// Which vectors are taken, and by whom.
struct Vectors([AtomicU32; 256]);

static ALL: Vectors = Vectors::new();

impl Vectors {
    const fn new() -> Vectors {
        Vectors([const { AtomicU32::new(0) }; 256])
    }

    fn take(&self, vector: u8, source: Source) -> bool {
        self.0[usize::from(vector)].compare_exchange(0, source.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn take_row(&self, log2: u8, source: impl Fn(u8) -> Source) -> Option<u8> {
        let count = 1u8.checked_shl(log2.into())?;
        let first = FIRST_DEVICE.checked_next_multiple_of(count)?;
        let mut starts = (first..=LAST_DEVICE - (count - 1)).step_by(count.into());
        starts.find(|&first| {
            let taken = (0..count).take_while(|&index| self.take(first + index, source(index))).count();
            let whole = taken == usize::from(count);
            if !whole {
                (first..).take(taken).for_each(|vector| self.free(vector));
            }
            whole
        })
    }

    fn free(&self, vector: u8) {
        self.0[usize::from(vector)].store(0, Ordering::Release);
    }

    #[inline]
    fn source(&self, vector: u8) -> Option<Source> {
        Source::unpack(self.0[usize::from(vector)].load(Ordering::Acquire))
    }
}

/// A free vector for `source`; `None` if all are taken.
pub fn allocate(source: Source) -> Option<u8> {
    ALL.take_row(0, |_| source)
}

/// 2^`log2` free vectors in a row, the first a multiple of that many: a function that sends several messages varies the low
/// bits of its data. `source` tells the source of each, counted from 0. The first vector; `None` if no such row is free.
pub fn allocate_row(log2: u8, source: impl Fn(u8) -> Source) -> Option<u8> {
    ALL.take_row(log2, source)
}

pub fn free(vector: u8) {
    ALL.free(vector);
}

#[inline]
pub fn source(vector: u8) -> Option<Source> {
    ALL.source(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_aligned_and_whole_or_not_taken_at_all() {
        let vectors = Vectors::new();
        let single = vectors.take_row(0, |_| Source::Gsi(1));
        assert_eq!(single, Some(FIRST_DEVICE));
        assert_eq!(vectors.take_row(2, |index| Source::Message(100 + u32::from(index))), Some(FIRST_DEVICE + 4));
        assert_eq!(vectors.source(FIRST_DEVICE + 7), Some(Source::Message(103)));
        while vectors.take_row(4, |_| Source::Console).is_some() {}
        assert_eq!(vectors.source(FIRST_DEVICE + 1), None, "what a row that is not free had taken is free again");
        assert_eq!(vectors.take_row(1, |_| Source::Console), Some(FIRST_DEVICE + 2));
        assert_eq!(vectors.take_row(8, |_| Source::Console), None);
    }

    #[test]
    fn what_is_freed_is_given_again_and_what_is_corten_s_never_is() {
        let vectors = Vectors::new();
        let taken = core::iter::from_fn(|| vectors.take_row(0, |_| Source::Console)).count();
        assert_eq!(taken, usize::from(LAST_DEVICE - FIRST_DEVICE) + 1);
        assert!((TIMER..=SPURIOUS).all(|vector| vectors.source(vector).is_none()));
        vectors.free(0x77);
        assert_eq!(vectors.take_row(0, |_| Source::Gsi(3)), Some(0x77));
    }
}
