//! The range coder, and what is made of its bits: trees, literals, lengths and distances.

use super::model::{Distances, Lengths, Literal, Probability, cell};

const PROBABILITY_BITS: u32 = 11;
const ADAPT: u32 = 5;
/// Below it the range has too few bits.
const TOP: u32 = 1 << 24;

/// The lengths of the shortest match, and the number of those that each of the first two trees of lengths has.
const SHORTEST: usize = 2;
const A_TREE: usize = 8;

/// Slots from here on have bits that are not in their number.
const FIRST_SLOT_WITH_BITS: u32 = 4;
/// Slots from here on have bits that are not adapted to.
const FIRST_SLOT_WITH_DIRECT_BITS: u32 = 14;
const ALIGN_BITS: u32 = 4;

#[derive(Clone)]
pub struct Range<'a> {
    range: u32,
    code: u32,
    input: core::slice::Iter<'a, u8>,
    /// More was asked for than there is; zeroes were taken instead.
    overrun: bool,
}

impl<'a> Range<'a> {
    /// Begins with five bytes of `input`; `None` if it has them not, or if the first is not 0 as it must be.
    pub fn new(input: &'a [u8]) -> Option<Range<'a>> {
        let ([zero, code @ ..], input) = input.split_first_chunk::<5>()?;
        (*zero == 0).then(|| Range {
            range: u32::MAX,
            code: u32::from_be_bytes(*code),
            input: input.iter(),
            overrun: false,
        })
    }

    pub fn overrun(&self) -> bool {
        self.overrun
    }

    /// All input was taken, and the coder is where the packer left it.
    pub fn finished(&mut self) -> bool {
        self.normalize();
        self.code == 0 && self.input.as_slice().is_empty() && !self.overrun
    }

    #[inline(always)]
    fn normalize(&mut self) {
        if self.range < TOP {
            self.range <<= 8;
            let byte = match self.input.next() {
                Some(byte) => *byte,
                None => {
                    self.overrun = true;
                    0
                }
            };
            self.code = self.code << 8 | u32::from(byte);
        }
    }

    /// One decision, whose probability adapts to it. What follows from it is said here, so that there is one branch and not two.
    #[inline(always)]
    fn decide<T>(&mut self, probability: &mut Probability, zero: impl FnOnce() -> T, one: impl FnOnce() -> T) -> T {
        self.normalize();
        let chance = u32::from(*probability);
        let bound = (self.range >> PROBABILITY_BITS).wrapping_mul(chance);
        let rest = self.code.wrapping_sub(bound);
        if self.code < bound {
            self.range = bound;
            *probability = chance.wrapping_add((1u32 << PROBABILITY_BITS).wrapping_sub(chance) >> ADAPT) as Probability;
            zero()
        } else {
            self.range = self.range.wrapping_sub(bound);
            self.code = rest;
            *probability = chance.wrapping_sub(chance >> ADAPT) as Probability;
            one()
        }
    }

    #[inline(always)]
    pub fn bit(&mut self, probability: &mut Probability) -> bool {
        self.decide(probability, || false, || true)
    }

    /// `symbol` with one more bit at its lower end.
    #[inline(always)]
    fn extend(&mut self, symbol: usize, probability: &mut Probability) -> usize {
        let twice = symbol.wrapping_add(symbol);
        self.decide(probability, || twice, || twice.wrapping_add(1))
    }

    /// A number of as many bits as `N` has values, the highest first.
    #[inline(always)]
    fn tree<const N: usize>(&mut self, tree: &mut [Probability; N]) -> usize {
        let mut symbol = 1usize;
        for _ in 0..const { N.ilog2() } {
            symbol = self.extend(symbol, cell(tree, symbol));
        }
        symbol.wrapping_sub(N)
    }

    /// A number of `bits` bits, the lowest first, by a tree that begins at `base`.
    #[inline(always)]
    fn reverse_tree<const N: usize>(&mut self, tree: &mut [Probability; N], base: usize, bits: u32) -> u32 {
        let (mut symbol, mut value) = (1usize, 0u32);
        for place in 0..bits {
            let bit = self.bit(cell(tree, base.wrapping_add(symbol)));
            symbol = symbol << 1 | usize::from(bit);
            value |= u32::from(bit) << (place & 31);
        }
        value
    }

    /// A number of `bits` bits, each as likely 0 as 1.
    #[inline(always)]
    fn direct(&mut self, bits: u32) -> u32 {
        let mut value = 0u32;
        for _ in 0..bits {
            self.normalize();
            self.range >>= 1;
            let one = self.code >= self.range;
            if one {
                self.code = self.code.wrapping_sub(self.range);
            }
            value = value << 1 | u32::from(one);
        }
        value
    }

    #[inline(always)]
    pub fn literal(&mut self, tree: &mut Literal) -> u8 {
        let mut symbol = 1usize;
        for _ in 0..u8::BITS {
            symbol = self.extend(symbol, cell(tree, symbol));
        }
        symbol as u8
    }

    /// A literal after a match: it is known what it is not, the byte that would have made the match longer.
    #[inline(always)]
    pub fn matched_literal(&mut self, tree: &mut Literal, guess: u8) -> u8 {
        let mut symbol = 1usize;
        let mut guess = usize::from(guess);
        // The tree of the guess's next bit, until the guess was wrong; then the first.
        let mut guessing = 0x100usize;
        for _ in 0..u8::BITS {
            guess <<= 1;
            let guessed = guess & guessing;
            let probability = cell(tree, guessing.wrapping_add(guessed).wrapping_add(symbol));
            let twice = symbol.wrapping_add(symbol);
            (symbol, guessing) =
                self.decide(probability, || (twice, guessing & !guessed), || (twice.wrapping_add(1), guessed));
        }
        symbol as u8
    }

    /// How long a match is, at `position` within what positions are told apart.
    #[inline(always)]
    pub fn length(&mut self, lengths: &mut Lengths, position: usize) -> usize {
        if !self.bit(&mut lengths.choice) {
            self.tree(cell(&mut lengths.low, position)).wrapping_add(SHORTEST)
        } else if !self.bit(&mut lengths.choice_2) {
            self.tree(cell(&mut lengths.middle, position)).wrapping_add(SHORTEST + A_TREE)
        } else {
            self.tree(&mut lengths.high).wrapping_add(SHORTEST + 2 * A_TREE)
        }
    }

    /// How far back a match of this length is, less by one.
    #[inline(always)]
    pub fn distance(&mut self, distances: &mut Distances, length: usize) -> u32 {
        let slots = cell(&mut distances.slots, length.wrapping_sub(SHORTEST).min(3));
        let slot = self.tree(slots) as u32;
        if slot < FIRST_SLOT_WITH_BITS {
            return slot;
        }
        // A slot is the number of bits and the highest two of them.
        let bits = (slot >> 1).wrapping_sub(1);
        let high = (2 | slot & 1) << (bits & 31);
        if slot < FIRST_SLOT_WITH_DIRECT_BITS {
            let base = high.wrapping_sub(slot) as usize;
            return high.wrapping_add(self.reverse_tree(&mut distances.special, base, bits));
        }
        let middle = self.direct(bits.wrapping_sub(ALIGN_BITS)) << ALIGN_BITS;
        high.wrapping_add(middle).wrapping_add(self.reverse_tree(&mut distances.align, 0, ALIGN_BITS))
    }
}
