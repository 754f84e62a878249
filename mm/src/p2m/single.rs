//! Changes of one page that depend on what is mapped there: the check and the change are one step under the map's lock. For pages
//! that come and go by the thousands, such as grants, and for whatever several CPUs may be about to change at once.

use core::sync::atomic::Ordering;

use xen_abi::errno::Errno;

use super::{Flush, P2m, index, seen_from};
use crate::addr::{Gfn, Mfn, PageSize};
use crate::table::{Entry, Mapping, MemoryType, PageFormat, PageKind};

impl<F: PageFormat> P2m<F> {
    /// Maps one gfn where nothing is mapped. So no translation was live, and nothing is to be flushed.
    ///
    /// # Errors
    /// EEXIST if something is mapped there, EINVAL for a gfn or mfn that does not exist, ENOMEM.
    #[inline]
    pub fn insert(&self, gfn: Gfn, mfn: Mfn, kind: PageKind, memory: MemoryType) -> Result<(), Errno> {
        if gfn.0 >= Self::FRAMES || mfn.0 >= Self::MAX_MFN {
            return Err(Errno::EINVAL);
        }
        let _edit = self.edit.lock();
        let table = match self.small_table(gfn) {
            Some(Entry::Table(table)) => table,
            Some(_) => return Err(Errno::EEXIST),
            None => self.table_for(gfn.0, 1)?,
        };
        let entry = self.entry(table, index(gfn.0, 1)).ok_or(Errno::EINVAL)?;
        if self.format.decode(entry.load(Ordering::Relaxed), 1) != Entry::Empty {
            return Err(Errno::EEXIST);
        }
        self.reach(gfn.0.wrapping_add(1));
        entry.store(self.format.leaf(mfn, PageSize::Size4K, kind, memory), Ordering::Release);
        Ok(())
    }

    /// Unmaps one gfn if it is mapped to just this frame, as a page of 4 KiB and of this kind.
    ///
    /// Where it is not, nothing changes, and there is a flush all the same: whoever changed it first may not have spent theirs yet.
    #[inline]
    pub fn remove(&self, gfn: Gfn, mfn: Mfn, kind: PageKind) -> Flush {
        let edit = self.edit.lock();
        if gfn.0 < Self::FRAMES
            && let Some(Entry::Table(table)) = self.small_table(gfn)
            && let Some(entry) = self.entry(table, index(gfn.0, 1))
            && let Entry::Leaf(found) = self.format.decode(entry.load(Ordering::Relaxed), 1)
            && (found.mfn, found.kind) == (mfn, kind)
        {
            entry.store(0, Ordering::Release);
        }
        self.finish(edit, true)
    }

    /// Maps one gfn whatever is there, if `agree` consents to that. What was there, and the flush that is due if there was something.
    ///
    /// # Errors
    /// What `agree` says; EINVAL for a gfn or mfn that does not exist, ENOMEM; nothing has changed then.
    pub fn put(
        &self,
        gfn: Gfn,
        mfn: Mfn,
        kind: PageKind,
        memory: MemoryType,
        agree: impl FnOnce(Option<&Mapping>) -> Result<(), Errno>,
    ) -> Result<(Option<Mapping>, Flush), Errno> {
        if gfn.0 >= Self::FRAMES || mfn.0 >= Self::MAX_MFN {
            return Err(Errno::EINVAL);
        }
        let edit = self.edit.lock();
        let before = self.lookup(gfn);
        agree(before.as_ref())?;
        let table = self.table_for(gfn.0, 1)?;
        let entry = self.entry(table, index(gfn.0, 1)).ok_or(Errno::EINVAL)?;
        self.reach(gfn.0.wrapping_add(1));
        entry.store(self.format.leaf(mfn, PageSize::Size4K, kind, memory), Ordering::Release);
        let live = before.is_some_and(|before| self.gone(before.kind, 1));
        Ok((before, self.finish(edit, live)))
    }

    /// Unmaps the `size` around `gfn`, which must begin there and be mapped by one page of that size or larger, if `agree` consents
    /// to it. What was mapped. Of several who take the same page, one succeeds.
    ///
    /// # Errors
    /// What `agree` says; ENOENT if nothing is mapped, or only smaller pages are; EINVAL for a gfn that does not exist or is not
    /// aligned; ENOMEM if a larger page could not be split; nothing has changed then.
    #[inline]
    pub fn take(
        &self,
        gfn: Gfn,
        size: PageSize,
        agree: impl FnOnce(&Mapping) -> Result<(), Errno>,
    ) -> Result<(Mapping, Flush), Errno> {
        if gfn.0 >= Self::FRAMES || !gfn.is_aligned(size.frames()) {
            return Err(Errno::EINVAL);
        }
        let edit = self.edit.lock();
        let (mut table, mut level) = (self.root, F::LEVELS);
        let (entry, found) = loop {
            let entry = self.entry(table, index(gfn.0, level)).ok_or(Errno::EINVAL)?;
            match self.format.decode(entry.load(Ordering::Relaxed), level) {
                Entry::Table(next) if level > size.level() => (table, level) = (next, level.wrapping_sub(1)),
                Entry::Leaf(leaf) => {
                    let found = seen_from(leaf, gfn.0, level);
                    agree(&found)?;
                    let entry = if level == size.level() {
                        entry
                    } else {
                        let table = self.table_for(gfn.0, size.level())?;
                        self.entry(table, index(gfn.0, size.level())).ok_or(Errno::EINVAL)?
                    };
                    break (entry, found);
                }
                _ => return Err(Errno::ENOENT),
            }
        };
        entry.store(0, Ordering::Release);
        let live = self.gone(found.kind, size.frames());
        Ok((found, self.finish(edit, live)))
    }

    /// The table of 4 KiB pages that has `gfn`'s entry, or the larger leaf that it is part of; `None` if there is neither.
    #[inline]
    fn small_table(&self, gfn: Gfn) -> Option<Entry> {
        let (mut table, mut level) = (self.root, F::LEVELS);
        while level > 1 {
            match self.decoded(table, gfn.0, level) {
                Entry::Table(next) => (table, level) = (next, level.wrapping_sub(1)),
                leaf @ Entry::Leaf(_) => return Some(leaf),
                Entry::Empty => return None,
            }
        }
        Some(Entry::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use xen_abi::types::DomainId;

    fn p2m() -> P2m<fake::Format> {
        P2m::new(fake::Format::default(), fake::memory(64), DomainId(1)).unwrap()
    }

    #[test]
    fn a_gfn_is_mapped_only_where_nothing_is() {
        let p2m = p2m();
        let (gfn, write_back) = (Gfn(0x12345), MemoryType::WriteBack);
        p2m.insert(gfn, Mfn(7), PageKind::GrantRo, write_back).unwrap();
        assert_eq!(p2m.insert(gfn, Mfn(8), PageKind::GrantRw, write_back), Err(Errno::EEXIST));
        let found = p2m.lookup(gfn).unwrap();
        assert_eq!((found.mfn, found.kind, found.size), (Mfn(7), PageKind::GrantRo, PageSize::Size4K));
        assert_eq!(p2m.insert(p2m.end(), Mfn(8), PageKind::GrantRw, write_back), Err(Errno::EINVAL));
    }

    #[test]
    fn a_gfn_inside_a_large_page_is_not_free() {
        let p2m = p2m();
        let _ = p2m.map(Gfn(512), Mfn(512), 512, PageKind::Ram, MemoryType::WriteBack).unwrap();
        assert_eq!(p2m.insert(Gfn(600), Mfn(8), PageKind::GrantRw, MemoryType::WriteBack), Err(Errno::EEXIST));
    }

    #[test]
    fn only_what_was_named_is_unmapped_but_a_flush_is_always_due() {
        let p2m = p2m();
        p2m.insert(Gfn(5), Mfn(7), PageKind::GrantRw, MemoryType::WriteBack).unwrap();
        assert!(!p2m.remove(Gfn(5), Mfn(8), PageKind::GrantRw).is_none());
        assert!(!p2m.remove(Gfn(5), Mfn(7), PageKind::GrantRo).is_none());
        assert!(p2m.lookup(Gfn(5)).is_some());
        assert!(!p2m.remove(Gfn(5), Mfn(7), PageKind::GrantRw).is_none());
        assert_eq!(p2m.lookup(Gfn(5)), None);
    }

    const ANY: fn(&Mapping) -> Result<(), Errno> = |_| Ok(());

    #[test]
    fn what_is_put_says_what_was_there_and_a_large_page_around_it_stays() {
        let p2m = p2m();
        let write_back = MemoryType::WriteBack;
        let (before, flush) = p2m.put(Gfn(600), Mfn(7), PageKind::Foreign, write_back, |_| Ok(())).unwrap();
        assert!(before.is_none() && flush.is_none());
        let _ = p2m.map(Gfn(512), Mfn(512), 512, PageKind::Ram, write_back).unwrap();
        let (before, flush) = p2m.put(Gfn(600), Mfn(9), PageKind::Foreign, write_back, |_| Ok(())).unwrap();
        assert_eq!(before.map(|found| (found.mfn, found.kind)), Some((Mfn(600), PageKind::Ram)));
        assert!(!flush.is_none());
        assert_eq!(p2m.lookup(Gfn(600)).map(|found| found.mfn), Some(Mfn(9)));
        assert_eq!(p2m.lookup(Gfn(601)).map(|found| found.mfn), Some(Mfn(601)));
        let busy = |found: Option<&Mapping>| found.map_or(Ok(()), |_| Err(Errno::EBUSY));
        assert_eq!(p2m.put(Gfn(600), Mfn(1), PageKind::Ram, write_back, busy).unwrap_err(), Errno::EBUSY);
        assert_eq!(p2m.lookup(Gfn(600)).map(|found| found.mfn), Some(Mfn(9)));
    }

    #[test]
    fn a_page_is_taken_once_and_out_of_a_larger_one() {
        let p2m = p2m();
        let _ = p2m.map(Gfn(0), Mfn(0), 1024, PageKind::Ram, MemoryType::WriteBack).unwrap();
        let (found, flush) = p2m.take(Gfn(600), PageSize::Size4K, ANY).unwrap();
        assert_eq!((found.mfn, flush.is_none()), (Mfn(600), false));
        assert_eq!(p2m.take(Gfn(600), PageSize::Size4K, ANY).unwrap_err(), Errno::ENOENT);
        assert!(p2m.lookup(Gfn(599)).is_some() && p2m.lookup(Gfn(601)).is_some());
        assert_eq!(p2m.take(Gfn(512), PageSize::Size2M, ANY).unwrap_err(), Errno::ENOENT, "smaller pages");
        assert_eq!(p2m.take(Gfn(1), PageSize::Size2M, ANY).unwrap_err(), Errno::EINVAL);
        assert_eq!(p2m.take(Gfn(0), PageSize::Size2M, |_| Err(Errno::EPERM)).unwrap_err(), Errno::EPERM);
        let (found, _) = p2m.take(Gfn(0), PageSize::Size2M, ANY).unwrap();
        assert_eq!((found.mfn, found.size), (Mfn(0), PageSize::Size2M));
        assert_eq!(p2m.lookup(Gfn(511)), None);
        assert_eq!(p2m.take(p2m.end(), PageSize::Size4K, ANY).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn two_mebibytes_are_taken_out_of_a_gibibyte() {
        let p2m = p2m();
        let _ = p2m.map(Gfn(1 << 18), Mfn(1 << 18), 1 << 18, PageKind::Ram, MemoryType::WriteBack).unwrap();
        let at = Gfn((1 << 18) + 1024);
        assert_eq!(p2m.take(at, PageSize::Size2M, ANY).unwrap().0.mfn, Mfn(at.0));
        assert_eq!(p2m.lookup(Gfn(at.0 + 511)), None);
        assert_eq!(p2m.lookup(Gfn(at.0 + 512)).map(|found| found.size), Some(PageSize::Size2M));
    }
}
