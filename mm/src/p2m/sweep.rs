//! Looking for pages of zeroes when the PoD cache is empty: a domain can do without them, as it gets others when it touches them.
//!
//! A page that seems to be one is withheld first: nobody sees it, and whoever touches it has it back. Once that is flushed its contents stay as
//! they are. If it still is all zeroes then, and nobody refers to it, it goes to the cache.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering};

use super::visit::Step;
use super::{Edit, Extent, Flush, P2m, index};
use crate::addr::{Gfn, HostPhys, Mfn, PAGE_SIZE, PageSize};
use crate::frame::FrameKind;
use crate::table::{Entry, Mapping, PageFormat, PageKind};

/// Pages that are withheld at once.
const TOGETHER: usize = 32;
const LARGE: u64 = PageSize::Size2M.frames();
/// A table, though it be empty, takes as long as so many pages.
const TABLE: u64 = 4;

/// A round through the map that yields less than this part of what it looks at is one too many: a domain that lives on so few pages, giving up
/// one for the other, would do nothing else.
const POOR: u64 = 64;

/// How far the search has come.
#[derive(Default)]
pub(super) struct Round {
    number: u64,
    /// Somebody is at it.
    busy: bool,
    next: u64,
    /// Pages that were looked at, and those of them that were zeroes.
    looked_at: u64,
    found: u64,
    /// The end is reached.
    is_over: bool,
}

impl Round {
    /// The next one begins at the beginning, as the domain has got memory otherwise.
    pub(super) fn start_anew(&mut self) {
        *self = Round { number: self.number.wrapping_add(1), busy: self.busy, ..Round::default() };
    }
}

/// What a part of a round comes to, as long as nobody has withheld anything yet.
struct Part {
    found: Withheld,
    looked_at: u64,
    /// Where to go on, unless the end is reached.
    next: Option<u64>,
}

/// Pages that are withheld until it is known whether they are zeroes.
#[must_use = "they are given back by `reclaim_zeroes`"]
#[derive(Debug)]
pub struct Withheld {
    pages: [Option<(Gfn, Mfn, PageSize)>; TOGETHER],
    count: usize,
    round: u64,
}

impl Withheld {
    /// False if there is no more room.
    fn push(&mut self, gfn: Gfn, mfn: Mfn, size: PageSize) -> bool {
        let Some(place) = self.pages.get_mut(self.count) else { return false };
        *place = Some((gfn, mfn, size));
        self.count = self.count.wrapping_add(1);
        true
    }
}

/// What came of a part of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swept {
    /// Something: it is in the cache.
    Some,
    /// Nothing, but there is more to look at.
    NothingYet,
    /// Nothing, or next to nothing, in all of the map.
    Nothing,
}

/// What was withheld before may have become smaller pages meanwhile, which nobody has touched.
fn may_be_withheld(kind: PageKind) -> bool {
    matches!(kind, PageKind::Ram | PageKind::Withheld)
}

impl<F: PageFormat> P2m<F> {
    /// Goes on with the search for about `budget` pages. `None` while another CPU is at it.
    #[cold]
    #[inline(never)]
    pub fn withhold_zeroes(&self, budget: u64) -> Option<(Withheld, Flush)> {
        let (round, start) = self.begin_part()?;
        Some(self.withhold_part(self.look_for_zeroes(round, start, budget)))
    }

    /// Which round it is, and where it goes on.
    fn begin_part(&self) -> Option<(u64, Gfn)> {
        let round = &mut self.edit.lock().round;
        (!core::mem::replace(&mut round.busy, true)).then_some((round.number, Gfn(round.next)))
    }

    /// Done without the lock, as it takes its time. What it finds is looked at once more: for another domain, a table may be one no more.
    fn look_for_zeroes(&self, round: u64, start: Gfn, budget: u64) -> Part {
        let mut found = Withheld { pages: [None; TOGETHER], count: 0, round };
        // There is enough to come to the next page in any case.
        let (mut left, mut looked_at) = (budget.saturating_add(TABLE.wrapping_mul(F::LEVELS.into())), 0u64);
        let stopped = self.walk(start, |step| {
            let extent = match step {
                Step::Leaf(extent) => extent,
                Step::Table(at) if left == 0 => return ControlFlow::Break(at.0),
                Step::Table(_) => {
                    left = left.saturating_sub(TABLE);
                    return ControlFlow::Continue(());
                }
            };
            let seen = if may_be_withheld(extent.mapping.kind) {
                let seen = self.look_at(extent, &mut found);
                looked_at = looked_at.saturating_add(seen);
                left = left.saturating_sub(seen);
                seen
            } else {
                left = left.saturating_sub(1);
                extent.frames
            };
            if left == 0 || found.count == TOGETHER || seen < extent.frames {
                ControlFlow::Break(extent.gfn.0.wrapping_add(seen))
            } else {
                ControlFlow::Continue(())
            }
        });
        Part { found, looked_at, next: stopped.break_value() }
    }

    fn withhold_part(&self, part: Part) -> (Withheld, Flush) {
        let mut edit = self.edit.lock();
        let mut found = part.found;
        // A round that has begun meanwhile has not come this far.
        if edit.round.number == found.round {
            let round = &mut edit.round;
            round.looked_at = round.looked_at.saturating_add(part.looked_at);
            match part.next {
                Some(next) => round.next = next,
                None => round.is_over = true,
            }
        }
        let mut live = false;
        for page in &mut found.pages {
            *page = page.filter(|(gfn, mfn, size)| self.withhold(&mut edit, *gfn, *mfn, *size));
            live |= page.is_some();
        }
        (found, self.finish(edit, live))
    }

    /// Notes what of an extent seems to be zeroes, and nobody refers to. How many gfns were looked at: those of 2 MiB at most, fewer if there is
    /// no more room.
    fn look_at(&self, extent: Extent, found: &mut Withheld) -> u64 {
        let whole = extent.mapping.size == PageSize::Size2M && extent.frames == LARGE;
        let mfn = extent.mapping.mfn;
        if whole && (0..LARGE).all(|step| self.is_spare(mfn.plus(step))) {
            found.push(extent.gfn, mfn, PageSize::Size2M);
            return LARGE;
        }
        let frames = extent.frames.min(LARGE);
        for step in 0..frames {
            if self.is_spare(mfn.plus(step))
                && !found.push(Gfn(extent.gfn.0.wrapping_add(step)), mfn.plus(step), PageSize::Size4K)
            {
                return step;
            }
        }
        frames
    }

    /// Whether a frame of the domain's is all zeroes, and nobody refers to it.
    fn is_spare(&self, mfn: Mfn) -> bool {
        let state = self.memory.state(mfn);
        state.kind() == FrameKind::Owned && state.owner() == self.owner && state.count() == 0 && self.is_zero(mfn)
    }

    fn is_zero(&self, mfn: Mfn) -> bool {
        const PIECE: usize = 64;
        let window = self.memory.window();
        let mut bytes = [0u8; PIECE];
        (0..PAGE_SIZE).step_by(PIECE).all(|offset| {
            window.copy_from(HostPhys(mfn.phys().0 | offset as u64), &mut bytes).is_ok()
                && bytes.as_chunks::<8>().0.iter().all(|word| *word == [0; 8])
        })
    }

    /// Withholds a page if it is what it was.
    fn withhold(&self, edit: &mut Edit, gfn: Gfn, mfn: Mfn, size: PageSize) -> bool {
        let Some(found) = self.lookup(gfn) else { return false };
        if !may_be_withheld(found.kind) || found.mfn != mfn || found.size < size {
            return false;
        }
        let Ok(table) = self.table_for(gfn.0, size.level()) else { return false };
        let Some(entry) = self.entry(table, index(gfn.0, size.level())) else { return false };
        let old = self.format.decode(entry.load(Ordering::Acquire), size.level());
        entry.store(self.format.leaf(mfn, size, PageKind::Withheld, found.memory), Ordering::Release);
        self.replaced(edit, old, size.level(), gfn.0)
    }

    /// Ends a part of the search. The flush of the pages that were withheld must have been spent.
    #[cold]
    #[inline(never)]
    pub fn reclaim_zeroes(&self, withheld: Withheld) -> Swept {
        let mut edit = self.edit.lock();
        let mut some = 0u64;
        for (gfn, mfn, size) in withheld.pages.into_iter().flatten() {
            let Some((entry, mapping)) = self.withheld(gfn, mfn, size) else { continue };
            let kind = if self.park_zeroes(mfn, size) {
                self.pod.add_entries(size.frames());
                self.add_to_cache(&mut edit, mfn, size);
                some = some.saturating_add(size.frames());
                PageKind::OnDemand
            } else {
                PageKind::Ram
            };
            entry.store(self.format.leaf(super::frame(kind, mfn), size, kind, mapping.memory), Ordering::Release);
        }
        let round = &mut edit.round;
        round.busy = false;
        if round.number == withheld.round {
            round.found = round.found.saturating_add(some);
        }
        let is_poor = round.found == 0 || round.found < round.looked_at / POOR;
        if core::mem::take(&mut round.is_over) {
            round.start_anew();
            if is_poor {
                return Swept::Nothing;
            }
        }
        if some > 0 { Swept::Some } else { Swept::NothingYet }
    }

    /// Parks a page that nobody refers to, and nobody sees, if it is all zeroes. (Whoever referred to it until then may have written to it.)
    fn park_zeroes(&self, mfn: Mfn, size: PageSize) -> bool {
        if self.memory.park_block(mfn, size.order(), self.owner).is_err() {
            return false;
        }
        let is_zero = (0..size.frames()).all(|step| self.is_zero(mfn.plus(step)));
        if is_zero {
            self.memory.note_zeroed(mfn, size.order(), self.owner);
        } else {
            self.unpark_block(mfn, size);
        }
        is_zero
    }

    /// The entry of a page that is withheld, if it still is.
    fn withheld(&self, gfn: Gfn, mfn: Mfn, size: PageSize) -> Option<(&'static AtomicU64, Mapping)> {
        let found = self.lookup(gfn)?;
        if (found.kind, found.mfn, found.size) != (PageKind::Withheld, mfn, size) {
            return None;
        }
        let table = self.table_for(gfn.0, size.level()).ok()?;
        let entry = self.entry(table, index(gfn.0, size.level()))?;
        match self.format.decode(entry.load(Ordering::Acquire), size.level()) {
            Entry::Leaf(mapping) => Some((entry, mapping)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::types::DomainId;

    use super::*;
    use crate::fake;
    use crate::memory::Memory;
    use crate::p2m::Pod;
    use crate::table::MemoryType;

    const OWNER: DomainId = DomainId(3);

    /// A map with 512 entries from gfn 512 on and an empty cache. Its memory: 2 MiB at gfn 1024 and 600 pages one by one at gfn 4096.
    fn p2m(memory: &'static Memory) -> P2m<fake::Format> {
        let p2m = P2m::new(fake::Format::default(), memory, OWNER).unwrap();
        let _ = p2m.mark_on_demand(Gfn(512), 512).unwrap();
        let give = |order| memory.allocate(order, None).unwrap().scrub().give_to(OWNER);
        let _ = p2m.map(Gfn(1024), give(9), 512, PageKind::Ram, MemoryType::WriteBack).unwrap();
        for gfn in 4096..4696 {
            p2m.insert(Gfn(gfn), give(0), PageKind::Ram, MemoryType::WriteBack).unwrap();
        }
        p2m
    }

    fn write(p2m: &P2m<fake::Format>, gfn: u64) {
        let mfn = p2m.lookup(Gfn(gfn)).unwrap().mfn;
        p2m.memory().window().copy_to(HostPhys(mfn.phys().0 + 4095), &[1]).unwrap();
    }

    fn kind(p2m: &P2m<fake::Format>, gfn: u64) -> PageKind {
        p2m.lookup(Gfn(gfn)).unwrap().kind
    }

    #[test]
    fn a_large_page_of_zeroes_is_taken_whole() {
        let p2m = p2m(fake::memory(2048));
        let (withheld, flush) = p2m.withhold_zeroes(100).unwrap();
        assert!(!flush.is_none());
        assert_eq!(kind(&p2m, 1100), PageKind::Withheld);
        assert_eq!(p2m.withhold_zeroes(100).map(|(withheld, _)| withheld.count), None, "one at a time");
        assert_eq!(p2m.reclaim_zeroes(withheld), Swept::Some);
        assert_eq!(p2m.pod(), Pod { entries: 1024, cache: 512 });
        p2m.populate(Gfn(600)).unwrap();
        assert_eq!(p2m.pod(), Pod { entries: 512, cache: 0 });
    }

    #[test]
    fn pages_of_zeroes_are_found_among_others() {
        let p2m = p2m(fake::memory(2048));
        for gfn in (1024..1536).chain(4096..4696).filter(|gfn| gfn % 100 != 0) {
            write(&p2m, gfn);
        }
        let mut parts = 0;
        let mut sweep = || {
            parts += 1;
            let (withheld, _) = p2m.withhold_zeroes(100).unwrap();
            p2m.reclaim_zeroes(withheld)
        };
        while sweep() != Swept::Nothing {}
        assert!(parts < 40, "{parts}");
        let zeroes: Vec<u64> = (1024..1536).chain(4096..4696).filter(|gfn| gfn % 100 == 0).collect();
        assert_eq!(p2m.pod(), Pod { entries: 512 + zeroes.len() as u64, cache: zeroes.len() as u64 });
        for gfn in (1024..1536).chain(4096..4696) {
            assert_eq!(kind(&p2m, gfn) == PageKind::OnDemand, zeroes.contains(&gfn), "{gfn}");
        }
    }

    #[test]
    fn what_is_used_meanwhile_stays() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        write(&p2m, 1030);
        let referred = memory.reference(p2m.lookup(Gfn(1025)).unwrap().mfn, OWNER).unwrap();
        let (withheld, _) = p2m.withhold_zeroes(500).unwrap();
        let generation = p2m.generation();
        assert_eq!(
            (kind(&p2m, 1024), kind(&p2m, 1025), kind(&p2m, 1030)),
            (PageKind::Withheld, PageKind::Ram, PageKind::Ram)
        );
        // The guest touches a page and writes to it; another is granted; of a third, somebody had written already.
        p2m.populate(Gfn(1024)).unwrap();
        write(&p2m, 1024);
        let (granted, _) = p2m.reference(Gfn(1026)).unwrap();
        write(&p2m, 1027);
        let taken = p2m.take(Gfn(1028), PageSize::Size4K, |_| Ok(())).unwrap().0;
        assert_eq!(p2m.reclaim_zeroes(withheld), Swept::Some);
        for gfn in 1024..1028 {
            assert_eq!(kind(&p2m, gfn), PageKind::Ram, "{gfn}");
        }
        assert_eq!(kind(&p2m, 1029), PageKind::OnDemand);
        assert_eq!((p2m.lookup(Gfn(1028)), memory.state(taken.mfn).kind()), (None, FrameKind::Owned));
        assert!(p2m.generation() > generation, "the page that was taken");
        drop((referred, granted));
    }

    /// Searches until a round is over; how many pages it found.
    fn sweep(p2m: &P2m<fake::Format>) -> u64 {
        let before = p2m.pod().cache;
        while p2m.reclaim_zeroes(p2m.withhold_zeroes(100).unwrap().0) != Swept::Nothing {}
        p2m.pod().cache - before
    }

    #[test]
    fn a_round_that_begins_during_the_search_begins_at_the_beginning() {
        let memory = fake::memory(2048);
        let p2m = p2m(memory);
        for gfn in (1024..1536).chain(4096..4696) {
            write(&p2m, gfn);
        }
        let (round, start) = p2m.begin_part().unwrap();
        let part = p2m.look_for_zeroes(round, start, u64::MAX);
        assert_eq!((part.next, part.looked_at), (None, 1112));
        // The balloon driver gives a page up, and another vCPU uses it up.
        p2m.fill_cache(memory.allocate(0, None).unwrap().scrub());
        p2m.populate(Gfn(512)).unwrap();
        let (withheld, _) = p2m.withhold_part(part);
        assert_eq!(p2m.reclaim_zeroes(withheld), Swept::NothingYet);
        assert_eq!(p2m.edit.lock().round.looked_at, 0);
        assert_eq!(sweep(&p2m), 1, "the page that was populated last");
    }

    #[test]
    fn what_is_no_memory_does_not_make_a_round_poor() {
        let p2m = p2m(fake::memory(4096));
        for gfn in (1024..1536).chain(4096..4696).skip(20) {
            write(&p2m, gfn);
        }
        let _ = p2m.map(Gfn(8192), Mfn(1), 4096, PageKind::Foreign, MemoryType::WriteBack).unwrap();
        let mut yields = Vec::new();
        loop {
            match p2m.reclaim_zeroes(p2m.withhold_zeroes(500).unwrap().0) {
                Swept::Nothing => panic!("20 of 1112 are not next to nothing"),
                swept => yields.push(swept),
            }
            if p2m.edit.lock().round.next == 0 {
                break;
            }
        }
        assert_eq!(p2m.pod().cache, 20, "{yields:?}");
    }

    #[test]
    fn what_is_left_of_a_page_that_was_withheld_is_found_later() {
        let p2m = p2m(fake::memory(2048));
        (4096..4696).for_each(|gfn| write(&p2m, gfn));
        let (withheld, _) = p2m.withhold_zeroes(512).unwrap();
        let _ = p2m.take(Gfn(1100), PageSize::Size4K, |_| Ok(())).unwrap();
        assert_eq!(p2m.reclaim_zeroes(withheld), Swept::NothingYet);
        assert_eq!(kind(&p2m, 1101), PageKind::Withheld);
        p2m.edit.lock().round.start_anew();
        assert_eq!(p2m.withhold_zeroes(600).map(|(withheld, _)| p2m.reclaim_zeroes(withheld)), Some(Swept::Some));
        assert_eq!(kind(&p2m, 1024), PageKind::OnDemand);
        assert_eq!(sweep(&p2m), 511 - 32);
        assert_eq!(kind(&p2m, 1101), PageKind::OnDemand);
    }

    #[test]
    fn empty_tables_take_their_time() {
        let p2m = p2m(fake::memory(2048));
        (1024..1536).chain(4096..4696).for_each(|gfn| write(&p2m, gfn));
        for table in 32..232 {
            let gfn = Gfn(table * 512 + 7);
            p2m.insert(gfn, Mfn(1), PageKind::Foreign, MemoryType::WriteBack).unwrap();
            let _ = p2m.remove(gfn, Mfn(1), PageKind::Foreign);
        }
        let (mut at, mut parts) = (32 * 512, 1);
        while let Some(next) = p2m.look_for_zeroes(0, Gfn(at), 96).next {
            assert!(next > at && next <= at + 28 * 512, "{next:#x} after {at:#x}");
            (at, parts) = (next, parts + 1);
        }
        assert!((8..12).contains(&parts), "{parts}");
    }

    #[test]
    fn who_refers_to_a_page_during_the_search_gets_it_or_another() {
        let p2m = p2m(fake::memory(2048));
        (4096..4696).for_each(|gfn| write(&p2m, gfn));
        let found = |gfn: u64| (p2m.lookup(Gfn(gfn)).unwrap(), p2m.generation());
        let ((withheld, before), (gone, then)) = (found(1025), found(1027));
        let in_part = found(1100);
        let (part, _) = p2m.withhold_zeroes(512).unwrap();
        let (reference, _) = p2m.reference_found(Gfn(1025), withheld, before).unwrap();
        assert_eq!((reference.mfn(), kind(&p2m, 1025)), (withheld.mfn, PageKind::Ram));
        assert_eq!(p2m.reclaim_zeroes(part), Swept::NothingYet, "it was withheld as a whole, and is referred to");
        drop(reference);
        // This time it goes. What is at its place is another page of zeroes.
        p2m.edit.lock().round.start_anew();
        let (part, _) = p2m.withhold_zeroes(512).unwrap();
        assert_eq!((p2m.reclaim_zeroes(part), kind(&p2m, 1027)), (Swept::Some, PageKind::OnDemand));
        let (reference, now) = p2m.reference_found(Gfn(1027), gone, then).unwrap();
        assert_eq!((reference.mfn(), now.kind), (now.mfn, PageKind::Ram));
        // The large page comes apart.
        let _ = p2m.take(Gfn(1099), PageSize::Size4K, |_| Ok(())).unwrap();
        let (reference, _) = p2m.reference_found(Gfn(1100), in_part.0, in_part.1).unwrap();
        assert_eq!(reference.mfn(), in_part.0.mfn);
    }
}
