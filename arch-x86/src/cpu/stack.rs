//! A processor's stacks.

use crate::paging::{self, MapError};

/// Pages of a processor's ordinary stack: 32 KiB.
const MAIN_PAGES: u64 = 8;
/// Pages of a stack for one of the exceptions that must not trust the ordinary one: 8 KiB.
const EXCEPTION_PAGES: u64 = 2;

/// The tops of one processor's stacks, each with a guard page at its bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacks {
    pub main: u64,
    /// Indexed as the interrupt stack table of the TSS.
    pub exceptions: [u64; EXCEPTION_STACKS],
}

/// Exceptions with a stack of their own: double fault, NMI, machine check.
pub const EXCEPTION_STACKS: usize = 3;

impl Stacks {
    /// Maps a set of stacks.
    pub fn allocate() -> Result<Self, MapError> {
        let mut exceptions = [0; EXCEPTION_STACKS];
        for top in &mut exceptions {
            *top = paging::allocate_stack(EXCEPTION_PAGES)?;
        }
        Ok(Self { main: paging::allocate_stack(MAIN_PAGES)?, exceptions })
    }
}
