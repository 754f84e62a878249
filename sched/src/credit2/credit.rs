//! Credit, and how it burns.

use crate::{Nanos, Weight};

/// A point on a run queue's scale of service: it sinks as a vCPU runs, the faster the less the vCPU weighs. A vCPU's *credit* is how far
/// its level is above the queue's floor, so that a reset (everyone gets credit) is a lowering of the floor: one addition, however many
/// vCPUs there are.
///
/// One of weight 65536 would sink by 1 a nanosecond. One of weight 1 sinks by 2^16, so that 64 bits would last for a day and a half: hence 128.
pub(super) type Level = i128;

/// The nanoseconds that the heaviest vCPU may run on its credit after a reset: 10 ms.
pub(super) const FULL: Nanos = Nanos::from_millis(10);

/// What one of weight 65536 would burn in a nanosecond is 1.
const SCALE_BITS: u32 = 16;

/// More than a day and a half at a stretch burns no more: it is forgiven at the next reset anyway, and the product fits 64 bits.
const LONGEST: u64 = 1 << (u64::BITS - SCALE_BITS - 1);

/// What `weight` burns in `span`, and the fraction left over (in `1/weight`), which the next call takes into account: short runs lose nothing to
/// rounding.
pub(super) fn burn(span: Nanos, weight: Weight, fraction: u32) -> (Level, u32) {
    let weight = u64::from(weight.get());
    let product = (span.0.min(LONGEST.saturating_sub(1)) << SCALE_BITS).saturating_add(u64::from(fraction));
    let burnt = product.checked_div(weight).unwrap_or(product);
    let left = product.wrapping_sub(burnt.wrapping_mul(weight));
    (Level::from(burnt), left as u32)
}

/// How long it takes `weight` to burn so much, rounded up. Nothing if there is nothing to burn.
pub(super) fn time_to_burn(level: Level, weight: Weight) -> Nanos {
    let Ok(level) = u64::try_from(level) else { return if level < 0 { Nanos::ZERO } else { Nanos::MAX } };
    // `level >> 16` first would lose the precision; what is so large that the product overflows is beyond any time slice.
    let product = level.saturating_mul(u64::from(weight.get()));
    Nanos((product >> SCALE_BITS).saturating_add(1))
}

/// What [`FULL`] is on the scale where the heaviest has a weight of `2^bits` to `2^(bits+1) - 1`.
const fn full(bits: u32) -> Level {
    ((FULL.0 as Level) << SCALE_BITS) >> bits
}

fn class(weight: Weight) -> u32 {
    u32::from(weight.get()).ilog2()
}

/// How many vCPUs there are of each class of weight: the heaviest sets what a full credit is, to a factor of two.
#[derive(Debug, Default)]
pub(super) struct Weights([u32; 16]);

impl Weights {
    pub fn add(&mut self, weight: Weight) {
        if let Some(count) = self.0.get_mut(class(weight) as usize) {
            *count = count.saturating_add(1);
        }
    }

    pub fn remove(&mut self, weight: Weight) {
        if let Some(count) = self.0.get_mut(class(weight) as usize) {
            *count = count.saturating_sub(1);
        }
    }

    pub fn full(&self) -> Level {
        full(self.0.iter().rposition(|&count| count > 0).unwrap_or(0) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weight(weight: u32) -> Weight {
        Weight::new(weight).unwrap()
    }

    #[test]
    fn twice_the_weight_burns_half() {
        let (a, _) = burn(Nanos::from_millis(1), weight(256), 0);
        let (b, _) = burn(Nanos::from_millis(1), weight(512), 0);
        assert_eq!((a, a), (1_000_000 * 256, 2 * b));
    }

    #[test]
    fn running_for_years_at_a_stretch_does_not_overflow() {
        assert!(burn(Nanos::MAX, weight(1), 0).0 > 0);
        assert_eq!(time_to_burn(Level::MAX, weight(65535)), Nanos::MAX);
        assert_eq!(time_to_burn(-1, weight(1)), Nanos::ZERO);
    }

    #[test]
    fn the_heaviest_runs_for_ten_milliseconds_on_a_full_credit() {
        for w in [1, 2, 256, 32768] {
            assert_eq!(time_to_burn(full(class(weight(w))), weight(w)).0, FULL.0 + 1, "{w}");
        }
        let longest = time_to_burn(full(class(weight(65535))), weight(65535));
        assert!(longest < Nanos::from_millis(20), "{longest}");
    }

    proptest! {
        #[test]
        fn many_short_runs_burn_as_much_as_a_long_one(w in 1..65536u32, spans in prop::collection::vec(0..100_000u64, 1..50)) {
            let (mut total, mut fraction) = (0, 0);
            for &span in &spans {
                let (burnt, left) = burn(Nanos(span), weight(w), fraction);
                (total, fraction) = (total + burnt, left);
            }
            prop_assert_eq!((total, fraction), burn(Nanos(spans.iter().sum()), weight(w), 0));
        }

        #[test]
        fn after_the_time_to_burn_it_is_burnt(w in 1..65536u32, level in 0..1i128 << 40) {
            let span = time_to_burn(level, weight(w));
            prop_assert!(burn(span, weight(w), 0).0 >= level);
            prop_assert!(span.0 < 2 || burn(Nanos(span.0 - 2), weight(w), 0).0 < level);
        }
    }
}
