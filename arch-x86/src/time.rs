//! System time: nanoseconds since boot, out of the TSC, at a rate that is measured once.

pub mod calibrate;

use core::arch::x86_64::_rdtsc;

use hypervisor::machine::ClockScale;
use sched::Nanos;

/// Reads the time-stamp counter.
#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC has no preconditions here (CR4.TSD does not bind the kernel).
    unsafe { _rdtsc() }
}

/// From TSC to nanoseconds and back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    origin: u64,
    pub khz: u32,
    mul: u32,
    shift: i8,
    /// 2^48 × ticks a nanosecond, rounded up.
    inverse: u64,
}

/// Scale of [`Clock`]'s inverse: fine enough for a day to be exact to a nanosecond, coarse enough for centuries to fit 128 bits.
const INVERSE_SHIFT: u32 = 48;

impl Clock {
    /// System time zero is at the TSC's value `origin`.
    pub fn new(origin: u64, khz: u32) -> Clock {
        // The multiplier is normalised so that its top bit is set: the shift makes up for it, as pvclock has it.
        let mut shift = 0i8;
        let mut rate = u64::from(khz.max(1)) * 1000;
        while rate > 2_000_000_000 {
            rate >>= 1;
            shift -= 1;
        }
        while rate <= 1_000_000_000 {
            rate <<= 1;
            shift += 1;
        }
        let mul = ((1_000_000_000u64 << 32) / rate) as u32;
        // The inverse of just this multiplier, not of the rate: so a deadline in ticks is never before the one in nanoseconds.
        let inverse = (1u128 << (32 + INVERSE_SHIFT)).div_ceil(u128::from(mul));
        let inverse = if shift < 0 { inverse << -shift } else { inverse.div_ceil(1 << shift) };
        Clock { origin, khz, mul, shift, inverse: inverse as u64 }
    }

    #[inline]
    pub fn nanos_at(&self, tsc: u64) -> Nanos {
        let delta = tsc.wrapping_sub(self.origin);
        let shifted = if self.shift < 0 { delta >> -self.shift } else { delta << self.shift };
        Nanos(((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64)
    }

    /// As [`nanos_at`](Self::nanos_at), never early and never wrapping: for deadlines that a guest gives in TSC ticks.
    pub fn nanos_after(&self, tsc: u64) -> Nanos {
        if tsc <= self.origin {
            return Nanos(0);
        }
        // A deadline centuries away would overflow the shift.
        let ticks = (tsc - self.origin).min(u64::MAX >> 24);
        Nanos(self.nanos_at(self.origin + ticks).0.saturating_add(1))
    }

    #[inline]
    pub fn now(&self) -> Nanos {
        self.nanos_at(rdtsc())
    }

    /// The TSC's value at (or just after) a point in time.
    #[inline]
    pub fn tsc_at(&self, at: Nanos) -> u64 {
        let ticks = (u128::from(at.0) * u128::from(self.inverse)) >> INVERSE_SHIFT;
        // One more for what the shift cut off, and as many as one step of the shifted counter has.
        let step = if self.shift < 0 { 1u64 << -self.shift } else { 1 };
        self.origin.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX)).saturating_add(step)
    }

    /// How many ticks of the TSC a span of time has.
    pub fn ticks(&self, span: Nanos) -> u64 {
        self.tsc_at(span).saturating_sub(self.origin)
    }

    pub fn scale(&self) -> ClockScale {
        ClockScale {
            tsc_timestamp: self.origin,
            system_time: Nanos(0),
            tsc_to_system_mul: self.mul,
            tsc_shift: self.shift,
            stable: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_a_second_at_any_rate() {
        for khz in [49_999, 1_000_000, 2_893_123, 5_200_000] {
            let clock = Clock::new(1_000, khz);
            let second = clock.nanos_at(1_000 + u64::from(khz) * 1000).0;
            assert!(second.abs_diff(1_000_000_000) < 1_000, "{khz} kHz: {second}");
        }
    }

    #[test]
    fn a_deadline_is_never_early() {
        for khz in [50_000, 1_000_000, 2_893_123, 5_200_000] {
            let clock = Clock::new(77, khz);
            for nanos in [0, 1, 999, 1_000_000, 86_400_000_000_000, 3_000_000_000_000_000] {
                let reached = clock.nanos_at(clock.tsc_at(Nanos(nanos))).0;
                let tick = 4 * 1_000_000 / u64::from(khz) + 4;
                assert!(reached >= nanos, "{khz} kHz: {reached} for {nanos}");
                assert!(reached <= nanos + tick + nanos / 100_000_000_000_000, "{khz} kHz: {reached} for {nanos}");
            }
        }
    }
}
