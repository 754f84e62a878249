//! A domain's physical memory map: from guest frames to machine frames, in the very tables that the hardware walks.
//!
//! Looking a gfn up takes no lock: entries are atomic, and a table taken out of the tree keeps its contents until
//! [`P2m::reclaim`]. Changes take the map's lock, do all allocation before the first visible change, and end in a [`Flush`].

mod cache;
mod flush;
mod pod;
mod runs;
mod single;
mod spare;
mod sweep;
mod unmap;
mod visit;

pub use cache::{Cached, P2mCache};
pub use flush::Flush;
pub use pod::Pod;
pub use sweep::{Swept, Withheld};
pub use visit::Extent;

use core::ops::{ControlFlow, Range};
use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::errno::Errno;
use xen_abi::types::DomainId;

use self::pod::Cache;
use self::runs::Runs;
use self::spare::Spare;
use self::sweep::Round;
use crate::addr::{Gfn, Mfn, PageSize};
use crate::lock::{Guard, Lock, Rank};
use crate::memory::{FrameRef, Memory};
use crate::table::{Entry, Mapping, MemoryType, PageFormat, PageKind};

/// What belongs to whoever changes the map.
struct Edit {
    retired: Retired,
    cache: Cache,
    round: Round,
}

/// Tables that are out of the tree but may still be looked at; a list through the frame table.
struct Retired {
    head: Option<Mfn>,
    /// The generation at which the last of them was taken out.
    newest: u64,
    /// One was taken out by the change under way.
    now: bool,
}

/// What the 2 MiB around a gfn are mapped by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Region {
    /// One leaf; `mfn` is that of the region's first frame.
    Whole(Mapping),
    /// A table of 4 KiB pages.
    Table(Mfn),
}

/// A domain's p2m.
pub struct P2m<F: PageFormat> {
    format: F,
    memory: &'static Memory,
    owner: DomainId,
    root: Mfn,
    generation: AtomicU64,
    tables: AtomicU64,
    limit: AtomicU64,
    /// The end of all that was ever mapped.
    reached: AtomicU64,
    spare: Spare,
    pod: pod::Counts,
    edit: Lock<Edit>,
}

impl<F: PageFormat> core::fmt::Debug for P2m<F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "p2m of domain {} at {}", self.owner.0, self.root)
    }
}

/// The gfns that one entry of a table at `level` is for.
#[inline]
const fn span(level: u8) -> u64 {
    1u64.wrapping_shl((level as u32).wrapping_sub(1).wrapping_mul(9))
}

/// The entry for `gfn` in a table at `level`; the higher bits are to be ignored.
#[inline]
const fn index(gfn: u64, level: u8) -> u64 {
    gfn.wrapping_shr((level as u32).wrapping_sub(1).wrapping_mul(9))
}

/// The mapping as seen from `gfn`, which its leaf at `level` covers.
#[inline]
fn seen_from(mapping: Mapping, gfn: u64, level: u8) -> Mapping {
    Mapping { mfn: mapping.mfn.plus(gfn & span(level).wrapping_sub(1)), ..mapping }
}

impl<F: PageFormat> P2m<F> {
    /// How many gfns there are.
    const FRAMES: u64 = span(F::LEVELS + 1);
    /// Frame numbers end here: physical addresses have at most 52 bits.
    const MAX_MFN: u64 = 1 << 40;

    /// An empty map, whose tables are charged to `owner`.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(format: F, memory: &'static Memory, owner: DomainId) -> Result<Self, Errno> {
        let root = memory.allocate(0, None)?.scrub().into_table(owner, F::LEVELS);
        Ok(Self {
            format,
            memory,
            owner,
            root,
            generation: AtomicU64::new(1),
            tables: AtomicU64::new(1),
            limit: AtomicU64::new(u64::MAX),
            reached: AtomicU64::new(0),
            spare: Spare::none(),
            pod: pod::Counts::none(),
            edit: Lock::new(
                Rank::P2m,
                Edit {
                    retired: Retired { head: None, newest: 0, now: false },
                    cache: Cache::none(),
                    round: Round::default(),
                },
            ),
        })
    }

    /// The frame of the root table, for the hardware.
    #[inline]
    pub fn root(&self) -> Mfn {
        self.root
    }

    #[inline]
    pub fn format(&self) -> F {
        self.format
    }

    #[inline]
    pub fn memory(&self) -> &'static Memory {
        self.memory
    }

    #[inline]
    pub fn owner(&self) -> DomainId {
        self.owner
    }

    /// The first gfn that cannot be mapped.
    pub const fn end(&self) -> Gfn {
        Gfn(Self::FRAMES)
    }

    /// Counts the changes after which a flush is needed. What was looked up at one generation holds while it stays.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Frames that the tables take up, spare ones and those not reclaimed yet included.
    pub fn table_frames(&self) -> u64 {
        self.tables.load(Ordering::Relaxed)
    }

    /// Limits the frames that tables may take up; beyond it mapping fails with ENOMEM.
    pub fn set_table_limit(&self, frames: u64) {
        self.limit.store(frames, Ordering::Relaxed);
    }

    /// The highest gfn that has ever mapped anything.
    pub fn highest_mapped(&self) -> Option<Gfn> {
        self.reached.load(Ordering::Relaxed).checked_sub(1).map(Gfn)
    }

    /// Something is mapped below `end`. With the map's lock held.
    #[inline]
    fn reach(&self, end: u64) {
        if end > self.reached.load(Ordering::Relaxed) {
            self.reached.store(end, Ordering::Relaxed);
        }
    }

    #[inline]
    fn entry(&self, table: Mfn, index: u64) -> Option<&'static AtomicU64> {
        self.memory.window().table_entry(table, index).ok()
    }

    #[inline]
    fn decoded(&self, table: Mfn, gfn: u64, level: u8) -> Entry {
        match self.entry(table, index(gfn, level)) {
            Some(entry) => self.format.decode(entry.load(Ordering::Acquire), level),
            None => Entry::Empty,
        }
    }

    /// What `gfn` maps to; `mfn` is the frame of just this gfn, and `size` that of the page it is part of.
    #[inline]
    pub fn lookup(&self, gfn: Gfn) -> Option<Mapping> {
        if gfn.0 >= Self::FRAMES {
            return None;
        }
        let (mut table, mut level) = (self.root, F::LEVELS);
        loop {
            match self.decoded(table, gfn.0, level) {
                Entry::Leaf(mapping) => return Some(seen_from(mapping, gfn.0, level)),
                Entry::Table(next) if level > 1 => (table, level) = (next, level.wrapping_sub(1)),
                _ => return None,
            }
        }
    }

    /// What maps the 2 MiB around `gfn`, if all are mapped by the same.
    pub(crate) fn lookup_region(&self, gfn: Gfn) -> Option<Region> {
        if gfn.0 >= Self::FRAMES {
            return None;
        }
        let first = gfn.0 & !511;
        let (mut table, mut level) = (self.root, F::LEVELS);
        loop {
            match self.decoded(table, first, level) {
                Entry::Leaf(mapping) => return Some(Region::Whole(seen_from(mapping, first, level))),
                Entry::Table(next) if level > 2 => (table, level) = (next, level.wrapping_sub(1)),
                Entry::Table(next) => return Some(Region::Table(next)),
                Entry::Empty => return None,
            }
        }
    }

    /// What `gfn` maps to by its table of 4 KiB pages.
    #[inline]
    pub(crate) fn lookup_in(&self, table: Mfn, gfn: Gfn) -> Option<Mapping> {
        match self.decoded(table, gfn.0, 1) {
            Entry::Leaf(mapping) => Some(mapping),
            _ => None,
        }
    }

    /// The domain's own memory behind `gfn`, with a reference that keeps it from being freed. For whatever outlasts the
    /// moment, or is done for another domain.
    ///
    /// # Errors
    /// EINVAL if there is no memory, EPERM if it is not the domain's own, EAGAIN if it was taken away meanwhile, ENOMEM and ENOBUFS if it would
    /// have to be populated, and cannot be now.
    pub fn reference(&self, gfn: Gfn) -> Result<(FrameRef, Mapping), Errno> {
        let generation = self.generation();
        let Some(found) = self.lookup(gfn).filter(|found| found.kind.is_memory()) else {
            return self.touched_reference(gfn);
        };
        self.reference_found(gfn, found, generation)
    }

    /// A reference to the memory that was `found` at `generation`, or to what has come in its place if a search for zeroes has come between.
    #[inline]
    fn reference_found(&self, gfn: Gfn, found: Mapping, generation: u64) -> Result<(FrameRef, Mapping), Errno> {
        self.reference_to(gfn, found, generation).or_else(|errno| match self.lookup(gfn) {
            Some(again) if again.kind.comes_when_touched() => self.touched_reference(gfn),
            _ => Err(errno),
        })
    }

    /// A reference to the memory that was `found` at `generation`.
    #[inline]
    fn reference_to(&self, gfn: Gfn, found: Mapping, generation: u64) -> Result<(FrameRef, Mapping), Errno> {
        let reference = self.memory.reference(found.mfn, self.owner)?;
        // The frame might have been unmapped and freed and given to the domain anew between the two steps; but nothing is freed
        // before the flush that a new generation stands for.
        if self.generation() == generation {
            return Ok((reference, found));
        }
        match self.lookup(gfn) {
            // Though the larger page that it was a part of has come apart.
            Some(again) if (again.mfn, again.kind) == (found.mfn, found.kind) => Ok((reference, found)),
            _ => Err(Errno::EAGAIN),
        }
    }

    /// As [`reference`](Self::reference), where there is no memory yet.
    #[cold]
    #[inline(never)]
    fn touched_reference(&self, gfn: Gfn) -> Result<(FrameRef, Mapping), Errno> {
        let generation = self.generation();
        let found = self.touch(gfn)?;
        self.reference_to(gfn, found, generation)
    }

    fn check_range(gfn: Gfn, frames: u64) -> Result<Range<u64>, Errno> {
        match gfn.0.checked_add(frames) {
            Some(end) if frames > 0 && end <= Self::FRAMES => Ok(gfn.0..end),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Maps `frames` gfns from `gfn` on to as many frames from `mfn` on, with the largest pages that fit, whatever was there.
    ///
    /// # Errors
    /// EINVAL for a range beyond the end or an mfn that does not exist, ENOMEM; nothing has changed then.
    pub fn map(&self, gfn: Gfn, mfn: Mfn, frames: u64, kind: PageKind, memory: MemoryType) -> Result<Flush, Errno> {
        self.map_if(gfn, mfn, frames, (kind, memory), || Ok(()))
    }

    /// As [`map`](Self::map), where nothing is mapped. A flush is due only if tables that have become empty give way to larger
    /// pages.
    ///
    /// # Errors
    /// EEXIST if something is mapped there.
    pub fn map_absent(
        &self,
        gfn: Gfn,
        mfn: Mfn,
        frames: u64,
        kind: PageKind,
        memory: MemoryType,
    ) -> Result<Flush, Errno> {
        self.map_if(gfn, mfn, frames, (kind, memory), || match self.visit(gfn, frames, ControlFlow::Break) {
            ControlFlow::Break(_) => Err(Errno::EEXIST),
            ControlFlow::Continue(()) => Ok(()),
        })
    }

    /// Maps what `check` agrees to under the map's lock.
    fn map_if(
        &self,
        gfn: Gfn,
        mfn: Mfn,
        frames: u64,
        (kind, memory): (PageKind, MemoryType),
        check: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<Flush, Errno> {
        let range = Self::check_range(gfn, frames)?;
        if mfn.0.checked_add(frames).is_none_or(|end| end > Self::MAX_MFN) {
            return Err(Errno::EINVAL);
        }
        let mut edit = self.edit.lock();
        check()?;
        let runs =
            Runs { at: range.start, end: range.end, shift: mfn.0.wrapping_sub(gfn.0), largest: self.format.largest() };
        for run in runs.clone() {
            self.table_for(run.gfn, run.size.level())?;
        }
        self.reach(range.end);
        let mut live = false;
        for run in runs {
            let level = run.size.level();
            let table = self.table_for(run.gfn, level)?;
            for step in 0..run.count {
                let at = run.gfn.wrapping_add(step.wrapping_mul(run.size.frames()));
                let Some(entry) = self.entry(table, index(at, level)) else { continue };
                let mfn = frame(kind, Mfn(at.wrapping_add(mfn.0.wrapping_sub(gfn.0))));
                let new = Mapping { mfn, size: run.size, kind, memory };
                match self.format.decode(entry.load(Ordering::Acquire), level) {
                    Entry::Leaf(old) if old == new => continue,
                    old => {
                        entry.store(self.format.leaf(new.mfn, new.size, kind, memory), Ordering::Release);
                        live |= self.replaced(&mut edit, old, level, at);
                        if kind == PageKind::OnDemand {
                            self.pod.add_entries(run.size.frames());
                        }
                    }
                }
            }
        }
        Ok(self.finish(edit, live))
    }

    /// Makes pages of the kind `from` ones of the kind `to`; others stay.
    ///
    /// # Errors
    /// EINVAL for a range beyond the end, ENOMEM if a large page at its edge could not be split; nothing has changed then.
    pub fn change_kind(&self, gfn: Gfn, frames: u64, from: PageKind, to: PageKind) -> Result<Flush, Errno> {
        let range = Self::check_range(gfn, frames)?;
        let edit = self.edit.lock();
        self.split_edges(&range, |mapping| mapping.kind == from)?;
        let live = self.recast(self.root, F::LEVELS, 0, &range, (from, to));
        Ok(self.finish(edit, live))
    }

    /// Takes note of an entry at `level`, for `at` and on, that is in the tree no more; whether it may have been live.
    fn replaced(&self, edit: &mut Edit, old: Entry, level: u8, at: u64) -> bool {
        match old {
            Entry::Empty => false,
            Entry::Leaf(mapping) => self.gone(mapping.kind, mapping.size.frames()),
            Entry::Table(below) => {
                self.forget_entries(below, level.wrapping_sub(1), at);
                self.retire(&mut edit.retired, below);
                true
            }
        }
    }

    /// Takes note of `frames` gfns that are mapped so no more; whether they may have been live.
    #[inline]
    fn gone(&self, kind: PageKind, frames: u64) -> bool {
        let live = kind != PageKind::OnDemand;
        if !live {
            self.pod.remove_entries(frames);
        }
        live
    }

    fn recast(&self, table: Mfn, level: u8, base: u64, range: &Range<u64>, kinds: (PageKind, PageKind)) -> bool {
        let mut changed = false;
        for (index, at) in entries(level, base, range) {
            let Some(entry) = self.entry(table, index) else { continue };
            match self.format.decode(entry.load(Ordering::Acquire), level) {
                Entry::Leaf(old) if old.kind == kinds.0 => {
                    entry.store(self.format.leaf(old.mfn, old.size, kinds.1, old.memory), Ordering::Release);
                    changed = true;
                }
                Entry::Table(below) if level > 1 => {
                    changed |= self.recast(below, level.wrapping_sub(1), at, range, kinds);
                }
                _ => {}
            }
        }
        changed
    }

    /// Frees the tables that were taken out of the tree, if that was at `generation` or before.
    ///
    /// The machine calls this with what [`Flush::spend`] gave, after every CPU that runs the domain has flushed and no
    /// lookup that began before goes on. (A lookup by another domain's CPU that is overtaken could read a frame that is a
    /// table no more; it must take a [reference](Self::reference), which checks the owner of what it found.)
    pub fn reclaim(&self, generation: u64) {
        let mut edit = self.edit.lock();
        if edit.retired.newest <= generation {
            let head = edit.retired.head.take();
            drop(edit);
            self.free_retired(head);
        }
    }

    fn free_retired(&self, mut head: Option<Mfn>) {
        while let Some(table) = head {
            let Some(slot) = self.memory.slot(table) else { break };
            let next = slot.next();
            head = (next != 0).then_some(Mfn(u64::from(next)));
            self.free_tree(table, slot.state().order());
        }
    }

    /// Frees a table and those below it.
    fn free_tree(&self, table: Mfn, level: u8) {
        if level > 1 {
            for index in 0..512 {
                let Some(entry) = self.entry(table, index) else { continue };
                let value = entry.load(Ordering::Acquire);
                if value != 0
                    && let Entry::Table(below) = self.format.decode(value, level)
                {
                    self.free_tree(below, level.wrapping_sub(1));
                }
            }
        }
        if !self.spare.keep(self.memory, table) {
            self.free_one(table);
        }
    }

    /// Frees about `budget` of the tables of a map that nobody uses any more; true when only the root is left.
    pub fn take_apart(&mut self, mut budget: u64) -> bool {
        while budget > 0
            && let Some(table) = self.spare.take(self.memory)
        {
            self.free_one(table);
            budget = budget.saturating_sub(1);
        }
        self.free_below(self.root, F::LEVELS, &mut budget)
    }

    fn free_one(&self, table: Mfn) {
        self.memory.free_table(table);
        self.tables.fetch_sub(1, Ordering::Relaxed);
    }

    /// Frees the tables below one at `level` until the budget is spent; true when there is none left.
    fn free_below(&self, table: Mfn, level: u8, budget: &mut u64) -> bool {
        if level == 1 {
            return true;
        }
        for index in 0..512 {
            let Some(entry) = self.entry(table, index) else { continue };
            let value = entry.load(Ordering::Relaxed);
            if value != 0
                && let Entry::Table(below) = self.format.decode(value, level)
            {
                if *budget == 0 || !self.free_below(below, level.wrapping_sub(1), budget) {
                    return false;
                }
                entry.store(0, Ordering::Relaxed);
                self.free_one(below);
                *budget = budget.saturating_sub(1);
            }
        }
        true
    }

    /// Takes note of a table that has just been taken out of the tree. (No table is in frame 0: that ends the list.)
    fn retire(&self, retired: &mut Retired, table: Mfn) {
        if let Some(slot) = self.memory.slot(table) {
            slot.set_next(retired.head.map_or(0, |head| head.0 as u32));
            retired.head = Some(table);
            retired.now = true;
        }
    }

    /// Ends a change: a new generation if translations were live before.
    #[inline]
    fn finish(&self, mut edit: Guard<'_, Edit>, live: bool) -> Flush {
        if !live {
            return Flush::none();
        }
        let generation = self.generation.load(Ordering::Relaxed).wrapping_add(1);
        if core::mem::take(&mut edit.retired.now) {
            edit.retired.newest = generation;
        }
        // Whoever reads the new generation also sees the entries that belong to it.
        self.generation.store(generation, Ordering::Release);
        Flush { generation }
    }

    /// A table with nothing in it. The caller has the map's lock.
    fn new_table(&self, level: u8) -> Result<Mfn, Errno> {
        self.table_of(self.spare.take_free(self.memory), level)
    }

    /// A spare table with nothing in it, or else one that is drawn.
    fn table_of(&self, spare: Option<Mfn>, level: u8) -> Result<Mfn, Errno> {
        match spare {
            Some(table) => self.memory.renew_table(table, self.owner, level),
            None => self.draw_table(level),
        }
    }

    fn draw_table(&self, level: u8) -> Result<Mfn, Errno> {
        let limit = self.limit.load(Ordering::Relaxed).saturating_add(self.spare.beyond());
        if self.tables.load(Ordering::Relaxed) >= limit {
            return Err(Errno::ENOMEM);
        }
        let frame = self.memory.allocate(0, None)?.scrub().into_table(self.owner, level);
        self.tables.fetch_add(1, Ordering::Relaxed);
        Ok(frame)
    }

    /// The table at `level` that has `gfn`'s entry. Missing tables are added and larger leaves above it split, neither of
    /// which changes any translation.
    fn table_for(&self, gfn: u64, level: u8) -> Result<Mfn, Errno> {
        let (mut table, mut at) = (self.root, F::LEVELS);
        while at > level {
            let entry = self.entry(table, index(gfn, at)).ok_or(Errno::EIO)?;
            table = match self.format.decode(entry.load(Ordering::Acquire), at) {
                Entry::Table(next) => next,
                Entry::Leaf(mapping) => self.split(entry, mapping, at)?,
                Entry::Empty => {
                    let next = self.new_table(at.wrapping_sub(1))?;
                    entry.store(self.format.table(next), Ordering::Release);
                    next
                }
            };
            at = at.wrapping_sub(1);
        }
        Ok(table)
    }

    /// Replaces a large leaf at `level` by a table that says the same.
    fn split(&self, entry: &AtomicU64, mapping: Mapping, level: u8) -> Result<Mfn, Errno> {
        let below = level.wrapping_sub(1);
        let size = PageSize::of_level(below).ok_or(Errno::EIO)?;
        let table = self.table_of(self.spare.take(self.memory), below)?;
        for index in 0..512u64 {
            let mfn = frame(mapping.kind, mapping.mfn.plus(index.wrapping_mul(size.frames())));
            if let Some(small) = self.entry(table, index) {
                small.store(self.format.leaf(mfn, size, mapping.kind, mapping.memory), Ordering::Relaxed);
            }
        }
        entry.store(self.format.table(table), Ordering::Release);
        Ok(table)
    }

    /// Has what maps `gfn` be a page of 4 KiB, if anything does.
    ///
    /// # Errors
    /// EINVAL for a gfn beyond the end, ENOMEM.
    pub fn split_at(&self, gfn: Gfn) -> Result<(), Errno> {
        let range = Self::check_range(gfn, 1)?;
        let _edit = self.edit.lock();
        self.split_edges(&range, |_| true)
    }

    /// Sees to it that no leaf that `wanted` names reaches across either end of the range.
    fn split_edges(&self, range: &Range<u64>, wanted: impl Fn(&Mapping) -> bool) -> Result<(), Errno> {
        for edge in [range.start, range.end] {
            let (mut table, mut level) = (self.root, F::LEVELS);
            while edge & span(level).wrapping_sub(1) != 0 {
                let Some(entry) = self.entry(table, index(edge, level)) else { break };
                table = match self.format.decode(entry.load(Ordering::Acquire), level) {
                    Entry::Table(next) => next,
                    Entry::Leaf(mapping) if wanted(&mapping) => self.split(entry, mapping, level)?,
                    _ => break,
                };
                level = level.wrapping_sub(1);
            }
        }
        Ok(())
    }
}

impl<F: PageFormat> Drop for P2m<F> {
    /// Frees all tables. By then nothing may use them: the domain's vCPUs are gone and the CPUs have flushed.
    fn drop(&mut self) {
        self.shrink_cache(0, u64::MAX);
        let head = self.edit.get_mut().retired.head.take();
        self.free_retired(head);
        self.take_apart(u64::MAX);
        self.memory.free_table(self.root);
    }
}

/// What an entry of this kind says of its frame: nothing where there is none, lest a CPU that goes ahead of itself reads what is there.
#[inline]
fn frame(kind: PageKind, mfn: Mfn) -> Mfn {
    if kind == PageKind::OnDemand { Mfn(0) } else { mfn }
}

/// The entries of a table at `level`, whose first gfn is `base`, that have to do with a range: index and first gfn of each.
fn entries(level: u8, base: u64, range: &Range<u64>) -> impl Iterator<Item = (u64, u64)> + use<> {
    let span = span(level);
    let shift = span.trailing_zeros();
    let first = range.start.saturating_sub(base).wrapping_shr(shift);
    let last = range.end.saturating_sub(base).saturating_add(span.wrapping_sub(1)).wrapping_shr(shift).min(512);
    (first..last).map(move |index| (index, base.wrapping_add(index.wrapping_shl(shift))))
}

#[cfg(test)]
mod tests;
