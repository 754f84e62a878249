//! Intel's VMX: everything that knows a VMCS is in here. What comes out is a neutral [`Exit`], what goes in a neutral event.

pub mod bitmaps;
pub mod caps;
pub mod cpu;
pub mod entry;
pub mod ept;
pub mod field;
pub mod guest;
pub mod vmcs;

mod exit;

pub use exit::decode_exit;
