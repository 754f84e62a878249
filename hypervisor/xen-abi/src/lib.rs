//! Xen's public ABI: numbers, layouts and nothing else.
//!
//! One module a public header. Names are the headers' own, without the prefix that the module already says, and constants in
//! capitals. Every structure has `repr(C)`, explicit padding and a layout asserted at compile time against what a C compiler
//! says of the headers (`layout.rs`), and goes in and out of bytes with `zerocopy`. Guests link this crate as well.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod argument;
pub mod compat;
pub mod console;
pub mod dm;
pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod event;
pub mod features;
pub mod grant;
pub mod handle;
pub mod hvm;
pub mod hvm_save;
mod layout;
pub mod memory;
pub mod multicall;
pub mod numbers;
pub mod physdev;
pub mod platform;
pub mod sched;
pub mod start_info;
pub mod sysctl;
pub mod types;
pub mod vcpu;
pub mod version;
pub mod vm_assist;
pub mod x86;

pub use errno::{Errno, Result};
