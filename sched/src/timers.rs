//! The timers of one CPU.

use crate::{Nanos, OutOfMemory};
use alloc::vec::Vec;

/// One timer, by a dense number that its owner was given at set-up.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct TimerSlot(pub u32);

impl TimerSlot {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Deadline first; among equal deadlines the lower slot, so that a simulation repeats exactly.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    deadline: Nanos,
    slot: TimerSlot,
}

/// A binary heap of deadlines that knows where each slot is, so that a timer can be moved or cancelled without a search.
///
/// Each slot has at most one deadline. All storage comes from [`TimerQueue::reserve`], which never runs on a hot path;
/// `set`, `cancel` and `pop_due` are O(log n), `next` is O(1).
#[derive(Debug, Default)]
pub struct TimerQueue {
    heap: Vec<Entry>,
    /// Where in `heap` a slot's entry is; `NOWHERE` if the timer is not set.
    places: Vec<u32>,
}

const NOWHERE: u32 = u32::MAX;

impl TimerQueue {
    pub const fn new() -> TimerQueue {
        TimerQueue { heap: Vec::new(), places: Vec::new() }
    }

    /// Makes slots `0..slots` usable. What is set stays set; the queue never shrinks.
    pub fn reserve(&mut self, slots: usize) -> Result<(), OutOfMemory> {
        if slots > NOWHERE as usize {
            return Err(OutOfMemory);
        }
        let more = slots.saturating_sub(self.places.len());
        self.heap.try_reserve(slots.saturating_sub(self.heap.len())).map_err(|_| OutOfMemory)?;
        self.places.try_reserve(more).map_err(|_| OutOfMemory)?;
        if more > 0 {
            self.places.resize(slots, NOWHERE);
        }
        Ok(())
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.places.len()
    }

    /// Sets or moves a timer. True if it is now the first to expire, so that the hardware must be told.
    pub fn set(&mut self, slot: TimerSlot, deadline: Nanos) -> bool {
        let Some(&place) = self.places.get(slot.index()) else {
            debug_assert!(false, "timer slot {} was never reserved", slot.0);
            return false;
        };
        let entry = Entry { deadline, slot };
        let place = if place == NOWHERE {
            // Every slot is in the heap at most once, so what `reserve` took is enough: this does not allocate.
            self.heap.push(entry);
            self.heap.len().saturating_sub(1)
        } else {
            place as usize
        };
        self.settle(place, entry) == 0
    }

    /// Unsets a timer; true if it was set.
    pub fn cancel(&mut self, slot: TimerSlot) -> bool {
        match self.places.get(slot.index()) {
            Some(&place) if place != NOWHERE => {
                self.remove_at(place as usize);
                true
            }
            _ => false,
        }
    }

    /// When a timer expires, if it is set.
    pub fn deadline(&self, slot: TimerSlot) -> Option<Nanos> {
        let place = *self.places.get(slot.index())?;
        self.heap.get(place as usize).map(|entry| entry.deadline)
    }

    /// When the first timer expires.
    #[inline]
    pub fn next(&self) -> Option<Nanos> {
        self.heap.first().map(|entry| entry.deadline)
    }

    /// Takes out the first timer whose time has come. Call until it returns nothing.
    #[inline]
    pub fn pop_due(&mut self, now: Nanos) -> Option<TimerSlot> {
        let first = *self.heap.first()?;
        if first.deadline > now {
            return None;
        }
        self.remove_at(0);
        Some(first.slot)
    }

    fn remove_at(&mut self, place: usize) {
        let Some(last) = self.heap.pop() else { return };
        let removed = match self.heap.get(place) {
            Some(&removed) => {
                self.settle(place, last);
                removed
            }
            // The last entry was itself the one to remove.
            None => last,
        };
        if let Some(gone) = self.places.get_mut(removed.slot.index()) {
            *gone = NOWHERE;
        }
    }

    /// Puts `entry` in at `place` (whose former content is dropped) and moves it to where the order wants it.
    fn settle(&mut self, mut place: usize, entry: Entry) -> usize {
        while let Some(above) = parent(place) {
            match self.heap.get(above) {
                Some(&other) if entry < other => self.put(place, other),
                _ => break,
            }
            place = above;
        }
        while let Some((below, other)) = self.lesser_child(place) {
            if entry <= other {
                break;
            }
            self.put(place, other);
            place = below;
        }
        self.put(place, entry);
        place
    }

    fn lesser_child(&self, place: usize) -> Option<(usize, Entry)> {
        let left = place.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let &a = self.heap.get(left)?;
        match self.heap.get(right) {
            Some(&b) if b < a => Some((right, b)),
            _ => Some((left, a)),
        }
    }

    fn put(&mut self, place: usize, entry: Entry) {
        if let Some(here) = self.heap.get_mut(place) {
            *here = entry;
        }
        if let Some(known) = self.places.get_mut(entry.slot.index()) {
            *known = place as u32;
        }
    }
}

const fn parent(place: usize) -> Option<usize> {
    match place.checked_sub(1) {
        Some(before) => Some(before / 2),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn queue(slots: usize) -> TimerQueue {
        let mut queue = TimerQueue::new();
        queue.reserve(slots).unwrap();
        queue
    }

    #[test]
    fn timers_expire_in_the_order_of_their_deadlines() {
        let mut timers = queue(3);
        assert!(timers.set(TimerSlot(0), Nanos(30)));
        assert!(timers.set(TimerSlot(1), Nanos(10)));
        assert!(!timers.set(TimerSlot(2), Nanos(20)));
        assert_eq!(timers.pop_due(Nanos(9)), None);
        assert_eq!(timers.pop_due(Nanos(25)), Some(TimerSlot(1)));
        assert_eq!(timers.pop_due(Nanos(25)), Some(TimerSlot(2)));
        assert_eq!(timers.pop_due(Nanos(25)), None);
        assert_eq!(timers.next(), Some(Nanos(30)));
    }

    #[test]
    fn setting_a_timer_again_moves_it() {
        let mut timers = queue(2);
        timers.set(TimerSlot(0), Nanos(10));
        timers.set(TimerSlot(1), Nanos(20));
        assert!(!timers.set(TimerSlot(0), Nanos(30)));
        assert_eq!(timers.next(), Some(Nanos(20)));
        assert_eq!(timers.pop_due(Nanos(40)), Some(TimerSlot(1)));
        assert_eq!(timers.pop_due(Nanos(40)), Some(TimerSlot(0)));
        assert_eq!(timers.pop_due(Nanos(40)), None);
    }

    #[test]
    fn a_cancelled_timer_does_not_expire() {
        let mut timers = queue(1);
        timers.set(TimerSlot(0), Nanos(1));
        assert!(timers.cancel(TimerSlot(0)));
        assert!(!timers.cancel(TimerSlot(0)));
        assert_eq!(timers.pop_due(Nanos::MAX), None);
    }

    #[test]
    fn reserving_more_keeps_what_is_set() {
        let mut timers = queue(1);
        timers.set(TimerSlot(0), Nanos(5));
        timers.reserve(9).unwrap();
        timers.reserve(2).unwrap();
        assert_eq!(timers.slots(), 9);
        timers.set(TimerSlot(8), Nanos(1));
        assert_eq!(timers.next(), Some(Nanos(1)));
        assert_eq!(timers.deadline(TimerSlot(0)), Some(Nanos(5)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Cancel(u32),
        PopDue(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..24u32, 0..100u64).prop_map(|(slot, at)| Step::Set(slot, at)),
            1 => (0..24u32).prop_map(Step::Cancel),
            2 => (0..100u64).prop_map(Step::PopDue),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn the_queue_agrees_with_an_ordered_map(steps in steps()) {
            let mut timers = queue(24);
            let storage = (timers.heap.capacity(), timers.places.capacity());
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(slot, at) => {
                        model.insert(slot, at);
                        let first = model.iter().map(|(&slot, &at)| (at, slot)).min();
                        prop_assert_eq!(timers.set(TimerSlot(slot), Nanos(at)), first == Some((at, slot)));
                    }
                    Step::Cancel(slot) => {
                        prop_assert_eq!(timers.cancel(TimerSlot(slot)), model.remove(&slot).is_some());
                    }
                    Step::PopDue(now) => {
                        let due = model.iter().map(|(&slot, &at)| (at, slot)).min().filter(|&(at, _)| at <= now);
                        prop_assert_eq!(timers.pop_due(Nanos(now)), due.map(|(_, slot)| TimerSlot(slot)));
                        due.map(|(_, slot)| model.remove(&slot));
                    }
                }
                prop_assert_eq!(timers.next(), model.values().min().map(|&at| Nanos(at)));
                for slot in 0..24 {
                    prop_assert_eq!(timers.deadline(TimerSlot(slot)), model.get(&slot).map(|&at| Nanos(at)));
                }
            }
            prop_assert_eq!(storage, (timers.heap.capacity(), timers.places.capacity()));
        }
    }
}
