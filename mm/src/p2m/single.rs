//! Changes of one gfn that depend on what is mapped there: the check and the change are one step under the map's lock. For pages
//! that come and go by the thousands, such as grants.

use core::sync::atomic::Ordering;

use xen_abi::errno::Errno;

use super::{Flush, P2m, index};
use crate::addr::{Gfn, Mfn, PageSize};
use crate::table::{Entry, MemoryType, PageFormat, PageKind};

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
        let _retired = self.edit.lock();
        let table = match self.small_table(gfn) {
            Some(Entry::Table(table)) => table,
            Some(_) => return Err(Errno::EEXIST),
            None => self.table_for(gfn.0, 1)?,
        };
        let entry = self.entry(table, index(gfn.0, 1)).ok_or(Errno::EINVAL)?;
        if self.format.decode(entry.load(Ordering::Relaxed), 1) != Entry::Empty {
            return Err(Errno::EEXIST);
        }
        entry.store(self.format.leaf(mfn, PageSize::Size4K, kind, memory), Ordering::Release);
        Ok(())
    }

    /// Unmaps one gfn if it is mapped to just this frame, as a page of 4 KiB and of this kind.
    ///
    /// Where it is not, nothing changes, and there is a flush all the same: whoever changed it first may not have spent theirs yet.
    #[inline]
    pub fn remove(&self, gfn: Gfn, mfn: Mfn, kind: PageKind) -> Flush {
        let retired = self.edit.lock();
        if gfn.0 < Self::FRAMES
            && let Some(Entry::Table(table)) = self.small_table(gfn)
            && let Some(entry) = self.entry(table, index(gfn.0, 1))
            && let Entry::Leaf(found) = self.format.decode(entry.load(Ordering::Relaxed), 1)
            && (found.mfn, found.kind) == (mfn, kind)
        {
            entry.store(0, Ordering::Release);
        }
        self.finish(retired, true)
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
}
