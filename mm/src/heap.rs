//! The heap of the host's own values.
//!
//! Small objects come from talc, over arenas of 64 KiB and more that are drawn from the free frames as needed and given back
//! once nothing is in them. Large ones are blocks of frames of their own. Until [`Heap::attach`] a small static arena serves.
//!
//! Running out is a null pointer here and must be an error further up: whoever allocates on a guest's behalf uses
//! [`try_box`], [`try_arc`], [`try_vec`], [`try_concat`] and `try_reserve`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use talc::base::Talc;
use talc::base::binning::{Binning, DefaultBinning};
use talc::source::Source;

use crate::addr::PAGE_SIZE;
use crate::lock::{Lock, Rank};
use crate::memory::{Memory, OutOfMemory};

/// Requests from this size on are blocks of frames of their own.
const LARGE: usize = 64 << 10;
/// The least that is drawn from the free frames for small objects.
const ARENA: usize = 64 << 10;
const FIRST_ARENA: usize = 256 << 10;
/// What talc needs beside the object in an arena made for it.
const OVERHEAD: usize = 256;
const EARLY_SIZE: usize = 64 << 10;

/// The arena that serves before the frame table is there.
#[repr(C, align(4096))]
struct Early(UnsafeCell<[u8; EARLY_SIZE]>);

const _: () = assert!(size_of::<Early>() == EARLY_SIZE);

// SAFETY: only a heap that has set EARLY_TAKEN touches it, and there is one such at most.
unsafe impl Sync for Early {}

static EARLY: Early = Early(UnsafeCell::new([0; EARLY_SIZE]));
static EARLY_TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether an object lies in the early arena.
fn is_early(object: *mut u8) -> bool {
    object.addr().wrapping_sub(EARLY.0.get().addr()) < EARLY_SIZE
}

/// Where talc's arenas go. They are added by [`Heap::grow`], without the heap's lock.
#[derive(Debug)]
struct Arenas {
    /// An address in the first page of one that talc has nothing in and has let go of.
    empty: Option<usize>,
}

// SAFETY: no memory is handed out here, and what talc is told to let go of is the whole of an arena that it had claimed.
unsafe impl Source for Arenas {
    const TRACK_HEAP_END: bool = true;

    fn acquire<B: Binning>(_: &mut Talc<Self, B>, _: Layout) -> Result<(), ()> {
        Err(())
    }

    unsafe fn resize(&mut self, base: *mut u8, end: *mut u8, is_whole: bool) -> *mut u8 {
        if !is_whole || is_early(base) {
            return end;
        }
        self.empty = Some(base.addr());
        base
    }
}

/// The heap; to be made the `#[global_allocator]`.
pub struct Heap {
    small: Lock<Talc<Arenas, DefaultBinning>>,
    memory: spin::Once<&'static Memory>,
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl Heap {
    pub const fn new() -> Self {
        Self { small: Lock::new(Rank::Heap, Talc::new(Arenas { empty: None })), memory: spin::Once::new() }
    }

    /// Lets the heap grow by frames of `memory`. The first call counts.
    pub fn attach(&self, memory: &'static Memory) {
        self.memory.call_once(|| memory);
        // One in which what lives long has room, so that later ones are empty again soon. If there is none, whoever allocates is told.
        let _ = self.claim_arena(FIRST_ARENA);
    }

    fn memory(&self) -> Option<&'static Memory> {
        self.memory.get().copied()
    }

    fn is_large(layout: Layout) -> bool {
        layout.size() >= LARGE || layout.align() > PAGE_SIZE
    }

    /// log2 of the frames that a block for `bytes` has.
    fn order(bytes: usize) -> Option<u8> {
        let pages = bytes.checked_next_power_of_two()?.div_ceil(PAGE_SIZE);
        Some(pages.trailing_zeros() as u8)
    }

    fn allocate_large(&self, layout: Layout) -> Option<NonNull<u8>> {
        let memory = self.memory()?;
        let frames = memory.allocate(Self::order(layout.size().max(layout.align()))?, None).ok()?;
        let pointer = memory.window().pointer(frames.mfn().phys(), layout.size() as u64).ok()?;
        if pointer.addr() & layout.align().wrapping_sub(1) != 0 {
            return None;
        }
        let _ = frames.into_host();
        NonNull::new(pointer)
    }

    fn allocate_small(&self, layout: Layout) -> Option<NonNull<u8>> {
        loop {
            let mut small = self.small.lock();
            // SAFETY: callers see to it that the size is not zero, as `GlobalAlloc` demands.
            if let Some(object) = unsafe { small.allocate(layout) } {
                return Some(object);
            }
            if !EARLY_TAKEN.swap(true, Ordering::Relaxed) {
                // SAFETY: the flag was false, so nobody else has the arena or ever will.
                unsafe { small.claim(EARLY.0.get().cast(), EARLY_SIZE) };
                continue;
            }
            // The frames' lock ranks before the heap's. Another CPU may use up the new arena first; then there is another.
            drop(small);
            self.grow(layout)?;
        }
    }

    /// Adds an arena that has room for `layout`.
    fn grow(&self, layout: Layout) -> Option<()> {
        let need = layout.size().checked_add(layout.align())?.checked_add(OVERHEAD)?;
        self.claim_arena(need.max(ARENA))
    }

    fn claim_arena(&self, bytes: usize) -> Option<()> {
        let memory = self.memory()?;
        let frames = memory.allocate(Self::order(bytes)?, None).ok()?;
        let size = (frames.count() as usize).checked_mul(PAGE_SIZE)?;
        let arena = memory.window().pointer(frames.mfn().phys(), size as u64).ok()?;
        let _ = frames.into_host();
        // SAFETY: the frames are the host's until talc lets go of them, and only the heap has their address.
        unsafe { self.small.lock().claim(arena, size) }?;
        Some(())
    }

    /// # Safety
    /// As [`GlobalAlloc::dealloc`].
    unsafe fn free(&self, object: *mut u8, layout: Layout) {
        match self.memory() {
            Some(memory) if Self::is_large(layout) && !is_early(object) => {
                let freed = memory.window().mfn_of(object).is_some_and(|mfn| memory.free_host(mfn));
                debug_assert!(freed, "{object:p} is no block of the heap's");
            }
            _ => {
                let mut small = self.small.lock();
                // SAFETY: everything else came from talc.
                unsafe { small.deallocate(object, layout) };
                let empty = small.source.empty.take();
                drop(small);
                if let Some(arena) = empty {
                    self.give_back(arena);
                }
            }
        }
    }

    /// Frees an arena that talc has let go of.
    #[cold]
    fn give_back(&self, arena: usize) {
        let freed = self.memory().is_some_and(|memory| {
            let mfn = memory.window().mfn_of(ptr::without_provenance_mut(arena));
            mfn.is_some_and(|mfn| memory.free_host(mfn))
        });
        debug_assert!(freed, "{arena:#x} is in no arena's first page");
    }
}

// SAFETY: objects are disjoint (talc's, or whole blocks of frames that are handed out once), aligned, and live until freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let object = match Self::is_large(layout) && self.memory().is_some() {
            true => self.allocate_large(layout),
            false => self.allocate_small(layout),
        };
        object.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { self.free(object, layout) }
    }

    unsafe fn realloc(&self, object: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(new_size, layout.align()) else { return ptr::null_mut() };
        if !Self::is_large(layout) && !Self::is_large(new) {
            // SAFETY: a small object is talc's, and the caller vouches for the layout.
            if unsafe { self.small.lock().try_realloc_in_place(object, layout, new_size) } {
                return object;
            }
        }
        // SAFETY: the caller vouches for object, layout and new size; old and new do not overlap.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(object, moved, layout.size().min(new_size));
                self.free(object, layout);
            }
            moved
        }
    }
}

/// Boxes a value.
///
/// # Errors
/// `OutOfMemory`; the value is gone then.
pub fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return Ok(Box::new(value));
    }
    // SAFETY: the size is not zero; a non-null result is fit for a `T`, which is written before the box is made of it, and
    // `Box` frees by the same allocator and layout.
    unsafe {
        let place = alloc::alloc::alloc(layout).cast::<T>();
        if place.is_null() {
            return Err(OutOfMemory);
        }
        place.write(value);
        Ok(Box::from_raw(place))
    }
}

/// Shares a value, which is no large object.
///
/// Stable Rust has no `Arc` that may fail. So the room is asked for first, with a margin well beyond what the other CPUs could
/// take before it is used. Of what was asked for a little is kept meanwhile, so that the arena that it is in does not go back to the
/// free frames, which a guest might take.
///
/// # Errors
/// `OutOfMemory`; the value is gone then.
pub fn try_arc<T>(value: T) -> Result<Arc<T>, OutOfMemory> {
    const MARGIN: usize = 16 << 10;
    const {
        assert!(size_of::<T>() + align_of::<T>() + MARGIN < LARGE);
    }
    let mut room = try_vec::<u8>(size_of::<T>().saturating_add(align_of::<T>()).saturating_add(MARGIN))?;
    // An object that shrinks stays where it is.
    room.shrink_to(1);
    Ok(Arc::new(value))
}

/// An empty vector with room for `capacity` elements.
///
/// # Errors
/// `OutOfMemory`.
pub fn try_vec<T>(capacity: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
    Ok(vec)
}

/// The parts, one behind the other.
///
/// # Errors
/// `OutOfMemory`.
pub fn try_concat<T: Copy>(parts: &[&[T]]) -> Result<Vec<T>, OutOfMemory> {
    let mut whole = try_vec(parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len())))?;
    for part in parts {
        whole.extend_from_slice(part);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fake;

    /// Takes the early arena out of the way, so that the test's heap lives on frames alone.
    fn heap(frames: u64) -> (Heap, &'static Memory) {
        EARLY_TAKEN.store(true, Ordering::Relaxed);
        let (heap, memory) = (Heap::new(), fake::memory(frames));
        heap.attach(memory);
        (heap, memory)
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn a_large_object_is_a_block_of_frames_and_goes_back() {
        let (heap, memory) = heap(256);
        let free = memory.free_frames();
        let layout = layout(100_000, 8);
        // SAFETY: the layout is not empty, and the object is freed with it.
        unsafe {
            let object = heap.alloc(layout);
            object.write_bytes(0xa5, 100_000);
            assert_eq!(memory.free_frames(), free - 32);
            heap.dealloc(object, layout);
        }
        assert_eq!(memory.free_frames(), free);
    }

    #[test]
    fn an_object_just_below_large_gets_an_arena_that_fits() {
        let (heap, _) = heap(256);
        // SAFETY: the layout is not empty.
        assert!(!unsafe { heap.alloc(layout(LARGE - 1, 4096)) }.is_null());
    }

    #[test]
    fn running_out_is_a_null_pointer_and_passes() {
        let (heap, _) = heap(64);
        let layout = layout(40_000, 16);
        let mut objects = Vec::new();
        // SAFETY: the layout is not empty; the object is freed with it.
        unsafe {
            while let Some(object) = NonNull::new(heap.alloc(layout)) {
                objects.push(object);
            }
            assert!(!objects.is_empty());
            assert!(heap.alloc(Layout::from_size_align(1 << 40, 8).unwrap()).is_null());
            heap.dealloc(objects.pop().unwrap().as_ptr(), layout);
            assert!(!heap.alloc(layout).is_null());
        }
    }

    #[test]
    fn without_frames_there_is_no_more_than_the_early_arena() {
        EARLY_TAKEN.store(true, Ordering::Relaxed);
        // SAFETY: the layouts are not empty.
        unsafe {
            assert!(Heap::new().alloc(layout(8, 8)).is_null());
            assert!(Heap::new().alloc(layout(1 << 20, 8)).is_null());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn objects_keep_what_was_written_to_them(
            steps in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), prop_oneof![1usize..3_000, 1usize..100_000], 0u32..13), 1..40)
        ) {
            let (heap, memory) = heap(2048);
            // The arena that there is already also has talc's own lists, and stays.
            let free = memory.free_frames();
            let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
            let check = |object: *mut u8, len: usize, fill: u8| {
                // SAFETY: a live object of at least that size.
                let bytes = unsafe { core::slice::from_raw_parts(object, len) };
                assert!(bytes.iter().all(|byte| *byte == fill));
            };
            for (number, (action, which, size, align)) in steps.into_iter().enumerate() {
                let fill = number as u8;
                // SAFETY: sizes are not zero; objects are used with the layout that they were made with.
                unsafe {
                    match action {
                        1 if !live.is_empty() => {
                            let (object, layout, fill) = live.swap_remove(which.index(live.len()));
                            check(object, layout.size(), fill);
                            heap.dealloc(object, layout);
                        }
                        2 if !live.is_empty() => {
                            let at = which.index(live.len());
                            let (object, old, before) = live[at];
                            let moved = heap.realloc(object, old, size);
                            prop_assert!(!moved.is_null() && moved.addr() % old.align() == 0);
                            check(moved, size.min(old.size()), before);
                            moved.write_bytes(fill, size);
                            live[at] = (moved, layout(size, old.align()), fill);
                        }
                        _ => {
                            let layout = layout(size, 1 << align);
                            let object = heap.alloc(layout);
                            prop_assert!(!object.is_null() && object.addr() % layout.align() == 0);
                            object.write_bytes(fill, size);
                            live.push((object, layout, fill));
                        }
                    }
                }
            }
            for (object, layout, fill) in live {
                check(object, layout.size(), fill);
                // SAFETY: as above.
                unsafe { heap.dealloc(object, layout) };
            }
            prop_assert_eq!(memory.free_frames(), free, "an arena is kept, or two are one");
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        let errors = fake::each_failure(|| -> Result<(), OutOfMemory> {
            let (boxed, shared) = (try_box(1u64)?, try_arc([2u64; 100])?);
            assert_eq!(try_concat(&[&[*boxed], &shared[..]])?.len(), 101);
            Ok(())
        });
        assert_eq!(errors, [OutOfMemory; 3]);
    }

    #[test]
    fn room_that_shrinks_stays_in_its_arena() {
        let (heap, memory) = heap(256);
        // SAFETY: layouts are not empty, and objects are used with those that they were made with.
        unsafe {
            // No room is left in the first arena.
            let mut small = Vec::new();
            let free = memory.free_frames();
            while memory.free_frames() == free {
                small.push(heap.alloc(layout(20_000, 8)));
            }
            heap.dealloc(small.pop().unwrap(), layout(20_000, 8));
            assert_eq!(memory.free_frames(), free, "an arena with nothing in it goes back");
            let room = heap.alloc(layout(20_000, 8));
            let with_room = memory.free_frames();
            assert_eq!(heap.realloc(room, layout(20_000, 8), 1), room);
            let object = heap.alloc(layout(10_000, 8));
            assert!(!object.is_null() && with_room < free && memory.free_frames() == with_room);
        }
    }

    #[test]
    fn values_are_boxed_and_shared() {
        assert_eq!(*try_box([7u64; 3]).unwrap(), [7; 3]);
        assert_eq!(*try_arc(String::from("x")).unwrap(), "x");
        assert!(try_vec::<u32>(10).unwrap().capacity() >= 10);
        assert_eq!(try_vec::<u64>(usize::MAX / 16).unwrap_err(), OutOfMemory);
        assert_eq!(try_concat(&[&[1u8, 2][..], &[], &[3]]).unwrap(), [1, 2, 3]);
    }
}
