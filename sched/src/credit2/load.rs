//! Load: how much there is to run, averaged over the past.

use crate::Nanos;

/// Bits of fraction in an average: Xen's default for `credit2_load_precision_shift`.
const FRACTION: u32 = 18;

/// More of them inside, so that many short steps add up.
const INNER: u32 = 14;

/// An exponential average of a number that changes in steps.
///
/// Between two looks the average moves towards what there was by the part of the window that has passed; after a whole window
/// nothing of the past is left.
#[derive(Copy, Clone, Debug, Default)]
pub struct Average {
    value: u64,
    seen: Nanos,
}

/// An average as a fixed-point number; 1 << 18 stands for one vCPU that always wants to run.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load(pub u64);

impl Load {
    pub const ONE: Load = Load(1 << FRACTION);

    /// For each of `cpus`, of which there is one at least.
    pub fn per_cpu(self, cpus: usize) -> Load {
        Load(self.0.checked_div(cpus as u64).unwrap_or(self.0))
    }

    pub const fn saturating_add(self, other: Load) -> Load {
        Load(self.0.saturating_add(other.0))
    }
}

impl Average {
    /// Accounts for the time up to `now`, during which the number was `steady`. The window is `2^window_shift` nanoseconds.
    pub fn advance(&mut self, now: Nanos, steady: usize, window_shift: u32) {
        let passed = now.since(self.seen).0;
        self.seen = self.seen.max(now);
        let target = (steady as u64) << (FRACTION + INNER);
        let window = 1u64.checked_shl(window_shift).unwrap_or(u64::MAX);
        if passed >= window {
            self.value = target;
            return;
        }
        // In 128 bits, which two numbers of 64 cannot overflow.
        let step = |far: u64| (u128::from(far).saturating_mul(u128::from(passed)) >> window_shift) as u64;
        self.value = if target >= self.value {
            self.value.saturating_add(step(target.saturating_sub(self.value)))
        } else {
            self.value.saturating_sub(step(self.value.saturating_sub(target)))
        };
    }

    pub const fn load(&self) -> Load {
        Load(self.value >> INNER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// About a second.
    const WINDOW: u32 = 30;

    #[test]
    fn after_a_whole_window_the_past_is_forgotten() {
        let mut average = Average::default();
        average.advance(Nanos(1 << WINDOW), 9, WINDOW);
        average.advance(Nanos(2 << WINDOW), 3, WINDOW);
        assert_eq!(average.load(), Load(Load::ONE.0 * 3));
    }

    #[test]
    fn half_a_window_moves_it_half_the_way() {
        let mut average = Average::default();
        average.advance(Nanos(1 << (WINDOW - 1)), 4, WINDOW);
        assert_eq!(average.load(), Load(Load::ONE.0 * 2));
        average.advance(Nanos(1 << WINDOW), 0, WINDOW);
        assert_eq!(average.load(), Load(Load::ONE.0));
    }

    #[test]
    fn many_short_steps_add_up() {
        let mut average = Average::default();
        (1..=1 << 20).for_each(|step| average.advance(Nanos(step << 10), 1, WINDOW));
        // The window has passed: all but 1/e is new.
        let expected = Load::ONE.0 * 632 / 1000;
        assert!(average.load().0.abs_diff(expected) < expected / 100, "{:?}", average.load());
    }

    #[test]
    fn a_vcpu_that_is_busy_half_the_time_counts_half() {
        let mut average = Average::default();
        for millisecond in 1..10_000 {
            average.advance(Nanos::from_millis(millisecond), (millisecond % 2) as usize, WINDOW);
        }
        let half = Load::ONE.0 / 2;
        assert!(average.load().0.abs_diff(half) < half / 100, "{:?}", average.load());
    }
}
