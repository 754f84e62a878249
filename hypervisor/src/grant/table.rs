//! A domain's grant table: the frames that it shares with the hypervisor, and who uses which entry.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use mm::addr::{Gfn, Mfn};
use mm::lock::{Lock, Rank};
use mm::{Memory, SharedPage};
use spin::Once;
use xen_abi::errno::Errno;
use xen_abi::grant::*;
use xen_abi::types::{DomainId, GrantRef};

use super::pins::Pins;
use super::{Granted, Limits, Refused, Wanted, v1, v2};

/// Frames that a table may have at most, whatever the toolstack asks for.
const MOST_FRAMES: u32 = 4096;
/// Table frames whose status words are in one status frame.
const FRAMES_PER_STATUS_FRAME: u32 = v2::STATUS_PER_FRAME / v2::PER_FRAME;
/// No version: it is being changed.
const CHANGING: u8 = 0;
/// The entry is not mapped anywhere.
const NOWHERE: u64 = u64::MAX;

/// The table. Only ever grows; looking an entry up takes no lock.
pub struct Table {
    owner: DomainId,
    max_version: u8,
    /// 1, 2 or [`CHANGING`].
    version: AtomicU8,
    frames: Box<[Once<TableFrame>]>,
    /// The frames before this one are there.
    count: AtomicU32,
    status: Box<[Once<StatusFrame>]>,
    /// Held while frames are added or the version changes.
    shape: Lock<()>,
}

/// A frame of entries, and the uses of as many entries as the denser format has in a frame: the uses are found by the reference
/// alone, whatever the version.
struct TableFrame {
    page: SharedPage,
    pins: Box<[Pins]>,
    gfn: AtomicU64,
}

struct StatusFrame {
    page: SharedPage,
    gfn: AtomicU64,
}

/// Which frames of a table are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Entries,
    /// Status words of version 2.
    Status,
}

impl Table {
    pub(super) fn new(owner: DomainId, limits: Limits) -> Result<Self, Errno> {
        if !matches!(limits.max_version, 1 | 2) || limits.max_frames > MOST_FRAMES {
            return Err(Errno::EINVAL);
        }
        let frames = limits.max_frames;
        Ok(Table {
            owner,
            max_version: limits.max_version,
            version: AtomicU8::new(1),
            frames: boxed(frames as usize, Once::new)?,
            count: AtomicU32::new(0),
            status: boxed(frames.div_ceil(FRAMES_PER_STATUS_FRAME) as usize, Once::new)?,
            shape: Lock::new(Rank::Grant, ()),
        })
    }

    /// The frames that it has.
    #[inline]
    pub fn frame_count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// The frames that it may have.
    pub fn max_frames(&self) -> u32 {
        self.frames.len() as u32
    }

    /// The frames of one kind that it may have.
    pub fn most(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Entries => self.max_frames(),
            Kind::Status => self.status.len() as u32,
        }
    }

    /// The format of its entries, 1 or 2.
    pub fn version(&self) -> u8 {
        let _shape = self.shape.lock();
        self.version.load(Ordering::Relaxed)
    }

    // ---- its frames ----

    /// Adds frames until there are `count`.
    ///
    /// # Errors
    /// EINVAL if that is more than it may have; ENOMEM (some may have been added).
    pub fn grow(&self, memory: &'static Memory, count: u32) -> Result<(), Errno> {
        let _shape = self.shape.lock();
        self.grow_held(memory, count)
    }

    fn grow_held(&self, memory: &'static Memory, count: u32) -> Result<(), Errno> {
        if count > self.max_frames() {
            return Err(Errno::EINVAL);
        }
        for index in self.frame_count()..count {
            if self.version.load(Ordering::Relaxed) == 2 {
                self.add_status(memory, index)?;
            }
            let slot = self.frames.get(index as usize).ok_or(Errno::EINVAL)?;
            let frame = TableFrame {
                page: SharedPage::allocate(memory, self.owner)?,
                pins: boxed(v1::PER_FRAME as usize, Pins::default)?,
                gfn: AtomicU64::new(NOWHERE),
            };
            slot.call_once(|| frame);
            self.count.store(index.saturating_add(1), Ordering::Release);
        }
        Ok(())
    }

    /// The status frame for table frame `index`, if it is not there yet.
    fn add_status(&self, memory: &'static Memory, index: u32) -> Result<(), Errno> {
        let index = index.checked_div(FRAMES_PER_STATUS_FRAME).ok_or(Errno::EINVAL)?;
        let slot = self.status.get(index as usize).ok_or(Errno::EINVAL)?;
        if slot.get().is_none() {
            let frame = StatusFrame { page: SharedPage::allocate(memory, self.owner)?, gfn: AtomicU64::new(NOWHERE) };
            slot.call_once(|| frame);
        }
        Ok(())
    }

    /// Frame `index`, for the owner or its toolstack to map; the table grows as far as that.
    ///
    /// # Errors
    /// EINVAL if it may have no such frame, or if status frames are asked of a version 1 table; ENOMEM.
    pub fn frame(&self, memory: &'static Memory, kind: Kind, index: u32) -> Result<Mfn, Errno> {
        let _shape = self.shape.lock();
        match kind {
            Kind::Entries => {
                let wanted = index.checked_add(1).ok_or(Errno::EINVAL)?;
                self.grow_held(memory, wanted)?;
                let frame = self.frames.get(index as usize).and_then(Once::get).ok_or(Errno::EINVAL)?;
                Ok(frame.page.mfn())
            }
            Kind::Status => {
                if self.version.load(Ordering::Relaxed) != 2 {
                    return Err(Errno::EINVAL);
                }
                let last = index.checked_add(1).and_then(|count| count.checked_mul(FRAMES_PER_STATUS_FRAME));
                let wanted = last.ok_or(Errno::EINVAL)?.min(self.max_frames());
                self.grow_held(memory, wanted)?;
                let frame = self.status.get(index as usize).and_then(Once::get).ok_or(Errno::EINVAL)?;
                Ok(frame.page.mfn())
            }
        }
    }

    /// The status frames that go with the frames that it has.
    pub fn status_frame_count(&self) -> u32 {
        self.frame_count().div_ceil(FRAMES_PER_STATUS_FRAME)
    }

    fn gfn_of(&self, kind: Kind, index: u32) -> Option<&AtomicU64> {
        let index = index as usize;
        match kind {
            Kind::Entries => Some(&self.frames.get(index)?.get()?.gfn),
            Kind::Status => Some(&self.status.get(index)?.get()?.gfn),
        }
    }

    /// Where the owner sees a frame, as [`moved_to`](Self::moved_to) was told.
    pub fn gfn(&self, kind: Kind, index: u32) -> Option<Gfn> {
        let gfn = self.gfn_of(kind, index)?.load(Ordering::Relaxed);
        (gfn != NOWHERE).then_some(Gfn(gfn))
    }

    /// Notes where the owner now sees a frame, and says where it saw it before: a frame of the table appears in one place only, so
    /// the old one is to be unmapped.
    pub fn moved_to(&self, kind: Kind, index: u32, gfn: Option<Gfn>) -> Option<Gfn> {
        let now = gfn.map_or(NOWHERE, |gfn| gfn.0);
        let before = self.gfn_of(kind, index)?.swap(now, Ordering::Relaxed);
        (before != NOWHERE).then_some(Gfn(before))
    }

    // ---- its entries ----

    #[inline]
    fn pins(&self, gref: GrantRef) -> Option<&Pins> {
        let frame = self.frames.get((gref.0 / v1::PER_FRAME) as usize)?.get()?;
        frame.pins.get((gref.0 % v1::PER_FRAME) as usize)
    }

    /// The frame of an entry and its index there.
    #[inline]
    fn entry(&self, gref: GrantRef, per_frame: u32) -> Option<(&SharedPage, usize)> {
        let frame = self.frames.get(gref.0.checked_div(per_frame)? as usize)?.get()?;
        Some((&frame.page, gref.0.checked_rem(per_frame)? as usize))
    }

    #[inline]
    fn entry_v2(&self, gref: GrantRef) -> Option<v2::Place<'_>> {
        let (page, index) = self.entry(gref, v2::PER_FRAME)?;
        let status = self.status.get((gref.0 / v2::STATUS_PER_FRAME) as usize)?.get()?;
        let status_index = (gref.0 % v2::STATUS_PER_FRAME) as usize;
        Some(v2::Place { page, index, status_page: &status.page, status_index })
    }

    /// Begins a use of an entry: its status bits say so until [`unpin`](Self::unpin).
    #[inline]
    pub fn pin(&self, gref: GrantRef, wanted: Wanted) -> Result<Granted, Refused> {
        let mut held = self.pins(gref).ok_or(Refused::BadReference)?.lock();
        let before = held.count();
        held.add(wanted.write)?;
        let granted = match self.version.load(Ordering::SeqCst) {
            1 => self.entry(gref, v1::PER_FRAME).ok_or(Refused::BadReference).and_then(|(page, index)| {
                // A grant must outlive its uses; a granter that breaks that rule is told so by the flags alone.
                v1::claim(page, index, wanted)
            }),
            2 => self
                .entry_v2(gref)
                .ok_or(Refused::BadReference)
                .and_then(|place| v2::claim(place, wanted, before.flags())),
            _ => Err(Refused::Again),
        };
        if granted.is_err() {
            held.remove(wanted.write);
        }
        granted
    }

    /// Ends a use that [`pin`](Self::pin) began.
    #[inline]
    pub fn unpin(&self, gref: GrantRef, write: bool) {
        let Some(pins) = self.pins(gref) else { return };
        loop {
            let mut held = pins.lock();
            match self.version.load(Ordering::SeqCst) {
                CHANGING => {
                    // Whoever changes the version is about to give it up, as this entry is in use, or wants this very count.
                    drop(held);
                    core::hint::spin_loop();
                }
                version => {
                    let status = held.remove(write);
                    if status != 0 {
                        self.release(gref, version, status);
                    }
                    return;
                }
            }
        }
    }

    /// Clears status bits. The entry's count is held, so the version stays.
    #[inline]
    fn release(&self, gref: GrantRef, version: u8, status: u16) {
        if version == 1 {
            if let Some((page, index)) = self.entry(gref, v1::PER_FRAME) {
                v1::release(page, index, status);
            }
        } else if let Some(place) = self.entry_v2(gref) {
            v2::release(place, status);
        }
    }

    /// Exchanges two entries. `Again` if one is in use.
    pub fn swap(&self, a: GrantRef, b: GrantRef) -> Result<(), Refused> {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let held_low = self.pins(low).ok_or(Refused::BadReference)?.lock();
        if low == high {
            return Ok(());
        }
        let held_high = self.pins(high).ok_or(Refused::BadReference)?.lock();
        if !held_low.count().is_zero() || !held_high.count().is_zero() {
            return Err(Refused::Again);
        }
        let swapped = match self.version.load(Ordering::SeqCst) {
            1 => self.swap_v1(low, high),
            2 => self.swap_v2(low, high),
            _ => return Err(Refused::Again),
        };
        swapped.ok_or(Refused::BadReference)
    }

    fn swap_v1(&self, a: GrantRef, b: GrantRef) -> Option<()> {
        let ((page_a, index_a), (page_b, index_b)) = (self.entry(a, v1::PER_FRAME)?, self.entry(b, v1::PER_FRAME)?);
        let (entry_a, entry_b) = (v1::read(page_a, index_a)?, v1::read(page_b, index_b)?);
        v1::write(page_a, index_a, entry_b)?;
        v1::write(page_b, index_b, entry_a)
    }

    fn swap_v2(&self, a: GrantRef, b: GrantRef) -> Option<()> {
        let ((page_a, index_a), (page_b, index_b)) = (self.entry(a, v2::PER_FRAME)?, self.entry(b, v2::PER_FRAME)?);
        let (entry_a, entry_b) = (v2::read(page_a, index_a)?, v2::read(page_b, index_b)?);
        v2::write(page_a, index_a, entry_b)?;
        v2::write(page_b, index_b, entry_a)
    }

    // ---- its version ----

    /// Changes the format of the entries. The reserved ones are kept, in use or not; all others are emptied.
    ///
    /// # Errors
    /// EINVAL if there is no such version, ENOSYS if it is not allowed to this domain, EBUSY if an entry is in use, ENOMEM.
    pub fn set_version(&self, memory: &'static Memory, wanted: u32) -> Result<(), Errno> {
        let wanted = match wanted {
            1 => 1,
            2 if self.max_version < 2 => return Err(Errno::ENOSYS),
            2 => 2,
            _ => return Err(Errno::EINVAL),
        };
        let _shape = self.shape.lock();
        let version = self.version.load(Ordering::Relaxed);
        if version == wanted {
            return Ok(());
        }
        if wanted == 2 {
            for index in 0..self.frame_count().max(1) {
                self.add_status(memory, index)?;
            }
        }
        // From here on no use begins.
        self.version.store(CHANGING, Ordering::SeqCst);
        let changed = self.change_version(memory, version, wanted);
        self.version.store(if changed.is_ok() { wanted } else { version }, Ordering::SeqCst);
        changed
    }

    fn change_version(&self, memory: &'static Memory, from: u8, to: u8) -> Result<(), Errno> {
        let frames = || self.frames.iter().map_while(Once::get);
        let mut pins = frames().flat_map(|frame| frame.pins.iter());
        let reserved: arrayvec::ArrayVec<_, RESERVED> = pins.by_ref().take(RESERVED).collect();
        if !pins.all(Pins::is_idle) {
            return Err(Errno::EBUSY);
        }
        // Nothing can fail any more. Uses of reserved entries may go on, but neither end nor begin.
        let held: arrayvec::ArrayVec<_, RESERVED> = reserved.iter().map(|pins| pins.lock()).collect();
        let kept: arrayvec::ArrayVec<(GrantRef, EntryV1), RESERVED> = (0..held.len() as u32)
            .map(GrantRef)
            .filter_map(|gref| Some((gref, if from == 1 { self.reserved_v1(gref)? } else { self.reserved_v2(gref)? })))
            .collect();
        for frame in frames() {
            memory.window().zero_frame(frame.page.mfn())?;
        }
        for status in self.status.iter().filter_map(Once::get) {
            memory.window().zero_frame(status.page.mfn())?;
        }
        for (gref, entry) in kept {
            let written = if to == 1 { self.put_v1(gref, entry) } else { self.put_v2(gref, entry) };
            debug_assert!(written.is_some());
        }
        Ok(())
    }

    fn reserved_v1(&self, gref: GrantRef) -> Option<EntryV1> {
        let (page, index) = self.entry(gref, v1::PER_FRAME)?;
        v1::read(page, index)
    }

    /// A version-2 entry as version 1 would have it; one that version 1 cannot express is emptied.
    fn reserved_v2(&self, gref: GrantRef) -> Option<EntryV1> {
        let place = self.entry_v2(gref)?;
        let entry = v2::read(place.page, place.index)?;
        let frame = u32::try_from(entry.frame).ok();
        let plain = entry.flags & (GTF_TYPE_MASK | GTF_SUB_PAGE) == GTF_PERMIT_ACCESS;
        Some(match frame {
            Some(frame) if plain => EntryV1 { flags: entry.flags | place.status()?, domid: entry.domid, frame },
            _ => EntryV1::default(),
        })
    }

    fn put_v1(&self, gref: GrantRef, entry: EntryV1) -> Option<()> {
        let (page, index) = self.entry(gref, v1::PER_FRAME)?;
        v1::write(page, index, entry)
    }

    fn put_v2(&self, gref: GrantRef, entry: EntryV1) -> Option<()> {
        const STATUS: u16 = GTF_READING | GTF_WRITING;
        let place = self.entry_v2(gref)?;
        let flags = entry.flags & !STATUS;
        v2::write(
            place.page,
            place.index,
            EntryV2 { flags, domid: entry.domid, page_off: 0, length: 0, frame: entry.frame.into() },
        )?;
        place.set_status(entry.flags & STATUS)
    }
}

const RESERVED: usize = GNTTAB_NR_RESERVED_ENTRIES as usize;

/// A slice on the heap whose length never changes. ENOMEM.
pub(super) fn boxed<T>(len: usize, make: impl FnMut() -> T) -> Result<Box<[T]>, Errno> {
    let mut items = alloc::vec::Vec::new();
    items.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    items.resize_with(len, make);
    Ok(items.into_boxed_slice())
}
