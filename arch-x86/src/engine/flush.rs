//! Stale nested translations are dropped by generation: whoever takes a translation away raises the number, and each CPU that is about to
//! enter a guest with an older number invalidates first. Nothing that was taken away is used after the next entry.

use core::sync::atomic::{AtomicU64, Ordering};

static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Makes every CPU invalidate before it next enters a guest. CPUs inside a guest must be kicked by the caller.
pub fn flush_all() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
}

/// What a CPU compares with the number that it saw at its last entry.
#[inline]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}
