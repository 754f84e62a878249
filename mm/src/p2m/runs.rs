//! Cutting a range of gfns into the largest pages.

use super::span;
use crate::addr::PageSize;

/// Pages of one size in one table.
pub(super) struct Run {
    pub gfn: u64,
    pub size: PageSize,
    pub count: u64,
}

/// A range as runs of the largest pages that both addresses allow.
#[derive(Clone)]
pub(super) struct Runs {
    pub at: u64,
    pub end: u64,
    /// mfn - gfn.
    pub shift: u64,
    pub largest: PageSize,
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let rest = self.end.checked_sub(self.at).filter(|rest| *rest > 0)?;
        let both = self.at | self.at.wrapping_add(self.shift);
        let size = PageSize::DESCENDING
            .into_iter()
            .find(|size| *size <= self.largest && size.frames() <= rest && both & size.frames().wrapping_sub(1) == 0)?;
        // A larger page could begin only where this table ends, as the next level's page is the table's span.
        let table = span(size.level().wrapping_add(1));
        let to_table_end = table.wrapping_sub(self.at & table.wrapping_sub(1));
        let count = rest.min(to_table_end).wrapping_shr(size.order().into());
        let run = Run { gfn: self.at, size, count };
        self.at = self.at.wrapping_add(count.wrapping_mul(size.frames()));
        Some(run)
    }
}
