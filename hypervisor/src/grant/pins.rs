//! How often an entry of a grant table is in use.
//!
//! The first use sets the entry's status bits, the last one clears them. Both are one step for whoever looks at the count, so each
//! count has a lock of one bit, held for a few dozen instructions; uses of different entries share nothing.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, Ordering};

use xen_abi::grant::{GTF_READING, GTF_WRITING};

use super::Refused;

/// The uses of one entry: bits 0-15 those that read only, bits 16-30 those that write as well, bit 31 the lock.
#[derive(Default)]
pub struct Pins(AtomicU32);

const LOCKED: u32 = 1 << 31;
const READER: u32 = 1;
const WRITER: u32 = 1 << 16;
const READERS: u32 = 0xffff;
const WRITERS: u32 = 0x7fff;

impl Pins {
    /// Waits for the count and takes it.
    #[inline]
    pub fn lock(&self) -> Held<'_> {
        loop {
            let seen = self.0.load(Ordering::Relaxed);
            if seen & LOCKED == 0
                // SeqCst: who holds a count reads the table's version next; who changes the version reads the counts next. One of
                // the two sees the other.
                && self.0.compare_exchange_weak(seen, seen | LOCKED, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            {
                return Held { pins: self, count: Count(seen) };
            }
            spin_loop();
        }
    }

    /// Nobody uses the entry, nor is about to.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

/// The uses of an entry, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(u32);

impl Count {
    const fn readers(self) -> u32 {
        self.0 & READERS
    }

    const fn writers(self) -> u32 {
        self.0 >> 16 & WRITERS
    }

    pub const fn is_zero(self) -> bool {
        self.0 & !LOCKED == 0
    }

    /// The status bits that these uses call for.
    pub const fn flags(self) -> u16 {
        if self.writers() != 0 {
            GTF_READING | GTF_WRITING
        } else if self.readers() != 0 {
            GTF_READING
        } else {
            0
        }
    }
}

/// An entry's count, held.
#[must_use]
pub struct Held<'a> {
    pins: &'a Pins,
    count: Count,
}

impl Held<'_> {
    #[inline]
    pub fn count(&self) -> Count {
        self.count
    }

    /// One use more. `NoRoom` if there are too many already.
    #[inline]
    pub fn add(&mut self, write: bool) -> Result<(), Refused> {
        let (full, one) =
            if write { (self.count.writers() == WRITERS, WRITER) } else { (self.count.readers() == READERS, READER) };
        if full {
            return Err(Refused::NoRoom);
        }
        self.count = Count(self.count.0.wrapping_add(one));
        Ok(())
    }

    /// One use fewer; the status bits that go with it.
    #[inline]
    pub fn remove(&mut self, write: bool) -> u16 {
        let before = self.count;
        let (none, one) = if write { (before.writers() == 0, WRITER) } else { (before.readers() == 0, READER) };
        // Every use that ends has begun; were that not so, the count must not wrap.
        if !none {
            self.count = Count(before.0.wrapping_sub(one));
        }
        before.flags() & !self.count.flags()
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.pins.0.store(self.count.0 & !LOCKED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_writer_clears_writing_and_the_last_user_reading() {
        let pins = Pins::default();
        pins.lock().add(true).unwrap();
        pins.lock().add(false).unwrap();
        assert_eq!(pins.lock().count().flags(), GTF_READING | GTF_WRITING);
        assert_eq!(pins.lock().remove(true), GTF_WRITING);
        assert!(!pins.is_idle());
        assert_eq!(pins.lock().remove(false), GTF_READING);
        assert!(pins.is_idle());
    }

    #[test]
    fn a_lone_writer_clears_both_bits() {
        let pins = Pins::default();
        pins.lock().add(true).unwrap();
        assert_eq!(pins.lock().remove(true), GTF_READING | GTF_WRITING);
    }

    #[test]
    fn a_count_that_is_full_refuses_one_more() {
        let pins = Pins::default();
        for _ in 0..WRITERS {
            pins.lock().add(true).unwrap();
        }
        assert_eq!(pins.lock().add(true), Err(Refused::NoRoom));
        assert_eq!(pins.lock().count().writers(), WRITERS);
        assert_eq!(pins.lock().count().readers(), 0);
    }

    #[test]
    fn counts_survive_contention() {
        let pins = Pins::default();
        std::thread::scope(|scope| {
            for write in [false, true, false, true] {
                let pins = &pins;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        pins.lock().add(write).unwrap();
                        pins.lock().remove(write);
                    }
                });
            }
        });
        assert!(pins.is_idle());
    }
}
