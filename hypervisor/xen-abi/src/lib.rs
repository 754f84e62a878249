//! Xen's public ABI: numbers, layouts and nothing else.
//!
//! One module a public header. Names are the headers' own, without the prefix that the module already says, and constants in
//! capitals. Every structure has `repr(C)`, explicit padding and a layout asserted at compile time against what a C compiler
//! says of the headers ([`layout`]), and goes in and out of bytes with `zerocopy`. Guests link this crate as well.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod errno;
pub mod event;
pub mod handle;
pub mod numbers;
pub mod sched;
pub mod types;
pub mod vcpu;
pub mod version;
pub mod x86;

pub use errno::{Errno, Result};
