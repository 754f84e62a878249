//! The image: from the boot loader's hand-over to a machine with memory, heap, console and log; then [`start`].
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod bring_up;
#[cfg(target_os = "none")]
mod start;

/// The image is only built for the machine itself.
#[cfg(not(target_os = "none"))]
fn main() {}
