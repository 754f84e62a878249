//! What is known of each frame of memory: what it is used for, whose it is and how many refer to it. One atomic word says it
//! all, so that a check and a change are one step.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xen_abi::types::DomainId;

use crate::addr::Mfn;

/// What a frame is used for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameKind {
    /// Not memory that Corten manages, or inside of a block that its first frame speaks for. Zero, so that a zeroed table
    /// needs no initialisation.
    None = 0,
    /// The first frame of a free block.
    Free = 1,
    /// The first frame of a block that the host uses: the heap's, or on its way to its owner.
    Host = 2,
    /// A page table, charged to its owner.
    Table = 3,
    /// A domain's memory.
    Owned = 4,
    /// A page of the host's making that a domain shares and is charged for.
    Shared = 5,
    /// A frame that is its owner's, though not of its memory: a one-to-one domain has given it up, or it waits to be populated on demand.
    Parked = 6,
    /// Given up by its owner; freed when the last reference goes.
    Doomed = 7,
}

/// A frame's state, packed in a word: kind (3 bits), clean (1), order (8 from bit 8), owner (16 from bit 16), references (32).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FrameState(u64);

impl FrameState {
    const CLEAN: u64 = 1 << 3;
    const ORDER_SHIFT: u32 = 8;
    const OWNER_SHIFT: u32 = 16;
    const COUNT_SHIFT: u32 = 32;
    /// One reference, to be added to the word.
    const ONE: u64 = 1 << Self::COUNT_SHIFT;
    /// More references than this are refused, long before the count could wrap.
    pub const MAX_COUNT: u32 = 1 << 30;

    pub(crate) const NONE: Self = Self(0);

    #[inline]
    pub(crate) const fn new(kind: FrameKind, owner: DomainId) -> Self {
        Self(kind as u64 | (owner.0 as u64) << Self::OWNER_SHIFT)
    }

    #[inline]
    pub(crate) const fn with_order(self, order: u8) -> Self {
        Self(self.0 & !(0xff << Self::ORDER_SHIFT) | (order as u64) << Self::ORDER_SHIFT)
    }

    #[inline]
    pub(crate) const fn with_clean(self, clean: bool) -> Self {
        if clean { Self(self.0 | Self::CLEAN) } else { Self(self.0 & !Self::CLEAN) }
    }

    #[inline]
    pub(crate) const fn with_kind(self, kind: FrameKind) -> Self {
        Self(self.0 & !7 | kind as u64)
    }

    #[inline]
    pub const fn kind(self) -> FrameKind {
        match self.0 & 7 {
            0 => FrameKind::None,
            1 => FrameKind::Free,
            2 => FrameKind::Host,
            3 => FrameKind::Table,
            4 => FrameKind::Owned,
            5 => FrameKind::Shared,
            6 => FrameKind::Parked,
            _ => FrameKind::Doomed,
        }
    }

    /// Whether a free block, or a frame that was put aside, is known to be all zeroes.
    #[inline]
    pub(crate) const fn clean(self) -> bool {
        self.0 & Self::CLEAN != 0
    }

    /// log2 of the frames in the block that this frame speaks for; for a page table, its level.
    #[inline]
    pub(crate) const fn order(self) -> u8 {
        (self.0 >> Self::ORDER_SHIFT) as u8
    }

    /// Whose the frame is, where the kind has an owner.
    #[inline]
    pub const fn owner(self) -> DomainId {
        DomainId((self.0 >> Self::OWNER_SHIFT) as u16)
    }

    /// How many references keep the frame from being freed.
    #[inline]
    pub const fn count(self) -> u32 {
        (self.0 >> Self::COUNT_SHIFT) as u32
    }

    #[cfg(test)]
    /// Whether this is what `kind` and `owner` say, whatever the count.
    #[inline]
    pub(crate) const fn is(self, kind: FrameKind, owner: DomainId) -> bool {
        self.kind() as u8 == kind as u8 && self.owner().0 == owner.0
    }
}

impl core::fmt::Debug for FrameState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} of domain {} with {} references", self.kind(), self.owner().0, self.count())
    }
}

/// A frame's entry in the frame table: 16 bytes, of which an owned frame only ever touches the first eight. All zeroes is
/// the state of a frame that is not Corten's to give.
///
/// The lists of free blocks and of retired page tables run through the table and not through the frames themselves, where a
/// device's stray DMA could break them.
#[derive(Debug, Default)]
pub struct FrameSlot {
    state: AtomicU64,
    previous: AtomicU32,
    next: AtomicU32,
}

const _: () = assert!(size_of::<FrameSlot>() == 16);

impl FrameSlot {
    /// The slot of a frame that is not RAM.
    pub const fn new() -> Self {
        Self { state: AtomicU64::new(0), previous: AtomicU32::new(0), next: AtomicU32::new(0) }
    }

    #[inline]
    pub(crate) fn state(&self) -> FrameState {
        FrameState(self.state.load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn set(&self, state: FrameState) {
        self.state.store(state.0, Ordering::Release);
    }

    /// Changes the state by `change` in one step, for as long as `change` gives one.
    #[inline]
    pub(crate) fn update<E>(&self, change: impl Fn(FrameState) -> Result<FrameState, E>) -> Result<FrameState, E> {
        let mut old = self.state();
        loop {
            let new = change(old)?;
            match self.state.compare_exchange_weak(old.0, new.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(old),
                Err(now) => old = FrameState(now),
            }
        }
    }

    /// Adds a reference if `check` agrees to the state.
    #[inline]
    pub(crate) fn add_reference<E>(&self, check: impl Fn(FrameState) -> Result<(), E>) -> Result<(), E> {
        self.update(|state| check(state).map(|()| FrameState(state.0.wrapping_add(FrameState::ONE)))).map(|_| ())
    }

    /// Takes a reference away and says what the state was.
    #[inline]
    pub(crate) fn drop_reference(&self) -> FrameState {
        FrameState(self.state.fetch_sub(FrameState::ONE, Ordering::AcqRel))
    }

    #[inline]
    pub(crate) fn previous(&self) -> u32 {
        self.previous.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_previous(&self, mfn: u32) {
        self.previous.store(mfn, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_next(&self, mfn: u32) {
        self.next.store(mfn, Ordering::Relaxed);
    }
}

/// The frame table: a slot for each frame from zero up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameTable(pub &'static [FrameSlot]);

impl FrameTable {
    #[inline]
    pub fn slot(&self, mfn: Mfn) -> Option<&'static FrameSlot> {
        self.0.get(usize::try_from(mfn.0).ok()?)
    }

    /// The state of a frame; `NONE` beyond the table.
    #[inline]
    pub fn state(&self, mfn: Mfn) -> FrameState {
        self.slot(mfn).map_or(FrameState::NONE, FrameSlot::state)
    }

    /// The slots of the frames `first .. first + count`; `None` if some are beyond the table.
    #[inline]
    pub fn slots(&self, first: Mfn, count: u64) -> Option<&'static [FrameSlot]> {
        let first = usize::try_from(first.0).ok()?;
        self.0.get(first..first.checked_add(usize::try_from(count).ok()?)?)
    }

    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_keeps_its_parts_apart() {
        let state = FrameState::new(FrameKind::Parked, DomainId(0x7ff2)).with_order(18).with_clean(true);
        assert_eq!((state.kind(), state.owner(), state.order()), (FrameKind::Parked, DomainId(0x7ff2), 18));
        assert!(state.clean());
        assert_eq!(state.count(), 0);
        assert_eq!(state.with_kind(FrameKind::Owned).kind(), FrameKind::Owned);
        assert_eq!(FrameState::NONE.kind(), FrameKind::None);
    }

    #[test]
    fn references_are_counted_beside_the_rest() {
        let slot = FrameSlot::new();
        slot.set(FrameState::new(FrameKind::Owned, DomainId(3)));
        slot.add_reference(|_| Ok::<_, ()>(())).unwrap();
        assert_eq!(slot.state().count(), 1);
        assert!(slot.state().is(FrameKind::Owned, DomainId(3)));
        assert_eq!(slot.drop_reference().count(), 1);
        assert_eq!(slot.state().count(), 0);
        assert_eq!(slot.add_reference(|_| Err("refused")), Err("refused"));
    }
}
