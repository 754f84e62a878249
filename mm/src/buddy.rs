//! Free memory in blocks of a power of two frames, aligned to their size.
//!
//! Only the first frame of a free block says anything in the frame table; the others' slots are zero, so adding gigabytes
//! costs a few stores. Blocks that are known to be zeroed are kept apart from those that are not and do not merge with them
//! (until nothing else satisfies a request), or scrubbing in the background would be for nothing.

use core::ops::Range;

use xen_abi::types::DomainId;

use crate::addr::Mfn;
use crate::frame::{FrameKind, FrameState, FrameTable};

/// log2 of the frames in the largest block, 1 GiB.
pub const MAX_ORDER: u8 = 18;
const ORDERS: usize = MAX_ORDER as usize + 1;
/// The end of a list.
const END: u32 = u32::MAX;
/// Frames below 4 GiB are kept for those who need them as long as there are others.
const LOW: u64 = 1 << 20;

#[inline]
const fn frames(order: u8) -> u64 {
    1u64.wrapping_shl(order as u32)
}

/// A free block, taken off its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub head: Mfn,
    pub order: u8,
    pub clean: bool,
}

impl Block {
    const fn end(self) -> u64 {
        self.head.0.wrapping_add(frames(self.order))
    }
}

/// The heads of the lists of free blocks: by zone (below 4 GiB or not), cleanliness and order.
#[derive(Debug)]
pub(crate) struct Buddy {
    heads: [[[u32; ORDERS]; 2]; 2],
    free: u64,
    /// Frames that were ever added.
    total: u64,
    /// Take from the top of memory, whatever the search costs: for boot, while low memory is Dom0's to choose from.
    pub from_top: bool,
}

impl Buddy {
    pub const fn new() -> Self {
        Self { heads: [[[END; ORDERS]; 2]; 2], free: 0, total: 0, from_top: false }
    }

    /// Frames in all free blocks.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Frames that there are, free or not.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn head_of(&self, low: bool, clean: bool, order: u8) -> u32 {
        self.heads
            .get(usize::from(low))
            .and_then(|zone| zone.get(usize::from(clean)))
            .and_then(|list| list.get(usize::from(order)))
            .copied()
            .unwrap_or(END)
    }

    fn set_head(&mut self, low: bool, clean: bool, order: u8, mfn: u32) {
        if let Some(head) = self
            .heads
            .get_mut(usize::from(low))
            .and_then(|zone| zone.get_mut(usize::from(clean)))
            .and_then(|list| list.get_mut(usize::from(order)))
        {
            *head = mfn;
        }
    }

    /// The free block whose first frame this is.
    fn block_at(table: FrameTable, head: Mfn) -> Option<Block> {
        let state = table.state(head);
        (state.kind() == FrameKind::Free).then(|| Block { head, order: state.order(), clean: state.clean() })
    }

    /// Puts a block on its list as it is.
    fn push(&mut self, table: FrameTable, block: Block) {
        let low = block.head.0 < LOW;
        let (Some(slot), Ok(mfn)) = (table.slot(block.head), u32::try_from(block.head.0)) else { return };
        let next = self.head_of(low, block.clean, block.order);
        slot.set_previous(END);
        slot.set_next(next);
        if let Some(next) = table.slot(Mfn(u64::from(next))) {
            next.set_previous(mfn);
        }
        slot.set(FrameState::new(FrameKind::Free, DomainId(0)).with_order(block.order).with_clean(block.clean));
        self.set_head(low, block.clean, block.order, mfn);
        self.free = self.free.wrapping_add(frames(block.order));
    }

    /// Takes a block off its list; its frames' slots are then all zero.
    fn unlink(&mut self, table: FrameTable, block: Block) {
        let Some(slot) = table.slot(block.head) else { return };
        let (previous, next) = (slot.previous(), slot.next());
        match table.slot(Mfn(u64::from(previous))) {
            Some(previous) => previous.set_next(next),
            None => self.set_head(block.head.0 < LOW, block.clean, block.order, next),
        }
        if let Some(next) = table.slot(Mfn(u64::from(next))) {
            next.set_previous(previous);
        }
        slot.set(FrameState::NONE);
        self.free = self.free.wrapping_sub(frames(block.order));
    }

    /// Adds a block whose frames' slots are all zero, and merges it with its free neighbours.
    pub fn insert(&mut self, table: FrameTable, mut block: Block) {
        while block.order < MAX_ORDER {
            let buddy = Mfn(block.head.0 ^ frames(block.order));
            match Self::block_at(table, buddy) {
                Some(other) if other.order == block.order && other.clean == block.clean => {
                    self.unlink(table, other);
                    block.head = block.head.min(buddy);
                    block.order = block.order.wrapping_add(1);
                }
                _ => break,
            }
        }
        self.push(table, block);
    }

    /// Adds frames whose slots are all zero.
    pub fn add(&mut self, table: FrameTable, range: Range<u64>, clean: bool) {
        self.total = self.total.wrapping_add(range.end.saturating_sub(range.start));
        self.spread(table, range, clean);
    }

    /// Puts frames into the lists, in the largest blocks that they make.
    fn spread(&mut self, table: FrameTable, range: Range<u64>, clean: bool) {
        let mut at = range.start;
        while at < range.end {
            let aligned = at.trailing_zeros().min(u32::from(MAX_ORDER));
            let fitting = range.end.wrapping_sub(at).ilog2();
            let order = aligned.min(fitting) as u8;
            self.insert(table, Block { head: Mfn(at), order, clean });
            at = at.wrapping_add(frames(order));
        }
    }

    /// Takes `2^order` frames out, all below frame `below`; clean ones if a block of the best size is.
    pub fn take(&mut self, table: FrameTable, order: u8, below: u64) -> Option<Block> {
        if order > MAX_ORDER {
            return None;
        }
        if let Some(block) = self.find(table, order, below) {
            return Some(self.take_part(table, block, order, below));
        }
        if self.free < frames(order) {
            return None;
        }
        self.merge_unlike(table, order);
        let block = self.find(table, order, below)?;
        Some(self.take_part(table, block, order, below))
    }

    fn find(&self, table: FrameTable, order: u8, below: u64) -> Option<Block> {
        if self.from_top {
            return self.find_highest(table, order, below);
        }
        for low in [false, true] {
            if !low && below <= LOW {
                continue;
            }
            for size in order..=MAX_ORDER {
                for clean in [true, false] {
                    let mut at = self.head_of(low, clean, size);
                    while let Some(slot) = table.slot(Mfn(u64::from(at))) {
                        if u64::from(at).wrapping_add(frames(order)) <= below {
                            return Some(Block { head: Mfn(u64::from(at)), order: size, clean });
                        }
                        at = slot.next();
                    }
                }
            }
        }
        None
    }

    /// The highest free block that has `2^order` frames below `below`.
    fn find_highest(&self, table: FrameTable, order: u8, below: u64) -> Option<Block> {
        let mut highest = None;
        self.each(table, |block| {
            let fits = block.order >= order && block.head.0.wrapping_add(frames(order)) <= below;
            if fits && highest.is_none_or(|other: Block| other.head < block.head) {
                highest = Some(block);
            }
        });
        highest
    }

    /// Takes `2^order` frames of a free block, all below `below`: the first, or the last that fit if that is the order of the day. The rest
    /// stays free.
    fn take_part(&mut self, table: FrameTable, mut block: Block, order: u8, below: u64) -> Block {
        self.unlink(table, block);
        while block.order > order {
            block.order = block.order.wrapping_sub(1);
            let half = frames(block.order);
            let mut rest = Block { head: block.head.plus(half), ..block };
            if self.from_top && rest.head.0.wrapping_add(frames(order)) <= below {
                core::mem::swap(&mut block, &mut rest);
            }
            self.push(table, rest);
        }
        block
    }

    /// Takes a dirty block of at most `2^most` frames, the smallest first, to be scrubbed.
    pub fn take_dirty(&mut self, table: FrameTable, most: u8) -> Option<Block> {
        let (order, low) = (0..=MAX_ORDER)
            .flat_map(|order| [(order, true), (order, false)])
            .find(|&(order, low)| self.head_of(low, false, order) != END)?;
        let head = Mfn(u64::from(self.head_of(low, false, order)));
        Some(self.take_part(table, Block { head, order, clean: false }, order.min(most), u64::MAX))
    }

    /// Lets clean blocks below `order` whose neighbour is dirty merge with it, as dirty.
    fn merge_unlike(&mut self, table: FrameTable, order: u8) {
        for size in 0..order {
            for low in [false, true] {
                let mut at = self.head_of(low, true, size);
                while let Some(slot) = table.slot(Mfn(u64::from(at))) {
                    // Merging only takes dirty blocks off their lists, so the next clean one stays where it is.
                    let next = slot.next();
                    let head = Mfn(u64::from(at));
                    let buddy = Self::block_at(table, Mfn(head.0 ^ frames(size)));
                    if buddy.is_some_and(|buddy| buddy.order == size && !buddy.clean) {
                        self.unlink(table, Block { head, order: size, clean: true });
                        self.insert(table, Block { head, order: size, clean: false });
                    }
                    at = next;
                }
            }
        }
    }

    /// The free block that a frame lies in.
    fn block_of(table: FrameTable, mfn: u64) -> Option<Block> {
        (0..=MAX_ORDER).find_map(|order| {
            let head = Mfn(mfn & !frames(order).wrapping_sub(1));
            Self::block_at(table, head).filter(|block| mfn < block.end())
        })
    }

    /// Whether a frame lies in a free block.
    pub fn is_free(table: FrameTable, mfn: u64) -> bool {
        Self::block_of(table, mfn).is_some()
    }

    /// Takes just these frames out, if all are free.
    pub fn take_range(&mut self, table: FrameTable, range: Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            match Self::block_of(table, at) {
                Some(block) => at = block.end(),
                None => return false,
            }
        }
        let mut at = range.start;
        while at < range.end {
            let Some(block) = Self::block_of(table, at) else { break };
            self.unlink(table, block);
            self.spread(table, block.head.0..at, block.clean);
            self.spread(table, range.end..block.end(), block.clean);
            at = block.end();
        }
        true
    }

    /// Shows every free block, in no order.
    pub fn each(&self, table: FrameTable, mut visit: impl FnMut(Block)) {
        for order in 0..=MAX_ORDER {
            for (low, clean) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut at = self.head_of(low, clean, order);
                while let Some(slot) = table.slot(Mfn(u64::from(at))) {
                    visit(Block { head: Mfn(u64::from(at)), order, clean });
                    at = slot.next();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::FrameSlot;

    const FRAMES: u64 = 1 << 10;

    fn table() -> FrameTable {
        FrameTable(Vec::leak((0..FRAMES).map(|_| FrameSlot::new()).collect()))
    }

    /// Which frames are free, by the lists; panics where two blocks overlap or list and table disagree.
    fn free_map(buddy: &Buddy, table: FrameTable) -> Vec<bool> {
        let mut map = vec![false; FRAMES as usize];
        buddy.each(table, |block| {
            assert_eq!(Buddy::block_at(table, block.head), Some(block));
            assert!(block.head.is_aligned(frames(block.order)));
            for mfn in block.head.0..block.end() {
                assert!(!std::mem::replace(&mut map[mfn as usize], true), "frame {mfn} is free twice");
            }
        });
        assert_eq!(map.iter().filter(|free| **free).count() as u64, buddy.free());
        map
    }

    fn assert_merged(buddy: &Buddy, table: FrameTable) {
        buddy.each(table, |block| {
            let other = Buddy::block_at(table, Mfn(block.head.0 ^ frames(block.order)));
            let alike = other.is_some_and(|other| other.order == block.order && other.clean == block.clean);
            assert!(block.order == MAX_ORDER || !alike, "{block:?} was not merged");
        });
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take { order: u8, below: u64 },
        Free { which: usize, clean: bool },
        TakeRange { start: u64, len: u64 },
        Scrub { most: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..7, prop_oneof![Just(u64::MAX), 0..FRAMES]).prop_map(|(order, below)| Step::Take { order, below }),
            (any::<usize>(), any::<bool>()).prop_map(|(which, clean)| Step::Free { which, clean }),
            (0..FRAMES, 0u64..70).prop_map(|(start, len)| Step::TakeRange { start, len }),
            (0u8..8).prop_map(|most| Step::Scrub { most }),
        ]
    }

    proptest! {
        #[test]
        fn frames_are_conserved_never_overlap_and_merge(steps in prop::collection::vec(step(), 1..80), from_top: bool) {
            let table = table();
            let mut buddy = Buddy { from_top, ..Buddy::new() };
            buddy.add(table, 3..FRAMES - 5, false);
            let mut taken: Vec<Range<u64>> = Vec::new();
            let mut model: Vec<bool> = (0..FRAMES).map(|mfn| (3..FRAMES - 5).contains(&mfn)).collect();
            for step in steps {
                match step {
                    Step::Take { order, below } => {
                        let got = buddy.take(table, order, below);
                        let possible = (0..FRAMES >> order).any(|block| {
                            let range = block << order..(block + 1) << order;
                            range.end <= below && range.clone().all(|mfn| model[mfn as usize])
                        });
                        prop_assert_eq!(got.is_some(), possible);
                        if let Some(block) = got {
                            prop_assert!(block.end() <= below && block.order == order);
                            taken.push(block.head.0..block.end());
                            model[block.head.0 as usize..block.end() as usize].fill(false);
                        }
                    }
                    Step::Free { which, clean } if !taken.is_empty() => {
                        let range = taken.swap_remove(which % taken.len());
                        model[range.start as usize..range.end as usize].fill(true);
                        buddy.add(table, range, clean);
                    }
                    Step::Free { .. } => {}
                    Step::TakeRange { start, len } => {
                        let range = start..(start + len).min(FRAMES);
                        let possible = range.clone().all(|mfn| model[mfn as usize]);
                        prop_assert_eq!(buddy.take_range(table, range.clone()), possible);
                        if possible && !range.is_empty() {
                            model[range.start as usize..range.end as usize].fill(false);
                            taken.push(range);
                        }
                    }
                    Step::Scrub { most } => {
                        if let Some(block) = buddy.take_dirty(table, most) {
                            prop_assert!(!block.clean && block.order <= most);
                            buddy.insert(table, Block { clean: true, ..block });
                        }
                    }
                }
                prop_assert_eq!(&free_map(&buddy, table), &model);
                assert_merged(&buddy, table);
            }
            for range in taken {
                buddy.add(table, range, false);
            }
            prop_assert_eq!(buddy.free(), FRAMES - 8);
        }
    }

    #[test]
    fn memory_freed_in_pieces_is_whole_again() {
        let table = table();
        let mut buddy = Buddy::new();
        buddy.add(table, 0..FRAMES, false);
        let pieces: Vec<_> = (0..FRAMES).map(|_| buddy.take(table, 0, u64::MAX).unwrap()).collect();
        assert_eq!(buddy.take(table, 0, u64::MAX), None);
        for piece in pieces.iter().rev() {
            buddy.insert(table, *piece);
        }
        assert_eq!(buddy.take(table, 10, u64::MAX).map(|block| block.head), Some(Mfn(0)));
    }

    #[test]
    fn from_the_top_the_highest_frames_that_fit_are_taken() {
        let table = table();
        let mut buddy = Buddy { from_top: true, ..Buddy::new() };
        buddy.add(table, 3..FRAMES - 5, false);
        let mut take = |order, below| buddy.take(table, order, below).map(|block| block.head.0);
        assert_eq!(take(0, u64::MAX), Some(FRAMES - 6));
        assert_eq!(take(4, u64::MAX), Some(FRAMES - 32));
        assert_eq!(take(0, u64::MAX), Some(FRAMES - 7));
        assert_eq!(take(2, 100), Some(96));
        assert_eq!(take(2, 99), Some(92));
        assert_eq!(take(0, 3), None);
    }

    #[test]
    fn adding_memory_touches_block_heads_only() {
        let table = table();
        Buddy::new().add(table, 0..FRAMES, false);
        assert!((1..FRAMES).all(|mfn| table.state(Mfn(mfn)) == FrameState::NONE));
    }

    #[test]
    fn a_clean_and_a_dirty_half_are_joined_when_the_whole_is_needed() {
        let table = table();
        let mut buddy = Buddy::new();
        buddy.add(table, 0..8, false);
        buddy.add(table, 8..16, true);
        assert_eq!(buddy.take(table, 4, u64::MAX), Some(Block { head: Mfn(0), order: 4, clean: false }));
    }
}
