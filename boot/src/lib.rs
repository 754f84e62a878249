//! The image's parts. They are a library so that the host can test them; `main.rs` puts them in order.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod cmdline;
pub mod console;
pub mod info;
pub mod logger;
pub mod memory;
pub mod multiboot2;
pub mod options;
pub mod panic;
pub mod pvh;
pub mod strings;
pub mod symbols;
pub mod tags;
