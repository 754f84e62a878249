//! The options that Corten understands: Xen's, where they mean the same. The tables at the end are the whole list.

use core::fmt;

use arch_x86::power::ResetMethod;
use log::LevelFilter;
use sched::{Arrangement, Kind, Nanos, Params};

use crate::cmdline::{self, Word};

/// What the command line says, with defaults for what it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// `dom0_mem=`, as written: its parser is the Dom0 builder's.
    pub dom0_mem: Option<&'a str>,
    pub dom0_max_vcpus: Option<VcpuCount>,
    /// `maxcpus=`: how many CPUs are used.
    pub max_cpus: Option<u32>,
    /// `com1=` and `com2=`.
    pub serial: [SerialOptions; 2],
    pub console: ConsoleOptions,
    /// How much of Corten's own messages to show.
    pub log_level: LevelFilter,
    /// How much of the messages about guests to show.
    pub guest_log_level: LevelFilter,
    /// `noreboot`: after a crash, stop and leave the screen as it is.
    pub no_reboot: bool,
    /// `reboot=`: how the machine is reset.
    pub reboot: ResetMethod,
    pub vpid: Option<bool>,
    pub sync_console: bool,
    /// `sched=` and the options that tune it.
    pub scheduler: sched::Wanted,
    /// `conring_size=`: bytes of the ring that `xl dmesg` reads.
    pub console_ring: u64,
    /// `mem=`: RAM above this address is left alone.
    pub memory_limit: Option<u64>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            dom0_mem: None,
            dom0_max_vcpus: None,
            max_cpus: None,
            serial: [SerialOptions::new(0x3f8, 4), SerialOptions::new(0x2f8, 3)],
            console: ConsoleOptions::default(),
            log_level: LevelFilter::Info,
            guest_log_level: LevelFilter::Warn,
            no_reboot: false,
            reboot: ResetMethod::default(),
            vpid: None,
            sync_console: false,
            scheduler: sched::Wanted::default(),
            console_ring: 128 << 10,
            memory_limit: None,
        }
    }
}

/// `dom0_max_vcpus=`: a number, or a least and a greatest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuCount {
    pub least: u32,
    pub most: u32,
}

impl VcpuCount {
    /// As many as there are CPUs, if that is within the two; at least one.
    pub fn of(self, cpus: u32) -> u32 {
        let least = self.least.max(1);
        cpus.clamp(least, self.most.max(least))
    }
}

/// A serial port. Xen's syntax: `BAUD[,DPS[,PORT[,IRQ]]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialOptions {
    /// `None`: leave the rate as the firmware set it (`auto`).
    pub baud: Option<u32>,
    pub data_bits: u8,
    pub parity: Parity,
    pub two_stop_bits: bool,
    pub port: u16,
    /// 0 for none: the port is polled.
    pub irq: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    None,
    Odd,
    Even,
    Mark,
    Space,
}

impl SerialOptions {
    const fn new(port: u16, irq: u8) -> Self {
        Self { baud: None, data_bits: 8, parity: Parity::None, two_stop_bits: false, port, irq }
    }
}

/// Where the console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleOptions {
    /// The serial port, 0 for COM1. Of several named the first counts.
    pub serial: Option<usize>,
    pub screen: bool,
    /// `vga=keep`: go on writing to the screen when Dom0 runs.
    pub keep_screen: bool,
}

impl Default for ConsoleOptions {
    fn default() -> Self {
        Self { serial: Some(0), screen: true, keep_screen: false }
    }
}

/// What is to be said about a word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// Nobody knows the option.
    Unknown(&'a str),
    /// Xen has the option, and Corten does the same whatever it says.
    Ignored(&'a str),
    /// The value cannot be understood; what was expected.
    Malformed(&'a str, &'static str),
}

impl fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown option {word}; ignored (see README, \"Command line\")"),
            Self::Ignored(word) => write!(f, "{word}: an option of Xen's that changes nothing here; ignored"),
            Self::Malformed(word, expected) => write!(f, "{word}: {expected}; ignored"),
        }
    }
}

/// A value that cannot be understood, and what was expected instead.
type Expected = &'static str;

impl<'a> Options<'a> {
    /// Reads a command line; `notice` hears what is wrong with it.
    pub fn parse(line: &'a str, mut notice: impl FnMut(Notice<'a>)) -> Self {
        let mut options = Self::default();
        for word in cmdline::words(line) {
            match options.take(word) {
                Ok(None) => {}
                Ok(Some(what)) => notice(what),
                Err(expected) => notice(Notice::Malformed(word.text, expected)),
            }
        }
        options
    }

    fn take(&mut self, word: Word<'a>) -> Result<Option<Notice<'a>>, Expected> {
        if let Some((_, set)) = VALUES.iter().find(|(name, _)| *name == word.name) {
            // A few of these may stand alone or be negated (`no-iommu`): that is a value, too.
            let value = match (word.value, word.negated) {
                (Some(value), false) => value,
                (None, true) => "no",
                (None, false) => "yes",
                (Some(_), true) => return Err("no- and a value contradict each other"),
            };
            set(self, value)?;
            return Ok(None);
        }
        if let Some((_, set)) = SWITCHES.iter().find(|(name, _)| *name == word.name) {
            set(self, word.as_bool().ok_or("expected on or off")?);
            return Ok(None);
        }
        if SILENT.contains(&word.name) {
            return Ok(None);
        }
        if IGNORED.contains(&word.name) {
            return Ok(Some(Notice::Ignored(word.text)));
        }
        Ok(Some(Notice::Unknown(word.text)))
    }
}

/// Sets one option from its value.
type SetValue = for<'a> fn(&mut Options<'a>, &'a str) -> Result<(), Expected>;
/// Sets one switch.
type SetSwitch = for<'a> fn(&mut Options<'a>, bool);

/// Options with a value.
#[rustfmt::skip]
const VALUES: &[(&str, SetValue)] = &[
    ("com1",           |o, v| serial(&mut o.serial[0], v)),
    ("com2",           |o, v| serial(&mut o.serial[1], v)),
    ("conring_size",   |o, v| ring_size(v).map(|size| o.console_ring = size)),
    ("console",        |o, v| console(&mut o.console, v)),
    ("credit2_cap_period_ms", |o, v| cap_period(v).map(|period| o.scheduler.params.cap_period = period)),
    ("credit2_load_window_shift", |o, v| window_shift(v).map(|shift| o.scheduler.params.load_window_shift = shift)),
    ("credit2_runqueue", |o, v| run_queue(v).map(|by| o.scheduler.params.arrangement = by)),
    ("dom0",           |_, v| dom0(v)),
    ("dom0_max_vcpus", |o, v| vcpu_count(v).map(|count| o.dom0_max_vcpus = Some(count))),
    ("dom0_mem",       |o, v| { o.dom0_mem = Some(v); Ok(()) }),
    ("guest_loglvl",   |o, v| level(v).map(|level| o.guest_log_level = level)),
    ("loglvl",         |o, v| level(v).map(|level| o.log_level = level)),
    ("maxcpus",        |o, v| cpus(v).map(|most| o.max_cpus = Some(most))),
    ("mem",            |o, v| memory(v).map(|limit| o.memory_limit = Some(limit))),
    ("reboot",         |o, v| reboot(o, v)),
    ("sched",          |o, v| scheduler(v).map(|kind| o.scheduler.kind = kind)),
    ("sched_credit2_max_cpus_runqueue", |o, v| count(v).map(|cpus| o.scheduler.params.most_cpus = cpus as usize)),
    ("sched_ratelimit_us", |o, v| ratelimit(v).map(|limit| o.scheduler.params.ratelimit = limit)),
    ("vga",            |o, v| { o.console.keep_screen |= v.split(',').any(|word| word == "keep"); Ok(()) }),
    ("vpid",           |o, v| switch(v).map(|on| o.vpid = Some(on))),
];

/// Options that are on or off.
#[rustfmt::skip]
const SWITCHES: &[(&str, SetSwitch)] = &[
    ("nosmp",        |o, on| o.max_cpus = if on { Some(1) } else { o.max_cpus }),
    ("noreboot",     |o, on| o.no_reboot = on),
    ("sync_console", |o, on| o.sync_console = on),
];

/// What boot loaders add, and what is meant for Xen's real-mode code.
const SILENT: &[&str] = &["placeholder", "real-mode", "edd", "edid"];

/// Options of Xen's that do not apply here, so that a command line written for Xen is not called wrong.
const IGNORED: &[&str] = &[
    "acpi",
    "acpi_apic_instance",
    "acpi_pstate_strict",
    "acpi_sleep",
    "allow_unsafe",
    "allowsuperpage",
    "altp2m",
    "apic_verbosity",
    "apicv",
    "argo",
    "asid",
    "ats",
    "availmem",
    "badpage",
    "bootscrub",
    "bootscrub_chunk",
    "bti",
    "buddy-alloc-size",
    "cet",
    "clocksource",
    "cmci-threshold",
    "console_timestamps",
    "console_to_ring",
    "conswitch",
    "core_parking",
    "cpu_type",
    "cpufreq",
    "cpuid",
    "cpuid_mask_cpu",
    "cpuidle",
    "cpuinfo",
    "crashinfo_maxaddr",
    "crashkernel",
    "credit2_balance_over",
    "credit2_balance_under",
    "credit2_load_precision_shift",
    "dbgp",
    "debug_stack_lines",
    "dit",
    "dma_bits",
    "dom0-cpuid",
    "dom0-iommu",
    "dom0_ioports_disable",
    "dom0_nodes",
    "dom0_vcpus_pin",
    "dtuart",
    "e820-mtrr-clip",
    "e820-verbose",
    "efi",
    "ept",
    "ept-sync",
    "exec-sp",
    "ext_regions",
    "extra_guest_irqs",
    "force-ept",
    "gdb",
    "global-pages",
    "gnttab",
    "gnttab_max_frames",
    "gnttab_max_maptrack_frames",
    "guest_nmi",
    "hap",
    "hap_1gb",
    "hap_2mb",
    "hardware_dom",
    "hest_disable",
    "highmem-start",
    "hmp-unsafe",
    "hpet",
    "hpet_broadcast",
    "hpetbroadcast",
    "hvm_debug",
    "hvm_fep",
    "idle_latency_factor",
    "ioapic_ack",
    "invpcid",
    "iommu",
    "iommu_dev_iotlb_timeout",
    "irq-max-guests",
    "irq_ratelimit",
    "irq_vector_map",
    "ivmd",
    "kexec",
    "l1tf",
    "lapic",
    "lapic_timer_c2_ok",
    "ler",
    "low_crashinfo",
    "low_mem_virq_limit",
    "max_cstate",
    "max_gsi_irqs",
    "max_lpi_bits",
    "mce",
    "mce_fb",
    "mce_verbosity",
    "memop-max-order",
    "mmcfg",
    "mmio-relax",
    "msi",
    "mtrr",
    "mwait-idle",
    "nmi",
    "nmi_softirq",
    "nohpet",
    "nolapic",
    "nordrand",
    "noirqbalance",
    "nospec",
    "nr_irqs",
    "numa",
    "partial-emulation",
    "pci",
    "pci-passthrough",
    "pci-phantom",
    "pcid",
    "pdx-compress",
    "pku",
    "ple_gap",
    "ple_window",
    "probe-port-aliases",
    "psr",
    "pv",
    "pv-l1tf",
    "pv-linear-pt",
    "pv32",
    "pvshim",
    "rmrr",
    "ro-hpet",
    "rtc",
    "sched-gran",
    "sched_credit_tslice_ms",
    "sched_smt_power_savings",
    "scrub-domheap",
    "serial_tx_buffer",
    "serrors",
    "shim_mem",
    "shim",
    "smap",
    "smep",
    "smt",
    "snb_igd_quirk",
    "spec-ctrl",
    "suppress-overflow-logs",
    "tbuf_size",
    "tdp",
    "tevt_mask",
    "tickle_one_idle",
    "timer_slop",
    "tsc",
    "tsx",
    "ucode",
    "umip",
    "unrestricted_guest",
    "vcpu_migration_delay",
    "vesa-map",
    "vesa-ram",
    "vgic_version",
    "viridian-spinlock-retry-count",
    "viridian-version",
    "vm-notify-window",
    "vmtrace",
    "vpmu",
    "vti",
    "vwfi",
    "watchdog",
    "watchdog_timeout",
    "wfi",
    "x2apic",
    "x2apic_phys",
    "xenheap_megabytes",
    "xpti",
    "xsave",
    "xsm",
    "flask",
];

fn switch(value: &str) -> Result<bool, Expected> {
    cmdline::boolean(value).ok_or("expected on or off")
}

fn count(value: &str) -> Result<u32, Expected> {
    cmdline::number(value).and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0).ok_or("expected a number above 0")
}

/// Zero means that there is no SMP, which is one CPU.
fn cpus(value: &str) -> Result<u32, Expected> {
    cmdline::number(value).and_then(|n| u32::try_from(n).ok()).map(|n| n.max(1)).ok_or("expected a number of CPUs")
}

fn memory(value: &str) -> Result<u64, Expected> {
    cmdline::size(value)
        .filter(|&bytes| bytes >= 64 << 20)
        .ok_or("expected an amount of memory such as 4G, at least 64M")
}

fn scheduler(value: &str) -> Result<Kind, Expected> {
    Kind::parse(value).ok_or("expected credit2 or null")
}

fn run_queue(value: &str) -> Result<Arrangement, Expected> {
    Arrangement::parse(value).ok_or("expected cpu, core, socket, node or all")
}

fn ratelimit(value: &str) -> Result<Nanos, Expected> {
    let limit = cmdline::number(value).map(Nanos::from_micros);
    let known = limit.filter(|limit| *limit == Nanos::ZERO || Params::RATELIMITS.contains(limit));
    known.ok_or("expected microseconds from 100 to 500000, or 0 for no limit")
}

fn cap_period(value: &str) -> Result<Nanos, Expected> {
    let period = cmdline::number(value).filter(|period| (1..=1000).contains(period));
    period.map(Nanos::from_millis).ok_or("expected milliseconds from 1 to 1000")
}

fn window_shift(value: &str) -> Result<u32, Expected> {
    let shift = cmdline::number(value).and_then(|shift| u32::try_from(shift).ok());
    shift.filter(|shift| (10..=40).contains(shift)).ok_or("expected a power of two of nanoseconds from 10 to 40")
}

fn ring_size(value: &str) -> Result<u64, Expected> {
    cmdline::size(value)
        .filter(|bytes| (16 << 10..=16 << 20).contains(bytes))
        .and_then(u64::checked_next_power_of_two)
        .ok_or("expected a size from 16k to 16M")
}

fn level(value: &str) -> Result<LevelFilter, Expected> {
    // `a/b`: Xen limits the rate of messages between the two levels; all up to the second are shown.
    let most = value.split_once('/').map_or(value, |(_, most)| most);
    match most {
        "none" => Ok(LevelFilter::Off),
        "error" => Ok(LevelFilter::Error),
        "warning" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        "all" => Ok(LevelFilter::Trace),
        _ => Err("expected none, error, warning, info, debug or all"),
    }
}

fn vcpu_count(value: &str) -> Result<VcpuCount, Expected> {
    const EXPECTED: Expected = "expected a number of vCPUs, or the least and the most as in 1-4";
    let number = |text: &str| cmdline::number(text).and_then(|n| u32::try_from(n).ok());
    let range = match value.split_once('-') {
        None => number(value).map(|n| VcpuCount { least: n, most: n }),
        Some((least, most)) => {
            let least = if least.is_empty() { Some(1) } else { number(least) };
            let most = if most.is_empty() { Some(u32::MAX) } else { number(most) };
            least.zip(most).map(|(least, most)| VcpuCount { least, most })
        }
    };
    range.filter(|r| 1 <= r.least && r.least <= r.most).ok_or(EXPECTED)
}

fn serial(port: &mut SerialOptions, value: &str) -> Result<(), Expected> {
    let mut new = *port;
    let mut parts = value.split(',');
    match parts.next().unwrap_or("") {
        "" | "auto" => new.baud = None,
        // The rate of the port's clock may follow as `/base`; only the usual one is known here.
        rate => {
            let baud = rate.parse::<u32>().ok().filter(|&baud| (50..=115_200).contains(&baud) && 115_200 % baud == 0);
            new.baud = Some(baud.ok_or("expected a baud rate such as 115200, or auto")?);
        }
    }
    if let Some(format) = parts.next().filter(|text| !text.is_empty()) {
        let &[data, parity, stop] = format.as_bytes() else { return Err("expected a format such as 8n1") };
        new.data_bits = match data {
            b'5'..=b'8' => data - b'0',
            _ => return Err("expected 5 to 8 data bits, as in 8n1"),
        };
        new.parity = match parity {
            b'n' => Parity::None,
            b'o' => Parity::Odd,
            b'e' => Parity::Even,
            b'm' => Parity::Mark,
            b's' => Parity::Space,
            _ => return Err("expected parity n, o, e, m or s, as in 8n1"),
        };
        new.two_stop_bits = match stop {
            b'1' => false,
            b'2' => true,
            _ => return Err("expected 1 or 2 stop bits, as in 8n1"),
        };
    }
    if let Some(text) = parts.next().filter(|text| !text.is_empty()) {
        let base = cmdline::number(text).and_then(|base| u16::try_from(base).ok());
        new.port = base.filter(|&base| base != 0 && base <= 0xfff8).ok_or("expected an I/O port such as 0x3f8")?;
    }
    if let Some(text) = parts.next().filter(|text| !text.is_empty()) {
        let irq = cmdline::number(text).and_then(|irq| u8::try_from(irq).ok());
        new.irq = irq.ok_or("expected an interrupt number, or 0 to poll")?;
    }
    *port = new;
    Ok(())
}

fn console(console: &mut ConsoleOptions, value: &str) -> Result<(), Expected> {
    let mut new = ConsoleOptions { serial: None, screen: false, ..*console };
    for place in value.split(',') {
        match place {
            "com1" => new.serial = new.serial.or(Some(0)),
            "com2" => new.serial = new.serial.or(Some(1)),
            "vga" | "tty0" => new.screen = true,
            "none" | "" => {}
            _ => return Err("expected a list of com1, com2, vga or none"),
        }
    }
    *console = new;
    Ok(())
}

fn dom0(value: &str) -> Result<(), Expected> {
    for part in value.split(',') {
        if matches!(part, "pv" | "no-pvh" | "pvh=off") {
            return Err("Corten's Dom0 is always PVH");
        }
    }
    Ok(())
}

fn reboot(options: &mut Options<'_>, value: &str) -> Result<(), Expected> {
    let (mut method, mut never) = (ResetMethod::Automatic, false);
    for part in value.split(',') {
        match part {
            "no" => never = true,
            "a" | "acpi" => method = ResetMethod::Acpi,
            "P" | "p" | "pci" | "Power" => method = ResetMethod::Chipset,
            "k" | "kbd" => method = ResetMethod::Keyboard,
            "t" | "triple" => method = ResetMethod::TripleFault,
            "w" | "warm" | "c" | "cold" | "yes" | "e" | "efi" | "x" | "xen" => {}
            _ => return Err("expected no, a(cpi), p(ci), k(bd) or t(riple)"),
        }
    }
    options.reboot = method;
    options.no_reboot |= never;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> (Options<'_>, Vec<String>) {
        let mut notices = Vec::new();
        let options = Options::parse(line, |notice| notices.push(notice.to_string()));
        (options, notices)
    }

    fn clean(line: &str) -> Options<'_> {
        let (options, notices) = parse(line);
        assert_eq!(notices, [""; 0], "{line}");
        options
    }

    #[test]
    fn a_usual_command_line_is_understood_whole() {
        let o = clean(
            "placeholder no-real-mode edd=off dom0_mem=512M,max:1G dom0_max_vcpus=1-4 com1=115200,8n1,0x3f8,4 \
             console=com1,vga loglvl=all guest_loglvl=error/all noreboot dom0=pvh no-vpid sched=credit2 sync_console \
             reboot=k",
        );
        assert_eq!(o.dom0_mem, Some("512M,max:1G"));
        assert_eq!(o.dom0_max_vcpus, Some(VcpuCount { least: 1, most: 4 }));
        assert_eq!(o.serial[0], SerialOptions { baud: Some(115_200), ..SerialOptions::new(0x3f8, 4) });
        assert_eq!(o.console, ConsoleOptions { serial: Some(0), screen: true, keep_screen: false });
        assert_eq!((o.log_level, o.guest_log_level), (LevelFilter::Trace, LevelFilter::Trace));
        assert!(o.no_reboot && o.sync_console);
        assert_eq!((o.vpid, o.scheduler, o.reboot), (Some(false), sched::Wanted::default(), ResetMethod::Keyboard));
        assert!(clean("reboot=no").no_reboot);
    }

    #[test]
    fn the_scheduler_is_chosen_and_tuned() {
        let o = clean("sched=null sched_ratelimit_us=0 credit2_runqueue=core credit2_cap_period_ms=20");
        assert_eq!(o.scheduler.kind, Kind::Null);
        let Params { ratelimit, arrangement, cap_period, .. } = o.scheduler.params;
        assert_eq!((ratelimit, arrangement, cap_period), (Nanos::ZERO, Arrangement::Core, Nanos::from_millis(20)));
    }

    #[test]
    fn an_unknown_option_is_named() {
        let (options, notices) = parse("foo=bar no-frobnicate");
        assert_eq!(options, Options::default());
        assert_eq!(
            notices,
            [
                "unknown option foo=bar; ignored (see README, \"Command line\")",
                "unknown option no-frobnicate; ignored (see README, \"Command line\")"
            ]
        );
    }

    #[test]
    fn a_malformed_value_is_named_and_changes_nothing() {
        for line in [
            "com1=9x",
            "com1=115200,9n1",
            "com1=115200,8n1,zero",
            "com2=115200,8n1,0x2f8,x",
            "com1=115200,8",
            "console=com7",
            "loglvl=loud",
            "dom0_max_vcpus=4-1",
            "dom0_max_vcpus=0",
            "noreboot=perhaps",
            "mem=1M",
            "conring_size=1",
            "reboot=q",
            "no-com1=115200",
            "dom0=pv",
            "sched=credit",
            "sched_ratelimit_us=99",
            "credit2_runqueue=numa",
            "credit2_cap_period_ms=0",
            "credit2_load_window_shift=99",
        ] {
            let (options, notices) = parse(line);
            assert_eq!(options, Options::default(), "{line}");
            assert_eq!(notices.len(), 1, "{line}");
            assert!(notices[0].starts_with(&format!("{line}: ")), "{}", notices[0]);
        }
    }

    #[test]
    fn options_of_xen_without_a_meaning_here_are_not_called_unknown() {
        let (_, notices) = parse("spec-ctrl=no ucode=scan no-xpti watchdog cpuidle=0 iommu=off apicv=0");
        assert_eq!(notices.len(), 7);
        assert!(notices.iter().all(|n| n.contains("changes nothing here")), "{notices:?}");
    }

    #[test]
    fn no_option_is_in_two_tables() {
        let mut names: Vec<&str> = VALUES.iter().map(|(name, _)| *name).collect();
        names.extend(SWITCHES.iter().map(|(name, _)| *name));
        names.extend(SILENT);
        names.extend(IGNORED);
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn the_first_serial_port_of_several_is_the_console() {
        assert_eq!(clean("console=com2,com1").console.serial, Some(1));
        assert_eq!(clean("console=none").console, ConsoleOptions { serial: None, screen: false, keep_screen: false });
        assert!(clean("vga=text-80x25,keep").console.keep_screen);
    }

    #[test]
    fn an_open_range_of_vcpus_is_bounded_on_one_side() {
        assert_eq!(clean("dom0_max_vcpus=-2").dom0_max_vcpus, Some(VcpuCount { least: 1, most: 2 }));
        assert_eq!(clean("dom0_max_vcpus=2-").dom0_max_vcpus, Some(VcpuCount { least: 2, most: u32::MAX }));
        assert_eq!(clean("dom0_max_vcpus=3").dom0_max_vcpus, Some(VcpuCount { least: 3, most: 3 }));
        let of = |text: &'static str, cpus| clean(text).dom0_max_vcpus.map(|count| count.of(cpus));
        assert_eq!([1, 3, 8].map(|cpus| of("dom0_max_vcpus=2-4", cpus)), [Some(2), Some(3), Some(4)]);
        assert_eq!(of("dom0_max_vcpus=6", 4), Some(6));
        assert_eq!([0, 1, 16].map(|most| clean(&format!("maxcpus={most}")).max_cpus), [Some(1), Some(1), Some(16)]);
        assert_eq!(clean("nosmp").max_cpus, Some(1));
    }
}
