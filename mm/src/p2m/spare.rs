//! Tables kept for changes to come, so that a map that must not fail does not want for one.

use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::errno::Errno;

use super::P2m;
use crate::addr::Mfn;
use crate::memory::Memory;
use crate::table::PageFormat;

/// A list through the frame table. Anybody may add to it; only who has the map's lock takes from it, so that what a taker saw next is next.
/// (No table is in frame 0: that ends the list.)
pub(super) struct Spare {
    head: AtomicU64,
    count: AtomicU64,
    wanted: AtomicU64,
}

impl Spare {
    pub(super) const fn none() -> Self {
        Self { head: AtomicU64::new(0), count: AtomicU64::new(0), wanted: AtomicU64::new(0) }
    }

    /// Keeps a table that is out of use, unless there are enough.
    pub(super) fn keep(&self, memory: &Memory, table: Mfn) -> bool {
        let Some(slot) = memory.slot(table) else { return false };
        let wanted = self.wanted.load(Ordering::Relaxed);
        let room = |count: u64| (count < wanted).then(|| count.wrapping_add(1));
        if self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return false;
        }
        // Whoever takes it sees what it was before as over: `take` reads the head.
        let link = |head: u64| {
            slot.set_next(head as u32);
            Some(table.0)
        };
        self.head.fetch_update(Ordering::Release, Ordering::Relaxed, link).is_ok()
    }

    /// One of them, with whatever it has in it. The caller has the map's lock.
    pub(super) fn take(&self, memory: &Memory) -> Option<Mfn> {
        let next = |head: u64| memory.slot(Mfn(head)).filter(|_| head != 0).map(|slot| u64::from(slot.next()));
        let taken = self.head.fetch_update(Ordering::Acquire, Ordering::Acquire, next).ok()?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(Mfn(taken))
    }
}

impl<F: PageFormat> P2m<F> {
    /// Draws so many tables now and keeps as many of those that come out of use. They count as table frames.
    ///
    /// # Errors
    /// ENOMEM; some may have been drawn then.
    pub fn keep_tables(&self, count: u64) -> Result<(), Errno> {
        self.spare.wanted.store(count, Ordering::Relaxed);
        for _ in self.spare.count.load(Ordering::Relaxed)..count {
            let table = self.draw_table(1)?;
            if !self.spare.keep(self.memory, table) {
                self.memory.free_table(table);
                self.tables.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Gfn, PageSize};
    use crate::fake;
    use crate::table::{MemoryType, PageKind};
    use xen_abi::types::DomainId;

    #[test]
    fn a_map_with_spare_tables_draws_none_and_gives_none_back() {
        let memory = fake::memory(64);
        let all = memory.free_frames();
        let p2m = P2m::new(fake::Format::new(PageSize::Size4K), memory, DomainId(1)).unwrap();
        p2m.keep_tables(8).unwrap();
        let free = memory.free_frames();
        assert_eq!((p2m.table_frames(), free), (9, all - 9));
        for _ in 0..3 {
            let _ = p2m.map(Gfn(0), Mfn(5), 3, PageKind::Foreign, MemoryType::WriteBack).unwrap();
            let _ = p2m.map(Gfn(1 << 18), Mfn(5), 1, PageKind::Foreign, MemoryType::WriteBack).unwrap();
            assert_eq!(memory.free_frames(), free);
            assert_eq!(p2m.lookup(Gfn(2)).map(|mapping| mapping.mfn), Some(Mfn(7)));
            assert_eq!(p2m.lookup(Gfn(3)), None, "a table that was in use is empty");
            let flush = p2m.unmap(Gfn(0), p2m.end().0).unwrap();
            p2m.reclaim(flush.spend().unwrap());
            assert_eq!((p2m.table_frames(), memory.free_frames()), (9, free));
        }
        drop(p2m);
        assert_eq!(memory.free_frames(), all);
    }

    #[test]
    fn what_was_mapped_before_comes_back_as_far_as_it_is_wanted() {
        let memory = fake::memory(64);
        let p2m = P2m::new(fake::Format::new(PageSize::Size4K), memory, DomainId(1)).unwrap();
        let free = memory.free_frames();
        let _ = p2m.map(Gfn(0), Mfn(5), 3, PageKind::Foreign, MemoryType::WriteBack).unwrap();
        p2m.keep_tables(1).unwrap();
        let flush = p2m.unmap(Gfn(0), p2m.end().0).unwrap();
        p2m.reclaim(flush.spend().unwrap());
        assert_eq!((p2m.table_frames(), memory.free_frames()), (2, free - 1));
        assert_eq!(p2m.keep_tables(1000), Err(Errno::ENOMEM));
    }
}
