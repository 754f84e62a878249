//! Sequences: so many literals, then so many bytes again from so far back (RFC 8878, 3.1.1.3.2 and 3.1.1.4).

use super::bits::Backward;
use super::fse::{Distribution, Entry, STATES, Table};
use super::{Broken, PAD, State};
use crate::build::window::Window;

/// The three parts of a sequence, each with its own codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    LiteralLength,
    Offset,
    MatchLength,
}

/// Codes of literal lengths from 16 on: the value, and the bits to add to it.
const LITERAL_LENGTHS: [(u32, u8); 20] = [
    (16, 1),
    (18, 1),
    (20, 1),
    (22, 1),
    (24, 2),
    (28, 2),
    (32, 3),
    (40, 3),
    (48, 4),
    (64, 6),
    (128, 7),
    (256, 8),
    (512, 9),
    (1024, 10),
    (2048, 11),
    (4096, 12),
    (8192, 13),
    (16384, 14),
    (32768, 15),
    (65536, 16),
];

/// Codes of match lengths from 32 on.
const MATCH_LENGTHS: [(u32, u8); 21] = [
    (35, 1),
    (37, 1),
    (39, 1),
    (41, 1),
    (43, 2),
    (47, 2),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 5),
    (131, 7),
    (259, 8),
    (515, 9),
    (1027, 10),
    (2051, 11),
    (4099, 12),
    (8195, 13),
    (16387, 14),
    (32771, 15),
    (65539, 16),
];

/// Codes of offsets: so many bits behind a 1.
const OFFSETS: u8 = 32;

impl Kind {
    pub fn symbols(self) -> usize {
        match self {
            Kind::LiteralLength => 36,
            Kind::Offset => OFFSETS.into(),
            Kind::MatchLength => 53,
        }
    }

    pub fn max_log(self) -> u32 {
        match self {
            Kind::LiteralLength | Kind::MatchLength => 9,
            Kind::Offset => 8,
        }
    }

    /// What a code stands for: a value, and the bits to add to it.
    pub fn value(self, code: u8) -> Option<(u32, u8)> {
        let beyond = |first: u8, table: &[(u32, u8)]| table.get(usize::from(code.checked_sub(first)?)).copied();
        match self {
            Kind::LiteralLength if code < 16 => Some((code.into(), 0)),
            Kind::LiteralLength => beyond(16, &LITERAL_LENGTHS),
            Kind::MatchLength if code < 32 => Some((u32::from(code).wrapping_add(3), 0)),
            Kind::MatchLength => beyond(32, &MATCH_LENGTHS),
            Kind::Offset => (code < OFFSETS).then(|| (1 << code, code)),
        }
    }

    pub fn predefined(self) -> Distribution {
        match self {
            Kind::LiteralLength => Distribution::of(
                6,
                &[
                    4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1,
                    -1, -1, -1,
                ],
            ),
            Kind::MatchLength => Distribution::of(
                6,
                &[
                    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
                ],
            ),
            Kind::Offset => Distribution::of(
                5,
                &[1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1],
            ),
        }
    }
}

/// Bits that can be read after a refill, and those of them that the next three states take at most.
const A_REFILL: u32 = 56;
const NEXT_STATES: u32 = 26;

/// Carries out the `count` sequences of a block, and puts the literals that remain.
pub fn run(packed: &[u8], count: u32, out: &mut Window<'_>, state: &mut State) -> Result<(), Broken> {
    const TOO_FEW: Broken = "a block has fewer literals than it uses";
    let entry =
        |table: &Table, state: usize| -> Entry { table.entries.get(state & (STATES - 1)).copied().unwrap_or_default() };
    let (lengths, offsets, matches) = (&*state.lengths, &*state.offsets, &*state.matches);
    let mut stream = Backward::new(packed)?;
    let mut at_length = stream.read(lengths.log.unwrap_or(0)) as usize;
    let mut at_offset = stream.read(offsets.log.unwrap_or(0)) as usize;
    let mut at_match = stream.read(matches.log.unwrap_or(0)) as usize;

    let end = state.literals.len().saturating_sub(PAD);
    let mut literals = state.literals.as_slice();
    let mut repeated = state.repeated;
    // Its own copy, so that the compiler can keep it in registers.
    let mut window = out.reborrow();
    for left in (0..count).rev() {
        let (length, offset, matched) =
            (entry(lengths, at_length), entry(offsets, at_offset), entry(matches, at_match));
        stream.refill();
        let bits = u32::from(length.bits()).wrapping_add(offset.bits().into()).wrapping_add(matched.bits().into());
        let many = bits > A_REFILL - NEXT_STATES;
        let offset_value = offset.value(&mut stream);
        if many {
            stream.refill();
        }
        let match_length = matched.value(&mut stream);
        let literal_length = length.value(&mut stream);
        if many {
            stream.refill();
        }
        if left != 0 {
            at_length = length.next(&mut stream);
            at_match = matched.next(&mut stream);
            at_offset = offset.next(&mut stream);
        }

        let distance = distance(offset_value, literal_length, &mut repeated);
        literals = window.put_padded(literals, literal_length as usize).ok_or(TOO_FEW)?;
        if !window.repeat(distance as usize, match_length as usize) {
            return Err("a match is from before the beginning, or goes beyond the end");
        }
    }
    let filled = window.filled();
    out.resume(filled);
    stream.refill();
    if !stream.finished() {
        return Err("a stream of sequences does not end where it should");
    }
    state.repeated = repeated;
    let used = state.literals.len().wrapping_sub(literals.len());
    out.put(state.literals.get(used..end).ok_or(TOO_FEW)?)
}

/// How far back a sequence goes: the values 1 to 3 are the last three distances again, with other meanings if there are no literals.
#[inline(always)]
fn distance(value: u32, literals: u32, repeated: &mut [u32; 3]) -> u32 {
    let [first, second, third] = *repeated;
    if value > 3 {
        let distance = value.wrapping_sub(3);
        *repeated = [distance, first, second];
        return distance;
    }
    let which = if literals == 0 { value.wrapping_add(1) } else { value };
    match which {
        1 => first,
        2 => {
            *repeated = [second, first, third];
            second
        }
        3 => {
            *repeated = [third, first, second];
            third
        }
        _ => {
            let distance = first.wrapping_sub(1);
            *repeated = [distance, first, second];
            distance
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_distances_can_be_had_again() {
        let mut repeated = [1, 4, 8];
        assert_eq!((distance(103, 1, &mut repeated), repeated), (100, [100, 1, 4]));
        assert_eq!((distance(1, 1, &mut repeated), repeated), (100, [100, 1, 4]));
        assert_eq!((distance(3, 1, &mut repeated), repeated), (4, [4, 100, 1]));
        assert_eq!((distance(1, 0, &mut repeated), repeated), (100, [100, 4, 1]));
        assert_eq!((distance(2, 0, &mut repeated), repeated), (1, [1, 100, 4]));
        assert_eq!((distance(3, 0, &mut repeated), repeated), (0, [0, 1, 100]));
    }

    #[test]
    fn the_codes_leave_no_gaps() {
        for (kind, codes) in [(Kind::LiteralLength, 36u8), (Kind::MatchLength, 53), (Kind::Offset, 32)] {
            for code in 1..codes {
                let (before, bits) = kind.value(code - 1).unwrap();
                assert_eq!(kind.value(code).unwrap().0, before + (1 << bits));
            }
            assert_eq!((kind.value(codes), kind.symbols()), (None, usize::from(codes)));
        }
    }
}
