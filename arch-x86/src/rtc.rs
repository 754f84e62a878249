//! The wall clock of the PC's CMOS.

use crate::run::read_cmos;
use crate::vdev::cmos::{Bank, Cell};

fn cell(index: u8) -> u8 {
    read_cmos(Cell { bank: Bank::Standard, index })
}

/// Seconds since 1970 by the real-time clock; 0 if it does not tell a date.
pub fn seconds() -> u64 {
    let read = || [0u8, 2, 4, 7, 8, 9].map(cell);
    // Two equal readings with no update in between are one point in time.
    let mut last = read();
    for _ in 0..1000 {
        if cell(0x0a) & 0x80 != 0 {
            continue;
        }
        let now = read();
        if now == last {
            break;
        }
        last = now;
    }
    let status = cell(0x0b);
    from_registers(last, status & 4 != 0, status & 2 != 0)
}

/// Out of seconds, minutes, hours, day, month and year as the chip has them.
fn from_registers(registers: [u8; 6], binary: bool, hours_24: bool) -> u64 {
    let number = |byte: u8| u64::from(if binary { byte } else { (byte >> 4) * 10 + (byte & 15) });
    let [second, minute, hour, day, month, year] = registers;
    let afternoon = !hours_24 && hour & 0x80 != 0;
    let mut hour = number(hour & 0x7f);
    if !hours_24 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    // A PC of this century.
    let year = 2000 + number(year);
    let (month, day) = (number(month), number(day));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return 0;
    }
    days(year, month, day) * 86_400 + hour * 3_600 + number(minute) * 60 + number(second)
}

/// Days from 1970 to a date of the Gregorian calendar: years count from March, so that the leap day is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_before_month = (153 * month + 2) / 5;
    365 * year + year / 4 - year / 100 + year / 400 + days_before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_since_1970() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(2000, 3, 1), 11_017);
        assert_eq!(days(2026, 11, 22), 20_779);
    }

    #[test]
    fn a_bcd_clock_with_twelve_hours_is_read_right() {
        let midnight = from_registers([0x00, 0x30, 0x12, 0x22, 0x11, 0x26], false, false);
        assert_eq!(midnight, 20_779 * 86_400 + 30 * 60);
        let evening = from_registers([0x05, 0x30, 0x88, 0x22, 0x11, 0x26], false, false);
        assert_eq!(evening, 20_779 * 86_400 + 20 * 3_600 + 30 * 60 + 5);
        assert_eq!(from_registers([5, 30, 20, 22, 11, 26], true, true), evening);
    }

    #[test]
    fn a_clock_without_a_date_says_nothing() {
        assert_eq!(from_registers([0xff; 6], true, true), 0);
    }
}
