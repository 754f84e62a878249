//! Populate on demand (PoD): entries without a frame, which get one when they are touched, and the cache of frames that they get. Entries and
//! cache change together, under the map's lock.
//!
//! The cache's frames are the domain's, but parked: nobody refers to them, and no CPU sees them.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::errno::Errno;

use super::{Edit, Extent, Flush, P2m, index, span};
use crate::addr::{Gfn, Mfn, PageSize};
use crate::frames::{Clean, Frames};
use crate::memory::Memory;
use crate::table::{Entry, Mapping, MemoryType, PageFormat, PageKind};

const LARGE: u64 = PageSize::Size2M.frames();

/// What a map has, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Entries without a frame.
    pub entries: u64,
    /// Frames that wait to be populated.
    pub cache: u64,
}

/// What there is, for whoever only asks. Changed with the map's lock held.
pub(super) struct Counts {
    entries: AtomicU64,
    cache: AtomicU64,
}

impl Counts {
    pub(super) const fn none() -> Self {
        Self { entries: AtomicU64::new(0), cache: AtomicU64::new(0) }
    }

    fn get(&self) -> Pod {
        Pod { entries: self.entries.load(Ordering::Relaxed), cache: self.cache.load(Ordering::Relaxed) }
    }

    pub(super) fn add_entries(&self, pages: u64) {
        self.entries.fetch_add(pages, Ordering::Relaxed);
    }

    pub(super) fn remove_entries(&self, pages: u64) {
        let before = self.entries.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "{pages} of {before} entries");
    }
}

/// The frames, in two lists through the frame table: single ones, and blocks of 2 MiB.
pub(super) struct Cache {
    small: u32,
    large: u32,
}

impl Cache {
    /// Ends a list: no frame has this number.
    const END: u32 = u32::MAX;

    pub(super) const fn none() -> Self {
        Self { small: Self::END, large: Self::END }
    }

    fn push(list: &mut u32, memory: &Memory, mfn: Mfn) {
        if let Some(slot) = memory.slot(mfn) {
            slot.set_next(*list);
            *list = mfn.0 as u32;
        }
    }

    fn pop(list: &mut u32, memory: &Memory) -> Option<Mfn> {
        let head = Mfn((*list).into());
        let slot = memory.slot(head).filter(|_| *list != Self::END)?;
        *list = slot.next();
        Some(head)
    }

    fn add(&mut self, memory: &Memory, mfn: Mfn, order: u8) {
        if order == PageSize::Size2M.order() {
            Self::push(&mut self.large, memory, mfn);
        } else {
            for index in (0..1u64.wrapping_shl(order.into())).rev() {
                Self::push(&mut self.small, memory, mfn.plus(index));
            }
        }
    }

    /// A single frame, out of a block if need be.
    fn take_small(&mut self, memory: &Memory) -> Option<Mfn> {
        if self.small == Self::END {
            let block = Self::pop(&mut self.large, memory)?;
            (0..LARGE).rev().for_each(|index| Self::push(&mut self.small, memory, block.plus(index)));
        }
        Self::pop(&mut self.small, memory)
    }
}

impl<F: PageFormat> P2m<F> {
    /// What there is to be populated on demand.
    #[inline]
    pub fn pod(&self) -> Pod {
        self.pod.get()
    }

    /// Has `frames` gfns populated when they are touched. Those of which this is said already stay so.
    ///
    /// # Errors
    /// EEXIST if something else is mapped there, EINVAL for a range beyond the end, ENOMEM; nothing has changed then.
    pub fn mark_on_demand(&self, gfn: Gfn, frames: u64) -> Result<Flush, Errno> {
        let other = |extent: Extent| match extent.mapping.kind {
            PageKind::OnDemand => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        // The largest pages that the gfns allow.
        let alike = Mfn(gfn.0);
        self.map_if(gfn, alike, frames, (PageKind::OnDemand, MemoryType::WriteBack), || {
            self.visit(gfn, frames, other).is_continue().then_some(()).ok_or(Errno::EEXIST)
        })
    }

    /// The entries in a table that is taken out of the tree.
    #[cold]
    #[inline(never)]
    pub(super) fn forget_entries(&self, table: Mfn, level: u8, base: u64) {
        if self.pod().entries == 0 {
            return;
        }
        let mut pages = 0u64;
        let whole = base..base.wrapping_add(span(level.wrapping_add(1)));
        let _ = self.visit_table(table, level, base, &whole, |extent| -> ControlFlow<()> {
            if extent.mapping.kind == PageKind::OnDemand {
                pages = pages.wrapping_add(extent.frames);
            }
            ControlFlow::Continue(())
        });
        self.pod.remove_entries(pages);
    }

    /// Sees to it that there is a frame behind `gfn` if it is to be populated on demand, 2 MiB at once if there are as many; the frame is all
    /// zeroes then. No translation was live, so nothing is to be flushed.
    ///
    /// # Errors
    /// ENOENT if nothing is mapped, EINVAL for a gfn that does not exist, ENOMEM if the cache is empty, ENOBUFS if there is no table to split a
    /// larger entry by.
    #[cold]
    #[inline(never)]
    pub fn populate(&self, gfn: Gfn) -> Result<(), Errno> {
        if gfn.0 >= Self::FRAMES {
            return Err(Errno::EINVAL);
        }
        let mut edit = self.edit.lock();
        let (mut table, mut level) = (self.root, F::LEVELS);
        loop {
            let entry = self.entry(table, index(gfn.0, level)).ok_or(Errno::EINVAL)?;
            let mapping = match self.format.decode(entry.load(Ordering::Acquire), level) {
                Entry::Table(next) if level > 1 => {
                    (table, level) = (next, level.wrapping_sub(1));
                    continue;
                }
                Entry::Leaf(mapping) if mapping.kind == PageKind::OnDemand => mapping,
                Entry::Leaf(mapping) if mapping.kind == PageKind::Withheld => {
                    entry.store(
                        self.format.leaf(mapping.mfn, mapping.size, PageKind::Ram, mapping.memory),
                        Ordering::Release,
                    );
                    return Ok(());
                }
                // Another CPU was here first.
                Entry::Leaf(_) => return Ok(()),
                _ => return Err(Errno::ENOENT),
            };
            let taken = match mapping.size {
                PageSize::Size4K => edit.cache.take_small(self.memory),
                PageSize::Size2M => Cache::pop(&mut edit.cache.large, self.memory),
                PageSize::Size1G => None,
            };
            if let Some(mfn) = taken {
                let frames = mapping.size.frames();
                self.memory.take_parked(mfn, mapping.size.order(), self.owner)?;
                entry.store(
                    self.format.leaf(mfn, mapping.size, PageKind::Ram, MemoryType::WriteBack),
                    Ordering::Release,
                );
                self.pod.remove_entries(frames);
                self.pod.cache.fetch_sub(frames, Ordering::Relaxed);
                return Ok(());
            }
            if level == 1 || self.pod().cache == 0 {
                return Err(Errno::ENOMEM);
            }
            table = self.split(entry, mapping, level).map_err(|_| Errno::ENOBUFS)?;
            level = level.wrapping_sub(1);
        }
    }

    /// The memory behind `gfn`, populated if need be.
    ///
    /// # Errors
    /// EINVAL if there is none, ENOMEM and ENOBUFS if it could not be populated.
    #[cold]
    #[inline(never)]
    pub(crate) fn touch(&self, gfn: Gfn) -> Result<Mapping, Errno> {
        if self.lookup(gfn).is_some_and(|found| found.kind.comes_when_touched()) {
            self.populate(gfn)?;
        }
        self.lookup(gfn).filter(|found| found.kind.is_memory()).ok_or(Errno::EINVAL)
    }

    // ---- the cache ----

    /// Adds frames that are parked already. The caller has the map's lock.
    pub(super) fn add_to_cache(&self, edit: &mut Edit, mfn: Mfn, size: PageSize) {
        edit.cache.add(self.memory, mfn, size.order());
        self.pod.cache.fetch_add(size.frames(), Ordering::Relaxed);
    }

    /// Puts free frames in the cache. (They are zeroed before, so that nobody waits for that when they are populated.)
    pub fn fill_cache(&self, frames: Frames<Clean>) {
        let (order, count) = (frames.order(), frames.count());
        let mut edit = self.edit.lock();
        let mfn = frames.park_for(self.owner);
        edit.cache.add(self.memory, mfn, order);
        edit.round.start_anew();
        self.pod.cache.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether there are more entries than frames for them.
    #[inline]
    pub fn cache_wants_more(&self) -> bool {
        let pod = self.pod();
        pod.entries > pod.cache
    }

    /// Puts a page of the domain's memory in the cache, if that has too few and nobody refers to the page; whether it did. The page must be gone
    /// from the map, and the flush spent; the cache is to be [trimmed](Self::trim_cache) afterwards.
    #[cold]
    #[inline(never)]
    pub fn keep_in_cache(&self, mfn: Mfn, size: PageSize) -> bool {
        if size > PageSize::Size2M {
            return false;
        }
        if !self.cache_wants_more() || self.memory.park_block(mfn, size.order(), self.owner).is_err() {
            return false;
        }
        // Before the lock is taken, as it takes its time. By then the cache may have enough, but not for long: it is trimmed afterwards.
        if self.memory.window().zero_frames(mfn, size.frames()).is_err() {
            self.unpark_block(mfn, size);
            return false;
        }
        self.memory.note_zeroed(mfn, size.order(), self.owner);
        let mut edit = self.edit.lock();
        self.add_to_cache(&mut edit, mfn, size);
        edit.round.start_anew();
        true
    }

    /// Makes a page that was put aside just now the domain's memory again.
    pub(super) fn unpark_block(&self, mfn: Mfn, size: PageSize) {
        for step in 0..size.frames() {
            let own = self.memory.unpark(mfn.plus(step), self.owner);
            debug_assert_eq!(own, Ok(()), "{mfn} was parked just now");
        }
    }

    /// Frees frames of the cache, single ones first, until it has but `least`, `most` at most; how many.
    pub fn shrink_cache(&self, least: u64, most: u64) -> u64 {
        self.shrink(|_| least, most)
    }

    /// Frees frames for which there are no entries, `most` at most; how many.
    pub fn trim_cache(&self, most: u64) -> u64 {
        let Pod { entries, cache } = self.pod();
        if cache <= entries { 0 } else { self.shrink(|entries| entries, most) }
    }

    fn shrink(&self, least: impl Fn(u64) -> u64, most: u64) -> u64 {
        let mut edit = self.edit.lock();
        let mut freed = 0u64;
        loop {
            let Pod { entries, cache } = self.pod();
            let surplus = cache.saturating_sub(least(entries)).min(most.saturating_sub(freed));
            if surplus == 0 {
                return freed;
            }
            let whole = edit.cache.small == Cache::END && surplus >= LARGE;
            let size = if whole { PageSize::Size2M } else { PageSize::Size4K };
            let taken = match size {
                PageSize::Size4K => edit.cache.take_small(self.memory),
                _ => Cache::pop(&mut edit.cache.large, self.memory),
            };
            let Some(mfn) = taken else { return freed };
            let is_own = self.memory.free_parked(mfn, size.order(), self.owner);
            debug_assert_eq!(is_own, Ok(()), "{mfn} of the cache");
            self.pod.cache.fetch_sub(size.frames(), Ordering::Relaxed);
            freed = freed.wrapping_add(size.frames());
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::types::DomainId;

    use super::*;
    use crate::addr::{GuestPhys, HostPhys};
    use crate::fake::{self, CachingTlb};
    use crate::frame::FrameKind;
    use crate::guest::GuestMemory;
    use crate::p2m::P2mCache;

    const OWNER: DomainId = DomainId(3);

    /// A map with 1024 entries from gfn 512 on, and a cache of a block and four frames, none of which is zeroes.
    fn p2m(memory: &'static Memory) -> P2m<fake::Format> {
        let p2m = P2m::new(fake::Format::default(), memory, OWNER).unwrap();
        assert!(p2m.mark_on_demand(Gfn(512), 1024).unwrap().is_none());
        p2m.fill_cache(memory.allocate(2, None).unwrap().scrub());
        p2m.fill_cache(memory.allocate(9, None).unwrap().scrub());
        assert_eq!(p2m.pod(), Pod { entries: 1024, cache: 516 });
        p2m
    }

    fn is_zero(memory: &Memory, mfn: Mfn, frames: u64) -> bool {
        let bytes = mfn.phys().0..mfn.plus(frames).phys().0;
        bytes.step_by(8).all(|at| memory.window().read_u64(HostPhys(at)) == Ok(0))
    }

    #[test]
    fn an_entry_is_populated_as_large_as_it_can_be_and_with_zeroes() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        let generation = p2m.generation();
        p2m.populate(Gfn(700)).unwrap();
        let found = p2m.lookup(Gfn(512)).unwrap();
        assert_eq!(
            (found.kind, found.size, p2m.pod()),
            (PageKind::Ram, PageSize::Size2M, Pod { entries: 512, cache: 4 })
        );
        assert!(is_zero(memory, found.mfn, 512));
        // There is no second block.
        p2m.populate(Gfn(1030)).unwrap();
        let found = p2m.lookup(Gfn(1030)).unwrap();
        assert_eq!(
            (found.kind, found.size, p2m.pod()),
            (PageKind::Ram, PageSize::Size4K, Pod { entries: 511, cache: 3 })
        );
        assert!(is_zero(memory, found.mfn, 1));
        assert!(memory.state(found.mfn).is(FrameKind::Owned, OWNER));
        assert_eq!(p2m.lookup(Gfn(1029)).unwrap().kind, PageKind::OnDemand);
        // It is there already.
        p2m.populate(Gfn(1030)).unwrap();
        assert_eq!((p2m.pod().cache, p2m.generation()), (3, generation));
        assert_eq!(p2m.populate(Gfn(0)), Err(Errno::ENOENT));
        assert_eq!(p2m.populate(p2m.end()), Err(Errno::EINVAL));
    }

    #[test]
    fn small_entries_are_populated_out_of_a_block() {
        let memory = fake::memory(2048);
        let p2m = P2m::new(fake::Format::default(), memory, OWNER).unwrap();
        let _ = p2m.mark_on_demand(Gfn(5), 20).unwrap();
        p2m.fill_cache(memory.allocate(9, None).unwrap().scrub());
        for gfn in 5..25 {
            p2m.populate(Gfn(gfn)).unwrap();
            let found = p2m.lookup(Gfn(gfn)).unwrap();
            assert!(found.kind == PageKind::Ram && is_zero(memory, found.mfn, 1));
        }
        assert_eq!(p2m.pod(), Pod { entries: 0, cache: 492 });
        assert_eq!(p2m.trim_cache(100), 100);
        assert_eq!(p2m.trim_cache(u64::MAX), 392);
    }

    #[test]
    fn without_a_frame_nothing_is_populated_and_who_looks_for_it_is_told_where() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        assert_eq!(p2m.shrink_cache(0, 500), 500);
        assert_eq!(p2m.shrink_cache(0, 500), 16);
        assert_eq!(p2m.populate(Gfn(600)), Err(Errno::ENOMEM));
        assert_eq!(
            p2m.lookup(Gfn(600)).map(|found| (found.kind, found.size)),
            Some((PageKind::OnDemand, PageSize::Size2M))
        );
        assert_eq!(GuestMemory::new(&p2m).copy_to(GuestPhys(600 << 12), &[1]), Err(Errno::EFAULT));
        let mut cache = P2mCache::new();
        assert_eq!(cache.of(&p2m).lookup(Gfn(0)), None);
        assert_eq!(cache.take_missed(), None);
        assert_eq!(cache.of(&p2m).lookup(Gfn(600)), None);
        assert_eq!((cache.take_missed(), cache.take_missed()), (Some(Gfn(600)), None));
        assert_eq!(p2m.reference(Gfn(600)).unwrap_err(), Errno::ENOMEM);
    }

    #[test]
    fn without_a_table_it_is_not_the_frames_that_are_said_to_be_too_few() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        p2m.set_table_limit(0);
        p2m.populate(Gfn(700)).unwrap();
        assert_eq!(p2m.populate(Gfn(1030)), Err(Errno::ENOBUFS), "the block is gone, and 2 MiB cannot come apart");
        assert_eq!(p2m.pod(), Pod { entries: 512, cache: 4 });
        let mut cache = P2mCache::new();
        assert_eq!((cache.of(&p2m).lookup(Gfn(1030)), cache.take_missed()), (None, Some(Gfn(1030))));
        assert_eq!(p2m.shrink_cache(0, 4), 4);
        assert_eq!(p2m.populate(Gfn(1030)), Err(Errno::ENOMEM));
    }

    #[test]
    fn whoever_uses_a_page_populates_it() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        let mut cache = P2mCache::new();
        let mut bytes = [1; 8];
        cache.of(&p2m).copy_from(GuestPhys(600 << 12), &mut bytes).unwrap();
        assert_eq!((bytes, p2m.pod().cache), ([0; 8], 4));
        // The other two mebibytes are mapped one by one.
        cache.of(&p2m).copy_to(GuestPhys(1100 << 12), &[5; 8]).unwrap();
        cache.of(&p2m).copy_to(GuestPhys(1101 << 12), &[6; 8]).unwrap();
        assert_eq!(p2m.pod().cache, 2);
        GuestMemory::new(&p2m).copy_from(GuestPhys(1100 << 12), &mut bytes).unwrap();
        assert_eq!(bytes, [5; 8]);
        GuestMemory::new(&p2m).zero(GuestPhys(1102 << 12), 4096).unwrap();
        let (reference, found) = p2m.reference(Gfn(1103)).unwrap();
        assert_eq!((found.kind, reference.mfn(), p2m.pod().cache), (PageKind::Ram, found.mfn, 0));
    }

    #[test]
    fn marking_leaves_what_is_there_alone() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        p2m.insert(Gfn(2000), Mfn(7), PageKind::Foreign, MemoryType::WriteBack).unwrap();
        assert_eq!(p2m.mark_on_demand(Gfn(1500), 600).unwrap_err(), Errno::EEXIST);
        assert_eq!(p2m.mark_on_demand(Gfn(1400), 300).unwrap(), Flush::none());
        assert_eq!(p2m.pod().entries, 1024 + 164);
        let _ = p2m.mark_on_demand(Gfn(1 << 18), 1 << 18).unwrap();
        assert_eq!(p2m.pod().entries, 1024 + 164 + (1 << 18));
        p2m.populate(Gfn((1 << 18) + 1000)).unwrap();
        assert_eq!(p2m.lookup(Gfn((1 << 18) + 1000)).map(|found| found.size), Some(PageSize::Size2M));
        assert_eq!(p2m.mark_on_demand(p2m.end(), 1).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn entries_are_counted_however_they_go() {
        let memory = fake::memory(4096);
        let p2m = p2m(memory);
        let any = |_: Option<&Mapping>| Ok(());
        let write_back = MemoryType::WriteBack;
        let (before, flush) = p2m.put(Gfn(600), Mfn(9), PageKind::Foreign, write_back, any).unwrap();
        assert_eq!((before.map(|found| found.kind), flush), (Some(PageKind::OnDemand), Flush::none()));
        assert_eq!(p2m.pod().entries, 1023);
        let (_, flush) = p2m.take(Gfn(601), PageSize::Size4K, |_| Ok(())).unwrap();
        assert_eq!((p2m.pod().entries, flush), (1022, Flush::none()));
        let (_, flush) = p2m.take(Gfn(1024), PageSize::Size2M, |_| Ok(())).unwrap();
        assert_eq!((p2m.pod().entries, flush), (510, Flush::none()));
        assert!(p2m.map(Gfn(700), Mfn(700), 10, PageKind::Foreign, write_back).unwrap().is_none());
        assert_eq!(p2m.pod().entries, 500);
        // A table goes, with all that are in it.
        assert!(!p2m.map(Gfn(512), Mfn(512), 512, PageKind::Foreign, write_back).unwrap().is_none());
        assert_eq!(p2m.pod().entries, 0);
        let _ = p2m.mark_on_demand(Gfn(1 << 18), 1 << 18).unwrap();
        let _ = p2m.unmap(Gfn((1 << 18) + 5), 700).unwrap();
        assert_eq!(p2m.pod().entries, (1 << 18) - 700);
        let _ = p2m.unmap(Gfn(0), p2m.end().0).unwrap();
        assert_eq!(p2m.pod(), Pod { entries: 0, cache: 516 });
    }

    #[test]
    fn a_page_comes_back_to_the_cache_as_long_as_it_is_wanted_and_unused() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        let mut tlb = CachingTlb::new();
        p2m.populate(Gfn(512)).unwrap();
        let (found, flush) = p2m.take(Gfn(512), PageSize::Size4K, |_| Ok(())).unwrap();
        tlb.spend(&p2m, flush);
        let reference = memory.reference(found.mfn, OWNER).unwrap();
        assert!(!p2m.keep_in_cache(found.mfn, PageSize::Size4K), "somebody writes there yet");
        drop(reference);
        memory.window().copy_to(found.mfn.phys(), &[7; 64]).unwrap();
        assert!(p2m.keep_in_cache(found.mfn, PageSize::Size4K));
        assert_eq!(memory.reference(found.mfn, OWNER).unwrap_err(), Errno::EINVAL);
        assert!(is_zero(memory, found.mfn, 1), "before anybody waits for it");
        assert_eq!(p2m.pod(), Pod { entries: 512, cache: 5 });
        // The last in is the first out, and zeroes again.
        p2m.populate(Gfn(1024)).unwrap();
        assert_eq!(p2m.lookup(Gfn(1024)).map(|found| found.mfn), Some(found.mfn));
        assert!(is_zero(memory, found.mfn, 1));
        let _ = p2m.unmap(Gfn(1025), 511).unwrap();
        let (found, flush) = p2m.take(Gfn(1024), PageSize::Size4K, |_| Ok(())).unwrap();
        tlb.spend(&p2m, flush);
        assert!(!p2m.cache_wants_more() && !p2m.keep_in_cache(found.mfn, PageSize::Size4K));
    }

    #[test]
    fn the_cache_goes_with_the_map() {
        let memory = fake::memory(2048);
        let free = memory.free_frames();
        drop(p2m(memory));
        assert_eq!(memory.free_frames(), free);
    }
}
