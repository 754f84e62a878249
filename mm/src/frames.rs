//! Frames on their way from the free blocks to an owner. What state they are in is in their type: a dirty block can only be
//! scrubbed, and only a clean one given away.

use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;

use xen_abi::types::DomainId;

use crate::addr::Mfn;
use crate::buddy::Block;
use crate::frame::{FrameKind, FrameState};
use crate::memory::Memory;

/// May hold what an earlier owner left.
#[derive(Debug)]
pub enum Dirty {}

/// Holds zeroes.
#[derive(Debug)]
pub enum Clean {}

/// `2^order` frames that are nobody's yet. Dropping them frees them.
#[must_use]
pub struct Frames<State> {
    memory: &'static Memory,
    block: Block,
    state: PhantomData<State>,
}

impl<State> fmt::Debug for Frames<State> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "2^{} frames from {}", self.block.order, self.block.head)
    }
}

impl<State> Drop for Frames<State> {
    fn drop(&mut self) {
        // Whoever held clean frames may have written to them.
        self.memory.put_back(Block { clean: false, ..self.block });
    }
}

impl<State> Frames<State> {
    pub(crate) fn new(memory: &'static Memory, block: Block) -> Self {
        Self { memory, block, state: PhantomData }
    }

    /// The first frame.
    pub fn mfn(&self) -> Mfn {
        self.block.head
    }

    pub fn order(&self) -> u8 {
        self.block.order
    }

    /// How many frames there are.
    pub fn count(&self) -> u64 {
        1u64.wrapping_shl(self.block.order.into())
    }

    fn into_parts(self) -> (&'static Memory, Block) {
        let this = ManuallyDrop::new(self);
        (this.memory, this.block)
    }

    /// Hands the block to the host itself: its first frame's number is what frees it.
    pub fn into_host(self) -> Mfn {
        let (memory, block) = self.into_parts();
        memory.count_host(block.order);
        block.head
    }
}

impl Frames<Dirty> {
    /// Whether scrubbing has nothing to do.
    pub fn is_known_clean(&self) -> bool {
        self.block.clean
    }

    /// Zeroes the frames, unless that was done while they were free.
    pub fn scrub(self) -> Frames<Clean> {
        let count = self.count();
        let (memory, block) = self.into_parts();
        if !block.clean {
            // The frame table ends with the window, so all free frames are in it.
            let zeroed = memory.window().zero_frames(block.head, count);
            debug_assert_eq!(zeroed, Ok(()));
        }
        Frames::new(memory, block)
    }
}

impl Frames<Clean> {
    /// Puts the frames aside for the domain: it has them, but sees none of them yet. The first is returned; what becomes of them is for
    /// [`Memory::take_parked`] and [`Memory::free_parked`].
    pub(crate) fn park_for(self, owner: DomainId) -> Mfn {
        let count = self.count();
        let (memory, block) = self.into_parts();
        let parked = FrameState::new(FrameKind::Parked, owner).with_clean(true);
        for slot in memory.slots(block.head, count) {
            slot.set(parked);
        }
        block.head
    }

    /// Makes each frame the domain's memory. The first is returned; they are freed by [`Memory::free_owned`].
    pub fn give_to(self, owner: DomainId) -> Mfn {
        let count = self.count();
        let (memory, block) = self.into_parts();
        let owned = FrameState::new(FrameKind::Owned, owner);
        for slot in memory.slots(block.head, count) {
            slot.set(owned);
        }
        block.head
    }

    /// Keeps the first frame as a page of the host's that `owner` shares; the rest is freed.
    pub(crate) fn into_shared(self, owner: DomainId) -> Mfn {
        self.into_single(FrameState::new(FrameKind::Shared, owner))
    }

    /// Keeps the first frame as a page table of `owner`'s; the rest is freed.
    pub(crate) fn into_table(self, owner: DomainId, level: u8) -> Mfn {
        self.into_single(FrameState::new(FrameKind::Table, owner).with_order(level))
    }

    fn into_single(self, state: FrameState) -> Mfn {
        let (memory, mut block) = self.into_parts();
        while let Some(order) = block.order.checked_sub(1) {
            block.order = order;
            memory.put_back(Block { head: block.head.plus(1u64.wrapping_shl(order.into())), ..block });
        }
        if let Some(slot) = memory.slot(block.head) {
            slot.set(state);
        }
        block.head
    }
}
