//! Zstandard (RFC 8878), from memory to memory.
//!
//! The output is the window: nothing is decoded to a buffer and copied from there but literals, 128 KiB at a time. No dictionaries.

mod bits;
mod fse;
mod huffman;
mod sequences;
mod xxh64;

use alloc::boxed::Box;
use alloc::vec::Vec;

use fse::Table;
use huffman::Huffman;
use sequences::Kind;

use super::window::Window;

/// Why a payload does not decode.
pub type Broken = &'static str;

const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: core::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;

/// The most that a block unpacks to.
const BLOCK: usize = 128 << 10;

/// What a block may take over from the block before.
struct State {
    huffman: Box<Huffman>,
    has_huffman: bool,
    lengths: Box<Table>,
    offsets: Box<Table>,
    matches: Box<Table>,
    repeated: [u32; 3],
    literals: Vec<u8>,
}

impl State {
    fn new() -> Result<State, Broken> {
        let mut literals = Vec::new();
        literals.try_reserve_exact(BLOCK.saturating_add(PAD)).map_err(|_| "no memory to unpack it")?;
        Ok(State {
            huffman: Box::default(),
            has_huffman: false,
            lengths: Box::default(),
            offsets: Box::default(),
            matches: Box::default(),
            repeated: [1, 4, 8],
            literals,
        })
    }

    /// What a frame begins with.
    fn reset(&mut self) {
        self.has_huffman = false;
        for table in [&mut self.lengths, &mut self.offsets, &mut self.matches] {
            table.clear();
        }
        self.repeated = [1, 4, 8];
    }
}

/// Literals are followed by so many bytes that do not count, so that they can be copied in whole words.
const PAD: usize = crate::build::window::PIECE;

/// Unpacks all frames of `packed` to `out`, and returns how many bytes they are.
pub fn unpack(packed: &[u8], out: &mut [u8]) -> Result<usize, Broken> {
    let mut input = Input(packed);
    let mut out = Window::new(out);
    let mut state = State::new()?;
    while !input.0.is_empty() {
        match input.u32()? {
            MAGIC => {
                state.reset();
                frame(&mut input, &mut out, &mut state)?;
            }
            magic if SKIPPABLE.contains(&magic) => {
                let size = input.u32()?;
                input.take(size as usize)?;
            }
            _ => return Err("a frame has no magic"),
        }
    }
    Ok(out.filled())
}

fn frame(input: &mut Input<'_>, out: &mut Window<'_>, state: &mut State) -> Result<(), Broken> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    const RESERVED: u8 = 1 << 3;
    const CHECKSUM: u8 = 1 << 2;
    let start = out.filled();
    let descriptor = input.u8()?;
    if descriptor & RESERVED != 0 {
        return Err("a frame is of a later format");
    }
    if descriptor & SINGLE_SEGMENT == 0 {
        input.u8()?; // the window's size, which is the output's here
    }
    let dictionary = input.number([0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0))?;
    if dictionary != 0 {
        return Err("a frame needs a dictionary");
    }
    let content = match descriptor >> 6 {
        0 if descriptor & SINGLE_SEGMENT == 0 => None,
        0 => Some(input.number(1)?),
        1 => Some(input.number(2)?.saturating_add(256)),
        2 => Some(input.number(4)?),
        _ => Some(input.number(8)?),
    };

    loop {
        let header = input.number(3)? as u32;
        let size = (header >> 3) as usize;
        match (header >> 1) & 3 {
            0 => out.put(input.take(size)?)?,
            1 => {
                let byte = input.u8()?;
                out.fill(byte, size)?;
            }
            2 => block(input.take(size)?, out, state)?,
            _ => return Err("a block is of no known type"),
        }
        if header & 1 != 0 {
            break;
        }
    }
    let unpacked = out.since(start);
    if content.is_some_and(|size| size != unpacked.len() as u64) {
        return Err("a frame unpacks to another size than it says");
    }
    if descriptor & CHECKSUM != 0 && input.u32()? != xxh64::hash(unpacked) as u32 {
        return Err("its checksum is bad");
    }
    Ok(())
}

fn block(packed: &[u8], out: &mut Window<'_>, state: &mut State) -> Result<(), Broken> {
    let mut input = Input(packed);
    literals(&mut input, state)?;
    let count = match input.u8()? {
        0 => {
            let used = state.literals.len().saturating_sub(PAD);
            return out.put(state.literals.get(..used).unwrap_or_default());
        }
        few @ 1..128 => few.into(),
        more @ 128..255 => u32::from(more & 127) << 8 | u32::from(input.u8()?),
        255 => (input.number(2)? as u32).wrapping_add(0x7f00),
    };
    let modes = input.u8()?;
    state.lengths.update(Kind::LiteralLength, modes >> 6, &mut input)?;
    state.offsets.update(Kind::Offset, modes >> 4 & 3, &mut input)?;
    state.matches.update(Kind::MatchLength, modes >> 2 & 3, &mut input)?;
    sequences::run(input.0, count, out, state)
}

/// Reads the literals of a block to `state.literals`, and pads them.
fn literals(input: &mut Input<'_>, state: &mut State) -> Result<(), Broken> {
    const TOO_MANY: Broken = "a block has too many literals";
    let first = input.peek()?;
    let (kind, format) = (first & 3, first >> 2 & 3);
    state.literals.clear();
    if kind < 2 {
        let header = match format {
            0 | 2 => input.number(1)? >> 3,
            1 => input.number(2)? >> 4,
            _ => input.number(3)? >> 4,
        };
        let size = usize::try_from(header).ok().filter(|size| *size <= BLOCK).ok_or(TOO_MANY)?;
        match kind {
            0 => state.literals.extend_from_slice(input.take(size)?),
            _ => state.literals.resize(size, input.u8()?),
        }
    } else {
        let (header_bytes, bits) = match format {
            0 | 1 => (3, 10),
            2 => (4, 14),
            _ => (5, 18),
        };
        let header = input.number(header_bytes)? >> 4;
        let mask = (1u64 << bits).wrapping_sub(1);
        let size = usize::try_from(header & mask).ok().filter(|size| *size <= BLOCK).ok_or(TOO_MANY)?;
        let mut packed = Input(input.take((header >> bits & mask) as usize)?);
        if kind == 2 {
            state.has_huffman = false;
            state.huffman.read(&mut packed)?;
            state.has_huffman = true;
        } else if !state.has_huffman {
            return Err("a block refers to a Huffman table that there is not");
        }
        state.literals.resize(size, 0);
        if format == 0 {
            state.huffman.decode(packed.0, &mut state.literals)?;
        } else {
            state.huffman.decode_four(packed, &mut state.literals)?;
        }
    }
    // Room was made for both at the beginning.
    state.literals.resize(state.literals.len().saturating_add(PAD), 0);
    Ok(())
}

/// What is still to be read.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    const ENDS: Broken = "it ends too early";

    fn take(&mut self, size: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(size).ok_or(Self::ENDS)?;
        self.0 = rest;
        Ok(taken)
    }

    fn peek(&self) -> Result<u8, Broken> {
        self.0.first().copied().ok_or(Self::ENDS)
    }

    fn u8(&mut self) -> Result<u8, Broken> {
        Ok(self.number(1)? as u8)
    }

    fn u32(&mut self) -> Result<u32, Broken> {
        Ok(self.number(4)? as u32)
    }

    /// A little-endian number of up to 8 bytes.
    fn number(&mut self, bytes: usize) -> Result<u64, Broken> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::sample::kernel_like;
    use proptest::prelude::*;

    /// What another implementation makes of it.
    fn oracle(packed: &[u8], size: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; size];
        let mut decoder = ruzstd::decoding::FrameDecoder::new();
        let written = decoder.decode_all(packed, &mut out).ok()?;
        out.truncate(written);
        Some(out)
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn frames_of_all_sizes_unpack() {
        for size in [0, 1, 7, 100, 4000, 131_072, 131_073, 700_000] {
            let bytes = kernel_like(size, 3);
            let mut out = vec![0xaa; size];
            assert_eq!(unpack(&pack(&bytes), &mut out), Ok(size), "{size}");
            assert!(out == bytes, "{size}");
        }
    }

    #[test]
    fn several_frames_follow_each_other_and_some_are_skipped() {
        let mut packed = pack(b"first ");
        packed.extend([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        packed.extend(pack(b"second"));
        let mut out = [0; 12];
        assert_eq!(unpack(&packed, &mut out), Ok(12));
        assert_eq!(&out, b"first second");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let bytes = kernel_like(5000, 9);
        assert!(unpack(&pack(&bytes), &mut [0; 4999]).is_err());
        assert!(unpack(&pack(&bytes), &mut []).is_err());
    }

    proptest! {
        #[test]
        fn damaged_frames_neither_panic_nor_decode_otherwise_than_elsewhere(
            size in 1usize..3000,
            seed: u32,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let bytes = kernel_like(size, seed);
            let mut packed = pack(&bytes);
            for (at, byte) in &damage {
                let at = at.index(packed.len());
                packed[at] = *byte;
            }
            let mut out = vec![0; 4000];
            match (unpack(&packed, &mut out), oracle(&packed, 4000)) {
                (Ok(written), Some(expected)) => prop_assert!(out[..written] == expected),
                (Err(why), Some(_)) => prop_assert!(!damage.is_empty(), "{}", why),
                _ => {}
            }
        }
    }
}
