//! A domain's mappings of others' frames, by the handles that it was given.
//!
//! Handles come from a free list of each vCPU, so that vCPUs that map at the same time share nothing. A handle that is freed goes
//! back to the list it came from.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use mm::FrameRef;
use mm::addr::Gfn;
use mm::lock::{Lock, Rank};
use spin::Once;
use xen_abi::errno::Errno;
use xen_abi::types::GrantRef;

use super::table::{Table, boxed};

/// A mapping of another's frame. The frame cannot be freed while this exists, and the entry that granted it is pinned.
pub struct Track {
    /// The granter's table; it outlives the granter.
    pub table: Arc<Table>,
    pub gref: GrantRef,
    pub write: bool,
    pub frame: FrameRef,
    /// Where it is mapped.
    pub at: Gfn,
}

impl Drop for Track {
    /// The mapping is gone: the granter sees that its entry is in use no more. (The frame's reference goes after this.)
    #[inline]
    fn drop(&mut self) {
        self.table.unpin(self.gref, self.write);
    }
}

/// Every mapping of a domain.
pub struct Maptrack {
    /// In chunks, each of one vCPU. Made when the first mapping is.
    chunks: Once<Box<[Once<Chunk>]>>,
    /// Chunks that are spoken for.
    used: AtomicU32,
    limit: u32,
    /// A list a vCPU.
    free: Box<[Lock<Free>]>,
}

/// Handles that are free.
#[derive(Default)]
struct Free {
    handles: Vec<u32>,
    /// Handles that there will be when none is in use. There is room for as many: freeing never allocates.
    most: usize,
}

struct Chunk {
    vcpu: usize,
    slots: Box<[Lock<Option<Track>>]>,
}

impl Maptrack {
    /// Mappings in a chunk.
    pub const CHUNK: u32 = 256;

    pub(super) fn new(max_chunks: u32, vcpus: usize) -> Result<Self, Errno> {
        // Handles have 32 bits, and the highest ones are no handles.
        let limit = max_chunks.min(u32::MAX / Self::CHUNK / 2);
        let list = || Lock::new(Rank::Grant, Free::default());
        Ok(Maptrack { chunks: Once::new(), used: AtomicU32::new(0), limit, free: boxed(vcpus.max(1), list)? })
    }

    #[inline]
    fn chunk(&self, handle: u32) -> Option<&Chunk> {
        self.chunks.get()?.get((handle / Self::CHUNK) as usize)?.get()
    }

    #[inline]
    fn slot(&self, handle: u32) -> Option<&Lock<Option<Track>>> {
        self.chunk(handle)?.slots.get((handle % Self::CHUNK) as usize)
    }

    #[inline]
    fn list(&self, vcpu: usize) -> Option<&Lock<Free>> {
        // A vCPU beyond the number that was announced shares the first one's.
        self.free.get(vcpu).or_else(|| self.free.first())
    }

    /// A handle that is nobody's, to be [filled](Self::fill) or [given back](Self::give_back). `None` if there is none.
    #[inline]
    pub fn allocate(&self, vcpu: usize) -> Option<u32> {
        if let Some(handle) = self.list(vcpu)?.lock().handles.pop() {
            return Some(handle);
        }
        self.grow(vcpu).or_else(|| self.free.iter().find_map(|list| list.lock().handles.pop()))
    }

    /// Makes so many chunks now, and one for each vCPU at least: those that a domain which stays gets while others come and go would be left in
    /// the middle of their memory when they are gone, and keep it from being given back. ENOMEM; what the limit forbids is left out.
    pub fn make_first_chunks(&self, least: usize) -> Result<(), Errno> {
        let vcpus = self.free.len();
        for vcpu in (0..vcpus).cycle().take(least.max(vcpus).min(self.limit as usize)) {
            self.give_back(self.grow(vcpu).ok_or(Errno::ENOMEM)?);
        }
        Ok(())
    }

    /// A chunk more for this vCPU, and the first of its handles.
    #[cold]
    fn grow(&self, vcpu: usize) -> Option<u32> {
        let chunks = match self.chunks.get() {
            Some(chunks) => chunks,
            None => {
                let made = boxed(self.limit as usize, Once::new).ok()?;
                self.chunks.call_once(|| made)
            }
        };
        // Everything that can fail comes first, so that no chunk is spoken for in vain.
        let slots = boxed(Self::CHUNK as usize, || Lock::new(Rank::Grant, None)).ok()?;
        let mut list = self.list(vcpu)?.lock();
        let most = list.most.saturating_add(Self::CHUNK as usize);
        let more = most.saturating_sub(list.handles.len());
        list.handles.try_reserve(more).ok()?;
        let claim = |used: u32| (used < self.limit).then_some(used.wrapping_add(1));
        let index = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).ok()?;
        let vcpu = if vcpu < self.free.len() { vcpu } else { 0 };
        chunks.get(index as usize)?.call_once(|| Chunk { vcpu, slots });
        let first = index.checked_mul(Self::CHUNK)?;
        list.most = most;
        // The lowest comes out first.
        list.handles.extend((1..Self::CHUNK).rev().map(|offset| first.wrapping_add(offset)));
        Some(first)
    }

    /// Frees a handle.
    #[inline]
    pub fn give_back(&self, handle: u32) {
        let Some(list) = self.chunk(handle).and_then(|chunk| self.list(chunk.vcpu)) else { return };
        let mut list = list.lock();
        debug_assert!(list.handles.len() < list.handles.capacity());
        list.handles.push(handle);
    }

    /// Remembers a mapping under a handle from [`allocate`](Self::allocate).
    #[inline]
    pub fn fill(&self, handle: u32, track: Track) {
        if let Some(slot) = self.slot(handle) {
            *slot.lock() = Some(track);
        }
    }

    /// Takes the mapping out, if `accept` agrees to it: of several who try, one succeeds. The handle is still to be given back.
    #[inline]
    pub fn take<E>(&self, handle: u32, absent: E, accept: impl FnOnce(&Track) -> Result<(), E>) -> Result<Track, E> {
        let Some(slot) = self.slot(handle) else { return Err(absent) };
        let mut slot = slot.lock();
        match slot.as_ref() {
            Some(track) => accept(track)?,
            None => return Err(absent),
        }
        slot.take().ok_or(absent)
    }

    /// The handles that could exist, for taking down a domain.
    pub fn handles(&self) -> core::ops::Range<u32> {
        0..self.used.load(Ordering::Acquire).saturating_mul(Self::CHUNK)
    }

    /// Mappings that there are. For tests and dumps: it looks at every slot.
    pub fn len(&self) -> usize {
        self.handles().filter(|handle| self.slot(*handle).is_some_and(|slot| slot.lock().is_some())).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freeing_a_handle_takes_no_memory() {
        let all = Maptrack::new(4, 1).unwrap();
        let count = 3 * Maptrack::CHUNK as usize;
        let handles: Vec<u32> = (0..count).map(|_| all.allocate(0).unwrap()).collect();
        mm::fake::with_heap_of(0, || handles.iter().for_each(|handle| all.give_back(*handle)));
        let mut again: Vec<u32> = (0..count).map(|_| all.allocate(0).unwrap()).collect();
        again.sort_unstable();
        assert_eq!(again, handles);
    }

    #[test]
    fn first_chunks_are_not_made_later() {
        let all = Maptrack::new(4, 2).unwrap();
        all.make_first_chunks(3).unwrap();
        mm::fake::with_heap_of(0, || {
            let of_first = (0..2 * Maptrack::CHUNK).filter_map(|_| all.allocate(0)).max();
            assert_eq!((of_first, all.allocate(1)), (Some(3 * Maptrack::CHUNK - 1), Some(Maptrack::CHUNK)));
        });
        assert!(Maptrack::new(1, 2).unwrap().make_first_chunks(3).is_ok());
    }

    #[test]
    fn without_memory_there_is_no_handle_and_none_is_lost() {
        let all = Maptrack::new(2, 1).unwrap();
        let failures = mm::fake::each_failure(|| all.allocate(0).ok_or(()));
        assert!(!failures.is_empty());
        let more = (1..2 * Maptrack::CHUNK).filter_map(|_| all.allocate(0)).count();
        assert_eq!((more as u32, all.allocate(0)), (2 * Maptrack::CHUNK - 1, None));
    }
}
