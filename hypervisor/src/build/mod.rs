//! Building a PVH domain from a kernel image.
//!
//! [`spec`] reads which domains there are to be. [`unpack`] finds the kernel in its file, [`plan`] says which memory the domain gets and
//! what goes where, [`memory`] provides it, [`pvh`] writes it there and says how the first vCPU starts.

pub mod bzimage;
mod crc32;
pub mod dom0_mem;
pub mod elf;
pub mod initrd;
mod lzma;
pub mod map;
pub mod memory;
pub mod payload;
pub mod plan;
pub mod pvh;
#[cfg(test)]
pub mod sample;
pub mod spec;
mod window;
mod zstd;

use alloc::borrow::Cow;
use core::fmt;

/// Why a file holds no kernel that could be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackError {
    BzImage(bzimage::BzImageError),
    Payload(payload::PayloadError),
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnpackError::BzImage(error) => error.fmt(f),
            UnpackError::Payload(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for UnpackError {}

/// The ELF image of a kernel `file`: a bzImage, or ELF as it is, which is not copied.
pub fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>, UnpackError> {
    let payload = bzimage::payload(file).map_err(UnpackError::BzImage)?;
    payload::decompress(payload).map_err(UnpackError::Payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_file_is_an_elf_image_or_a_bzimage_around_one() {
        let elf = sample::elf64().load(0x100_0000, b"text", 4).entry(0x100_0000);
        let image = elf.build();
        assert!(matches!(unpack(&image), Ok(Cow::Borrowed(_))));
        assert_eq!(*unpack(&elf.bzimage()).unwrap(), *image);
        assert!(matches!(unpack(b"text"), Err(UnpackError::BzImage(_))));
        assert!(matches!(unpack(&sample::bzimage(b"text")), Err(UnpackError::Payload(_))));
    }
}
