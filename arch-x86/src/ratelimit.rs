//! A guest may not fill the log: a bucket of messages that fills up slowly, for all guests together.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const BURST: u32 = 30;
/// One more message each so many nanoseconds.
const REFILL: u64 = 500_000_000;

static LEFT: AtomicU32 = AtomicU32::new(BURST);
static FILLED: AtomicU64 = AtomicU64::new(0);

/// Whether a message about what a guest did may be logged now.
pub fn guest_message() -> bool {
    let now = crate::machine::clock().now().0;
    let filled = FILLED.load(Ordering::Relaxed);
    let more = now.saturating_sub(filled) / REFILL;
    if more > 0 && FILLED.compare_exchange(filled, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let left = LEFT.load(Ordering::Relaxed);
        let room = u64::from(BURST.saturating_sub(left));
        LEFT.fetch_add(more.min(room) as u32, Ordering::Relaxed);
    }
    LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
