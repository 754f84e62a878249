//! Debian's own kernels as Dom0, byte for byte as packaged.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module};
use crate::console::{End, Run};
use crate::dom0::{Dom0, KERNEL_ARGS};
use crate::engine::{Engine, Firmware, bochs};
use crate::packages;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// The releases, by the names of their tests.
const RELEASES: [(&str, &str); 3] = [("13", "trixie"), ("12", "bookworm"), ("13_backports", BACKPORTS)];
/// The newest kernel for Debian 13, whichever that is.
pub const BACKPORTS: &str = "trixie-backports";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (release, suite) in RELEASES {
        cases.push(Case {
            run: Box::new(move |context| checks(context, suite, |_| {})),
            ..case(
                &format!("debian{release}"),
                "Dom0 reaches /init, and what must hold there holds",
                suite,
                suite != BACKPORTS,
            )
        });
        cases.push(Case {
            // Without an IOMMU, Xen's PVH Dom0 cannot use DMA.
            on_xen: false,
            run: Box::new(move |context| disk(context, suite)),
            ..case(&format!("debian{release}_disk"), "8 MiB on ext4 survive a reboot", suite, release == "13")
        });
        cases.push(Case {
            run: Box::new(move |context| checks(context, suite, two_cpus)),
            ..case(&format!("debian{release}_smp"), "the same with two CPUs", suite, false)
        });
        cases.push(Case {
            // With the newer kernel it takes ten minutes in Bochs, which is enough.
            engines: if release == "13" { Engine::bears_busy_cpus } else { |engine| matches!(engine, Engine::Qemu(_)) },
            run: Box::new(move |context| {
                let cpus = if matches!(context.engine, Engine::Bochs(_)) { 2 } else { 4 };
                all_cpus(context, suite, cpus, 60)
            }),
            ..case(&format!("debian{release}_load"), "all CPUs work for a minute, go and come again", suite, false)
        });
        cases.push(Case {
            // Its Dom0 takes minutes over PCI there.
            on_xen: false,
            engines: |engine| matches!(engine, Engine::Qemu(_)),
            prepare: Box::new(move || prepare(suite, Firmware::Uefi)),
            run: Box::new(move |context| checks(context, suite, |boot| boot.firmware = Firmware::Uefi)),
            ..case(&format!("debian{release}_uefi"), "the same, started by UEFI", suite, release == "13")
        });
        cases.push(Case {
            // This board has no IOMMU, which Xen needs.
            on_xen: false,
            engines: |engine| matches!(engine, Engine::Qemu(_)),
            run: Box::new(move |context| checks(context, suite, |boot| boot.board = Some("pc"))),
            ..case(&format!("debian{release}_pc"), "the same on a PC without PCI Express", suite, false)
        });
    }
    cases.push(Case {
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        on_xen: false,
        run: Box::new(|context| all_cpus(context, "trixie", 16, 0)),
        ..case("debian13_16_cpus", "sixteen CPUs", "trixie", false)
    });
    cases
}

pub fn case(name: &str, about: &'static str, suite: &'static str, quick: bool) -> Case {
    Case {
        name: name.to_string(),
        about,
        quick,
        on_xen: true,
        in_one_version: false,
        engines: |_| true,
        prepare: Box::new(move || prepare(suite, Firmware::Bios)),
        run: Box::new(|_| Ok(())),
    }
}

/// Fetches what a boot of Debian needs.
pub fn prepare(suite: &str, firmware: Firmware) -> Result<()> {
    if firmware == Firmware::Uefi {
        packages::need(&["OVMF"])?;
    }
    Dom0::fetch(suite)?.initramfs().map(drop)
}

/// A boot of Debian's kernel with our initramfs, which runs `script`.
pub fn boot(suite: &str, script: &str, modules: &str) -> Result<Boot> {
    let dom0 = Dom0::fetch(suite)?;
    let args = format!("{KERNEL_ARGS} corten.run={script} corten.modules={modules}");
    Ok(Boot {
        corten_args: "dom0_mem=512M".into(),
        modules: vec![module(&dom0.kernel, &args), module(&dom0.initramfs_path()?, "")],
        memory_mib: 1024,
        limit: 300,
        ..Boot::default()
    })
}

fn two_cpus(boot: &mut Boot) {
    boot.cpus = 2;
    boot.corten_args.push_str(" dom0_max_vcpus=2");
}

/// Dom0 has so many CPUs, which work for some seconds, go and come again. Where they are emulated on far fewer, their work cannot be measured:
/// then the seconds are none.
fn all_cpus(context: &Context<'_>, suite: &str, cpus: u32, seconds: u32) -> Result<()> {
    let mut boot = boot(suite, "smp", "")?;
    boot.cpus = cpus;
    boot.limit = 900;
    boot.modules[0].args.push_str(&format!(" corten.cpus={cpus} corten.seconds={seconds}"));
    judge(context, &context.boot("run", boot)?)
}

/// `machine` says how the machine differs from the plain one.
fn checks(context: &Context<'_>, suite: &str, machine: impl Fn(&mut Boot)) -> Result<()> {
    let mut boot = boot(suite, "checks", "ata_piix")?;
    machine(&mut boot);
    let run = context.boot("run", boot)?;
    judge(context, &run)?;
    if !context.on_xen() {
        memory_is_respected(&run.console)?;
    }
    let ticks = slept(&run.console).context("no SLEPT line")?;
    let hz = match context.engine {
        Engine::Bochs(_) => bochs::INSTRUCTIONS_PER_SECOND as f64,
        Engine::Qemu(_) => detected_hz(&run.console).context("the kernel does not say the TSC's frequency")?,
    };
    let seconds = ticks as f64 / hz;
    ensure!((9.9..=10.1).contains(&seconds), "10 s of sleep took {seconds:.3} s of TSC time");
    Ok(())
}

fn disk(context: &Context<'_>, suite: &str) -> Result<()> {
    let disk = make_disk(&context.logs)?;
    let mut boot = boot(suite, "disk", context.engine.dom0_modules())?;
    boot.disk = Some(disk.clone());
    boot.reboots = true;
    boot.limit = 500;
    let run = context.boot("run", boot)?;
    judge(context, &run)?;
    let boots = run.console.matches("DOM0 INIT REACHED").count();
    ensure!(boots == 2, "Dom0 came up {boots} times, not twice");
    let sh = Shell::new()?;
    let e2fsck = "/sbin/e2fsck";
    cmd!(sh, "{e2fsck} -fn {disk}").quiet().ignore_stdout().ignore_stderr().run().context("e2fsck finds errors")?;
    let _ = std::fs::remove_file(disk);
    Ok(())
}

/// 64 MiB with an empty ext4.
fn make_disk(logs: &Path) -> Result<PathBuf> {
    packages::need(&["mkfs.ext4"])?;
    std::fs::create_dir_all(logs)?;
    let disk = logs.join("disk.img");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    let (sh, mkfs) = (Shell::new()?, "/sbin/mkfs.ext4");
    cmd!(sh, "{mkfs} -q -F {disk}").quiet().run()?;
    Ok(disk)
}

/// Every check passed, the script came to its end, and Dom0 powered the machine off.
pub fn judge(context: &Context<'_>, run: &Run) -> Result<()> {
    if !context.on_xen() {
        host_is_well(run)?;
    }
    // Xen in Bochs draws a warning about the CPU's topology from 6.12. Corten may draw none.
    let excused = |line: &str| context.on_xen() && line.contains("CHECK kernel log");
    let failures: Vec<&str> = run
        .console
        .lines()
        .filter(|line| line.contains("CHECK ") && line.contains(" FAIL") && !excused(line))
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    if !run.console.contains("=== DOM0 SCRIPT DONE ===") || !run.console.contains("CHECK ") {
        bail!(
            "the script did not come to its end ({:?}); the end of the console:\n    {}",
            run.end,
            last_lines(&run.console, 15)
        );
    }
    ensure!(run.end == End::PoweredOff, "Dom0 did not power off");
    Ok(())
}

/// What firmware keeps for itself (Corten's first lines say what) is nothing that Dom0 takes for RAM.
fn memory_is_respected(console: &str) -> Result<()> {
    let range = |text: &str, separator: &str| -> Option<(u64, u64)> {
        let (start, end) = text.split_once(separator)?;
        let number = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
        Some((number(start)?, number(end)?))
    };
    let kept: Vec<(u64, u64)> = console
        .lines()
        .filter_map(|line| line.split_once("info  memory: 0x").map(|(_, rest)| rest.trim_end()))
        .filter_map(|rest| rest.split_once(' '))
        .filter(|(_, kind)| *kind != "RAM")
        .filter_map(|(bytes, _)| range(&format!("0x{bytes}"), ".."))
        .collect();
    let usable: Vec<(u64, u64)> = console
        .lines()
        .filter_map(|line| line.split_once("BIOS-e820: [mem ")?.1.split_once(']'))
        // Linux 6 and 7.
        .filter(|(_, kind)| ["usable", "System RAM"].contains(&kind.trim()))
        .filter_map(|(bytes, _)| range(bytes, "-"))
        .collect();
    ensure!(!kept.is_empty() && !usable.is_empty(), "no memory map on the console");
    let taken = usable.iter().find(|(start, last)| kept.iter().any(|(kept, end)| start < end && kept <= last));
    match taken {
        Some((start, last)) => bail!("Dom0 takes {start:#x}-{last:#x} for RAM, of which firmware keeps a part"),
        None => Ok(()),
    }
}

/// The ticks of the helper's ten seconds.
fn slept(console: &str) -> Option<u64> {
    let digits = console.lines().find_map(|line| line.split_once("SLEPT ")?.1.split_whitespace().next())?;
    digits.parse().ok()
}

/// "tsc: Detected 2999.999 MHz processor"
fn detected_hz(console: &str) -> Option<f64> {
    let text = console.lines().find_map(|line| line.split_once("tsc: Detected ").map(|(_, rest)| rest))?;
    text.split_whitespace().next()?.parse::<f64>().ok().map(|megahertz| megahertz * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_firmware_keeps_may_not_be_dom0s() {
        let host = "(corten) [    -.------] info  memory: 0x000000100000..0x000000800000 RAM\r\n\
                    (corten) [    -.------] info  memory: 0x000000800000..0x000000808000 ACPI NVS\r\n";
        let guest = |last: &str| format!("{host}[    0.0] BIOS-e820: [mem 0x0000000000100000-{last}] usable\r\n");
        assert!(memory_is_respected(&guest("0x00000000007fffff")).is_ok());
        assert!(memory_is_respected(&guest("0x0000000000800fff")).is_err());
        assert!(memory_is_respected(host).is_err());
    }

    #[test]
    fn the_sleep_and_the_frequency_are_read_from_the_console() {
        let console = "[ 0.0] tsc: Detected 50.001 MHz processor\r\nSLEPT 00000000000500000123 ticks\r\n";
        assert_eq!(slept(console), Some(500_000_123));
        assert_eq!(detected_hz(console).map(|hz| hz as u64), Some(50_001_000));
    }
}
