//! The machine's memory: the window to it, the frame table and the free blocks; and the ways in which a frame changes hands.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xen_abi::errno::Errno;
use xen_abi::types::DomainId;

use crate::addr::{HostPhys, Mfn};
use crate::buddy::{Block, Buddy};
use crate::frame::{FrameKind, FrameSlot, FrameState, FrameTable};
use crate::frames::{Dirty, Frames};
use crate::lock::{Lock, Rank};
use crate::rangeset::RangeSet;
use crate::window::Window;

/// No block of free frames is large enough (or low enough).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

impl From<OutOfMemory> for Errno {
    fn from(_: OutOfMemory) -> Self {
        Self::ENOMEM
    }
}

/// All of the machine's memory. There is one; boot makes it and keeps it for ever.
pub struct Memory {
    window: Window,
    table: FrameTable,
    buddy: Lock<Buddy>,
    /// Frames in blocks of the host's.
    host: AtomicU64,
    /// By domain: frames that it gave up, and that somebody still refers to.
    lingering: &'static [AtomicU32],
}

impl fmt::Debug for Memory {
    /// Takes no lock, so that any panic can print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory of {} frames", self.table.len())
    }
}

impl Memory {
    /// The largest block that can be had, as log2 of its frames: 1 GiB.
    pub const MAX_ORDER: u8 = crate::buddy::MAX_ORDER;

    /// How many domains there can be, each of which has a counter.
    pub const DOMAINS: usize = DomainId::FIRST_RESERVED.0 as usize;

    /// Takes charge of `ram`. `table` has a zeroed slot for each frame from zero up to the highest that shall be used; frames
    /// beyond it or beyond the window are left alone. `lingering` has a zero for each of [`DOMAINS`](Self::DOMAINS).
    pub fn new(
        window: Window,
        table: &'static [FrameSlot],
        lingering: &'static [AtomicU32],
        ram: &[Range<Mfn>],
    ) -> Self {
        // The lists in the frame table hold frame numbers of 32 bits, the last of which ends a list.
        let shown = window.limit().mfn().0.min(u64::from(u32::MAX));
        let table = FrameTable(table.get(..usize::try_from(shown).unwrap_or(usize::MAX)).unwrap_or(table));
        let buddy = Lock::new(Rank::Frames, Buddy::new());
        let memory = Self { window, table, buddy, host: AtomicU64::new(0), lingering };
        for (index, range) in ram.iter().enumerate() {
            let earlier = ram.get(..index).unwrap_or(&[]);
            if earlier.iter().any(|other| other.start < range.end && range.start < other.end) {
                memory.add_ram(range.clone());
            } else {
                let end = range.end.0.min(memory.table.len());
                memory.buddy.lock().add(table, range.start.0.min(end)..end, false);
            }
        }
        memory
    }

    /// The window to physical memory.
    #[inline]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Adds RAM that was not ours before, such as boot modules that are done with. Frames that are managed already are left out.
    pub fn add_ram(&self, range: Range<Mfn>) {
        let mut buddy = self.buddy.lock();
        let end = range.end.0.min(self.table.len());
        let mut start = range.start.0;
        while start < end {
            let managed = |mfn: u64| self.table.state(Mfn(mfn)) != FrameState::NONE || Buddy::is_free(self.table, mfn);
            let stop = (start..end).find(|&mfn| managed(mfn)).unwrap_or(end);
            buddy.add(self.table, start..stop, false);
            start = stop.wrapping_add(1);
        }
    }

    /// Frames that are free.
    pub fn free_frames(&self) -> u64 {
        self.buddy.lock().free()
    }

    /// Frames that are managed, free or not.
    pub fn total_frames(&self) -> u64 {
        self.buddy.lock().total()
    }

    /// One more than the highest frame number that is managed.
    pub fn max_frame(&self) -> Mfn {
        Mfn(self.table.len())
    }

    /// What is known of a frame.
    #[inline]
    pub fn state(&self, mfn: Mfn) -> FrameState {
        self.table.state(mfn)
    }

    /// Adds all free frames to `ranges`. For boot, to see where Dom0 may go.
    ///
    /// # Errors
    /// ENOMEM if the set cannot grow.
    pub fn free_ranges(&self, ranges: &mut RangeSet) -> Result<(), Errno> {
        // The heap may take the frames lock, so the blocks are put aside first.
        let mut blocks = alloc::vec::Vec::new();
        loop {
            let mut count = 0usize;
            let mut complete = true;
            self.buddy.lock().each(self.table, |block| {
                count = count.wrapping_add(1);
                match blocks.len() < blocks.capacity() {
                    true => blocks.push(block),
                    false => complete = false,
                }
            });
            if complete {
                break;
            }
            blocks.clear();
            blocks.try_reserve(count.wrapping_add(64)).map_err(|_| Errno::ENOMEM)?;
        }
        for block in blocks {
            ranges.insert(block.head.0..block.head.0.wrapping_add(1u64.wrapping_shl(block.order.into())))?;
        }
        Ok(())
    }

    /// From now on frames are taken from the top of memory, or in the quickest way. The first is for boot, where each frame that is taken low
    /// is one that Dom0's kernel cannot have.
    pub fn take_from_top(&self, from_top: bool) {
        self.buddy.lock().from_top = from_top;
    }

    /// The frames of the block of the heap's in which a value of at least 64 KiB lies.
    pub fn block_of<T>(&self, value: &[T]) -> Option<Range<Mfn>> {
        let head = self.window.mfn_of(value.as_ptr().cast_mut().cast())?;
        let state = self.table.state(head);
        (state.kind() == FrameKind::Host).then(|| head..head.plus(1u64.wrapping_shl(state.order().into())))
    }

    /// Takes `2^order` free frames, aligned to their number, all below the address `below` if one is given.
    pub fn allocate(&'static self, order: u8, below: Option<HostPhys>) -> Result<Frames<Dirty>, OutOfMemory> {
        let below = below.map_or(u64::MAX, |limit| limit.mfn().0);
        let mut buddy = self.buddy.lock();
        let block = buddy.take(self.table, order, below).ok_or(OutOfMemory)?;
        if let Some(slot) = self.table.slot(block.head) {
            slot.set(FrameState::new(FrameKind::Host, DomainId::XEN).with_order(order));
        }
        drop(buddy);
        Ok(Frames::new(self, block))
    }

    /// The slots of a block's frames.
    pub(crate) fn slots(&self, first: Mfn, count: u64) -> &'static [FrameSlot] {
        self.table.slots(first, count).unwrap_or(&[])
    }

    /// The slot of a frame.
    #[inline]
    pub(crate) fn slot(&self, mfn: Mfn) -> Option<&'static FrameSlot> {
        self.table.slot(mfn)
    }

    /// Puts a block back of which at most the first slot is not zero.
    pub(crate) fn put_back(&self, block: Block) {
        if let Some(slot) = self.table.slot(block.head) {
            slot.set(FrameState::NONE);
        }
        self.buddy.lock().insert(self.table, block);
    }

    /// Frees one frame that nobody refers to any more.
    fn free_one(&self, mfn: Mfn) {
        self.put_back(Block { head: mfn, order: 0, clean: false });
    }

    /// Frees a block of the host's, by its first frame. False if that is no such block.
    pub(crate) fn free_host(&self, head: Mfn) -> bool {
        let state = self.table.state(head);
        if state.kind() != FrameKind::Host {
            return false;
        }
        self.host.fetch_sub(1u64.wrapping_shl(state.order().into()), Ordering::Relaxed);
        self.put_back(Block { head, order: state.order(), clean: false });
        true
    }

    pub(crate) fn count_host(&self, order: u8) {
        self.host.fetch_add(1u64.wrapping_shl(order.into()), Ordering::Relaxed);
    }

    /// Frames that the host uses itself: its heap, above all.
    pub fn host_frames(&self) -> u64 {
        self.host.load(Ordering::Relaxed)
    }

    /// Frees a page table.
    pub(crate) fn free_table(&self, mfn: Mfn) {
        if self.table.state(mfn).kind() == FrameKind::Table {
            self.free_one(mfn);
        }
    }

    /// Makes a page table that is out of use an empty one at `level`.
    ///
    /// # Errors
    /// EIO if it is none.
    pub(crate) fn renew_table(&self, mfn: Mfn, owner: DomainId, level: u8) -> Result<Mfn, Errno> {
        let slot = self.slot(mfn).filter(|slot| slot.state().kind() == FrameKind::Table).ok_or(Errno::EIO)?;
        self.window.zero_frames(mfn, 1)?;
        slot.set(FrameState::new(FrameKind::Table, owner).with_order(level));
        Ok(mfn)
    }

    /// Takes just these frames, all free, and gives them to `owner`: a one-to-one domain's memory. They are not scrubbed.
    ///
    /// # Errors
    /// EINVAL if the range is empty or beyond the frame table, EBUSY if not all of it is free; nothing is changed then.
    pub fn claim_range(&self, range: Range<Mfn>, owner: DomainId) -> Result<(), Errno> {
        let count = range.end.0.checked_sub(range.start.0).filter(|count| *count > 0).ok_or(Errno::EINVAL)?;
        let slots = self.table.slots(range.start, count).ok_or(Errno::EINVAL)?;
        if !self.buddy.lock().take_range(self.table, range.start.0..range.end.0) {
            return Err(Errno::EBUSY);
        }
        let owned = FrameState::new(FrameKind::Owned, owner);
        for slot in slots {
            slot.set(owned);
        }
        Ok(())
    }

    /// Takes a reference to a frame of `owner`'s memory, or of a page that it shares with the host; the frame is not freed
    /// before the reference is dropped.
    ///
    /// # Errors
    /// EINVAL if the frame is not such a one, EPERM if it is not `owner`'s, EBUSY if there are 2^30 references.
    #[inline]
    pub fn reference(&'static self, mfn: Mfn, owner: DomainId) -> Result<FrameRef, Errno> {
        self.slot(mfn).ok_or(Errno::EINVAL)?.add_reference(|state| {
            if !matches!(state.kind(), FrameKind::Owned | FrameKind::Shared) {
                Err(Errno::EINVAL)
            } else if state.owner() != owner {
                Err(Errno::EPERM)
            } else if state.count() >= FrameState::MAX_COUNT {
                Err(Errno::EBUSY)
            } else {
                Ok(())
            }
        })?;
        Ok(FrameRef { memory: self, mfn })
    }

    /// Gives back a reference that was [kept](FrameRef::keep).
    #[inline]
    pub fn release(&self, mfn: Mfn) {
        let Some(slot) = self.slot(mfn) else { return };
        if slot.state().count() == 0 {
            log::error!("memory: frame {mfn} ({:?}) is released once too often", slot.state());
            return;
        }
        let before = slot.drop_reference();
        if before.kind() == FrameKind::Doomed && before.count() == 1 {
            self.free_one(mfn);
            if let Some(count) = self.lingering_of(before.owner()) {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Frees `2^order` frames of `owner`'s.
    ///
    /// # Errors
    /// EINVAL if not all are owned memory, EPERM if not all are `owner`'s, EBUSY if some are referenced; nothing is freed then.
    pub fn free_owned(&self, mfn: Mfn, order: u8, owner: DomainId) -> Result<(), Errno> {
        let free = |state| owned_and_unreferenced(state, owner).map(|()| FrameState::NONE);
        self.change_block(mfn, order, free, FrameState::new(FrameKind::Owned, owner))?;
        self.put_back(Block { head: mfn, order, clean: false });
        Ok(())
    }

    /// Changes the states of all frames of a block, or, if `change` refuses one, of none: they are `before` then.
    fn change_block(
        &self,
        mfn: Mfn,
        order: u8,
        change: impl Fn(FrameState) -> Result<FrameState, Errno>,
        before: FrameState,
    ) -> Result<(), Errno> {
        let count = 1u64.checked_shl(order.into()).filter(|count| mfn.is_aligned(*count)).ok_or(Errno::EINVAL)?;
        if order > Self::MAX_ORDER {
            return Err(Errno::EINVAL);
        }
        let slots = self.table.slots(mfn, count).ok_or(Errno::EINVAL)?;
        for (done, slot) in slots.iter().enumerate() {
            if let Err(error) = slot.update(&change) {
                for slot in slots.iter().take(done) {
                    slot.set(before);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Puts `2^order` frames of `owner`'s memory aside, which are in no p2m any more.
    ///
    /// # Errors
    /// As for [`free_owned`](Self::free_owned); none is put aside then.
    pub(crate) fn park_block(&self, mfn: Mfn, order: u8, owner: DomainId) -> Result<(), Errno> {
        let parked = FrameState::new(FrameKind::Parked, owner);
        let park = |state| owned_and_unreferenced(state, owner).map(|()| parked);
        self.change_block(mfn, order, park, FrameState::new(FrameKind::Owned, owner))
    }

    /// Takes note that `2^order` frames that the caller has put aside are all zeroes.
    pub(crate) fn note_zeroed(&self, mfn: Mfn, order: u8, owner: DomainId) {
        let zeroed = FrameState::new(FrameKind::Parked, owner).with_clean(true);
        for slot in self.slots(mfn, 1u64.wrapping_shl(order.into())) {
            slot.set(zeroed);
        }
    }

    /// Makes `2^order` frames that were put aside, and are all zeroes, `owner`'s memory.
    ///
    /// # Errors
    /// EINVAL if not all are parked and known to be zeroes, EPERM if not all are `owner`'s; none is taken then.
    pub(crate) fn take_parked(&self, mfn: Mfn, order: u8, owner: DomainId) -> Result<(), Errno> {
        let take = |state: FrameState| match parked(state, owner) {
            Ok(()) if !state.clean() => Err(Errno::EINVAL),
            parked => parked.map(|()| FrameState::new(FrameKind::Owned, owner)),
        };
        self.change_block(mfn, order, take, self.state(mfn))
    }

    /// Frees `2^order` frames that were put aside.
    ///
    /// # Errors
    /// As for [`take_parked`](Self::take_parked).
    pub(crate) fn free_parked(&self, mfn: Mfn, order: u8, owner: DomainId) -> Result<(), Errno> {
        let before = self.state(mfn);
        self.change_block(mfn, order, |state| parked(state, owner).map(|()| FrameState::NONE), before)?;
        self.put_back(Block { head: mfn, order, clean: before.clean() });
        Ok(())
    }

    /// Frames that a domain gave up, but that are not free before others let go of them. They are still to be charged to it.
    #[inline]
    pub fn lingering(&self, owner: DomainId) -> u64 {
        // One may have gone before it was counted.
        let count = self.lingering_of(owner).map_or(0, |count| count.load(Ordering::Relaxed) as i32);
        count.max(0) as u64
    }

    #[inline]
    fn lingering_of(&self, owner: DomainId) -> Option<&AtomicU32> {
        self.lingering.get(usize::from(owner.0))
    }

    /// Gives up one frame of `owner`'s memory: it is freed now, or when the last reference to it goes, and [lingers](Self::lingering) until then.
    ///
    /// # Errors
    /// EINVAL or EPERM as for [`free_owned`](Self::free_owned).
    pub fn abandon(&self, mfn: Mfn, owner: DomainId) -> Result<(), Errno> {
        let before = self.slot(mfn).ok_or(Errno::EINVAL)?.update(|state| {
            if !matches!(state.kind(), FrameKind::Owned | FrameKind::Shared | FrameKind::Parked) {
                Err(Errno::EINVAL)
            } else if state.owner() != owner {
                Err(Errno::EPERM)
            } else if state.count() == 0 {
                Ok(FrameState::NONE)
            } else {
                Ok(state.with_kind(FrameKind::Doomed))
            }
        })?;
        if before.count() == 0 {
            self.free_one(mfn);
        } else if let Some(count) = self.lingering_of(owner) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Puts a frame of `owner`'s memory aside: it is no memory of its any more, yet nobody else's either. This is what
    /// ballooning does to the frames of a one-to-one domain. Who refers to it may go on, but there are no new references.
    ///
    /// # Errors
    /// EINVAL if the frame is no owned memory, EPERM if it is another's.
    pub fn park(&self, mfn: Mfn, owner: DomainId) -> Result<(), Errno> {
        self.slot(mfn)
            .ok_or(Errno::EINVAL)?
            .update(|state| match state.kind() {
                FrameKind::Owned if state.owner() == owner => Ok(state.with_kind(FrameKind::Parked)),
                FrameKind::Owned => Err(Errno::EPERM),
                _ => Err(Errno::EINVAL),
            })
            .map(|_| ())
    }

    /// Makes a frame that was put aside `owner`'s memory again.
    ///
    /// # Errors
    /// EINVAL if the frame is not parked, EPERM if it is another's.
    pub fn unpark(&self, mfn: Mfn, owner: DomainId) -> Result<(), Errno> {
        self.slot(mfn)
            .ok_or(Errno::EINVAL)?
            .update(|state| match state.kind() {
                FrameKind::Parked if state.owner() == owner => Ok(state.with_kind(FrameKind::Owned)),
                FrameKind::Parked => Err(Errno::EPERM),
                _ => Err(Errno::EINVAL),
            })
            .map(|_| ())
    }

    /// Makes a frame of `from`'s memory `to`'s, contents and all.
    ///
    /// # Errors
    /// As for [`free_owned`](Self::free_owned).
    pub fn transfer(&self, mfn: Mfn, from: DomainId, to: DomainId) -> Result<(), Errno> {
        self.slot(mfn)
            .ok_or(Errno::EINVAL)?
            .update(|state| owned_and_unreferenced(state, from).map(|()| FrameState::new(FrameKind::Owned, to)))
            .map(|_| ())
    }

    /// Zeroes free frames that may hold something, about `budget` of them, and returns how many; 0 when all are zeroed. For
    /// CPUs with nothing better to do; frames that this has not reached are zeroed when they are handed out.
    pub fn scrub_some(&self, budget: u64) -> u64 {
        let mut done = 0u64;
        while let Some(order) = budget.saturating_sub(done).checked_ilog2() {
            let Some(block) = self.buddy.lock().take_dirty(self.table, order as u8) else { break };
            let count = 1u64.wrapping_shl(block.order.into());
            let clean = self.window.zero_frames(block.head, count).is_ok();
            self.buddy.lock().insert(self.table, Block { clean, ..block });
            done = done.wrapping_add(count);
        }
        done
    }
}

#[inline]
fn owned_and_unreferenced(state: FrameState, owner: DomainId) -> Result<(), Errno> {
    if state.kind() != FrameKind::Owned {
        Err(Errno::EINVAL)
    } else if state.owner() != owner {
        Err(Errno::EPERM)
    } else if state.count() != 0 {
        Err(Errno::EBUSY)
    } else {
        Ok(())
    }
}

fn parked(state: FrameState, owner: DomainId) -> Result<(), Errno> {
    match state.kind() {
        FrameKind::Parked if state.owner() == owner => Ok(()),
        FrameKind::Parked => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

/// A reference that keeps a frame from being freed, and says whose it was when it was taken. Dropping it releases the frame.
#[must_use]
pub struct FrameRef {
    memory: &'static Memory,
    mfn: Mfn,
}

impl FrameRef {
    #[inline]
    pub fn mfn(&self) -> Mfn {
        self.mfn
    }

    #[inline]
    pub fn memory(&self) -> &'static Memory {
        self.memory
    }

    /// Keeps the reference without the value, for as long as something else stands for it (a p2m entry, say). It is given
    /// back by [`Memory::release`].
    pub fn keep(self) -> Mfn {
        core::mem::ManuallyDrop::new(self).mfn
    }
}

impl fmt::Debug for FrameRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameRef({})", self.mfn)
    }
}

impl Drop for FrameRef {
    #[inline]
    fn drop(&mut self) {
        self.memory.release(self.mfn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    const OWNER: DomainId = DomainId(5);
    const OTHER: DomainId = DomainId(6);

    fn owned(memory: &'static Memory) -> Mfn {
        memory.allocate(0, None).unwrap().scrub().give_to(OWNER)
    }

    #[test]
    fn frames_that_are_not_given_away_come_back() {
        let memory = fake::memory(64);
        let free = memory.free_frames();
        let dirty = memory.allocate(3, None).unwrap();
        assert_eq!(memory.free_frames(), free - 8);
        drop(dirty.scrub());
        assert_eq!(memory.free_frames(), free);
    }

    #[test]
    fn an_owner_gets_zeroes_whatever_was_there() {
        let memory = fake::memory(64);
        let mfn = memory.allocate(2, None).unwrap().scrub().give_to(OWNER);
        for at in (mfn.phys().0..mfn.phys().0 + 4 * 4096).step_by(8) {
            assert_eq!(memory.window().read_u64(HostPhys(at)), Ok(0));
        }
    }

    #[test]
    fn what_one_domain_left_another_never_sees() {
        let memory = fake::memory(2);
        let mfn = owned(memory);
        memory.window().copy_to(mfn.phys(), b"secret").unwrap();
        memory.free_owned(mfn, 0, OWNER).unwrap();
        let again = memory.allocate(0, None).unwrap().scrub().give_to(OTHER);
        assert_eq!(again, mfn);
        assert_eq!(memory.window().read_u64(mfn.phys()), Ok(0));
    }

    #[test]
    fn clean_frames_that_come_back_unused_are_not_trusted() {
        let memory = fake::memory(2);
        assert_eq!(memory.scrub_some(1), 1);
        let clean = memory.allocate(0, None).unwrap().scrub();
        memory.window().copy_to(clean.mfn().phys(), b"secret").unwrap();
        drop(clean);
        assert!(!memory.allocate(0, None).unwrap().is_known_clean());
    }

    #[test]
    fn ranges_that_boot_names_twice_are_free_once() {
        let (window, table) = fake::parts(64);
        let memory =
            Memory::new(window, table, fake::counters(), &[Mfn(4)..Mfn(40), Mfn(10)..Mfn(50), Mfn(60)..Mfn(1000)]);
        assert_eq!(memory.free_frames(), 46 + 4);
        memory.add_ram(Mfn(0)..Mfn(64));
        assert_eq!(memory.free_frames(), 64);
    }

    #[test]
    fn what_was_scrubbed_in_the_background_is_clean() {
        let memory = fake::memory(64);
        assert_eq!(memory.scrub_some(10), 10);
        let mut total = 10;
        while let done @ 1.. = memory.scrub_some(7) {
            total += done;
        }
        assert_eq!(total, memory.free_frames());
        let frames = memory.allocate(4, None).unwrap();
        assert!(frames.is_known_clean());
        let mfn = frames.scrub().give_to(OWNER);
        for frame in mfn.0..mfn.0 + 16 {
            let mut page = [1; 4096];
            memory.window().copy_from(Mfn(frame).phys(), &mut page).unwrap();
            assert!(page.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_referenced_frame_cannot_be_freed_or_transferred() {
        let memory = fake::memory(64);
        let mfn = owned(memory);
        let reference = memory.reference(mfn, OWNER).unwrap();
        assert_eq!(memory.free_owned(mfn, 0, OWNER), Err(Errno::EBUSY));
        assert_eq!(memory.transfer(mfn, OWNER, OTHER), Err(Errno::EBUSY));
        drop(reference);
        assert_eq!(memory.free_owned(mfn, 0, OWNER), Ok(()));
    }

    #[test]
    fn a_block_is_freed_whole_or_not_at_all() {
        let memory = fake::memory(64);
        let mfn = memory.allocate(3, None).unwrap().scrub().give_to(OWNER);
        let free = memory.free_frames();
        let reference = memory.reference(Mfn(mfn.0 + 5), OWNER).unwrap();
        assert_eq!(memory.free_owned(mfn, 3, OWNER), Err(Errno::EBUSY));
        assert_eq!(memory.free_frames(), free);
        assert!((0..8).all(|i| memory.state(Mfn(mfn.0 + i)).is(FrameKind::Owned, OWNER)));
        drop(reference);
        memory.free_owned(mfn, 3, OWNER).unwrap();
        assert_eq!(memory.free_frames(), free + 8);
    }

    #[test]
    fn only_the_owners_frames_are_referenced_or_freed() {
        let memory = fake::memory(64);
        let mfn = owned(memory);
        assert_eq!(memory.reference(mfn, OTHER).unwrap_err(), Errno::EPERM);
        assert_eq!(memory.free_owned(mfn, 0, OTHER), Err(Errno::EPERM));
        assert_eq!(memory.reference(Mfn(mfn.0 ^ 1), OWNER).unwrap_err(), Errno::EINVAL);
        assert_eq!(memory.reference(Mfn(1 << 40), OWNER).unwrap_err(), Errno::EINVAL);
        assert_eq!(memory.free_owned(mfn, 63, OWNER), Err(Errno::EINVAL));
    }

    #[test]
    fn an_abandoned_frame_goes_with_its_last_reference() {
        let memory = fake::memory(64);
        let mfn = owned(memory);
        let free = memory.free_frames();
        let (first, second) = (memory.reference(mfn, OWNER).unwrap(), memory.reference(mfn, OWNER).unwrap());
        memory.abandon(mfn, OWNER).unwrap();
        assert_eq!(memory.reference(mfn, OWNER).unwrap_err(), Errno::EINVAL, "no new references to what is given up");
        drop(first);
        assert_eq!((memory.free_frames(), memory.lingering(OWNER), memory.lingering(OTHER)), (free, 1, 0));
        drop(second);
        assert_eq!((memory.free_frames(), memory.lingering(OWNER)), (free + 1, 0));
    }

    #[test]
    fn a_kept_reference_lasts_until_it_is_released() {
        let memory = fake::memory(64);
        let mfn = memory.reference(owned(memory), OWNER).unwrap().keep();
        assert_eq!(memory.free_owned(mfn, 0, OWNER), Err(Errno::EBUSY));
        memory.release(mfn);
        assert_eq!(memory.free_owned(mfn, 0, OWNER), Ok(()));
        memory.release(mfn);
        assert_eq!(memory.state(mfn).count(), 0, "one release too many is refused");
    }

    #[test]
    fn a_claimed_range_is_owned_frame_by_frame_and_only_once() {
        let memory = fake::memory(256);
        let free = memory.free_frames();
        memory.claim_range(Mfn(17)..Mfn(101), DomainId::DOM0).unwrap();
        assert_eq!(memory.free_frames(), free - 84);
        assert!((17..101).all(|mfn| memory.state(Mfn(mfn)).is(FrameKind::Owned, DomainId::DOM0)));
        assert_eq!(memory.claim_range(Mfn(100)..Mfn(110), DomainId::DOM0), Err(Errno::EBUSY));
        assert_eq!(memory.free_frames(), free - 84);
        assert_eq!(memory.claim_range(Mfn(200)..Mfn(300), DomainId::DOM0), Err(Errno::EINVAL));
    }

    #[test]
    fn a_parked_frame_waits_for_its_owner() {
        let memory = fake::memory(64);
        let mfn = owned(memory);
        let free = memory.free_frames();
        memory.park(mfn, OWNER).unwrap();
        assert_eq!(memory.free_frames(), free);
        assert_eq!(memory.reference(mfn, OWNER).unwrap_err(), Errno::EINVAL);
        assert_eq!(memory.unpark(mfn, OTHER), Err(Errno::EPERM));
        memory.unpark(mfn, OWNER).unwrap();
        assert_eq!(memory.unpark(mfn, OWNER), Err(Errno::EINVAL));
        drop(memory.reference(mfn, OWNER).unwrap());
    }

    #[test]
    fn a_frame_that_is_put_aside_while_it_is_referenced_is_nobody_elses_afterwards() {
        let memory = fake::memory(64);
        let mfn = owned(memory);
        let free = memory.free_frames();
        let reference = memory.reference(mfn, OWNER).unwrap();
        assert_eq!(memory.park(mfn, OTHER), Err(Errno::EPERM));
        memory.park(mfn, OWNER).unwrap();
        drop(reference);
        assert_eq!(memory.free_frames(), free);
        memory.unpark(mfn, OWNER).unwrap();
        memory.park(mfn, OWNER).unwrap();
        memory.abandon(mfn, OWNER).unwrap();
        assert_eq!(memory.free_frames(), free + 1);
    }

    #[test]
    fn a_limit_on_the_address_is_kept() {
        let memory = fake::memory(64);
        let frames = memory.allocate(2, Some(HostPhys(12 * 4096))).unwrap();
        assert!(frames.mfn().0 + 4 <= 12);
        assert_eq!(memory.allocate(4, Some(HostPhys(15 * 4096))).map(|f| f.mfn()), Err(OutOfMemory));
    }

    #[test]
    fn free_ranges_tell_what_is_free() {
        let memory = fake::memory(64);
        memory.claim_range(Mfn(20)..Mfn(30), OWNER).unwrap();
        let mut ranges = RangeSet::new();
        memory.free_ranges(&mut ranges).unwrap();
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [1..20, 30..64]);
    }
}
