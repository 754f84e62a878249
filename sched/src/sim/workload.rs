//! What a vCPU does with its time.

use crate::Nanos;
use alloc::vec::Vec;

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }

    /// Between half of a span and one and a half of it.
    pub fn around(&mut self, span: Nanos) -> Nanos {
        Nanos(span.0 / 2 + self.below(span.0 + 1))
    }
}

/// How a vCPU alternates between wanting to run and sleeping.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Never sleeps.
    Hog,
    /// Never sleeps, but yields each time that it has run for so long.
    Yielder(Nanos),
    /// Runs and sleeps for so long on average.
    Sleeper { run: Nanos, sleep: Nanos },
    /// Runs and sleeps exactly so, over and over.
    Script(Vec<(Nanos, Nanos)>),
}

/// What ends a stretch of running.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Sleep(Nanos),
    Yield,
}

/// A pattern being played.
#[derive(Clone, Debug)]
pub(super) struct Player {
    pattern: Pattern,
    random: Random,
    step: usize,
}

impl Player {
    pub fn new(pattern: Pattern, seed: u64) -> Player {
        Player { pattern, random: Random(seed), step: 0 }
    }

    /// How long it runs next, and then what.
    pub fn next(&mut self) -> (Nanos, Then) {
        match &self.pattern {
            Pattern::Hog => (Nanos::MAX, Then::Yield),
            Pattern::Yielder(run) => (*run, Then::Yield),
            Pattern::Sleeper { run, sleep } => (self.random.around(*run), Then::Sleep(self.random.around(*sleep))),
            Pattern::Script(steps) => {
                let (run, sleep) = steps[self.step % steps.len()];
                self.step += 1;
                (run, Then::Sleep(sleep))
            }
        }
    }
}
