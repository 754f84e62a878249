//! Checks and how they are reported.

use crate::say;
use core::fmt::Debug;

pub struct Tests {
    guest: &'static str,
    checks: u32,
}

impl Tests {
    pub(crate) fn new(guest: &'static str) -> Tests {
        Tests { guest, checks: 0 }
    }

    /// `what` holds.
    pub fn check(&mut self, what: &str, holds: bool) {
        self.report(what, holds, format_args!("does not hold"));
    }

    /// `got` is `want`.
    pub fn equal<T: PartialEq + Debug>(&mut self, what: &str, got: T, want: T) {
        self.report(what, got == want, format_args!("got {got:x?}, want {want:x?}"));
    }

    /// A hypercall's return value: 0 or more, or a negated errno.
    pub fn returns(&mut self, what: &str, got: i64, want: i64) {
        self.report(what, got == want, format_args!("returned {got}, want {want}"));
    }

    /// `got` lies in `low..=high`.
    pub fn within(&mut self, what: &str, got: u64, low: u64, high: u64) {
        self.report(what, (low..=high).contains(&got), format_args!("{got} is not within {low}..={high}"));
    }

    fn report(&mut self, what: &str, ok: bool, reason: core::fmt::Arguments<'_>) {
        self.checks += 1;
        if ok {
            say!("TEST {}: {what} ok", self.guest);
        } else {
            say!("TEST {}: {what} FAIL: {reason}", self.guest);
        }
    }

    pub(crate) fn finish(&self) {
        say!("GUEST {} DONE {}", self.guest, self.checks);
    }
}
