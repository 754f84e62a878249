//! A machine's memory on the host's heap, for tests: RAM, a page-table format, a TLB that remembers what it should not, and a heap that
//! runs out.

#![allow(clippy::expect_used, clippy::arithmetic_side_effects, reason = "only tests run this")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::AtomicU32;

use crate::addr::{Gfn, HostPhys, Mfn, PAGE_SIZE, PageSize};
use crate::frame::FrameSlot;
use crate::memory::Memory;
use crate::p2m::{Flush, P2m};
use crate::table::{Entry, Mapping, MemoryType, PageFormat, PageKind};
use crate::window::Window;

/// A machine with `frames` frames of RAM, all free but frame 0 and full of junk. Leaked.
pub fn memory(frames: u64) -> &'static Memory {
    let (window, table) = parts(frames);
    Box::leak(Box::new(Memory::new(window, table, counters(), &[Mfn(1)..Mfn(frames)])))
}

/// A window on `frames` frames of junk and a frame table for them, to make a [`Memory`] of.
pub fn parts(frames: u64) -> (Window, &'static [FrameSlot]) {
    let bytes = frames as usize * PAGE_SIZE;
    let layout = Layout::from_size_align(bytes, PAGE_SIZE).expect("a size that fits");
    // SAFETY: the size is not zero.
    let base = unsafe { std::alloc::alloc(layout) };
    assert!(!base.is_null() && bytes > 0, "no memory for a fake machine of {frames} frames");
    // SAFETY: just allocated with this size.
    unsafe { base.write_bytes(0xa5, bytes) };
    // SAFETY: the allocation is never freed and nothing else refers to it.
    let window = unsafe { Window::new(base, HostPhys(bytes as u64)) };
    (window, Vec::leak((0..frames).map(|_| FrameSlot::new()).collect()))
}

/// Each domain's counter.
pub fn counters() -> &'static [AtomicU32] {
    Vec::leak((0..Memory::DOMAINS).map(|_| AtomicU32::new(0)).collect())
}

/// A page-table format of no hardware: bit 0 present, 1 leaf, 2–5 kind, 6–8 memory type, 12–51 frame, 63 always set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    largest: PageSize,
    large_code: bool,
}

impl Format {
    /// A format whose pages are at most this large.
    pub const fn new(largest: PageSize) -> Self {
        Self { largest, large_code: true }
    }

    /// The same, with code in pages of 4 KiB alone.
    pub const fn with_small_code(self) -> Self {
        Self { large_code: false, ..self }
    }
}

impl Default for Format {
    fn default() -> Self {
        Self::new(PageSize::Size1G)
    }
}

const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;
const MARK: u64 = 1 << 63;

impl PageFormat for Format {
    const LEVELS: u8 = 4;

    fn leaf(&self, mfn: Mfn, size: PageSize, kind: PageKind, memory: MemoryType) -> u64 {
        assert!(size <= self.largest, "{size:?} pages do not exist here");
        assert!(
            mfn.is_aligned(size.frames()) || matches!(kind, PageKind::Ioreq | PageKind::OnDemand),
            "{mfn} is not aligned to {size:?}"
        );
        MARK | 0b11 | (kind as u64) << 2 | (memory as u64) << 6 | mfn.phys().0 & FRAME_MASK
    }

    fn table(&self, mfn: Mfn) -> u64 {
        MARK | 1 | mfn.phys().0
    }

    fn decode(&self, entry: u64, level: u8) -> Entry {
        if entry == 0 {
            return Entry::Empty;
        }
        assert!(entry & (MARK | 1) == (MARK | 1), "{entry:#x} is no entry that was ever made");
        let mfn = HostPhys(entry & FRAME_MASK).mfn();
        if entry & 2 == 0 {
            assert!(level > 1, "a table below the last level");
            return Entry::Table(mfn);
        }
        Entry::Leaf(Mapping {
            mfn,
            size: PageSize::of_level(level).expect("a level with leaves"),
            kind: PageKind::from_bits((entry >> 2 & 15) as u8).expect("a kind"),
            memory: MemoryType::from_bits((entry >> 6 & 7) as u8).expect("a memory type"),
        })
    }

    fn runs_large_code(&self) -> bool {
        self.large_code
    }

    fn largest(&self) -> PageSize {
        self.largest
    }
}

/// A TLB that drops nothing until it is told to. Translations of pages that are present stay as they were first seen.
#[derive(Debug, Default)]
pub struct CachingTlb {
    cached: HashMap<Gfn, Mapping>,
    flushes: usize,
}

impl CachingTlb {
    pub fn new() -> Self {
        Self::default()
    }

    /// The translation that a CPU would use.
    pub fn access<F: PageFormat>(&mut self, p2m: &P2m<F>, gfn: Gfn) -> Option<Mapping> {
        if let Some(mapping) = self.cached.get(&gfn) {
            return Some(*mapping);
        }
        let mapping = p2m.lookup(gfn)?;
        // A page that is not there is looked for anew each time.
        if mapping.kind.readable() {
            self.cached.insert(gfn, mapping);
        }
        Some(mapping)
    }

    /// Spends a flush, and lets the p2m free the tables that it made superfluous.
    pub fn spend<F: PageFormat>(&mut self, p2m: &P2m<F>, flush: Flush) {
        if let Some(generation) = flush.spend() {
            self.cached.clear();
            self.flushes += 1;
            p2m.reclaim(generation);
        }
    }

    /// A page whose translation it holds although the p2m says otherwise by now: somebody has not flushed.
    pub fn stale<F: PageFormat>(&self, p2m: &P2m<F>) -> Option<Gfn> {
        self.cached.iter().find(|(gfn, mapping)| p2m.lookup(**gfn) != Some(**mapping)).map(|(gfn, _)| *gfn)
    }

    /// How often it was really flushed.
    pub fn flushes(&self) -> usize {
        self.flushes
    }
}

/// The heap of tests: the host's, until a thread has made as many allocations as it may.
struct Scarce;

#[global_allocator]
static HEAP: Scarce = Scarce;

std::thread_local! {
    /// Allocations that this thread may make yet.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl Scarce {
    /// Whether this thread may make one more.
    fn spend() -> bool {
        let left = LEFT.get();
        LEFT.set(if left == usize::MAX { left } else { left.saturating_sub(1) });
        left > 0
    }
}

// SAFETY: it is the host's, which keeps what `GlobalAlloc` asks for; null is how an allocator says that it has nothing.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        if Self::spend() { unsafe { System.alloc(layout) } } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(object, layout) }
    }

    unsafe fn realloc(&self, object: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // What shrinks leaves room for another object.
        if new_size < layout.size() {
            LEFT.set(LEFT.get().saturating_add(1));
        } else if !Self::spend() {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.realloc(object, layout, new_size) }
    }
}

/// Runs `f` while this thread may make no more than `allocations`.
pub fn with_heap_of<R>(allocations: usize, f: impl FnOnce() -> R) -> R {
    LEFT.set(allocations);
    let result = f();
    LEFT.set(usize::MAX);
    result
}

/// Has memory run out at the first allocation of `f`, then at the second, and so on until it has all that it needs: what it said to each.
pub fn each_failure<R, E>(mut f: impl FnMut() -> Result<R, E>) -> Vec<E> {
    let mut errors = Vec::new();
    loop {
        match with_heap_of(errors.len(), &mut f) {
            Ok(_) => return errors,
            Err(error) => errors.push(error),
        }
    }
}
