//! Stale EPT translations are dropped by generation: whoever takes a translation away raises the number, and each CPU that is about to
//! enter a guest with an older number invalidates first. Nothing that was taken away is used after the next entry.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::addr::Mfn;

use super::guest::ept_pointer;
use super::vmcs;

static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Makes every CPU invalidate before it next enters a guest. CPUs inside a guest must be kicked by the caller.
pub fn flush_all() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
}

#[inline]
pub fn invept_if_changed(seen: &mut u64, root: Mfn) {
    let now = GENERATION.load(Ordering::Acquire);
    if now != *seen {
        *seen = now;
        vmcs::invept(Some(ept_pointer(root)));
    }
}
