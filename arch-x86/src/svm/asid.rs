//! Address-space identifiers, by generation: each CPU deals them out in order, and when it has none left it flushes its TLB and begins anew.
//! A vCPU whose translations are to be dropped just takes the next one, under which nothing is cached.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A CPU's identifiers; only that CPU takes from them.
#[derive(Debug)]
pub struct Pool {
    generation: AtomicU64,
    next: AtomicU32,
    /// How many there are, with 0, which is the host's.
    count: u32,
}

/// A vCPU's identifier, as long as its generation is the pool's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asid {
    pub number: u32,
    generation: u64,
}

impl Asid {
    /// One that is no pool's.
    pub const NONE: Asid = Asid { number: 0, generation: 0 };
}

impl Pool {
    pub const fn new(count: u32) -> Pool {
        Pool { generation: AtomicU64::new(1), next: AtomicU32::new(1), count }
    }

    /// Nothing that was cached since under another vCPU is found under this identifier.
    #[inline]
    pub fn is_current(&self, asid: Asid) -> bool {
        asid.generation == self.generation.load(Ordering::Relaxed)
    }

    /// The next identifier. True if the CPU must flush all of its TLB before it is used.
    pub fn take(&self) -> (Asid, bool) {
        let next = self.next.load(Ordering::Relaxed);
        let again = next >= self.count;
        let number = if again { 1 } else { next };
        if again {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        self.next.store(number + 1, Ordering::Relaxed);
        (Asid { number, generation: self.generation.load(Ordering::Relaxed) }, again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_vcpus_share_an_identifier() {
        let pool = Pool::new(4);
        let taken = [pool.take().0, pool.take().0, pool.take().0];
        assert_eq!(taken.map(|asid| asid.number), [1, 2, 3]);
        assert!(taken.iter().all(|asid| pool.is_current(*asid)));
    }

    #[test]
    fn a_new_generation_flushes_and_takes_every_identifier_back() {
        let pool = Pool::new(3);
        let old = pool.take().0;
        assert!(!pool.take().1);
        let (new, flush) = pool.take();
        assert!(flush);
        assert_eq!(new.number, 1);
        assert!(pool.is_current(new) && !pool.is_current(old));
    }

    #[test]
    fn a_cpu_with_a_single_identifier_flushes_every_time() {
        let pool = Pool::new(2);
        assert!(!pool.take().1);
        assert!(pool.take().1);
        assert!(pool.take().1);
    }

    #[test]
    fn a_vcpu_that_has_none_yet_takes_one() {
        assert!(!Pool::new(8).is_current(Asid::NONE));
    }
}
