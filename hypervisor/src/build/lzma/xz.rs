//! `.xz` files: blocks of LZMA2, perhaps filtered (the .xz file format, 1.1.0).
//!
//! Checksums are not computed: LZMA's range coder notices every wrong bit by itself, and the index behind the blocks says nothing new.

use super::range::Range;
use super::{Broken, Decoder, Properties, x86};
use crate::build::window::Window;

const MAGIC: [u8; 6] = *b"\xfd7zXZ\0";
const STREAM_HEADER: usize = 12;
/// Everything in the file is a multiple of this long.
const ALIGN: usize = 4;

const FILTER_X86: u64 = 0x04;
const FILTER_LZMA2: u64 = 0x21;

const ENDS: Broken = "it ends too early";
const HEADER: Broken = "a block's header is broken";

/// Unpacks the blocks of one `.xz` stream.
pub fn unpack(packed: &[u8], out: &mut [u8]) -> Result<usize, Broken> {
    let (header, mut rest) = packed.split_first_chunk::<STREAM_HEADER>().ok_or(ENDS)?;
    let Some([0, check]) = header.strip_prefix(&MAGIC).and_then(|flags| flags.first_chunk()).copied() else {
        return Err("its header is broken");
    };
    let check = match check & 15 {
        0 => 0,
        kind => 4usize << (kind.wrapping_sub(1) / 3),
    };
    let mut out = Window::new(out);
    // A header's size of 0 is where the index begins.
    while let Some(size) = rest.first().filter(|size| **size != 0) {
        let size = usize::from(*size).saturating_add(1).saturating_mul(ALIGN);
        let (header, data) = rest.split_at_checked(size).ok_or(ENDS)?;
        let filtered = Block::parse(header)?;
        let start = out.filled();
        let after = lzma2(data, &mut out)?;
        if let Some(at) = filtered.x86 {
            x86::undo(out.since_mut(start), at);
        }
        let used = data.len().saturating_sub(after.len()).next_multiple_of(ALIGN);
        rest = data.get(used.saturating_add(check)..).ok_or(ENDS)?;
    }
    if rest.is_empty() { Err(ENDS) } else { Ok(out.filled()) }
}

/// What a block went through before LZMA2.
struct Block {
    /// The x86 filter, and the address that it began with.
    x86: Option<u32>,
}

impl Block {
    fn parse(header: &[u8]) -> Result<Block, Broken> {
        const FILTERS: u8 = 3;
        const HAS_PACKED_SIZE: u8 = 1 << 6;
        const HAS_SIZE: u8 = 1 << 7;
        let [_, flags, rest @ ..] = header else { return Err(HEADER) };
        let mut rest = rest;
        for size in [HAS_PACKED_SIZE, HAS_SIZE] {
            if flags & size != 0 {
                number(&mut rest)?;
            }
        }
        let mut block = Block { x86: None };
        for left in (0..=flags & FILTERS).rev() {
            let filter = number(&mut rest)?;
            let size = usize::try_from(number(&mut rest)?).map_err(|_| HEADER)?;
            let (properties, after) = rest.split_at_checked(size).ok_or(HEADER)?;
            rest = after;
            match (filter, left) {
                (FILTER_LZMA2, 0) => return Ok(block),
                (FILTER_X86, 1) => {
                    let start = properties.first_chunk().copied().map_or(0, u32::from_le_bytes);
                    block.x86 = Some(start);
                }
                _ => return Err("it uses a filter other than LZMA2 and x86"),
            }
        }
        Err(HEADER)
    }
}

/// Seven bits a byte, the lowest first; the last byte's highest bit is 0.
fn number(bytes: &mut &[u8]) -> Result<u64, Broken> {
    let mut value = 0u64;
    for place in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(HEADER)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << place;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HEADER)
}

/// Unpacks LZMA2's chunks, and returns what follows them.
fn lzma2<'a>(packed: &'a [u8], out: &mut Window<'_>) -> Result<&'a [u8], Broken> {
    const LZMA: u8 = 0x80;
    const BAD_ORDER: Broken = "a chunk relies on one before that is not there";
    let mut decoder: Option<Decoder> = None;
    let mut begun = None;
    let mut rest = packed;
    loop {
        let (control, after) = rest.split_first().ok_or(ENDS)?;
        // What a chunk does not take over from the one before: 3 the dictionary, 2 the properties, 1 the state.
        let resets = match *control {
            0 => return Ok(after),
            1 => 3,
            2 => 0,
            LZMA.. => control >> 5 & 3,
            _ => return Err("a chunk is of no known type"),
        };
        if resets == 3 {
            begun = Some(out.filled());
        }
        let begun = begun.ok_or(BAD_ORDER)?;
        let ([high, low], after) = after.split_first_chunk().ok_or(ENDS)?;
        let size = usize::from(*high) << 8 | usize::from(*low);
        if *control < LZMA {
            let (bytes, after) = after.split_at_checked(size.saturating_add(1)).ok_or(ENDS)?;
            out.put(bytes)?;
            rest = after;
            continue;
        }
        let size = (usize::from(control & 0x1f) << 16 | size).saturating_add(1);
        let ([high, low], mut after) = after.split_first_chunk().ok_or(ENDS)?;
        let packed_size = (usize::from(*high) << 8 | usize::from(*low)).saturating_add(1);
        if resets >= 2 {
            let (byte, data) = after.split_first().ok_or(ENDS)?;
            let properties = Properties::parse(*byte)?;
            after = data;
            match &mut decoder {
                Some(decoder) => decoder.properties = properties,
                None => decoder = Some(Decoder::new(properties)?),
            }
        }
        let decoder = decoder.as_mut().ok_or(BAD_ORDER)?;
        if resets >= 1 {
            decoder.reset();
        }
        let (chunk, after) = after.split_at_checked(packed_size).ok_or(ENDS)?;
        let mut range = Range::new(chunk).ok_or("a chunk has no beginning")?;
        out.decode(begun, size, |out, at| decoder.decode(&mut range, out, at))?;
        if !range.finished() {
            return Err("a chunk does not end where it should");
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::sample::kernel_like;
    use lzma_rust2::{FilterType, Write, XzOptions, XzReader, XzWriter};
    use proptest::prelude::*;

    fn pack(bytes: &[u8], x86: bool) -> Vec<u8> {
        let mut options = XzOptions::with_preset(0);
        if x86 {
            options.prepend_pre_filter(FilterType::BcjX86, 0);
        }
        let mut writer = XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn unpacked(packed: &[u8], size: usize) -> Result<Vec<u8>, Broken> {
        let mut out = vec![0xaa; size];
        let filled = unpack(packed, &mut out)?;
        out.truncate(filled);
        Ok(out)
    }

    #[test]
    fn many_chunks_make_up_a_block() {
        // Noise is stored, not packed, and between the two kinds of chunks the state is reset.
        let mut seed = 7u32;
        let mut noise = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        let mut bytes = kernel_like(3_000_000, 5);
        bytes.extend((0..200_000).map(|_| noise()));
        bytes.extend(kernel_like(100_000, 6));
        assert!(unpacked(&pack(&bytes, false), bytes.len()).unwrap() == bytes);
    }

    #[test]
    fn small_and_empty_files_unpack() {
        for size in [0usize, 1, 4, 5, 100] {
            let bytes = &kernel_like(size.max(4), 1)[..size];
            assert_eq!(unpacked(&pack(bytes, true), size).unwrap(), bytes);
        }
    }

    #[test]
    fn other_filters_are_refused() {
        let mut options = XzOptions::with_preset(0);
        options.prepend_pre_filter(FilterType::BcjArm, 0);
        let mut writer = XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(b"code").unwrap();
        assert!(unpacked(&writer.finish().unwrap(), 4).unwrap_err().contains("filter"));
    }

    proptest! {
        #[test]
        fn the_x86_filter_is_undone_as_it_was_done(
            bytes in proptest::collection::vec(prop_oneof![Just(0xe8u8), Just(0xe9), Just(0), Just(0xff), any::<u8>()], 0..200),
        ) {
            prop_assert_eq!(unpacked(&pack(&bytes, true), bytes.len()).unwrap(), bytes);
        }

        #[test]
        fn damaged_files_neither_panic_nor_unpack_otherwise_than_elsewhere(
            size in 10usize..2000,
            seed: u32,
            at: prop::sample::Index,
            byte: u8,
        ) {
            let bytes = kernel_like(size, seed);
            let mut packed = pack(&bytes, true);
            let at = at.index(packed.len());
            packed[at] = byte;
            let mut expected = vec![0; size + 1];
            let oracle = lzma_rust2::Read::read(&mut XzReader::new(&packed[..], false), &mut expected);
            if let (Ok(got), Ok(expected_size)) = (unpacked(&packed, size + 1), oracle) {
                prop_assert_eq!(&got[..expected_size], &expected[..expected_size]);
            }
        }
    }
}
