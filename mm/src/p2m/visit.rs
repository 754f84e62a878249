//! Going through what is mapped.

use core::ops::{ControlFlow, Range};
use core::sync::atomic::Ordering;

use super::{P2m, entries, seen_from, span};
use crate::addr::{Gfn, Mfn};
use crate::table::{Entry, Mapping, PageFormat};

/// Guest frames that one leaf maps, or the part of it that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub gfn: Gfn,
    pub frames: u64,
    /// The leaf, with `mfn` the frame behind `gfn`.
    pub mapping: Mapping,
}

impl<F: PageFormat> P2m<F> {
    /// Shows what is mapped in `frames` gfns from `gfn` on, ascending, until `visit` breaks. Takes no lock: concurrent
    /// changes may be seen or not.
    pub fn visit<B>(&self, gfn: Gfn, frames: u64, mut visit: impl FnMut(Extent) -> ControlFlow<B>) -> ControlFlow<B> {
        let end = gfn.0.saturating_add(frames).min(Self::FRAMES);
        self.visit_table(self.root, F::LEVELS, 0, &(gfn.0..end), &mut visit)
    }

    pub(super) fn visit_table<B>(
        &self,
        table: Mfn,
        level: u8,
        base: u64,
        range: &Range<u64>,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for (index, at) in entries(level, base, range) {
            let Some(entry) = self.entry(table, index) else { continue };
            let value = entry.load(Ordering::Acquire);
            if value == 0 {
                continue;
            }
            match self.format.decode(value, level) {
                Entry::Leaf(mapping) => {
                    let first = at.max(range.start);
                    let end = at.wrapping_add(span(level)).min(range.end);
                    let mapping = seen_from(mapping, first, level);
                    visit(Extent { gfn: Gfn(first), frames: end.wrapping_sub(first), mapping })?;
                }
                Entry::Table(below) if level > 1 => {
                    self.visit_table(below, level.wrapping_sub(1), at, range, visit)?;
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// The first thing mapped at `gfn` or later, up to its leaf's end. For taking a map apart bit by bit.
    pub fn next_mapped(&self, gfn: Gfn) -> Option<Extent> {
        match self.visit(gfn, u64::MAX, ControlFlow::Break) {
            ControlFlow::Break(extent) => Some(extent),
            ControlFlow::Continue(()) => None,
        }
    }
}
