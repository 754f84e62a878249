//! Decompressing a kernel: one output of exactly the right size, which each decoder writes directly where it can.
//!
//! A bzImage's payload ends in the size of what it decompresses to, four bytes that either belong to the format (gzip) or that Linux's
//! build appends (all others).

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;

use super::elf::is_elf;
use super::{crc32, lzma, zstd};

/// More than any kernel is: what says so is damaged.
const MAX_SIZE: usize = 1 << 30;

const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// What a payload is compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Not compressed.
    Elf,
    Gzip,
    Xz,
    Zstd,
    /// The "legacy" frame, which is what Linux's build makes.
    Lz4,
    Lzma,
    Bzip2,
    Lzo,
}

impl Format {
    pub fn of(payload: &[u8]) -> Option<Format> {
        Some(match payload {
            _ if is_elf(payload) => Format::Elf,
            [0x1f, 0x8b, 8, ..] => Format::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Format::Zstd,
            [b'B', b'Z', b'h', ..] => Format::Bzip2,
            [0x89, b'L', b'Z', b'O', 0, ..] => Format::Lzo,
            _ if payload.starts_with(&LZ4_LEGACY_MAGIC) => Format::Lz4,
            // Properties lc=3 lp=0 pb=2, and a dictionary of whole 64 KiB: the format has no magic of its own.
            [0x5d, 0, 0, ..] => Format::Lzma,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Elf => "ELF",
            Format::Gzip => "gzip",
            Format::Xz => "xz",
            Format::Zstd => "zstd",
            Format::Lz4 => "lz4",
            Format::Lzma => "lzma",
            Format::Bzip2 => "bzip2",
            Format::Lzo => "lzo",
        }
    }
}

/// Why a payload could not be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadError {
    UnknownFormat { first: [u8; 4] },
    Unsupported(Format),
    Size { format: Format, says: u32 },
    OutOfMemory { format: Format, need: usize },
    Damaged { format: Format, why: &'static str },
    Short { format: Format, expected: usize, got: usize },
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PayloadError::UnknownFormat { first: [a, b, c, d] } => write!(
                f,
                "kernel payload begins with {a:02x} {b:02x} {c:02x} {d:02x}, which is no known format; \
                 use a kernel compressed with xz, zstd, gzip, lz4 or lzma"
            ),
            PayloadError::Unsupported(format) => write!(
                f,
                "kernel payload is {}, which is not supported; use a kernel compressed with xz, zstd, gzip, lz4 or lzma",
                format.name()
            ),
            PayloadError::Size { format, says } => {
                write!(f, "kernel payload ({}) is damaged: it says that it unpacks to {says} bytes", format.name())
            }
            PayloadError::OutOfMemory { format, need } => write!(
                f,
                "kernel payload ({}): no {} MiB of contiguous memory to unpack it to",
                format.name(),
                need.div_ceil(1 << 20)
            ),
            PayloadError::Damaged { format, why } => {
                write!(f, "kernel payload ({}) is damaged: {why}", format.name())
            }
            PayloadError::Short { format, expected, got } => write!(
                f,
                "kernel payload ({}) is damaged: it unpacks to {got} bytes, it should be {expected}",
                format.name()
            ),
        }
    }
}

impl core::error::Error for PayloadError {}

/// The ELF image in `payload`. Borrows it if it is not compressed.
pub fn decompress(payload: &[u8]) -> Result<Cow<'_, [u8]>, PayloadError> {
    let unknown = || PayloadError::UnknownFormat { first: payload.first_chunk().copied().unwrap_or_default() };
    let format = Format::of(payload).ok_or_else(unknown)?;
    let unpack: fn(&[u8], &mut [u8]) -> Result<usize, &'static str> = match format {
        Format::Elf => return Ok(Cow::Borrowed(payload)),
        Format::Bzip2 | Format::Lzo => return Err(PayloadError::Unsupported(format)),
        Format::Gzip => gzip,
        Format::Xz => lzma::xz::unpack,
        Format::Zstd => zstd::unpack,
        Format::Lz4 => lz4,
        Format::Lzma => lzma::unpack,
    };
    let (packed, size) = payload.split_last_chunk().ok_or_else(unknown)?;
    let says = u32::from_le_bytes(*size);
    let size = says as usize;
    if size > MAX_SIZE || size == 0 {
        return Err(PayloadError::Size { format, says });
    }
    let mut image = Vec::new();
    image.try_reserve_exact(size).map_err(|_| PayloadError::OutOfMemory { format, need: size })?;
    image.resize(size, 0);
    let got = unpack(packed, &mut image).map_err(|why| PayloadError::Damaged { format, why })?;
    if got != size {
        return Err(PayloadError::Short { format, expected: size, got });
    }
    Ok(Cow::Owned(image))
}

/// RFC 1952, but for the size at the end, which the caller has cut off.
fn gzip(packed: &[u8], image: &mut [u8]) -> Result<usize, &'static str> {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

    let body = gzip_body(packed).ok_or("its header is incomplete")?;
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = alloc::boxed::Box::<DecompressorOxide>::default();
    let (read, written) = match decompress(&mut state, body, image, 0, flags) {
        (TINFLStatus::Done, read, written) => (read, written),
        (TINFLStatus::HasMoreOutput, ..) => return Err("it unpacks to more than it says"),
        _ => return Err("the deflated data does not decode"),
    };
    let checksum = body.get(read..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_le_bytes);
    if checksum != image.get(..written).map(crc32::checksum) {
        return Err("its checksum is bad");
    }
    Ok(written)
}

/// The deflated data of a gzip member: what follows the header and its optional fields.
fn gzip_body(packed: &[u8]) -> Option<&[u8]> {
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let past_nul = |bytes: &'_ [u8]| bytes.iter().position(|b| *b == 0).and_then(|nul| nul.checked_add(1));

    let flags = *packed.get(3)?;
    let mut rest = packed.get(10..)?;
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_first_chunk()?;
        rest = after.get(u16::from_le_bytes(*length).into()..)?;
    }
    for field in [NAME, COMMENT] {
        if flags & field != 0 {
            rest = rest.get(past_nul(rest)?..)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

/// A legacy frame: after the magic, blocks that each begin with their compressed size and unpack to 8 MiB but for the last.
fn lz4(packed: &[u8], image: &mut [u8]) -> Result<usize, &'static str> {
    let mut rest = packed.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default();
    let mut filled = 0usize;
    while let Some((size, after)) = rest.split_first_chunk() {
        // Concatenated frames repeat the magic.
        if *size == LZ4_LEGACY_MAGIC {
            rest = after;
            continue;
        }
        let (block, after) =
            after.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or("a block is longer than the payload")?;
        let target = image.get_mut(filled..).unwrap_or_default();
        let written = lz4_flex::block::decompress_into(block, target).map_err(|_| "a block does not decode")?;
        filled = filled.saturating_add(written);
        rest = after;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::sample::kernel_like;
    use proptest::prelude::*;

    /// [`kernel_like`] bytes as Linux's build packs them: `gzip -n -9`, `xz --check=crc32 --x86 --lzma2=preset=9`, `zstd -22 --ultra`,
    /// `lz4 -l -9`, `xz --format=lzma -9`, all but the first with the size behind.
    const PACKED: [(Format, &[u8]); 5] = [
        (Format::Gzip, include_bytes!("fixtures/sample.gz")),
        (Format::Xz, include_bytes!("fixtures/sample.xz")),
        (Format::Zstd, include_bytes!("fixtures/sample.zst")),
        (Format::Lz4, include_bytes!("fixtures/sample.lz4")),
        (Format::Lzma, include_bytes!("fixtures/sample.lzma")),
    ];
    const SIZE: usize = 300_000;

    #[test]
    fn every_supported_format_gives_the_image_back() {
        let image = kernel_like(SIZE, 1);
        for (format, payload) in PACKED {
            assert_eq!(Format::of(payload), Some(format));
            assert!(*decompress(payload).unwrap() == image, "{}", format.name());
        }
    }

    #[test]
    fn an_uncompressed_kernel_is_not_copied() {
        assert!(matches!(decompress(b"\x7fELF..."), Ok(Cow::Borrowed(b"\x7fELF..."))));
    }

    #[test]
    fn an_unsupported_format_is_named_together_with_what_to_use() {
        assert_eq!(
            decompress(b"BZh91AY").unwrap_err().to_string(),
            "kernel payload is bzip2, which is not supported; use a kernel compressed with xz, zstd, gzip, lz4 or lzma"
        );
        assert!(decompress(b"\x89LZO\0\r\n").unwrap_err().to_string().contains("lzo"));
        assert!(decompress(b"#!/bin/sh").unwrap_err().to_string().contains("23 21 2f 62"));
        assert!(decompress(b"").is_err());
    }

    #[test]
    fn a_payload_that_unpacks_to_another_size_than_it_says_is_damaged() {
        for (format, payload) in PACKED {
            for wrong in [SIZE as u32 - 1, SIZE as u32 + 1, 0, u32::MAX] {
                let mut payload = payload.to_vec();
                *payload.last_chunk_mut().unwrap() = wrong.to_le_bytes();
                assert!(decompress(&payload).is_err(), "{} says {wrong}", format.name());
            }
        }
    }

    #[test]
    fn a_truncated_payload_is_damaged() {
        for (format, whole) in PACKED {
            for keep in [8, 40, whole.len() / 2, whole.len() - 60] {
                let payload = [&whole[..keep], &(SIZE as u32).to_le_bytes()].concat();
                assert!(decompress(&payload).is_err(), "{} cut to {keep}", format.name());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_flipped_bit_neither_panics_nor_goes_unnoticed(at: prop::sample::Index, bit in 0u8..8, which in 0..PACKED.len()) {
            let (format, payload) = PACKED[which];
            let mut payload = payload.to_vec();
            let at = at.index(payload.len() - 4);
            payload[at] ^= 1 << bit;
            if let Ok(image) = decompress(&payload) {
                // lz4 has no checksum, and headers have bits that say nothing of the data.
                prop_assert!(format == Format::Lz4 || *image == kernel_like(SIZE, 1), "{} at {}", format.name(), at);
            }
        }
    }
}
