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

/// What a walk comes to.
pub(super) enum Step {
    /// A table, of which the entries for this gfn and on come next. There may be none.
    Table(Gfn),
    Leaf(Extent),
}

/// The leaves alone.
fn leaves<B>(mut visit: impl FnMut(Extent) -> ControlFlow<B>) -> impl FnMut(Step) -> ControlFlow<B> {
    move |step| match step {
        Step::Leaf(extent) => visit(extent),
        Step::Table(_) => ControlFlow::Continue(()),
    }
}

impl<F: PageFormat> P2m<F> {
    /// Shows what is mapped in `frames` gfns from `gfn` on, ascending, until `visit` breaks. Takes no lock: concurrent
    /// changes may be seen or not.
    pub fn visit<B>(&self, gfn: Gfn, frames: u64, visit: impl FnMut(Extent) -> ControlFlow<B>) -> ControlFlow<B> {
        let end = gfn.0.saturating_add(frames).min(Self::FRAMES);
        self.visit_table(self.root, F::LEVELS, 0, &(gfn.0..end), visit)
    }

    pub(super) fn visit_table<B>(
        &self,
        table: Mfn,
        level: u8,
        base: u64,
        range: &Range<u64>,
        visit: impl FnMut(Extent) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.walk_table(table, level, base, range, &mut leaves(visit))
    }

    /// As [`visit`](Self::visit), from `gfn` to the end, for whoever must not go through any number of empty tables.
    pub(super) fn walk<B>(&self, gfn: Gfn, mut walk: impl FnMut(Step) -> ControlFlow<B>) -> ControlFlow<B> {
        self.walk_table(self.root, F::LEVELS, 0, &(gfn.0..Self::FRAMES), &mut walk)
    }

    fn walk_table<B>(
        &self,
        table: Mfn,
        level: u8,
        base: u64,
        range: &Range<u64>,
        walk: &mut dyn FnMut(Step) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        walk(Step::Table(Gfn(base.max(range.start))))?;
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
                    walk(Step::Leaf(Extent { gfn: Gfn(first), frames: end.wrapping_sub(first), mapping }))?;
                }
                Entry::Table(below) if level > 1 => {
                    self.walk_table(below, level.wrapping_sub(1), at, range, walk)?;
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// The first thing mapped at `gfn` or later, up to its leaf's end. For taking a map apart bit by bit: `tables` are as many as may be gone
    /// through yet.
    ///
    /// # Errors
    /// Where to go on, if there are more tables.
    pub fn next_mapped(&self, gfn: Gfn, tables: &mut u64) -> Result<Option<Extent>, Gfn> {
        let found = self.walk(gfn, |step| match step {
            Step::Leaf(extent) => ControlFlow::Break(Ok(Some(extent))),
            Step::Table(at) if *tables == 0 => ControlFlow::Break(Err(at)),
            Step::Table(_) => {
                *tables = tables.wrapping_sub(1);
                ControlFlow::Continue(())
            }
        });
        found.break_value().unwrap_or(Ok(None))
    }
}
