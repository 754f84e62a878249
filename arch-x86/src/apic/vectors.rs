//! Which host vector means what, on each CPU. Device vectors are handed out one a GSI or message, the highest are Corten's own.

use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use sched::CpuId;

/// The first and last vector for devices.
const FIRST_DEVICE: u8 = 0x30;
const LAST_DEVICE: u8 = 0xef;
const DEVICES: usize = LAST_DEVICE as usize - FIRST_DEVICE as usize + 1;

/// The CPUs with a number below are those that devices interrupt.
pub const CPUS: usize = 16;
/// One more than the highest [index](Place::index).
pub const PLACES: usize = CPUS * DEVICES;

/// A CPU that devices can interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub cpu: CpuId,
    /// Without interrupt remapping a message has 8 bits for it; all ones stand for every CPU.
    pub apic_id: u8,
}

/// CPUs in the order in which they are asked for a vector.
pub type Targets = ArrayVec<Target, CPUS>;

/// A vector of one CPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub target: Target,
    pub vector: u8,
}

impl Place {
    /// Counts the vectors that devices can have on any CPU.
    pub fn index(self) -> usize {
        self.target.cpu.index() * DEVICES + usize::from(self.vector.saturating_sub(FIRST_DEVICE))
    }

    /// The place `count` vectors further on.
    pub fn plus(self, count: u8) -> Place {
        Place { vector: self.vector.saturating_add(count), ..self }
    }
}

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
    /// A message-signalled interrupt of Dom0's: the [index](Place::index) of its place.
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

/// Which vectors of a CPU are taken, and by whom.
struct Vectors([AtomicU32; 256]);

static ALL: [Vectors; CPUS] = [const { Vectors::new() }; CPUS];

impl Vectors {
    const fn new() -> Vectors {
        Vectors([const { AtomicU32::new(0) }; 256])
    }

    fn take(&self, vector: u8, source: Source) -> bool {
        self.0[usize::from(vector)].compare_exchange(0, source.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// `source` tells the source of each vector.
    fn take_row(&self, log2: u8, source: impl Fn(u8) -> Source) -> Option<u8> {
        let count = 1u8.checked_shl(log2.into())?;
        let first = FIRST_DEVICE.checked_next_multiple_of(count)?;
        let mut starts = (first..=LAST_DEVICE - (count - 1)).step_by(count.into());
        starts.find(|&first| {
            let taken = (first..).take(count.into()).take_while(|&vector| self.take(vector, source(vector))).count();
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

/// A free vector for `source` on one of these CPUs; `None` if all are taken.
pub fn allocate(targets: &Targets, source: Source) -> Option<Place> {
    allocate_row(targets, 0, |_| source)
}

/// 2^`log2` free vectors in a row on one of these CPUs, the first a multiple of that many: a function that sends several messages varies the low
/// bits of its data. `source` tells the source of each. The first of them; `None` if no such row is free.
pub fn allocate_row(targets: &Targets, log2: u8, source: impl Fn(Place) -> Source) -> Option<Place> {
    targets.iter().find_map(|&target| {
        let vectors = ALL.get(target.cpu.index())?;
        let vector = vectors.take_row(log2, |vector| source(Place { target, vector }))?;
        Some(Place { target, vector })
    })
}

pub fn free(place: Place) {
    if let Some(vectors) = ALL.get(place.target.cpu.index()) {
        vectors.free(place.vector);
    }
}

/// What a vector means on a CPU.
#[inline]
pub fn source(cpu: CpuId, vector: u8) -> Option<Source> {
    ALL.get(cpu.index())?.source(vector)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_row_is_aligned_and_whole_or_not_taken_at_all() {
        let vectors = Vectors::new();
        let single = vectors.take_row(0, |_| Source::Gsi(1));
        assert_eq!(single, Some(FIRST_DEVICE));
        assert_eq!(vectors.take_row(2, |vector| Source::Message(vector.into())), Some(FIRST_DEVICE + 4));
        assert_eq!(vectors.source(FIRST_DEVICE + 7), Some(Source::Message(u32::from(FIRST_DEVICE) + 7)));
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

    // The last two CPUs: nobody else here asks for those.
    #[test]
    fn when_one_cpu_has_no_vector_left_the_next_has() {
        let target = |back: u32| Target { cpu: CpuId(CPUS as u32 - back), apic_id: 8 };
        let targets: Targets = [target(1), target(2), target(0)].into_iter().collect();
        let all: Vec<Place> = core::iter::from_fn(|| allocate_row(&targets, 4, |_| Source::Console)).collect();
        let row = DEVICES / 16;
        assert_eq!(all.len(), 2 * row);
        assert!(all[..row].iter().all(|place| place.target == target(1)));
        assert_eq!(source(target(2).cpu, 0x30), Some(Source::Console));
        let mut indices: Vec<usize> = all.iter().flat_map(|&row| (0..16).map(move |n| row.plus(n).index())).collect();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!((indices.len(), indices.last()), (2 * DEVICES, Some(&(PLACES - 1))));
        free(all[row + 1].plus(3));
        assert_eq!(allocate(&targets, Source::Gsi(1)), Some(all[row + 1].plus(3)));
    }
}
