//! `dom0_mem=`, as Xen's command line has it: how much memory Dom0 gets.
//!
//! A comma list of `SIZE`, `min:SIZE` and `max:SIZE`. A size is an amount with the suffix B, K, M, G or T (K without one), a percentage of
//! what is free (`25%`), or the sum of both (`1G+10%`); a negative one means all but that.

use core::fmt;

/// One size of `dom0_mem=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    /// Added to `bytes`: this many hundredths of what is free.
    pub percent: u8,
    /// All that is free but for this.
    pub all_but: bool,
}

impl Amount {
    pub const fn bytes(bytes: u64) -> Amount {
        Amount { bytes, percent: 0, all_but: false }
    }

    /// How many bytes that is if `free` bytes are free.
    pub fn of(self, free: u64) -> u64 {
        let share = u128::from(free).saturating_mul(self.percent.into()).checked_div(100).unwrap_or(0);
        let amount = self.bytes.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
        if self.all_but { free.saturating_sub(amount) } else { amount }
    }
}

/// The whole option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dom0Mem {
    /// What Dom0 starts with; without it, what is free but for a sixteenth of it, 128 MiB at most, that stays with Corten.
    pub size: Option<Amount>,
    /// Raises `size`.
    pub min: Option<Amount>,
    /// Lowers `size`, and is as far as Dom0 may balloon up.
    pub max: Option<Amount>,
}

/// The part of `dom0_mem=` that could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAmount<'a>(pub &'a str);

impl fmt::Display for BadAmount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dom0_mem=: \"{}\" is no size; write for example 4G,max:4G", self.0)
    }
}

impl core::error::Error for BadAmount<'_> {}

const RESERVE_SHARE: u64 = 16;
const RESERVE_MAX: u64 = 128 << 20;

impl Dom0Mem {
    /// Reads the value of one `dom0_mem=` into `self`; the option may be given several times, the last word counts.
    pub fn parse<'a>(&mut self, value: &'a str) -> Result<(), BadAmount<'a>> {
        for part in value.split(',') {
            let (place, text) = if let Some(text) = part.strip_prefix("min:") {
                (&mut self.min, text)
            } else if let Some(text) = part.strip_prefix("max:") {
                (&mut self.max, text)
            } else {
                (&mut self.size, part)
            };
            *place = Some(amount(text).ok_or(BadAmount(part))?);
        }
        Ok(())
    }

    /// The bytes that Dom0 starts with if `free` are free.
    pub fn start(&self, free: u64) -> u64 {
        let reserve = free.checked_div(RESERVE_SHARE).unwrap_or(0).min(RESERVE_MAX);
        let size = self.size.map_or(free.saturating_sub(reserve), |size| size.of(free));
        let raised = size.max(self.min.map_or(0, |min| min.of(free)));
        raised.min(self.max.map_or(u64::MAX, |max| max.of(free)))
    }

    /// Whether it says how much Dom0 starts with.
    pub fn is_explicit(&self) -> bool {
        self.size.is_some() || self.min.is_some()
    }

    /// The same in bytes, if `free` are free: what is a part of that no longer changes with it.
    pub fn fixed(&self, free: u64) -> Dom0Mem {
        let size = Some(Amount::bytes(self.start(free)));
        Dom0Mem { size, min: None, max: self.limit(free).map(Amount::bytes) }
    }

    /// The bytes that Dom0 may grow to, `None` if nothing limits it.
    pub fn limit(&self, free: u64) -> Option<u64> {
        self.max.map(|max| max.of(free))
    }
}

fn amount(text: &str) -> Option<Amount> {
    let (all_but, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (bytes, percent) = match text.strip_suffix('%') {
        None => (bytes(text)?, 0),
        Some(share) => match share.split_once('+') {
            None => (0, share.parse().ok()?),
            Some((size, share)) => (bytes(size)?, share.parse().ok()?),
        },
    };
    (percent <= 100).then_some(Amount { bytes, percent, all_but })
}

/// An amount with the suffix B, K, M, G or T, or KiB.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'b' | b'B' if !text.starts_with("0x") => (text.get(..text.len().checked_sub(1)?)?, 0),
        b'k' | b'K' => (text.get(..text.len().checked_sub(1)?)?, 10),
        b'm' | b'M' => (text.get(..text.len().checked_sub(1)?)?, 20),
        b'g' | b'G' => (text.get(..text.len().checked_sub(1)?)?, 30),
        b't' | b'T' => (text.get(..text.len().checked_sub(1)?)?, 40),
        _ => (text, 10),
    };
    let number = match number.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => number.parse().ok()?,
    };
    number.checked_mul(1u64.checked_shl(shift)?)
}

/// An amount of memory as people read it: `31.8 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            n if n >= 1 << 40 => (40, "TiB"),
            n if n >= 1 << 30 => (30, "GiB"),
            n if n >= 1 << 20 => (20, "MiB"),
            _ => (10, "KiB"),
        };
        let tenths = (u128::from(self.0).saturating_mul(10)) >> shift;
        let (whole, tenth) = (tenths.checked_div(10).unwrap_or(0), tenths.checked_rem(10).unwrap_or(0));
        match tenth {
            0 => write!(f, "{whole} {unit}"),
            _ => write!(f, "{whole}.{tenth} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn parsed(text: &str) -> Dom0Mem {
        let mut option = Dom0Mem::default();
        option.parse(text).unwrap();
        option
    }

    #[test]
    fn sizes_are_read_as_xen_reads_them() {
        assert_eq!(parsed("512M,max:1g").size, Some(Amount::bytes(512 << 20)));
        assert_eq!(parsed("512M,max:1g").max, Some(Amount::bytes(GIB)));
        assert_eq!(parsed("max:1G,min:64m,2048").size, Some(Amount::bytes(2 << 20)));
        assert_eq!(parsed("0x100K").size, Some(Amount::bytes(256 << 10)));
        assert_eq!(parsed("4096B").size, Some(Amount::bytes(4096)));
        assert_eq!(parsed("-1G").size, Some(Amount { bytes: GIB, percent: 0, all_but: true }));
        assert_eq!(parsed("1G+10%").size, Some(Amount { bytes: GIB, percent: 10, all_but: false }));
        assert_eq!(parsed("25%").size.map(|s| s.of(8 * GIB)), Some(2 * GIB));
    }

    #[test]
    fn what_is_no_size_is_named() {
        for bad in ["", "G", "1X", "max:", "min:1G:2", "--1G", "101%", "99999999999T", "1G,,2G"] {
            let error = Dom0Mem::default().parse(bad);
            assert!(error.is_err(), "{bad}");
        }
        assert_eq!(Dom0Mem::default().parse("1G,max:lots"), Err(BadAmount("max:lots")));
    }

    #[test]
    fn without_a_size_a_sixteenth_stays_free_but_no_more_than_128_mib() {
        assert_eq!(Dom0Mem::default().start(GIB), GIB - GIB / 16);
        assert_eq!(Dom0Mem::default().start(32 * GIB), 32 * GIB - (128 << 20));
    }

    #[test]
    fn min_raises_and_max_lowers_and_limits() {
        assert_eq!(parsed("min:2G,1G").start(8 * GIB), 2 * GIB);
        assert_eq!(parsed("4G,max:2G").start(8 * GIB), 2 * GIB);
        assert_eq!(parsed("max:2G").start(8 * GIB), 2 * GIB);
        assert_eq!(parsed("1G,max:2G").limit(8 * GIB), Some(2 * GIB));
        assert_eq!(parsed("1G").limit(8 * GIB), None);
        assert_eq!(parsed("-1G").start(8 * GIB), 7 * GIB);
        assert_eq!(parsed("-9G").start(8 * GIB), 0);
    }

    #[test]
    fn sizes_are_written_for_people() {
        assert_eq!(Size(34_145_000_000).to_string(), "31.8 GiB");
        assert_eq!(Size(64 << 30).to_string(), "64 GiB");
        assert_eq!(Size(1536 << 10).to_string(), "1.5 MiB");
        assert_eq!(Size(u64::MAX).to_string(), "16777215.9 TiB");
    }

    proptest! {
        #[test]
        fn no_text_can_panic_the_parser(text in "(min:|max:)?-?[0-9xa-fKMGTB+%,é]{0,24}", free: u64) {
            let mut option = Dom0Mem::default();
            let _ = option.parse(&text);
            let _ = option.start(free);
        }
    }
}
