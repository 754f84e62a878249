//! Taking mappings away.

use core::ops::{ControlFlow, Range};
use core::sync::atomic::Ordering;

use xen_abi::errno::Errno;

use super::{Edit, Extent, Flush, P2m, entries, span};
use crate::addr::{Gfn, Mfn};
use crate::table::{Entry, PageFormat};

impl<F: PageFormat> P2m<F> {
    /// Unmaps `frames` gfns; those not mapped are passed over, and where whole tables are absent, quickly.
    ///
    /// # Errors
    /// EINVAL for a range beyond the end, ENOMEM if a large page at its edge could not be split; nothing has changed then.
    pub fn unmap(&self, gfn: Gfn, frames: u64) -> Result<Flush, Errno> {
        self.unmap_range(gfn, frames, None)
    }

    /// As [`unmap`](Self::unmap), showing everything that was mapped, ascending. `visit` runs under the map's lock.
    pub fn unmap_each(&self, gfn: Gfn, frames: u64, mut visit: impl FnMut(Extent)) -> Result<Flush, Errno> {
        self.unmap_range(gfn, frames, Some(&mut visit))
    }

    fn unmap_range(&self, gfn: Gfn, frames: u64, visit: Option<&mut dyn FnMut(Extent)>) -> Result<Flush, Errno> {
        let range = Self::check_range(gfn, frames)?;
        let mut edit = self.edit.lock();
        self.split_edges(&range, |_| true)?;
        let live = Clear { p2m: self, range, visit, edit: &mut edit }.table(self.root, F::LEVELS, 0);
        Ok(self.finish(edit, live))
    }
}

/// An unmapping under way; all leaves are either inside of the range or outside.
struct Clear<'a, 'v, F: PageFormat> {
    p2m: &'a P2m<F>,
    range: Range<u64>,
    visit: Option<&'a mut (dyn FnMut(Extent) + 'v)>,
    edit: &'a mut Edit,
}

impl<F: PageFormat> Clear<'_, '_, F> {
    /// Clears what a table has of the range; whether anything was live.
    fn table(&mut self, table: Mfn, level: u8, base: u64) -> bool {
        let mut live = false;
        for (index, at) in entries(level, base, &self.range) {
            let Some(entry) = self.p2m.entry(table, index) else { continue };
            let value = entry.load(Ordering::Acquire);
            if value == 0 {
                continue;
            }
            let whole = self.range.start <= at && at.wrapping_add(span(level)) <= self.range.end;
            match self.p2m.format.decode(value, level) {
                Entry::Table(below) if !whole => live |= self.table(below, level.wrapping_sub(1), at),
                Entry::Table(below) => {
                    entry.store(0, Ordering::Release);
                    if let Some(visit) = &mut self.visit {
                        let show = |extent| -> ControlFlow<()> {
                            visit(extent);
                            ControlFlow::Continue(())
                        };
                        let _ = self.p2m.visit_table(below, level.wrapping_sub(1), at, &self.range, show);
                    }
                    live |= self.p2m.replaced(self.edit, Entry::Table(below), level, at);
                }
                Entry::Leaf(mapping) => {
                    entry.store(0, Ordering::Release);
                    live |= self.p2m.replaced(self.edit, Entry::Leaf(mapping), level, at);
                    if let Some(visit) = &mut self.visit {
                        visit(Extent { gfn: Gfn(at), frames: span(level), mapping });
                    }
                }
                Entry::Empty => {}
            }
        }
        live
    }
}
