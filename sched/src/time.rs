//! Points and spans of time, and the name of a CPU.

use core::fmt;
use core::ops::{Add, AddAssign, Sub};

/// Nanoseconds: either a span, or a point counted from boot. Half a millennium fits, so arithmetic saturates: a
/// deadline that a guest puts beyond the end of time stays there instead of wrapping into the past.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    pub const ZERO: Nanos = Nanos(0);
    /// Later than anything: a timer set here never expires.
    pub const MAX: Nanos = Nanos(u64::MAX);

    pub const fn from_micros(micros: u64) -> Nanos {
        Nanos(micros.saturating_mul(1_000))
    }

    pub const fn from_millis(millis: u64) -> Nanos {
        Nanos(millis.saturating_mul(1_000_000))
    }

    pub const fn from_secs(secs: u64) -> Nanos {
        Nanos(secs.saturating_mul(1_000_000_000))
    }

    pub const fn saturating_add(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(other.0))
    }

    /// The span from `earlier` to `self`; nothing if `earlier` is in fact later.
    pub const fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Nanos {
    type Output = Nanos;

    fn add(self, other: Nanos) -> Nanos {
        self.saturating_add(other)
    }
}

impl AddAssign for Nanos {
    fn add_assign(&mut self, other: Nanos) {
        *self = self.saturating_add(other);
    }
}

impl Sub for Nanos {
    type Output = Nanos;

    fn sub(self, other: Nanos) -> Nanos {
        self.since(other)
    }
}

/// Seconds and microseconds, as a log line wants it: `12.345678`.
impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000_000;
        let micros = self.0 % 1_000_000_000 / 1_000;
        write!(f, "{seconds}.{micros:06}")
    }
}

/// A physical CPU, by Corten's own dense numbering (the boot CPU is 0), not by its APIC id.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CpuId(pub u32);

impl CpuId {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_beyond_the_end_of_time_does_not_wrap() {
        assert_eq!(Nanos::MAX + Nanos(1), Nanos::MAX);
        assert_eq!(Nanos::from_secs(u64::MAX), Nanos::MAX);
    }

    #[test]
    fn time_never_runs_backwards() {
        assert_eq!(Nanos(3) - Nanos(5), Nanos::ZERO);
        assert_eq!(Nanos(5).since(Nanos(3)), Nanos(2));
    }

    #[test]
    fn a_point_in_time_prints_as_seconds_and_microseconds() {
        assert_eq!(Nanos::from_millis(12_005).to_string(), "12.005000");
        assert_eq!(Nanos(999).to_string(), "0.000000");
        assert_eq!(CpuId(3).to_string(), "cpu3");
    }
}
