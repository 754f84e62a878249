//! How long a vCPU has been in each of the states that `vcpu_runstate_info` counts (Xen's `vcpu.h`).

use sched::Nanos;

use crate::area::Area;
use core::sync::atomic::{Ordering, fence};

/// RUNSTATE_*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    Running = 0,
    Runnable = 1,
    Blocked = 2,
    #[default]
    Offline = 3,
}

/// XEN_RUNSTATE_UPDATE: set in `state_entry_time` while the guest's copy changes.
const UPDATE: u64 = 1 << 63;

/// Layout of `vcpu_runstate_info`: state, state_entry_time, time[4].
#[derive(Clone, Copy)]
struct Layout {
    entry: usize,
    times: usize,
    len: usize,
}

const LAYOUT_64: Layout = Layout { entry: 8, times: 16, len: 48 };
const LAYOUT_32: Layout = Layout { entry: 4, times: 12, len: 44 };

/// The guest's copy; a `u64` of it may straddle two pages, so it is held by bytes-exact pieces of one or two areas.
pub struct GuestArea {
    first: Area,
    /// Bytes in `first`; the rest is in `second`.
    split: usize,
    second: Option<Area>,
    layout: Layout,
}

impl GuestArea {
    pub const LEN_64: usize = LAYOUT_64.len;
    pub const LEN_32: usize = LAYOUT_32.len;

    pub fn new(first: Area, split: usize, second: Option<Area>, wide: bool) -> GuestArea {
        GuestArea { first, split, second, layout: if wide { LAYOUT_64 } else { LAYOUT_32 } }
    }

    fn store(&self, field: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            let at = field.wrapping_add(index);
            let place = if at < self.split {
                self.first.atomic_u8(at)
            } else {
                self.second.as_ref().and_then(|area| area.atomic_u8(at.wrapping_sub(self.split)))
            };
            if let Some(place) = place {
                place.store(*byte, Ordering::Relaxed);
            }
        }
    }

    fn store_u64(&self, field: usize, value: u64) {
        match self.first.atomic_u64(field) {
            Some(word) if field.wrapping_add(8) <= self.split => word.store(value, Ordering::Relaxed),
            _ => self.store(field, &value.to_le_bytes()),
        }
    }
}

#[derive(Default)]
pub struct Runstate {
    state: State,
    since: Nanos,
    times: [u64; 4],
    guest: Option<GuestArea>,
    /// The guest asked for XEN_RUNSTATE_UPDATE (vm_assist runstate_update_flag).
    flagged: bool,
}

impl Runstate {
    pub fn state(&self) -> State {
        self.state
    }

    /// Nanoseconds in each state up to `now`.
    pub fn times(&self, now: Nanos) -> [u64; 4] {
        let mut times = self.times;
        if let Some(time) = times.get_mut(self.state as usize) {
            *time = time.saturating_add(now.0.saturating_sub(self.since.0));
        }
        times
    }

    pub fn since(&self) -> Nanos {
        self.since
    }

    /// Moves to another state and writes the guest's copy.
    pub fn enter(&mut self, state: State, now: Nanos) {
        self.times = self.times(now);
        self.state = state;
        self.since = now;
        self.publish();
    }

    pub fn register(&mut self, area: Option<GuestArea>) {
        self.guest = area;
        self.publish();
    }

    pub fn set_flagged(&mut self, flagged: bool) {
        self.flagged = flagged;
    }

    fn publish(&self) {
        let Some(guest) = &self.guest else { return };
        let layout = guest.layout;
        if self.flagged {
            guest.store_u64(layout.entry, self.since.0 | UPDATE);
            fence(Ordering::Release);
        }
        guest.store(0, &(self.state as u32).to_le_bytes());
        if !self.flagged {
            guest.store_u64(layout.entry, self.since.0);
        }
        for (index, time) in self.times.iter().enumerate() {
            guest.store_u64(layout.times.wrapping_add(index.wrapping_mul(8)), *time);
        }
        if self.flagged {
            fence(Ordering::Release);
            guest.store_u64(layout.entry, self.since.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_in_the_state_that_was_left() {
        let mut runstate = Runstate::default();
        runstate.enter(State::Running, Nanos(100));
        runstate.enter(State::Blocked, Nanos(150));
        assert_eq!(runstate.times(Nanos(175)), [50, 0, 25, 100]);
        assert_eq!(runstate.since(), Nanos(150));
    }
}
