//! A set of numbers as sorted ranges: which ports, frames or interrupts a domain may touch.

use alloc::vec::Vec;
use core::ops::Range;

use xen_abi::errno::Errno;

/// A set of `u64`s, kept as sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range<u64>>,
}

impl RangeSet {
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The index of the first range that ends after `at`, or at it if `touching`.
    fn first_ending(&self, at: u64, touching: bool) -> usize {
        self.ranges.partition_point(|range| if touching { range.end < at } else { range.end <= at })
    }

    /// Adds the numbers of `range`.
    ///
    /// # Errors
    /// ENOMEM; the set is then as before.
    pub fn insert(&mut self, range: Range<u64>) -> Result<(), Errno> {
        if range.is_empty() {
            return Ok(());
        }
        let first = self.first_ending(range.start, true);
        let mut merged = range;
        let mut last = first;
        while let Some(next) = self.ranges.get(last).filter(|next| next.start <= merged.end) {
            merged = merged.start.min(next.start)..merged.end.max(next.end);
            last = last.wrapping_add(1);
        }
        self.ranges.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.ranges.splice(first..last, [merged]);
        Ok(())
    }

    /// Takes the numbers of `range` out.
    ///
    /// # Errors
    /// ENOMEM, as a range may fall in two; the set is then as before.
    pub fn remove(&mut self, range: Range<u64>) -> Result<(), Errno> {
        if range.is_empty() {
            return Ok(());
        }
        self.ranges.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let mut first = self.first_ending(range.start, false);
        let mut last = self.ranges.partition_point(|other| other.start < range.end);
        // The last range cut keeps what lies behind, and the first what lies before; they may be one and the same.
        let behind = last
            .checked_sub(1)
            .and_then(|index| self.ranges.get(index))
            .map(|cut| range.end..cut.end)
            .filter(|rest| first < last && !rest.is_empty());
        if let Some(cut) = self.ranges.get_mut(first).filter(|cut| first < last && cut.start < range.start) {
            cut.end = range.start;
            first = first.wrapping_add(1);
        }
        if let Some(behind) = behind {
            if first < last {
                last = last.wrapping_sub(1);
                if let Some(cut) = self.ranges.get_mut(last) {
                    *cut = behind;
                }
            } else {
                self.ranges.insert(first, behind);
            }
        }
        if first < last {
            self.ranges.drain(first..last);
        }
        Ok(())
    }

    /// Whether `number` is in the set.
    #[inline]
    pub fn contains(&self, number: u64) -> bool {
        self.ranges.get(self.first_ending(number, false)).is_some_and(|range| range.start <= number)
    }

    /// Whether all numbers of `range` are in the set; of an empty range they are.
    pub fn contains_range(&self, range: Range<u64>) -> bool {
        range.is_empty()
            || self
                .ranges
                .get(self.first_ending(range.start, false))
                .is_some_and(|found| found.start <= range.start && range.end <= found.end)
    }

    /// Whether any number of `range` is in the set.
    pub fn overlaps(&self, range: Range<u64>) -> bool {
        !range.is_empty()
            && self.ranges.get(self.first_ending(range.start, false)).is_some_and(|found| found.start < range.end)
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.ranges.iter().cloned()
    }

    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.end.wrapping_sub(range.start)).fold(0, u64::wrapping_add)
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(set: &RangeSet, model: &BTreeSet<u64>) {
        let numbers: Vec<u64> = set.iter().flatten().collect();
        assert_eq!(numbers, model.iter().copied().collect::<Vec<_>>());
        let ranges: Vec<_> = set.iter().collect();
        assert!(ranges.windows(2).all(|two| two[0].end < two[1].start), "{ranges:?} touch or overlap");
        assert!(ranges.iter().all(|range| !range.is_empty()));
        assert_eq!(set.count(), model.len() as u64);
    }

    proptest! {
        #[test]
        fn a_range_set_is_a_set_of_numbers(steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..16), 0..40)) {
            let (mut set, mut model) = (RangeSet::new(), BTreeSet::new());
            for (insert, start, len) in steps {
                let range = start..start + len;
                if insert {
                    set.insert(range.clone()).unwrap();
                    model.extend(range.clone());
                } else {
                    set.remove(range.clone()).unwrap();
                    model.retain(|number| !range.contains(number));
                }
                check(&set, &model);
                prop_assert_eq!(set.contains_range(range.clone()), range.clone().all(|n| model.contains(&n)));
                prop_assert_eq!(set.overlaps(range.clone()), range.clone().any(|n| model.contains(&n)));
            }
            for number in 0..80 {
                prop_assert_eq!(set.contains(number), model.contains(&number));
            }
        }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let mut set = RangeSet::new();
        set.insert(0..4).unwrap();
        set.insert(8..12).unwrap();
        set.insert(4..8).unwrap();
        assert!(set.iter().eq(core::iter::once(0..12)));
    }

    #[test]
    fn a_hole_splits_a_range() {
        let mut set = RangeSet::new();
        set.insert(0..u64::MAX).unwrap();
        set.remove(0x60..0x65).unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0..0x60, 0x65..u64::MAX]);
        assert!(set.contains(0x5f) && !set.contains(0x64) && set.contains(0x65));
    }
}
