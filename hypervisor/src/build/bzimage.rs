//! A Linux bzImage: where in it the compressed kernel is. Offsets are those of Linux's boot protocol.

use core::fmt;

use super::elf::is_elf;

const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first version of the protocol that says where the payload is.
const VERSION_WITH_PAYLOAD: u16 = 0x0208;

const SECTOR: usize = 512;

/// Why the payload of an image could not be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BzImageError {
    NotAKernel,
    TooOld { version: u16 },
    Truncated { need: u64, have: u64 },
}

impl fmt::Display for BzImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BzImageError::NotAKernel => f.write_str("kernel: neither an ELF image nor a bzImage"),
            BzImageError::TooOld { version } => write!(
                f,
                "kernel: boot protocol {}.{:02} does not tell where the kernel is; it must be 2.08 (Linux 2.6.26) or later",
                version >> 8,
                version & 0xff
            ),
            BzImageError::Truncated { need, have } => {
                write!(f, "kernel: truncated: the bzImage needs {need} bytes, the module has {have}")
            }
        }
    }
}

impl core::error::Error for BzImageError {}

/// The kernel within `image`: the payload of a bzImage, as yet compressed, or all of an ELF image.
pub fn payload(image: &[u8]) -> Result<&[u8], BzImageError> {
    if is_elf(image) {
        return Ok(image);
    }
    if image.get(MAGIC..).is_none_or(|rest| !rest.starts_with(b"HdrS")) {
        return Err(BzImageError::NotAKernel);
    }
    let have = image.len() as u64;
    let short = BzImageError::Truncated { need: PAYLOAD_LENGTH as u64, have };
    let version = bytes(image, VERSION).map(u16::from_le_bytes).ok_or(short)?;
    if version < VERSION_WITH_PAYLOAD {
        return Err(BzImageError::TooOld { version });
    }
    let sectors = match bytes(image, SETUP_SECTS).map(u8::from_le_bytes).ok_or(short)? {
        0 => 4, // as the protocol has it
        n => usize::from(n),
    };
    let offset = bytes(image, PAYLOAD_OFFSET).map(u32::from_le_bytes).ok_or(short)? as usize;
    let length = bytes(image, PAYLOAD_LENGTH).map(u32::from_le_bytes).ok_or(short)? as usize;
    // The setup sectors follow the boot sector. None of the sums can overflow: a byte of sectors and two 32-bit values.
    let start = sectors.saturating_add(1).saturating_mul(SECTOR).saturating_add(offset);
    let end = start.saturating_add(length);
    image.get(start..end).ok_or(BzImageError::Truncated { need: end as u64, have })
}

fn bytes<const N: usize>(image: &[u8], at: usize) -> Option<[u8; N]> {
    image.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::sample::{bzimage, elf64};
    use proptest::prelude::*;

    #[test]
    fn the_payload_is_found_behind_the_setup_sectors() {
        assert_eq!(payload(&bzimage(b"compressed kernel")).unwrap(), b"compressed kernel");
    }

    #[test]
    fn an_elf_image_is_its_own_payload() {
        let image = elf64().build();
        assert_eq!(payload(&image).unwrap(), &image[..]);
    }

    #[test]
    fn a_truncated_image_says_how_much_is_missing() {
        let image = bzimage(b"compressed kernel");
        let need = image.len() as u64 - 7;
        let have = image.len() - 10;
        assert_eq!(payload(&image[..have]), Err(BzImageError::Truncated { need, have: have as u64 }));
        assert!(matches!(payload(&image[..0x20a]), Err(BzImageError::Truncated { .. })));
    }

    #[test]
    fn what_is_no_kernel_or_too_old_a_one_is_refused() {
        assert_eq!(payload(b"#!/bin/sh"), Err(BzImageError::NotAKernel));
        let mut old = bzimage(b"");
        old[VERSION] = 7;
        old[VERSION + 1] = 2;
        assert_eq!(payload(&old), Err(BzImageError::TooOld { version: 0x207 }));
        assert!(payload(&old).unwrap_err().to_string().contains("2.07"));
    }

    proptest! {
        #[test]
        fn no_header_can_panic_the_parser(header in proptest::collection::vec(any::<u8>(), 0..0x40), cut in 0usize..1100) {
            let mut image = bzimage(b"payload");
            image[0x1f1] = header.first().copied().unwrap_or(0);
            for (place, byte) in image.iter_mut().skip(0x240).zip(header) {
                *place = byte;
            }
            image.truncate(cut);
            let _ = payload(&image);
        }
    }
}
