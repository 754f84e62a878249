//! Building a PVH domain from a kernel image.

pub mod bzimage;
pub mod elf;
pub mod payload;
#[cfg(test)]
pub mod sample;
