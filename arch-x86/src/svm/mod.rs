//! AMD's SVM: everything that knows a VMCB is in here. What comes out is a neutral [`Exit`](crate::exit::Exit), what goes in a neutral event.

pub mod asid;
pub mod bitmaps;
pub mod caps;
pub mod cpu;
pub mod guest;
pub mod npt;
pub mod vmcb;

mod entry;
mod events;
mod exit;
