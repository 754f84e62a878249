//! Sets of physical CPUs.

use crate::CpuId;
use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign};

const WORDS: usize = 4;
const BITS: usize = 64;

/// A set of CPUs, one bit each. A plain value: it is copied, compared and combined, and takes no memory of its own.
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    words: [u64; WORDS],
}

impl CpuSet {
    /// How many CPUs there can be: numbers from here on are never members.
    pub const MAX: usize = WORDS * BITS;
    pub const EMPTY: CpuSet = CpuSet { words: [0; WORDS] };
    pub const ALL: CpuSet = CpuSet { words: [u64::MAX; WORDS] };

    pub fn of(cpu: CpuId) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        set.insert(cpu);
        set
    }

    /// CPUs `0..count`.
    pub fn first_of_all(count: usize) -> CpuSet {
        (0..count.min(CpuSet::MAX)).map(|cpu| CpuId(cpu as u32)).collect()
    }

    /// Does nothing for a CPU beyond [`CpuSet::MAX`].
    #[inline]
    pub fn insert(&mut self, cpu: CpuId) {
        if let Some(word) = self.words.get_mut(cpu.index() / BITS) {
            *word |= bit(cpu);
        }
    }

    #[inline]
    pub fn remove(&mut self, cpu: CpuId) {
        if let Some(word) = self.words.get_mut(cpu.index() / BITS) {
            *word &= !bit(cpu);
        }
    }

    #[inline]
    pub fn contains(&self, cpu: CpuId) -> bool {
        self.words.get(cpu.index() / BITS).is_some_and(|word| word & bit(cpu) != 0)
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The member with the lowest number.
    #[inline]
    pub fn first(&self) -> Option<CpuId> {
        let (index, word) = self.words.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some(number(index, *word))
    }

    #[inline]
    pub fn intersects(&self, other: &CpuSet) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    pub fn is_subset(&self, other: &CpuSet) -> bool {
        self.words.iter().zip(&other.words).all(|(a, b)| a & !b == 0)
    }

    pub fn iter(&self) -> impl Iterator<Item = CpuId> + use<> {
        let mut left = *self;
        core::iter::from_fn(move || {
            let next = left.first()?;
            left.remove(next);
            Some(next)
        })
    }

    /// The members that are not in the other set.
    #[inline]
    #[must_use]
    pub fn without(self, other: CpuSet) -> CpuSet {
        self.each(other, |a, b| a & !b)
    }

    fn each(self, other: CpuSet, combine: impl Fn(u64, u64) -> u64) -> CpuSet {
        let mut words = self.words;
        for (word, other) in words.iter_mut().zip(other.words) {
            *word = combine(*word, other);
        }
        CpuSet { words }
    }
}

const fn bit(cpu: CpuId) -> u64 {
    1u64.wrapping_shl(cpu.0)
}

/// The lowest member in word `index`, which is not 0.
const fn number(index: usize, word: u64) -> CpuId {
    CpuId((index as u32).wrapping_mul(BITS as u32).wrapping_add(word.trailing_zeros()))
}

impl BitAnd for CpuSet {
    type Output = CpuSet;

    #[inline]
    fn bitand(self, other: CpuSet) -> CpuSet {
        self.each(other, |a, b| a & b)
    }
}

impl BitOr for CpuSet {
    type Output = CpuSet;

    #[inline]
    fn bitor(self, other: CpuSet) -> CpuSet {
        self.each(other, |a, b| a | b)
    }
}

impl BitOrAssign for CpuSet {
    #[inline]
    fn bitor_assign(&mut self, other: CpuSet) {
        *self = *self | other;
    }
}

impl FromIterator<CpuId> for CpuSet {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

/// As `xl vcpu-list` shows it: `0-3,8`.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for first in self.iter() {
            let before = first.0.checked_sub(1).is_some_and(|before| self.contains(CpuId(before)));
            if before {
                continue;
            }
            let last = (first.0..).take_while(|&cpu| self.contains(CpuId(cpu))).last().unwrap_or(first.0);
            write!(f, "{separator}{}", first.0)?;
            if last > first.0 {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(cpus: &BTreeSet<u32>) -> CpuSet {
        cpus.iter().map(|&cpu| CpuId(cpu)).collect()
    }

    #[test]
    fn a_set_prints_as_ranges() {
        assert_eq!(set(&[0, 1, 2, 3, 8, 63, 64, 255].into()).to_string(), "0-3,8,63-64,255");
        assert_eq!(CpuSet::EMPTY.to_string(), "");
    }

    #[test]
    fn a_cpu_beyond_the_last_is_never_a_member() {
        let mut set = CpuSet::ALL;
        set.insert(CpuId(256));
        assert!(!set.contains(CpuId(256)) && set.contains(CpuId(255)));
        assert_eq!(set.len(), CpuSet::MAX);
    }

    proptest! {
        #[test]
        fn a_set_agrees_with_an_ordered_set(
            a in prop::collection::btree_set(0..256u32, 0..40),
            b in prop::collection::btree_set(0..256u32, 0..40),
            cpu in 0..256u32,
        ) {
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(x.iter().map(|cpu| cpu.0).collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x & y, set(&(&a & &b)));
            prop_assert_eq!(x | y, set(&(&a | &b)));
            prop_assert_eq!(x.without(y), set(&(&a - &b)));
            prop_assert_eq!(x.intersects(&y), !a.is_disjoint(&b));
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.first().map(|cpu| cpu.0), a.first().copied());
            prop_assert_eq!(x.contains(CpuId(cpu)), a.contains(&cpu));
        }
    }
}
