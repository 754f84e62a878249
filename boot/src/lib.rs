//! The part of the image that the host can test.
#![cfg_attr(not(test), no_std)]

pub mod cmdline;
pub mod info;
pub mod memory;
pub mod multiboot2;
pub mod options;
pub mod pvh;
pub mod strings;
