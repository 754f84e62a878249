//! A domain's watchdogs (SCHEDOP_watchdog): timers that it has to set again and again, as the domain is shut down when one fires.

use core::sync::atomic::{AtomicU64, Ordering};

use sched::Nanos;
use xen_abi::errno::Errno;

use crate::vcpu::NEVER;

/// As many as Xen has.
const COUNT: usize = 2;
const SECOND: u64 = 1_000_000_000;

/// When each fires; `NEVER` for one that does not exist.
pub struct Watchdogs([AtomicU64; COUNT]);

impl Default for Watchdogs {
    fn default() -> Self {
        Watchdogs([const { AtomicU64::new(NEVER) }; COUNT])
    }
}

impl Watchdogs {
    /// Sets watchdog `id` to fire in `seconds`, or ends it if that is zero; id 0 makes a new one and says its id. EINVAL for one that does
    /// not exist, ENOSPC if there are as many as can be.
    pub fn set(&self, id: u32, now: Nanos, seconds: u32) -> Result<u64, Errno> {
        let fires = now.0.saturating_add(u64::from(seconds).saturating_mul(SECOND)).min(NEVER.saturating_sub(1));
        let Some(index) = id.checked_sub(1) else {
            for (id, timer) in (1..).zip(&self.0) {
                if timer.compare_exchange(NEVER, fires, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    return Ok(id);
                }
            }
            return Err(Errno::ENOSPC);
        };
        let timer = self.0.get(index as usize).ok_or(Errno::EINVAL)?;
        let fires = if seconds == 0 { NEVER } else { fires };
        let exists = |at: u64| (at != NEVER).then_some(fires);
        timer.fetch_update(Ordering::Relaxed, Ordering::Relaxed, exists).map_err(|_| Errno::EINVAL)?;
        Ok(0)
    }

    /// When the first of them fires.
    #[inline]
    pub fn next(&self) -> u64 {
        self.0.iter().fold(NEVER, |next, timer| next.min(timer.load(Ordering::Relaxed)))
    }

    /// They have done what they were for.
    pub fn end_all(&self) {
        for timer in &self.0 {
            timer.store(NEVER, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two_and_each_is_set_by_its_id() {
        let watchdogs = Watchdogs::default();
        let at = Nanos(5);
        assert_eq!(watchdogs.set(1, at, 1), Err(Errno::EINVAL));
        assert_eq!(watchdogs.set(0, at, 3), Ok(1));
        assert_eq!(watchdogs.set(0, at, 2), Ok(2));
        assert_eq!(watchdogs.set(0, at, 1), Err(Errno::ENOSPC));
        assert_eq!(watchdogs.next(), 5 + 2 * SECOND);
        assert_eq!(watchdogs.set(2, at, 0), Ok(0));
        assert_eq!(watchdogs.next(), 5 + 3 * SECOND);
        assert_eq!(watchdogs.set(1, at, u32::MAX), Ok(0));
        assert_eq!(watchdogs.set(2, at, 1), Err(Errno::EINVAL));
        for id in [3, u32::MAX] {
            assert_eq!(watchdogs.set(id, at, 1), Err(Errno::EINVAL));
        }
    }
}
