//! The local APIC's timer: one-shot, periodic and TSC-deadline. It holds no clock: whoever asks brings the time.
//!
//! The bus runs at 100 MHz, as in Xen: one count is [`BUS_CYCLE_NS`] times the divisor.

use sched::Nanos;

/// One cycle of the APIC bus, in nanoseconds. Xen's guests calibrate to the same value.
pub const BUS_CYCLE_NS: u64 = 10;

/// Shorter periods are delivered no more often than this, so that a guest cannot keep its host busy with nothing but
/// its timer. The counter itself runs as programmed.
pub const SHORTEST_PERIOD: Nanos = Nanos::from_micros(20);

/// SDM Vol. 3, 11.5.4: LVT timer bits 18:17.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// 11b: never fires.
    Reserved,
}

impl TimerMode {
    pub(super) const fn of(lvt: u32) -> TimerMode {
        match (lvt >> 17) & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
}

/// When the host has to look at the timer again.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Deadline {
    At(Nanos),
    /// When the *guest's* TSC reaches this value.
    GuestTsc(u64),
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: TimerMode,
    /// The divide configuration register's three bits.
    divide_config: u32,
    initial: u32,
    /// The timer is due `count` counts after `since`. A one-shot that has fired holds 0. With a very short period this
    /// spans several.
    count: u32,
    since: Nanos,
    /// In the guest's TSC; 0 is disarmed.
    tsc_deadline: u64,
}

impl Timer {
    pub(super) const fn new() -> Timer {
        Timer { mode: TimerMode::OneShot, divide_config: 0, initial: 0, count: 0, since: Nanos::ZERO, tsc_deadline: 0 }
    }

    pub(super) fn divide_config(&self) -> u32 {
        self.divide_config
    }

    /// SDM Vol. 3, figure 11-10: bits 3, 1 and 0 select 2, 4, … 128, and then 1.
    pub(super) fn divisor(&self) -> u32 {
        let select = (self.divide_config >> 1 & 4) | (self.divide_config & 3);
        1 << (select.wrapping_add(1) & 7)
    }

    fn cycle(&self) -> u64 {
        BUS_CYCLE_NS.saturating_mul(u64::from(self.divisor()))
    }

    fn span(&self, counts: u32) -> Nanos {
        Nanos(self.cycle().saturating_mul(u64::from(counts)))
    }

    fn counts(&self, span: Nanos) -> u64 {
        span.0.checked_div(self.cycle()).unwrap_or(0)
    }

    pub(super) fn initial_count(&self) -> u32 {
        self.initial
    }

    pub(super) fn current_count(&self, now: Nanos) -> u32 {
        let elapsed = self.counts(now.since(self.since));
        match self.mode {
            TimerMode::TscDeadline | TimerMode::Reserved => 0,
            TimerMode::OneShot => u64::from(self.count).saturating_sub(elapsed) as u32,
            TimerMode::Periodic => {
                // The counter passes 0 whenever `elapsed` differs from `count` by whole periods.
                let (initial, count) = (u64::from(self.initial), u64::from(self.count));
                let into = |over: u64| over.checked_rem(initial).unwrap_or(0);
                let left = match elapsed.checked_sub(count) {
                    Some(over) => initial.saturating_sub(into(over)),
                    None => match into(count.saturating_sub(elapsed)) {
                        0 => initial,
                        left => left,
                    },
                };
                left as u32
            }
        }
    }

    /// Counts down from `initial` from now on. SDM Vol. 3, 11.5.4.1: in TSC-deadline mode the write is ignored. True if
    /// the deadline changed.
    pub(super) fn set_initial_count(&mut self, initial: u32, now: Nanos) -> bool {
        if self.mode == TimerMode::TscDeadline {
            return false;
        }
        self.initial = initial;
        self.count = initial;
        self.since = now;
        true
    }

    /// The counter goes on from where it is, at the new rate.
    pub(super) fn set_divide_config(&mut self, value: u32, now: Nanos) {
        let count = self.current_count(now);
        self.divide_config = value & 0b1011;
        self.count = count;
        self.since = now;
    }

    /// The LVT entry was written. SDM Vol. 3, 11.5.4.1: going into or out of TSC-deadline mode disarms the timer.
    pub(super) fn set_mode(&mut self, mode: TimerMode, now: Nanos) {
        if mode == self.mode {
            return;
        }
        let count = self.current_count(now);
        let crosses = mode == TimerMode::TscDeadline || self.mode == TimerMode::TscDeadline;
        self.mode = mode;
        self.tsc_deadline = 0;
        self.count = if crosses { 0 } else { count };
        self.initial = if crosses { 0 } else { self.initial };
        self.since = now;
    }

    /// Reads 0 when it has fired or the mode is another.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Ignored in the other modes. True if the deadline changed.
    pub(super) fn set_tsc_deadline(&mut self, deadline: u64) -> bool {
        if self.mode != TimerMode::TscDeadline {
            return false;
        }
        self.tsc_deadline = deadline;
        true
    }

    /// When the timer is next due.
    pub(super) fn deadline(&self) -> Option<Deadline> {
        match self.mode {
            TimerMode::OneShot | TimerMode::Periodic => {
                (self.count != 0).then(|| Deadline::At(self.since.saturating_add(self.span(self.count))))
            }
            TimerMode::TscDeadline => (self.tsc_deadline != 0).then_some(Deadline::GuestTsc(self.tsc_deadline)),
            TimerMode::Reserved => None,
        }
    }

    /// Whether the timer is due by now. It is then rearmed or spent, so the answer is given once. Periods that passed
    /// unnoticed are not made up for.
    pub(super) fn expire(&mut self, now: Nanos, guest_tsc: u64) -> bool {
        let due = match self.deadline() {
            None => false,
            Some(Deadline::At(at)) => at <= now,
            Some(Deadline::GuestTsc(at)) => at <= guest_tsc,
        };
        if !due {
            return false;
        }
        match self.mode {
            TimerMode::Periodic => {
                // What is left of the period that has begun, so that no phase is lost, and for very short periods as
                // many whole ones as fill the shortest.
                let left = self.current_count(now);
                let filling = self.counts(SHORTEST_PERIOD).saturating_sub(u64::from(left));
                let whole = filling.checked_div(u64::from(self.initial)).unwrap_or(0);
                let counts = whole.saturating_mul(u64::from(self.initial)).saturating_add(u64::from(left));
                self.count = u32::try_from(counts).unwrap_or(u32::MAX);
                let boundary = self.cycle().saturating_mul(self.counts(now.since(self.since)));
                self.since = self.since.saturating_add(Nanos(boundary));
            }
            _ => {
                self.count = 0;
                self.tsc_deadline = 0;
            }
        }
        true
    }

    /// Puts back a saved timer: `count` was left of `initial`.
    pub(super) fn restore(
        mode: TimerMode,
        divide_config: u32,
        initial: u32,
        count: u32,
        tsc_deadline: u64,
        now: Nanos,
    ) -> Timer {
        let counts = matches!(mode, TimerMode::OneShot | TimerMode::Periodic);
        // A periodic timer saved at the very end of its period begins the next.
        let count = if mode == TimerMode::Periodic && count == 0 { initial } else { count };
        Timer {
            mode,
            divide_config: divide_config & 0b1011,
            initial,
            count: if counts { count } else { 0 },
            since: now,
            tsc_deadline: if mode == TimerMode::TscDeadline { tsc_deadline } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(unused_must_use)]
    use super::*;

    const DIVIDE_BY_1: u32 = 0b1011;

    fn running(mode: TimerMode, initial: u32) -> Timer {
        let mut timer = Timer::new();
        timer.set_mode(mode, Nanos(0));
        timer.set_divide_config(DIVIDE_BY_1, Nanos(0));
        timer.set_initial_count(initial, Nanos(1_000));
        timer
    }

    #[test]
    fn the_divide_configuration_selects_powers_of_two() {
        let divisors: Vec<u32> =
            [0, 1, 2, 3, 8, 9, 10, 11].map(|divide_config| Timer { divide_config, ..Timer::new() }.divisor()).to_vec();
        assert_eq!(divisors, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn a_one_shot_timer_counts_down_fires_once_and_stays_at_zero() {
        let mut timer = running(TimerMode::OneShot, 100);
        assert_eq!(timer.current_count(Nanos(1_000)), 100);
        assert_eq!(timer.current_count(Nanos(1_400)), 60);
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(2_000))));
        assert!(!timer.expire(Nanos(1_999), 0));
        assert!(timer.expire(Nanos(2_000), 0));
        assert!(!timer.expire(Nanos(9_000), 0));
        assert_eq!(timer.deadline(), None);
        assert_eq!(timer.current_count(Nanos(9_000)), 0);
        assert_eq!(timer.initial_count(), 100);
    }

    #[test]
    fn a_periodic_timer_keeps_its_phase_when_it_is_looked_at_late() {
        let mut timer = running(TimerMode::Periodic, 10_000);
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(101_000))));
        assert_eq!(timer.current_count(Nanos(151_000)), 5_000);
        assert!(timer.expire(Nanos(351_007), 0));
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(401_000))));
        assert!(!timer.expire(Nanos(400_999), 0));
        assert!(timer.expire(Nanos(401_000), 0));
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(501_000))));
    }

    #[test]
    fn a_very_short_period_fires_no_more_often_than_the_shortest() {
        let mut timer = running(TimerMode::Periodic, 1);
        assert!(timer.expire(Nanos(1_010), 0));
        let Some(Deadline::At(next)) = timer.deadline() else { panic!("a periodic timer goes on") };
        assert!(next.since(Nanos(1_010)) >= SHORTEST_PERIOD - Nanos(10));
        assert!(timer.current_count(Nanos(5_000)) <= 1, "the counter never exceeds its initial value");
        assert!(timer.expire(next, 0));
    }

    #[test]
    fn a_change_of_the_divisor_keeps_the_count_and_changes_the_rate() {
        let mut timer = running(TimerMode::OneShot, 100);
        timer.set_divide_config(0, Nanos(1_500));
        assert_eq!(timer.current_count(Nanos(1_500)), 50);
        assert_eq!(timer.current_count(Nanos(1_700)), 40);
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(2_500))));
    }

    #[test]
    fn a_tsc_deadline_fires_once_and_then_reads_zero() {
        let mut timer = running(TimerMode::TscDeadline, 0);
        assert!(timer.set_tsc_deadline(5_000));
        assert!(!timer.set_initial_count(7, Nanos(0)));
        assert_eq!(timer.deadline(), Some(Deadline::GuestTsc(5_000)));
        assert_eq!(timer.current_count(Nanos(0)), 0);
        assert!(!timer.expire(Nanos::MAX, 4_999));
        assert!(timer.expire(Nanos::ZERO, 5_000));
        assert_eq!(timer.tsc_deadline(), 0);
        assert_eq!(timer.deadline(), None);
    }

    #[test]
    fn crossing_into_or_out_of_tsc_deadline_mode_disarms() {
        let mut timer = running(TimerMode::OneShot, 100);
        timer.set_mode(TimerMode::TscDeadline, Nanos(1_100));
        assert_eq!(timer.deadline(), None);
        timer.set_tsc_deadline(9);
        timer.set_mode(TimerMode::Periodic, Nanos(1_200));
        assert_eq!(timer.deadline(), None);
        assert!(!timer.set_tsc_deadline(9));
        assert_eq!(timer.tsc_deadline(), 0);
    }

    #[test]
    fn one_shot_becomes_periodic_in_mid_count() {
        let mut timer = running(TimerMode::OneShot, 100_000);
        timer.set_mode(TimerMode::Periodic, Nanos(501_000));
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(1_001_000))));
        assert!(timer.expire(Nanos(1_001_000), 0));
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(2_001_000))));
    }

    #[test]
    fn the_largest_count_at_the_largest_divisor_does_not_overflow() {
        let mut timer = running(TimerMode::Periodic, u32::MAX);
        timer.set_divide_config(0b1010, Nanos(1_000));
        assert_eq!(timer.deadline(), Some(Deadline::At(Nanos(1_000 + u64::from(u32::MAX) * 1_280))));
        assert!(timer.expire(Nanos::MAX, 0));
    }
}
