//! What can be tuned.

use crate::{Arrangement, Nanos};

/// Credit2's parameters, by the names that Xen's command line has for them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// `sched_ratelimit_us`: what runs is not preempted for so long. Zero turns it off.
    pub ratelimit: Nanos,
    /// `credit2_cap_period_ms`: how often the budget of a capped domain is replenished.
    pub cap_period: Nanos,
    /// `credit2_load_window_shift`: load is averaged over `2^n` nanoseconds.
    pub load_window_shift: u32,
    /// `credit2_runqueue`.
    pub arrangement: Arrangement,
    /// `sched_credit2_max_cpus_runqueue`: a run queue's CPUs share a lock, and some of its work is done for each of them.
    pub most_cpus: usize,
}

impl Params {
    /// `xl sched-credit2 -s -r` takes these, and 0.
    pub const RATELIMITS: core::ops::RangeInclusive<Nanos> = Nanos::from_micros(100)..=Nanos::from_micros(500_000);
}

impl Default for Params {
    fn default() -> Params {
        Params {
            ratelimit: Nanos::from_micros(1000),
            cap_period: Nanos::from_millis(10),
            load_window_shift: 30,
            arrangement: Arrangement::Socket,
            most_cpus: 16,
        }
    }
}
