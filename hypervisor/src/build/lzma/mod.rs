//! LZMA, from memory to memory: as `.lzma` and, by [`xz`], in LZMA2's chunks. By Igor Pavlov's LZMA specification.
//!
//! The output is the dictionary. There is no checksum to look at here: the range coder ends in a known state only if every bit was right.

mod model;
mod range;
mod x86;
pub mod xz;

use alloc::boxed::Box;

use super::window::repeat;
use model::{Literals, Model};
use range::Range;

/// Why a payload does not decode.
pub type Broken = &'static str;

const BAD_MATCH: Broken = "a match is from before the beginning, or goes beyond the end";
const PROPERTIES: Broken = "its LZMA properties are not supported";

/// Distances are 32 bits; this one says that the data ends.
const END: u32 = u32::MAX;

/// `lc`, `lp` and `pb` of the specification: how much of what came before a symbol's probabilities depend on.
#[derive(Clone, Copy)]
struct Properties {
    literal_context_bits: u32,
    literal_position_mask: usize,
    position_mask: usize,
}

impl Properties {
    /// One byte: `(pb * 5 + lp) * 9 + lc`. No more than LZMA2 allows: `lc + lp <= 4`.
    fn parse(byte: u8) -> Result<Properties, Broken> {
        let (lc, rest) = (byte % 9, byte / 9);
        let (lp, pb) = (rest % 5, rest / 5);
        if pb > 4 || lc.wrapping_add(lp) > 4 {
            return Err(PROPERTIES);
        }
        let mask = |bits: u8| (1usize << bits).wrapping_sub(1);
        Ok(Properties { literal_context_bits: lc.into(), literal_position_mask: mask(lp), position_mask: mask(pb) })
    }
}

/// What lasts from chunk to chunk.
struct Decoder {
    model: Box<Model>,
    literals: Literals,
    properties: Properties,
    state: State,
    /// The last four distances, the latest first, each less by one.
    distances: [u32; 4],
}

/// What the last symbols were: below 7 the last one was a literal.
#[derive(Clone, Copy)]
struct State(usize);

const LITERAL_STATES: usize = 7;

impl State {
    const START: State = State(0);

    fn after_literal(self) -> State {
        State(match self.0 {
            0..4 => 0,
            state @ 4..10 => state.wrapping_sub(3),
            state => state.wrapping_sub(6),
        })
    }

    fn after(self, literals: usize, others: usize) -> State {
        State(if self.0 < LITERAL_STATES { literals } else { others })
    }
}

impl Decoder {
    fn new(properties: Properties) -> Result<Decoder, Broken> {
        let literals = Literals::new().ok_or("no memory to unpack it")?;
        Ok(Decoder { model: Model::boxed(), literals, properties, state: State::START, distances: [0; 4] })
    }

    fn reset(&mut self) {
        self.model.reset();
        self.literals.reset();
        self.state = State::START;
        self.distances = [0; 4];
    }

    /// Decodes until `out`, of which `at` bytes are there already, is full or the data says that it ends. Returns how many are there then.
    fn decode(&mut self, range: &mut Range<'_>, out: &mut [u8], mut at: usize) -> Result<usize, Broken> {
        let Properties { literal_context_bits, literal_position_mask, position_mask } = self.properties;
        let model = &mut *self.model;
        let mut state = self.state;
        let [mut rep0, mut rep1, mut rep2, mut rep3] = self.distances;
        // Its own copy, so that the compiler can keep it in registers.
        let mut rc = range.clone();
        while at < out.len() {
            let position = at & position_mask;
            if !rc.bit(model.is_match(state.0, position)) {
                let previous = at.checked_sub(1).and_then(|before| out.get(before)).copied().unwrap_or(0);
                let context = (at & literal_position_mask) << literal_context_bits
                    | usize::from(previous) >> (8u32.wrapping_sub(literal_context_bits) & 15);
                let literal = self.literals.tree(context).ok_or(PROPERTIES)?;
                let byte = if state.0 < LITERAL_STATES {
                    rc.literal(literal)
                } else {
                    let guess = at.wrapping_sub(rep0 as usize).wrapping_sub(1);
                    rc.matched_literal(literal, out.get(guess).copied().unwrap_or(0))
                };
                if let Some(place) = out.get_mut(at) {
                    *place = byte;
                }
                at = at.wrapping_add(1);
                state = state.after_literal();
                continue;
            }
            let length = if !rc.bit(model.is_repeat(state.0)) {
                let length = rc.length(&mut model.match_lengths, position);
                (rep1, rep2, rep3) = (rep0, rep1, rep2);
                rep0 = rc.distance(&mut model.distances, length);
                if rep0 == END {
                    break;
                }
                state = state.after(7, 10);
                length
            } else {
                let mut short = false;
                if !rc.bit(model.is_latest(state.0)) {
                    short = !rc.bit(model.is_long(state.0, position));
                } else if !rc.bit(model.is_second(state.0)) {
                    (rep0, rep1) = (rep1, rep0);
                } else if !rc.bit(model.is_third(state.0)) {
                    (rep0, rep1, rep2) = (rep2, rep0, rep1);
                } else {
                    (rep0, rep1, rep2, rep3) = (rep3, rep0, rep1, rep2);
                }
                if short {
                    state = state.after(9, 11);
                    1
                } else {
                    state = state.after(8, 11);
                    rc.length(&mut model.repeat_lengths, position)
                }
            };
            at = repeat(out, at, (rep0 as usize).wrapping_add(1), length).ok_or(BAD_MATCH)?;
        }
        self.state = state;
        self.distances = [rep0, rep1, rep2, rep3];
        *range = rc;
        Ok(at)
    }
}

/// Unpacks a `.lzma` file: 13 bytes of header (properties, dictionary size, unpacked size), then the data.
pub fn unpack(packed: &[u8], out: &mut [u8]) -> Result<usize, Broken> {
    const ENDS: Broken = "it ends too early";
    let (header, data) = packed.split_first_chunk::<13>().ok_or(ENDS)?;
    let [properties, _, _, _, _, size @ ..] = *header;
    let size = u64::from_le_bytes(size);
    let mut decoder = Decoder::new(Properties::parse(properties)?)?;
    let mut range = Range::new(data).ok_or(ENDS)?;
    let filled = decoder.decode(&mut range, out, 0)?;
    if range.overrun() {
        return Err(ENDS);
    }
    if size == u64::MAX || size == filled as u64 { Ok(filled) } else { Err("it unpacks to another size than it says") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_states_follow_from_what_came_last() {
        let after: Vec<usize> = (0..12).map(|s| State(s).after_literal().0).collect();
        assert_eq!(after, [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 4, 5]);
        assert_eq!((State(6).after(8, 11).0, State(7).after(8, 11).0), (8, 11));
    }

    #[test]
    fn only_properties_that_lzma2_allows_are_taken() {
        let properties = Properties::parse(0x5d).unwrap();
        assert_eq!((properties.literal_context_bits, properties.position_mask), (3, 3));
        assert!(Properties::parse(0xff).is_err() && Properties::parse(8).is_err());
    }
}
