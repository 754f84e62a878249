//! How fast the TSC runs, by whatever this machine has to tell it.
//!
//! The PIT comes first, as every PC has had one. Where its clock is gated, or nothing answers at its ports, CPUID may know the rate, and the
//! HPET and the ACPI PM timer run at rates of their own. What CPUID says is nominal only without a crystal's rate, and may be off by
//! minutes a day: that comes last. Nothing is waited for longer than a working machine takes.

use core::fmt;
use core::ops::RangeInclusive;

use arrayvec::ArrayVec;

/// Ticks of the PIT a second, as the PC has it.
const PIT_HZ: u64 = 1_193_182;
/// How long the TSC is watched: 20 ms of the PIT.
const PIT_TICKS: u16 = 23_864;

const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const GATE: u16 = 0x61;
const GATE_ON: u8 = 1 << 0;
const SPEAKER_ON: u8 = 1 << 1;
const OUTPUT: u8 = 1 << 5;

/// The HPET's registers (IA-PC HPET 1.0a, 2.3).
mod hpet {
    pub const PERIOD: usize = 0x04;
    pub const CONFIGURATION: usize = 0x10;
    pub const COUNTER: usize = 0xf0;
    pub const ENABLE: u32 = 1 << 0;
    /// Femtoseconds a tick: 10 MHz at least, and nobody has built one of more than a GHz.
    pub const PERIODS: core::ops::RangeInclusive<u32> = 1_000_000..=100_000_000;
}

const FEMTOSECONDS: u64 = 1_000_000_000_000_000;
const PM_TIMER_PERIOD: u64 = FEMTOSECONDS / crate::vdev::ports::PM_TIMER_HZ;
/// The PM timer has 24 bits where it has not 32; those are enough.
const PM_TIMER_BITS: u32 = 0xff_ffff;

/// 20 ms, in femtoseconds and in a kHz-th of ticks.
const WINDOW: u64 = FEMTOSECONDS / 50;
const WINDOW_MS: u64 = 20;

/// Rates that a TSC may have, in kHz. An emulator may count instructions, 50 million a second and less.
const PLAUSIBLE: RangeInclusive<u64> = 10_000..=20_000_000;

/// The TSC is watched until two windows agree, for at most so many of them: an SMI, or a hypervisor below, may keep the CPU away at an end of one.
const MOST_WINDOWS: usize = 5;
/// Two windows agree that differ by less than one in so many. The ends of a window are known to a microsecond or two, each.
const AGREEMENT: u32 = 4000;

/// What a wait may take: 25 ms of the fastest TSC, which is some 200 ms of an ordinary one. A TSC that stands still is noticed by
/// the polls, each of which is an access to a slow device, or a TSC that is read.
const PATIENCE: u64 = 500_000_000;
const MOST_POLLS: u32 = 50_000_000;
/// A port takes a microsecond to read on real hardware, and emulators are not so much faster that they count more in 20 ms.
const MOST_PORT_POLLS: u32 = 4_000_000;

/// The counters that the TSC is measured by. What is not there reads as all ones.
pub trait Counters {
    fn tsc(&mut self) -> u64;
    fn read_port(&mut self, port: u16) -> u8;
    fn write_port(&mut self, port: u16, value: u8);
    fn read_hpet(&mut self, register: usize) -> u32;
    fn write_hpet(&mut self, register: usize, value: u32);
    fn read_pm_timer(&mut self) -> u32;
    /// eax, ebx and ecx of a CPUID leaf; zeroes for one that there is not.
    fn cpuid(&mut self, leaf: u32) -> [u32; 3];
}

/// By what the rate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Pit,
    /// CPUID leaf 0x15, with the crystal's rate.
    Cpuid,
    Hpet,
    PmTimer,
    /// CPUID leaf 0x16: a rate in round MHz.
    Nominal,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Pit => "measured by the PIT",
            Source::Cpuid => "as CPUID tells (leaf 0x15)",
            Source::Hpet => "measured by the HPET",
            Source::PmTimer => "measured by the ACPI PM timer",
            Source::Nominal => "nominal, as CPUID tells (leaf 0x16): the clock may be off by minutes a day",
        })
    }
}

/// The ends of the window in which the TSC is watched, for another counter that is measured in the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Start,
    End,
}

/// The TSC's rate in kHz and how it is known; `None` if nothing on this machine tells it. `also` is called at both ends of each
/// window: its last two calls are those of the one that counts.
pub fn calibrate(counters: &mut impl Counters, mut also: impl FnMut(Moment)) -> Option<(u32, Source)> {
    let also = &mut also;
    None.or_else(|| Some((agreed(|| by_pit(counters, also))?, Source::Pit)))
        .or_else(|| Some((by_crystal(counters).and_then(|khz| watch(counters, khz, also))?, Source::Cpuid)))
        .or_else(|| Some((agreed(|| by_hpet(counters, also))?, Source::Hpet)))
        .or_else(|| Some((agreed(|| by_pm_timer(counters, also))?, Source::PmTimer)))
        .or_else(|| Some((by_name(counters).and_then(|khz| watch(counters, khz, also))?, Source::Nominal)))
}

/// A rate that two windows give, or the last one's where no two agree.
fn agreed(mut window: impl FnMut() -> Option<u32>) -> Option<u32> {
    let mut earlier: ArrayVec<u32, { MOST_WINDOWS - 1 }> = ArrayVec::new();
    loop {
        let khz = window()?;
        if earlier.iter().any(|other| other.abs_diff(khz) < khz / AGREEMENT) || earlier.try_push(khz).is_err() {
            return Some(khz);
        }
    }
}

fn plausible(khz: u64) -> Option<u32> {
    PLAUSIBLE.contains(&khz).then_some(khz as u32)
}

/// The rate of a TSC that made `ticks` while another counter made `counted` of its own, of `period` femtoseconds each.
fn rate(ticks: u64, counted: u64, period: u64) -> Option<u32> {
    // Femtoseconds to milliseconds.
    let khz = u128::from(ticks) * 1_000_000_000_000 / (u128::from(counted) * u128::from(period)).max(1);
    plausible(u64::try_from(khz).ok()?)
}

/// Polls until `done` or for as long as it makes sense. The ticks of the TSC since `start`.
fn wait<C: Counters>(
    counters: &mut C,
    start: u64,
    most_polls: u32,
    mut done: impl FnMut(&mut C) -> bool,
) -> Option<u64> {
    for _ in 0..most_polls {
        let finished = done(counters);
        let ticks = counters.tsc().wrapping_sub(start);
        if finished {
            return Some(ticks);
        }
        if ticks > PATIENCE {
            return None;
        }
    }
    None
}

fn by_pit<C: Counters>(counters: &mut C, also: &mut impl FnMut(Moment)) -> Option<u32> {
    let gate = counters.read_port(GATE);
    counters.write_port(GATE, gate & !SPEAKER_ON | GATE_ON);
    // Channel 2, low byte then high byte, mode 0: its output is low from now until it has counted down.
    counters.write_port(PIT_COMMAND, 0xb0);
    counters.write_port(PIT_CHANNEL_2, PIT_TICKS as u8);
    also(Moment::Start);
    counters.write_port(PIT_CHANNEL_2, (PIT_TICKS >> 8) as u8);
    let start = counters.tsc();
    // Where no PIT is, all bits read as ones: that is no end of a countdown.
    let counts = counters.read_port(GATE) & OUTPUT == 0;
    let ended = |counters: &mut C| counters.read_port(GATE) & OUTPUT != 0;
    let ticks = if counts { wait(counters, start, MOST_PORT_POLLS, ended) } else { None };
    also(Moment::End);
    counters.write_port(GATE, gate);
    rate(ticks?, PIT_TICKS.into(), FEMTOSECONDS / PIT_HZ)
}

/// CPUID leaf 0x15: the TSC's ratio to a crystal, and the crystal's rate in Hz (SDM Vol. 3, 20.7.3).
fn by_crystal(counters: &mut impl Counters) -> Option<u32> {
    let [denominator, numerator, crystal] = counters.cpuid(0x15);
    let hz = u64::from(crystal).checked_mul(numerator.into())?.checked_div(denominator.into())?;
    plausible(hz / 1000)
}

/// CPUID leaf 0x16: the processor's base frequency in MHz, which is the TSC's where its ratio is told too.
fn by_name(counters: &mut impl Counters) -> Option<u32> {
    let [mhz, ..] = counters.cpuid(0x16);
    plausible(u64::from(mhz & 0xffff) * 1000)
}

/// Lets 20 ms of a TSC pass whose rate is known, for the sake of the other counter.
fn watch<C: Counters>(counters: &mut C, khz: u32, also: &mut impl FnMut(Moment)) -> Option<u32> {
    also(Moment::Start);
    let start = counters.tsc();
    let window = u64::from(khz) * WINDOW_MS;
    let passed = wait(counters, start, MOST_POLLS, |counters| counters.tsc().wrapping_sub(start) >= window);
    also(Moment::End);
    passed.map(|_| khz)
}

fn by_hpet<C: Counters>(counters: &mut C, also: &mut impl FnMut(Moment)) -> Option<u32> {
    let period = Some(counters.read_hpet(hpet::PERIOD)).filter(|period| hpet::PERIODS.contains(period))?;
    let configuration = counters.read_hpet(hpet::CONFIGURATION);
    if configuration & hpet::ENABLE == 0 {
        counters.write_hpet(hpet::CONFIGURATION, configuration | hpet::ENABLE);
    }
    let khz = against(counters, |counters| counters.read_hpet(hpet::COUNTER), u32::MAX, period.into(), also);
    if configuration & hpet::ENABLE == 0 {
        counters.write_hpet(hpet::CONFIGURATION, configuration);
    }
    khz
}

fn by_pm_timer<C: Counters>(counters: &mut C, also: &mut impl FnMut(Moment)) -> Option<u32> {
    against(counters, C::read_pm_timer, PM_TIMER_BITS, PM_TIMER_PERIOD, also)
}

/// Watches the TSC while a free-running counter makes 20 ms. `bits` are those that the counter has, `period` is in femtoseconds.
fn against<C: Counters>(
    counters: &mut C,
    read: impl Fn(&mut C) -> u32,
    bits: u32,
    period: u64,
    also: &mut impl FnMut(Moment),
) -> Option<u32> {
    also(Moment::Start);
    let first = read(counters);
    let start = counters.tsc();
    let mut counted = 0;
    let ticks = wait(counters, start, MOST_PORT_POLLS, |counters| {
        counted = u64::from(read(counters).wrapping_sub(first) & bits);
        counted * period >= WINDOW
    });
    also(Moment::End);
    rate(ticks?, counted, period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// What a machine has, and how it counts. Every access takes a microsecond.
    struct Machine {
        khz: u64,
        now_ns: u64,
        pit: Pit,
        count: u64,
        started: Option<u64>,
        low: Option<u8>,
        gate: u8,
        hpet_period: u32,
        hpet_on: bool,
        hpet_ticks: bool,
        pm_timer: bool,
        leaves: [[u32; 3]; 2],
        /// As often it is away at the end of a countdown, for 100 us and each time for longer.
        interruptions: u64,
        interrupted: u64,
    }

    #[derive(PartialEq)]
    enum Pit {
        Counts,
        Gated,
        Missing,
        Zeroes,
    }

    impl Machine {
        fn new(khz: u64, pit: Pit) -> Machine {
            Machine {
                khz,
                now_ns: 1 << 40,
                pit,
                count: 0,
                started: None,
                low: None,
                gate: 0,
                hpet_period: u32::MAX,
                hpet_on: false,
                hpet_ticks: true,
                pm_timer: false,
                leaves: [[0; 3]; 2],
                interruptions: 0,
                interrupted: 0,
            }
        }

        /// The rate that is found, checked against the one that it is; and by what.
        fn calibrated(&mut self) -> Option<Source> {
            let mut moments = Vec::new();
            let (khz, source) = calibrate(self, |moment| moments.push(moment))?;
            assert!(u64::from(khz).abs_diff(self.khz) * 1000 <= self.khz, "{khz} kHz for {} kHz", self.khz);
            assert!(moments.chunks(2).all(|pair| pair == [Moment::Start, Moment::End]) && !moments.is_empty());
            Some(source)
        }

        fn milliseconds(&mut self, act: impl FnOnce(&mut Machine)) -> u64 {
            let start = self.now_ns;
            act(self);
            (self.now_ns - start) / 1_000_000
        }
    }

    impl Counters for Machine {
        fn tsc(&mut self) -> u64 {
            self.now_ns += 10;
            (u128::from(self.now_ns) * u128::from(self.khz) / 1_000_000) as u64
        }

        fn read_port(&mut self, port: u16) -> u8 {
            self.now_ns += 1000;
            assert_eq!(port, GATE);
            let near_its_end = |started: u64| (19_950_000..20_000_000).contains(&(self.now_ns - started));
            if self.started.is_some_and(near_its_end) && self.interruptions > 0 {
                self.interruptions -= 1;
                self.interrupted += 100_000;
                self.now_ns += self.interrupted;
            }
            let over = |started: u64| (self.now_ns - started) * PIT_HZ / 1_000_000_000 >= self.count;
            match self.pit {
                Pit::Missing => 0xff,
                Pit::Zeroes => 0,
                Pit::Counts if self.started.is_some_and(over) => self.gate | OUTPUT,
                Pit::Counts | Pit::Gated => self.gate,
            }
        }

        fn write_port(&mut self, port: u16, value: u8) {
            self.now_ns += 1000;
            match port {
                GATE => self.gate = value & 3,
                PIT_COMMAND => (self.low, self.started) = (None, None),
                _ => match self.low.take() {
                    None => self.low = Some(value),
                    Some(low) => {
                        self.count = u16::from_le_bytes([low, value]).into();
                        self.started = Some(self.now_ns);
                    }
                },
            }
        }

        fn read_hpet(&mut self, register: usize) -> u32 {
            self.now_ns += 1000;
            match register {
                _ if self.hpet_period == u32::MAX => u32::MAX,
                hpet::PERIOD => self.hpet_period,
                hpet::CONFIGURATION => self.hpet_on.into(),
                _ if !self.hpet_on || !self.hpet_ticks => 77,
                _ => (u128::from(self.now_ns) * 1_000_000 / u128::from(self.hpet_period)) as u32,
            }
        }

        fn write_hpet(&mut self, register: usize, value: u32) {
            assert_eq!(register, hpet::CONFIGURATION);
            self.hpet_on = value & hpet::ENABLE != 0;
        }

        fn read_pm_timer(&mut self) -> u32 {
            self.now_ns += 1000;
            if !self.pm_timer {
                return u32::MAX;
            }
            (u128::from(self.now_ns) * 3_579_545 / 1_000_000_000) as u32 & PM_TIMER_BITS
        }

        fn cpuid(&mut self, leaf: u32) -> [u32; 3] {
            self.leaves[leaf as usize - 0x15]
        }
    }

    #[test]
    fn the_pit_comes_first_and_serves_any_rate() {
        for khz in [10_500, 50_000, 1_000_000, 2_893_123, 19_000_000] {
            let mut machine = Machine::new(khz, Pit::Counts);
            machine.leaves = [[2, 200, 25_000_000], [2500, 0, 0]];
            machine.gate = SPEAKER_ON;
            assert_eq!(machine.calibrated(), Some(Source::Pit));
            assert_eq!(machine.gate, SPEAKER_ON, "as it was found");
        }
    }

    #[test]
    fn what_keeps_the_cpu_away_at_the_end_of_a_window_is_noticed() {
        for interruptions in 1..4 {
            let mut machine = Machine { interruptions, ..Machine::new(2_893_123, Pit::Counts) };
            assert_eq!((machine.calibrated(), machine.interruptions), (Some(Source::Pit), 0));
        }
        let mut always = Machine { interruptions: u64::MAX, ..Machine::new(2_893_123, Pit::Counts) };
        let took = always.milliseconds(|machine| assert!(calibrate(machine, |_| {}).is_some()));
        assert!((100..140).contains(&took), "{took} ms");
    }

    #[test]
    fn a_pit_that_does_not_count_costs_a_fraction_of_a_second() {
        for pit in [Pit::Gated, Pit::Zeroes, Pit::Missing] {
            let mut machine = Machine::new(2_900_000, pit);
            machine.pm_timer = true;
            let took = machine.milliseconds(|machine| assert_eq!(machine.calibrated(), Some(Source::PmTimer)));
            assert!(took < 300, "{took} ms");
        }
    }

    #[test]
    fn ones_at_the_gate_are_no_end_of_a_countdown() {
        let mut machine = Machine::new(2_900_000, Pit::Missing);
        assert_eq!(machine.calibrated(), None);
    }

    #[test]
    fn a_crystal_s_rate_is_exact() {
        let mut machine = Machine::new(2_904_000, Pit::Gated);
        machine.leaves = [[2, 242, 24_000_000], [2900, 0, 0]];
        assert_eq!(machine.calibrated(), Some(Source::Cpuid));
    }

    #[test]
    fn what_is_measured_is_better_than_a_nominal_rate() {
        let mut machine = Machine::new(2_904_000, Pit::Gated);
        machine.leaves = [[2, 242, 0], [2900, 0, 0]];
        machine.hpet_period = 41_666_667;
        assert_eq!(machine.calibrated(), Some(Source::Hpet));
        assert!(!machine.hpet_on, "as it was found");
        machine.hpet_ticks = false;
        machine.pm_timer = true;
        assert_eq!(machine.calibrated(), Some(Source::PmTimer));
        machine.khz = 2_900_000;
        machine.pm_timer = false;
        assert_eq!(machine.calibrated(), Some(Source::Nominal));
    }

    #[test]
    fn counters_may_wrap_while_they_are_watched() {
        let mut machine = Machine::new(2_900_000, Pit::Gated);
        machine.pm_timer = true;
        // The PM timer wraps every 4.7 s; the PIT's turn takes some 170 ms of them.
        for step in 0..40 {
            machine.now_ns = (1 << 40) + step * 125_000_000;
            assert_eq!(machine.calibrated(), Some(Source::PmTimer));
        }
    }

    #[test]
    fn a_rate_that_no_tsc_has_is_not_believed() {
        for khz in [100, 1_000, 9_000, 25_000_000] {
            let mut machine = Machine::new(khz, Pit::Counts);
            machine.pm_timer = true;
            machine.leaves = [[1, 1, 1_000_000], [0; 3]];
            assert_eq!(machine.calibrated(), None, "{khz} kHz");
        }
        assert_eq!(rate(5, 0, 0), None);
        assert_eq!(rate(u64::MAX, 1, 1), None);
    }

    #[test]
    fn a_tsc_that_stands_still_is_not_waited_for() {
        let mut machine = Machine::new(0, Pit::Gated);
        machine.pm_timer = true;
        machine.hpet_period = 69_841_279;
        machine.leaves = [[2, 242, 24_000_000], [2900, 0, 0]];
        assert_eq!(machine.calibrated(), None);
    }

    #[test]
    fn an_hpet_with_an_impossible_period_is_none() {
        for period in [0, 1, 999_999, 100_000_001, u32::MAX - 1] {
            let mut machine = Machine::new(2_900_000, Pit::Gated);
            machine.hpet_period = period;
            assert_eq!(machine.calibrated(), None);
        }
    }
}
