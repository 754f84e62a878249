//! Memory: frames and who owns them, the guests' physical memory maps, and the two narrow doors to guest memory.
//!
//! Nothing outside of this crate holds a Rust reference to a guest's memory. It is either copied ([`guest`]) or touched by
//! atomics of the exact width ([`shared`]).

#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

pub mod addr;
mod buddy;
mod copy;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod frame;
pub mod frames;
pub mod guest;
pub mod heap;
pub mod lock;
pub mod memory;
pub mod p2m;
pub mod rangeset;
pub mod shared;
pub mod table;
pub mod window;

pub use addr::{Gfn, GuestPhys, HostPhys, Mfn, PAGE_SHIFT, PAGE_SIZE, PageSize};
pub use frame::{FrameKind, FrameSlot, FrameState};
pub use frames::{Clean, Dirty, Frames};
pub use guest::GuestMemory;
pub use heap::{Heap, try_arc, try_box, try_concat, try_vec};
pub use lock::{Lock, Rank};
pub use memory::{FrameRef, Memory, OutOfMemory};
pub use p2m::{Cached, Extent, Flush, P2m, P2mCache, Pod};
pub use rangeset::RangeSet;
pub use shared::SharedPage;
pub use table::{Entry, Mapping, MemoryType, PageFormat, PageKind};
pub use window::{BadAddress, Window};
