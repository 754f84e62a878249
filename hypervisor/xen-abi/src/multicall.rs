//! Many hypercalls in one (`xen.h`, `multicall`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One call; `result` is written back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MulticallEntry {
    pub op: u64,
    pub result: u64,
    pub args: [u64; 6],
}
