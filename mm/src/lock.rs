//! A lock with a rank. Debug builds check that ranks are taken in ascending order, so that a cycle shows at its
//! first half and not at the deadlock.
//!
//! On a bare machine waiters are served in the order in which they came, so that none of many CPUs waits forever. Below another hypervisor that
//! order does harm: it may be the turn of a CPU that is not there, because the host runs something else on its core. Two CPUs on one
//! core then hand a lock that both want often to and fro, once in a time slice of the host's, and their guests get next to nothing. There a
//! free lock goes to whoever is there to take it.
//!
//! Host code runs with interrupts off wherever a lock is held, so locking saves no flags.

use core::ops::{Deref, DerefMut};
use core::ptr;
#[cfg(debug_assertions)]
use core::sync::atomic::AtomicU32;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::mutex::{TicketMutex, TicketMutexGuard};

/// The place of a lock in the order: a CPU that holds one may only take those further down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rank {
    Domains,
    DomainControl,
    P2m,
    Grant,
    Events,
    Timers,
    Sched,
    Frames,
    Heap,
    Console,
}

impl Rank {
    #[cfg(debug_assertions)]
    const fn bit(self) -> u32 {
        1u32.wrapping_shl(self as u32)
    }
}

/// Whether CPUs can be away while they wait.
static PREEMPTED: AtomicBool = AtomicBool::new(false);

/// Tells the locks that another hypervisor may take CPUs away at any time. Called once at boot.
pub fn set_preempted(preempted: bool) {
    PREEMPTED.store(preempted, Ordering::Relaxed);
}

/// A value that one CPU at a time may use.
pub struct Lock<T> {
    #[cfg(debug_assertions)]
    rank: Rank,
    inner: TicketMutex<T>,
}

impl<T> Lock<T> {
    pub const fn new(rank: Rank, value: T) -> Self {
        #[cfg(not(debug_assertions))]
        let _ = rank;
        Self {
            #[cfg(debug_assertions)]
            rank,
            inner: TicketMutex::new(value),
        }
    }

    /// Waits for the lock and takes it.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn lock(&self) -> Guard<'_, T> {
        Guard {
            #[cfg(debug_assertions)]
            held: held::Held::take(self.rank, true),
            inner: self.take(),
        }
    }

    /// Takes the lock if nobody has it. Cannot deadlock, so any rank may be held.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let inner = self.inner.try_lock()?;
        Some(Guard {
            #[cfg(debug_assertions)]
            held: held::Held::take(self.rank, false),
            inner,
        })
    }

    /// Waits, whatever ranks are held.
    #[inline]
    fn take(&self) -> TicketMutexGuard<'_, T> {
        take(&self.inner, PREEMPTED.load(Ordering::Relaxed))
    }

    /// The value, which a unique reference needs no lock for.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

#[inline]
fn take<T>(lock: &TicketMutex<T>, preempted: bool) -> TicketMutexGuard<'_, T> {
    if preempted { take_when_free(lock) } else { lock.lock() }
}

/// Whoever tries in vain has drawn no ticket.
#[cold]
#[inline(never)]
fn take_when_free<T>(lock: &TicketMutex<T>) -> TicketMutexGuard<'_, T> {
    loop {
        if let Some(guard) = lock.try_lock() {
            return guard;
        }
        core::hint::spin_loop();
    }
}

/// Takes two locks of one rank, for what concerns two domains at once: always the one at the lower address first. Where
/// both are the same lock, the second guard is `None`.
#[cfg_attr(debug_assertions, track_caller)]
pub fn lock_pair<'a, T>(first: &'a Lock<T>, second: &'a Lock<T>) -> (Guard<'a, T>, Option<Guard<'a, T>>) {
    if ptr::eq(first, second) {
        return (first.lock(), None);
    }
    let after = |lock: &'a Lock<T>| Guard {
        #[cfg(debug_assertions)]
        held: held::Held::take(lock.rank, false),
        inner: lock.take(),
    };
    if ptr::from_ref(first) < ptr::from_ref(second) {
        let guard = first.lock();
        (guard, Some(after(second)))
    } else {
        let guard = second.lock();
        (after(first), Some(guard))
    }
}

/// The right to use what a [`Lock`] holds; ends when dropped.
#[must_use]
pub struct Guard<'a, T> {
    inner: TicketMutexGuard<'a, T>,
    #[cfg(debug_assertions)]
    #[allow(dead_code, reason = "its drop is what matters")]
    held: held::Held,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Tells the checker where a CPU keeps its set of held ranks, a bit a rank. Called once at boot; before that, and in release
/// builds, nothing is checked.
pub fn set_held_ranks(current: fn() -> &'static core::sync::atomic::AtomicU32) {
    #[cfg(debug_assertions)]
    held::set(current);
    #[cfg(not(debug_assertions))]
    let _ = current;
}

#[cfg(debug_assertions)]
mod held {
    use super::{AtomicU32, Ordering, Rank};

    static CURRENT: spin::Once<fn() -> &'static AtomicU32> = spin::Once::new();

    pub fn set(current: fn() -> &'static AtomicU32) {
        CURRENT.call_once(|| current);
    }

    /// Calls `f` on this CPU's word, or on this thread's in a host test.
    fn with_word<R>(f: impl FnOnce(&AtomicU32) -> R) -> Option<R> {
        #[cfg(any(test, feature = "fake"))]
        {
            std::thread_local!(static WORD: AtomicU32 = const { AtomicU32::new(0) });
            WORD.try_with(f).ok()
        }
        #[cfg(not(any(test, feature = "fake")))]
        {
            CURRENT.get().map(|current| f(current()))
        }
    }

    /// A rank's bit in the word, to be cleared when the guard goes.
    pub struct Held {
        rank: Rank,
        set: bool,
    }

    impl Held {
        #[track_caller]
        pub fn take(rank: Rank, checked: bool) -> Self {
            let set = with_word(|word| {
                let before = word.load(Ordering::Relaxed);
                assert!(
                    !checked || before < rank.bit(),
                    "a lock of rank {rank:?} is taken while ranks {before:#x} are held"
                );
                word.store(before | rank.bit(), Ordering::Relaxed);
                before & rank.bit() == 0
            });
            Self { rank, set: set == Some(true) }
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            if self.set {
                with_word(|word| word.store(word.load(Ordering::Relaxed) & !self.rank.bit(), Ordering::Relaxed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_in_order_are_accepted_and_released() {
        let (low, high) = (Lock::new(Rank::Domains, 1), Lock::new(Rank::Heap, 2));
        for _ in 0..2 {
            let a = low.lock();
            let b = high.lock();
            assert_eq!(*a + *b, 3);
        }
    }

    #[test]
    #[should_panic(expected = "rank P2m")]
    fn a_lower_rank_cannot_be_taken_under_a_higher_one() {
        let (p2m, frames) = (Lock::new(Rank::P2m, ()), Lock::new(Rank::Frames, ()));
        let _frames = frames.lock();
        let _p2m = p2m.lock();
    }

    #[test]
    #[should_panic(expected = "rank Events")]
    fn two_locks_of_one_rank_need_lock_pair() {
        let (a, b) = (Lock::new(Rank::Events, ()), Lock::new(Rank::Events, ()));
        let _a = a.lock();
        let _b = b.lock();
    }

    #[test]
    fn a_pair_is_taken_in_either_order_and_once_if_it_is_one_lock() {
        let (a, b) = (Lock::new(Rank::Events, 1), Lock::new(Rank::Events, 2));
        for (x, y) in [(&a, &b), (&b, &a)] {
            let (first, second) = lock_pair(x, y);
            assert_eq!((*first, *second.unwrap()), if ptr::eq(x, &a) { (1, 2) } else { (2, 1) });
        }
        let (first, second) = lock_pair(&a, &a);
        assert_eq!(*first, 1);
        assert!(second.is_none());
    }

    #[test]
    fn one_at_a_time_has_the_lock_in_turn_or_not() {
        for preempted in [false, true] {
            let lock = TicketMutex::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..100 {
                            let mut guard = take(&lock, preempted);
                            let before = *guard;
                            std::thread::yield_now();
                            *guard = before + 1;
                        }
                    });
                }
            });
            assert_eq!(*lock.lock(), 400, "preempted: {preempted}");
        }
    }

    #[test]
    fn a_taken_lock_is_not_taken_again_by_trying() {
        let lock = Lock::new(Rank::Console, ());
        let guard = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert!(lock.try_lock().is_some());
    }
}
