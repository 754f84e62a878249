//! Tables kept for changes to come, so that a map that must not fail does not want for one.

use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::errno::Errno;

use super::P2m;
use crate::addr::{Mfn, PageSize};
use crate::memory::Memory;
use crate::table::PageFormat;

/// A list through the frame table. Anybody may add to it; only who has the map's lock takes from it, so that what a taker saw next is next.
/// (No table is in frame 0: that ends the list.)
pub(super) struct Spare {
    head: AtomicU64,
    count: AtomicU64,
    wanted: AtomicU64,
    /// As many of them are only for taking larger pages apart.
    for_splits: AtomicU64,
    /// As many tables may be drawn beyond the map's limit.
    beyond: AtomicU64,
}

impl Spare {
    pub(super) const fn none() -> Self {
        Self {
            head: AtomicU64::new(0),
            count: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            for_splits: AtomicU64::new(0),
            beyond: AtomicU64::new(0),
        }
    }

    /// How many tables may be drawn beyond the map's limit.
    pub(super) fn beyond(&self) -> u64 {
        self.beyond.load(Ordering::Relaxed)
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

    /// As [`take`](Self::take), if it is not to be left for a split.
    pub(super) fn take_free(&self, memory: &Memory) -> Option<Mfn> {
        let is_free = self.count.load(Ordering::Relaxed) > self.for_splits.load(Ordering::Relaxed);
        if is_free { self.take(memory) } else { None }
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
            self.draw_spare()?;
        }
        Ok(())
    }

    /// Sees to it that all larger pages that `pages` pages may be can be taken apart, whatever else takes memory: draws tables for them, once.
    ///
    /// # Errors
    /// ENOMEM; some may have been drawn then.
    pub fn keep_tables_for_splits(&self, pages: u64) -> Result<(), Errno> {
        let count = most_splits(pages);
        while self.spare.for_splits.load(Ordering::Relaxed) < count {
            // The lock, so that none is taken for something else before it is said what it is for.
            let _edit = self.edit.lock();
            self.spare.wanted.fetch_add(1, Ordering::Relaxed);
            if let Err(why) = self.draw_spare() {
                self.spare.wanted.fetch_sub(1, Ordering::Relaxed);
                return Err(why);
            }
            self.spare.for_splits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same where code runs in pages of 4 KiB alone: any of them may come to have some. These tables do not count towards the limit, as
    /// whoever set it knows nothing of this machine's processors.
    ///
    /// # Errors
    /// As there.
    pub fn keep_tables_for_code(&self, pages: u64) -> Result<(), Errno> {
        if self.format.runs_large_code() {
            return Ok(());
        }
        self.spare.beyond.fetch_max(most_splits(pages), Ordering::Relaxed);
        self.keep_tables_for_splits(pages)
    }

    fn draw_spare(&self) -> Result<(), Errno> {
        let table = self.draw_table(1)?;
        if !self.spare.keep(self.memory, table) {
            self.free_one(table);
        }
        Ok(())
    }
}

/// Into how many tables the larger pages that so many pages may be can come apart.
fn most_splits(pages: u64) -> u64 {
    [PageSize::Size2M, PageSize::Size1G].iter().map(|size| pages.wrapping_shr(size.order().into())).sum()
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

    #[test]
    fn what_is_kept_for_splits_is_there_for_nothing_else() {
        let memory = fake::memory(64);
        let all = memory.free_frames();
        let p2m = P2m::new(fake::Format::default(), memory, DomainId(1)).unwrap();
        let _ = p2m.map(Gfn(512), Mfn(512), 1536, PageKind::Foreign, MemoryType::WriteBack).unwrap();
        p2m.keep_tables_for_splits(2 << 9).unwrap();
        p2m.keep_tables_for_splits(2 << 9).unwrap();
        // The root, two above the leaves, and the two.
        assert_eq!((p2m.table_frames(), memory.free_frames()), (5, all - 5));
        p2m.set_table_limit(5);
        let put = |gfn: u64| p2m.put(Gfn(gfn), Mfn(7), PageKind::Foreign, MemoryType::WriteBack, |_| Ok(()));
        assert_eq!(put(0).unwrap_err(), Errno::ENOMEM);
        assert!(put(600).is_ok() && put(1100).is_ok());
        assert_eq!(put(1600).unwrap_err(), Errno::ENOMEM);
        // A table that is out of use is kept again.
        let flush = p2m.map(Gfn(512), Mfn(512), 512, PageKind::Foreign, MemoryType::WriteBack).unwrap();
        p2m.reclaim(flush.spend().unwrap());
        assert_eq!((p2m.table_frames(), put(0).unwrap_err()), (5, Errno::ENOMEM));
        assert!(put(1600).is_ok());
        drop(p2m);
        assert_eq!(memory.free_frames(), all);
    }

    #[test]
    fn what_is_kept_for_code_is_beyond_the_limit_and_for_nothing_else() {
        let memory = fake::memory(64);
        let large = P2m::new(fake::Format::default(), memory, DomainId(1)).unwrap();
        large.keep_tables_for_code(3 << 9).unwrap();
        assert_eq!(large.table_frames(), 1, "its code runs anywhere");
        let p2m = P2m::new(fake::Format::default().with_small_code(), memory, DomainId(1)).unwrap();
        let _ = p2m.map(Gfn(512), Mfn(512), 1536, PageKind::Ram, MemoryType::WriteBack).unwrap();
        p2m.set_table_limit(3);
        p2m.keep_tables_for_code(3 << 9).unwrap();
        assert_eq!(p2m.table_frames(), 6);
        let put = |gfn: u64| p2m.put(Gfn(gfn), Mfn(7), PageKind::Foreign, MemoryType::WriteBack, |_| Ok(()));
        assert_eq!(put(0).unwrap_err(), Errno::ENOMEM);
        assert!([512, 1024, 1536].into_iter().all(|gfn| p2m.split_at(Gfn(gfn)).is_ok()));
        assert_eq!((p2m.table_frames(), put(0).unwrap_err()), (6, Errno::ENOMEM));
    }
}
