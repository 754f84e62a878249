//! I/O ports: which of them a domain reaches directly, and what answers at the others.
//!
//! Dom0 has the host's ports, except those in [`DENIED`] and the devices here. Any other domain has none but the
//! devices. A port that is denied reads as all ones, as an empty bus does, and drops what is written.

use core::ops::RangeInclusive;

use arrayvec::ArrayVec;
use sched::Nanos;

use super::cmos::{self, Cell, Cmos};

/// Ports that Dom0 must not touch, because Corten owns the device or because the device could touch everyone's memory.
const DENIED: [RangeInclusive<u16>; 9] = [
    0x00..=0x1f,   // ISA DMA controller 1
    0x20..=0x21,   // interrupt controller, master
    0x40..=0x43,   // interval timer
    0x80..=0x8f,   // ISA DMA page registers
    0x92..=0x92,   // fast A20 and INIT
    0xa0..=0xa1,   // interrupt controller, slave
    0xc0..=0xdf,   // ISA DMA controller 2
    0xf0..=0xf0,   // coprocessor error
    0x4d0..=0x4d1, // trigger mode of the interrupt controllers
];

const SPEAKER: u16 = 0x61;
/// Where hvmloader, firmware and a few kernels write early messages.
const DEBUG_CONSOLE: u16 = 0xe9;
const PCI_CONFIG: RangeInclusive<u16> = 0xcf8..=0xcff;
const RESET_CONTROL: u16 = 0xcf9;

/// WAK_STS in PM1a_STS and PM1b_STS (ACPI 6.5, table 4.11): the machine has slept and woken up.
const WAKE_STATUS: u32 = 1 << 15;

/// One bit a port: 64 Ki of them.
pub const BITMAP_WORDS: usize = 1024;

/// Frequency of the ACPI PM timer, in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// The ACPI PM timer, from the FADT.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PmTimer {
    pub port: u16,
    /// 32 bits wide instead of 24: FADT flag TMR_VAL_EXT.
    pub wide: bool,
}

impl PmTimer {
    /// The timer's value at a time counted from boot.
    pub const fn value(self, now: Nanos) -> u32 {
        const SECOND: u64 = 1_000_000_000;
        let (seconds, rest) = (now.0 / SECOND, now.0 % SECOND);
        // The rest is below 2^30 and the frequency below 2^22.
        let ticks = seconds.wrapping_mul(PM_TIMER_HZ).wrapping_add(rest.wrapping_mul(PM_TIMER_HZ) / SECOND);
        if self.wide { ticks as u32 } else { ticks as u32 & 0xff_ffff }
    }

    const fn ports(self) -> RangeInclusive<u16> {
        self.port..=self.port.saturating_add(3)
    }
}

/// Which reset was asked for (port 0xcf9).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The CPUs only.
    Soft,
    /// The whole machine.
    Hard,
    /// The whole machine, with its power off for a moment.
    PowerCycle,
}

/// The answer to a read.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Read {
    Value(u32),
    /// The byte that this cell of the chip holds.
    Cmos(Cell),
    /// For the virtual PCI bus: configuration mechanism #1.
    Pci,
    /// A read of the host's own port, and these bits besides.
    Physical {
        and: u32,
    },
}

/// What a write asks the run loop to do.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    Nothing,
    Cmos {
        cell: Cell,
        value: u8,
    },
    /// For the virtual PCI bus: configuration mechanism #1.
    Pci,
    Reset(Reset),
    /// A byte for the domain's console.
    DebugConsole(u8),
    /// A write to an ACPI power-management control register, to be made as it is, unless it is a `sleep` that Corten cannot let happen.
    PowerControl {
        sleep: Option<Sleep>,
    },
    /// A write to an ACPI power-management status register, to be made as it is.
    PowerStatus,
}

/// SLP_EN is written: the machine enters a sleep state, or is off.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// By PM1b_CNT, not by PM1a_CNT.
    pub second: bool,
    /// SLP_TYP: what it means is the firmware's to say.
    pub kind: u8,
}

/// What is at a port.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Device {
    /// The host's: not trapped, and if it is, all the same denied.
    PassedThrough,
    Nothing,
    Speaker,
    Cmos,
    PmTimer(PmTimer),
    Pci,
    ResetControl,
    DebugConsole,
    PowerControl,
    PowerStatus,
}

/// Most ranges that Corten keeps to itself: its console, and a spare.
const MOST_HIDDEN: usize = 4;

/// The ports of one domain.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Dom0: what no device here answers is the host's.
    host: bool,
    hidden: ArrayVec<RangeInclusive<u16>, MOST_HIDDEN>,
    pm_timer: Option<PmTimer>,
    /// PM1a_CNT_BLK and PM1b_CNT_BLK, two bytes each; 0 for none. Dom0 has them, but not before the console is out.
    power_control: [u16; 2],
    /// PM1a_STS and PM1b_STS, likewise.
    power_status: [u16; 2],
    /// The domain was kept from sleeping, and is told that it has woken up (WAK_STS) until it has taken note.
    woken: bool,
    cmos: Cmos,
    /// Bits 1:0 of port 0x61: the gate of timer channel 2, and the speaker's.
    speaker: u8,
    reset_control: u8,
}

impl Ports {
    /// For Dom0, on a machine with this PM timer and with these ports, such as its console's, kept by Corten. None: too
    /// many of them.
    pub fn dom0(pm_timer: Option<PmTimer>, hidden: &[RangeInclusive<u16>]) -> Option<Ports> {
        let mut ports = Ports { host: true, pm_timer, ..Ports::guest() };
        for range in hidden {
            ports.hidden.try_push(range.clone()).ok()?;
        }
        Some(ports)
    }

    /// Watches the ACPI power-management control and status registers.
    #[must_use]
    pub fn with_power_management(self, power_control: [u16; 2], power_status: [u16; 2]) -> Ports {
        Ports { power_control, power_status, ..self }
    }

    /// The domain wanted to sleep and was not let. It polls for the end of its sleep with interrupts off: that has come.
    pub const fn wake(&mut self) {
        self.woken = true;
    }

    /// For a domain without the host's ports.
    pub const fn guest() -> Ports {
        Ports {
            host: false,
            hidden: ArrayVec::new_const(),
            pm_timer: None,
            power_control: [0; 2],
            power_status: [0; 2],
            woken: false,
            cmos: Cmos::new(),
            speaker: 0,
            reset_control: 0,
        }
    }

    fn device(&self, port: u16) -> Device {
        if port == DEBUG_CONSOLE {
            return Device::DebugConsole;
        }
        if !self.host {
            return Device::Nothing;
        }
        let is_one_of = |registers: &[u16; 2]| registers.iter().any(|&first| first != 0 && port & !1 == first & !1);
        match (port, self.pm_timer) {
            (SPEAKER, _) => Device::Speaker,
            (RESET_CONTROL, _) => Device::ResetControl,
            // Before all that have to be compared one by one.
            _ if PCI_CONFIG.contains(&port) => Device::Pci,
            (_, Some(timer)) if timer.ports().contains(&port) => Device::PmTimer(timer),
            _ if cmos::PORTS.contains(&port) => Device::Cmos,
            _ if is_one_of(&self.power_control) => Device::PowerControl,
            _ if is_one_of(&self.power_status) => Device::PowerStatus,
            _ if DENIED.iter().chain(&self.hidden).any(|range| range.contains(&port)) => Device::Nothing,
            _ => Device::PassedThrough,
        }
    }

    /// What answers an access of `size` bytes. One that leaves its device answers as nothing does.
    fn route(&self, port: u16, size: u8) -> Device {
        let device = self.device(port);
        let last = port.checked_add(u16::from(size).saturating_sub(1));
        match device {
            // A 32-bit access at 0xcf8 covers the reset control's port and is no access to it; a wider one at 0xcf9
            // likewise.
            Device::ResetControl | Device::Pci if size > 1 => match last {
                Some(last) if PCI_CONFIG.contains(&last) => Device::Pci,
                _ => Device::Nothing,
            },
            // Two bytes, or four with the two behind them, as some kernels have it.
            Device::PowerControl | Device::PowerStatus => device,
            Device::PmTimer(_) if last.is_some_and(|last| self.device(last) == device) => device,
            _ if size == 1 => device,
            _ => Device::Nothing,
        }
    }

    /// Sets the bit of every port whose access must exit, and clears the others. SVM and VMX read it alike.
    pub fn fill_bitmap(&self, bitmap: &mut [u64; BITMAP_WORDS]) {
        for (base, word) in (0..=u16::MAX).step_by(64).zip(bitmap) {
            *word = (0..64u16)
                .filter(|bit| self.device(base | bit) != Device::PassedThrough)
                .fold(0, |word, bit| word | 1 << bit);
        }
    }

    /// An IN of `size` bytes (1, 2 or 4) that exited. The value is within the size.
    pub fn read(&self, port: u16, size: u8, now: Nanos) -> Read {
        let ones = match size {
            1 => 0xff,
            2 => 0xffff,
            _ => u32::MAX,
        };
        Read::Value(match self.route(port, size) {
            Device::Cmos => match self.cmos.read(port) {
                cmos::Access::Known(index) => index.into(),
                cmos::Access::Physical(cell) => return Read::Cmos(cell),
            },
            Device::Pci => return Read::Pci,
            Device::PowerControl => return Read::Physical { and: 0 },
            Device::PowerStatus => {
                let woken = if self.woken { WAKE_STATUS } else { 0 };
                return Read::Physical { and: woken >> (u32::from(port & 1) << 3) & ones };
            }
            Device::PmTimer(timer) => {
                let byte = u32::from(port.saturating_sub(timer.port) & 3);
                timer.value(now) >> (byte << 3) & ones
            }
            Device::Speaker => self.read_speaker(now).into(),
            Device::ResetControl => self.reset_control.into(),
            Device::Nothing | Device::PassedThrough | Device::DebugConsole => ones,
        })
    }

    /// Port 0x61. No timer channel 2 is behind it: its output is always high, as if it had run out, so that a loop that
    /// waits for it ends. The refresh bit toggles as it does in hardware, every 15 µs. The upper bits, which report
    /// parity and channel errors as the reason of an NMI, are clear.
    const fn read_speaker(&self, now: Nanos) -> u8 {
        const REFRESH_NS: u64 = 15_085;
        const CHANNEL_2_OUTPUT: u8 = 1 << 5;
        let refresh = (now.0 / REFRESH_NS) as u8 & 1;
        self.speaker | refresh << 4 | CHANNEL_2_OUTPUT
    }

    /// An OUT of `size` bytes (1, 2 or 4) that exited.
    pub fn write(&mut self, port: u16, size: u8, value: u32) -> Effect {
        match self.route(port, size) {
            Device::Cmos => match self.cmos.write(port, value as u8) {
                Some(cell) => Effect::Cmos { cell, value: value as u8 },
                None => Effect::Nothing,
            },
            Device::Pci => Effect::Pci,
            Device::PowerControl => {
                // SLP_EN is bit 13, SLP_TYP the three below (ACPI 6.5, table 4.13): they may come in a byte of their own.
                let word = value.wrapping_shl(u32::from(port & 1) << 3);
                let [first, _] = self.power_control;
                let second = first == 0 || port & !1 != first & !1;
                let sleep = Sleep { second, kind: (word >> 10) as u8 & 7 };
                Effect::PowerControl { sleep: (word & 1 << 13 != 0).then_some(sleep) }
            }
            Device::PowerStatus => {
                // Its bits are cleared by writing ones.
                if value.wrapping_shl(u32::from(port & 1) << 3) & WAKE_STATUS != 0 {
                    self.woken = false;
                }
                Effect::PowerStatus
            }
            Device::Speaker => {
                self.speaker = value as u8 & 0b11;
                Effect::Nothing
            }
            Device::ResetControl => self.write_reset_control(value as u8),
            Device::DebugConsole => Effect::DebugConsole(value as u8),
            Device::Nothing | Device::PassedThrough | Device::PmTimer(_) => Effect::Nothing,
        }
    }

    const fn write_reset_control(&mut self, value: u8) -> Effect {
        const SYSTEM: u8 = 1 << 1;
        const NOW: u8 = 1 << 2;
        const FULL: u8 = 1 << 3;
        self.reset_control = value & (SYSTEM | FULL);
        if value & NOW == 0 {
            Effect::Nothing
        } else if value & SYSTEM == 0 {
            Effect::Reset(Reset::Soft)
        } else if value & FULL == 0 {
            Effect::Reset(Reset::Hard)
        } else {
            Effect::Reset(Reset::PowerCycle)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cmos::Bank;
    use super::*;
    use proptest::prelude::*;

    const NOW: Nanos = Nanos(0);

    fn dom0() -> Ports {
        Ports::dom0(Some(PmTimer { port: 0x608, wide: false }), &[0x3f8..=0x3ff]).unwrap()
    }

    fn bitmap(ports: &Ports) -> Vec<u16> {
        let mut words = [0u64; BITMAP_WORDS];
        ports.fill_bitmap(&mut words);
        (0..=u16::MAX).filter(|port| words[usize::from(port / 64)] >> (port % 64) & 1 != 0).collect()
    }

    #[test]
    fn dom0_is_trapped_where_corten_owns_the_device_and_nowhere_else() {
        let expected: Vec<u16> = [
            0x00..=0x21,
            0x40..=0x43,
            0x61..=0x61,
            0x70..=0x73,
            0x80..=0x8f,
            0x92..=0x92,
            0xa0..=0xa1,
            0xc0..=0xdf,
            0xe9..=0xe9,
            0xf0..=0xf0,
            0x3f8..=0x3ff,
            0x4d0..=0x4d1,
            0x608..=0x60b,
            0xcf8..=0xcff,
        ]
        .into_iter()
        .flatten()
        .collect();
        assert_eq!(bitmap(&dom0()), expected);
    }

    #[test]
    fn dom0_powers_off_by_the_host_s_register_which_is_watched() {
        let mut ports = dom0().with_power_management([0x604, 0x704], [0; 2]);
        let sleeps = |second, kind| Effect::PowerControl { sleep: Some(Sleep { second, kind }) };
        assert_eq!(ports.read(0x604, 2, NOW), Read::Physical { and: 0 });
        assert_eq!(ports.write(0x604, 2, 0x1c01), Effect::PowerControl { sleep: None });
        assert_eq!(ports.write(0x604, 2, 0x2000), sleeps(false, 0));
        assert_eq!(ports.write(0x605, 1, 0x34), sleeps(false, 5));
        assert_eq!(ports.write(0x704, 4, 0x3c00), sleeps(true, 7));
        assert!(bitmap(&ports).contains(&0x604) && bitmap(&ports).contains(&0x605));
    }

    #[test]
    fn who_is_kept_from_sleeping_finds_that_it_has_woken_up() {
        let mut ports = dom0().with_power_management([0x604, 0], [0x600, 0]);
        assert!(bitmap(&ports).contains(&0x600) && !bitmap(&ports).contains(&0x602), "not the enable register");
        assert_eq!(ports.write(0x600, 2, 0x8000), Effect::PowerStatus);
        assert_eq!(ports.read(0x600, 2, NOW), Read::Physical { and: 0 });
        ports.wake();
        assert_eq!(ports.read(0x600, 2, NOW), Read::Physical { and: 0x8000 });
        assert_eq!(ports.read(0x600, 1, NOW), Read::Physical { and: 0 });
        assert_eq!(ports.read(0x601, 1, NOW), Read::Physical { and: 0x80 });
        assert_eq!(ports.read(0x604, 2, NOW), Read::Physical { and: 0 });
        assert_eq!(ports.write(0x600, 2, 0x0100), Effect::PowerStatus);
        assert_eq!(ports.read(0x600, 4, NOW), Read::Physical { and: 0x8000 });
        assert_eq!(ports.write(0x601, 1, 0x80), Effect::PowerStatus);
        assert_eq!(ports.read(0x600, 2, NOW), Read::Physical { and: 0 });
    }

    #[test]
    fn a_guest_is_trapped_everywhere() {
        assert_eq!(bitmap(&Ports::guest()).len(), 0x10000);
        let mut ports = Ports::guest();
        for port in [0x61, 0x70, 0xcf8, 0xcf9, 0x3f8, 0x1f0] {
            assert_eq!(ports.read(port, 1, NOW), Read::Value(0xff));
            assert_eq!(ports.write(port, 1, 0x06), Effect::Nothing);
        }
        assert_eq!(ports.write(0xe9, 1, b'x'.into()), Effect::DebugConsole(b'x'));
    }

    #[test]
    fn a_denied_port_reads_as_an_empty_bus_and_drops_writes() {
        let mut ports = dom0();
        for port in [0x00, 0x20, 0x21, 0x40, 0x43, 0x87, 0x92, 0xa1, 0xc4, 0xf0, 0x3f8, 0x3fd, 0x4d0] {
            assert_eq!(ports.read(port, 1, NOW), Read::Value(0xff), "{port:#x}");
            assert_eq!(ports.write(port, 1, 0xff), Effect::Nothing);
        }
        assert_eq!(ports.read(0x40, 4, NOW), Read::Value(u32::MAX));
        assert_eq!(ports.read(0x20, 2, NOW), Read::Value(0xffff));
    }

    #[test]
    fn an_access_that_leaves_its_device_is_denied() {
        let mut ports = dom0();
        assert_eq!(ports.read(0x3f6, 4, NOW), Read::Value(u32::MAX));
        assert_eq!(ports.read(0x60, 2, NOW), Read::Value(0xffff));
        assert_eq!(ports.read(0x609, 4, NOW), Read::Value(u32::MAX));
        assert_eq!(ports.write(0xcfe, 4, 0), Effect::Nothing);
        assert_eq!(ports.write(0x70, 2, 0), Effect::Nothing);
        assert_eq!(ports.read(0xffff, 4, NOW), Read::Value(u32::MAX));
    }

    #[test]
    fn the_pm_timer_runs_at_its_rate_and_wraps_at_its_width() {
        let narrow = PmTimer { port: 0x608, wide: false };
        let wide = PmTimer { wide: true, ..narrow };
        assert_eq!(narrow.value(Nanos::ZERO), 0);
        assert_eq!(wide.value(Nanos::from_secs(1)), 3_579_545);
        assert_eq!(wide.value(Nanos::from_millis(500)), 1_789_772);
        assert_eq!(narrow.value(Nanos::from_secs(5)), (5 * 3_579_545) & 0xff_ffff);
        assert_eq!(wide.value(Nanos::from_secs(5)), 5 * 3_579_545);
        assert_eq!(u64::from(wide.value(Nanos::from_secs(86_400))), 86_400 * 3_579_545 % (1 << 32));
    }

    #[test]
    fn the_pm_timer_is_read_in_any_width_and_never_written() {
        let mut ports = dom0();
        let now = Nanos::from_secs(1);
        assert_eq!(ports.read(0x608, 4, now), Read::Value(3_579_545));
        assert_eq!(ports.read(0x608, 1, now), Read::Value(3_579_545 & 0xff));
        assert_eq!(ports.read(0x60a, 2, now), Read::Value(3_579_545 >> 16));
        assert_eq!(ports.write(0x608, 4, 0), Effect::Nothing);
    }

    #[test]
    fn the_speaker_port_keeps_its_gates_and_reports_no_nmi_reason() {
        let mut ports = dom0();
        assert_eq!(ports.write(0x61, 1, 0xff), Effect::Nothing);
        let read = |ports: &Ports, now| match ports.read(0x61, 1, Nanos(now)) {
            Read::Value(value) => value,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(&ports, 0), 0b0010_0011);
        assert_eq!(read(&ports, 16_000), 0b0011_0011);
        assert_eq!(read(&ports, 32_000), 0b0010_0011);
    }

    #[test]
    fn cmos_accesses_become_whole_physical_ones() {
        let mut ports = dom0();
        assert_eq!(ports.write(0x70, 1, 0x8a), Effect::Nothing);
        let cell = Cell { bank: Bank::Standard, index: 0x0a };
        assert_eq!(ports.read(0x71, 1, NOW), Read::Cmos(cell));
        assert_eq!(ports.write(0x71, 1, 0x26), Effect::Cmos { cell, value: 0x26 });
        assert_eq!(ports.read(0x70, 1, NOW), Read::Value(0x8a));
    }

    #[test]
    fn only_the_reset_bit_resets() {
        let mut ports = dom0();
        assert_eq!(ports.write(0xcf9, 1, 0x02), Effect::Nothing);
        assert_eq!(ports.read(0xcf9, 1, NOW), Read::Value(0x02));
        assert_eq!(ports.write(0xcf9, 1, 0x06), Effect::Reset(Reset::Hard));
        assert_eq!(ports.write(0xcf9, 1, 0x0e), Effect::Reset(Reset::PowerCycle));
        assert_eq!(ports.write(0xcf9, 1, 0x04), Effect::Reset(Reset::Soft));
    }

    #[test]
    fn pci_configuration_goes_to_the_virtual_bus() {
        let mut ports = dom0();
        assert_eq!(ports.write(0xcf8, 4, 0x8000_0006), Effect::Pci, "not a reset, though it covers 0xcf9");
        for (port, size) in [(0xcf8, 4), (0xcfc, 4), (0xcfc, 1), (0xcfe, 2), (0xcff, 1)] {
            assert_eq!(ports.read(port, size, NOW), Read::Pci);
        }
    }

    #[test]
    fn too_many_hidden_ranges_are_refused() {
        let range = || 0x2f8..=0x2ff;
        assert!(Ports::dom0(None, &[range(), range(), range(), range()]).is_some());
        assert!(Ports::dom0(None, &[range(), range(), range(), range(), range()]).is_none());
    }

    proptest! {
        #[test]
        fn a_read_never_exceeds_its_size(
            port in any::<u16>(),
            size in prop::sample::select(vec![1u8, 2, 4]),
            now in any::<u64>(),
        ) {
            if let Read::Value(value) = dom0().read(port, size, Nanos(now)) {
                prop_assert!(u64::from(value) < 1 << (8 * size));
            }
        }
    }
}
