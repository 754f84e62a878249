//! Debian's Xen toolstack in Dom0.

mod recording;

use super::case::{Boot, Case, Context, host_is_well, last_lines, module};
use super::debian::BACKPORTS;
use crate::console::Run;
use crate::dom0;
use crate::engine::Engine;
use crate::paths;
use crate::toolstack::{self, Disk};
use anyhow::{Context as _, Result, bail, ensure};
use recording::{Rule, parse};

/// What Xen 4.20 says to the script `toolstack_record`, on the same machine.
const XEN: &str = include_str!("xen-4.20.txt");
/// Where others may say something else.
const DIFFERENCES: &str = include_str!("differences.txt");
/// Where, in Bochs, others may do so too.
const DIFFERENCES_IN_BOCHS: &str = include_str!("differences-bochs.txt");
/// Of differences that are too many, the first ones.
const SHOWN: usize = 60;

/// What a boot with the toolstack has beside it.
#[derive(Clone, Copy)]
struct Setup {
    script: &'static str,
    /// What Dom0's kernel is told beside that.
    args: &'static str,
    disk: Disk<'static>,
    /// The disk is an NVMe one, which only QEMU has.
    on_nvme: bool,
    memory_mib: u32,
    /// CHECK lines that there are at least, of domains and of the script.
    checks: usize,
    /// Seconds in QEMU.
    limit: u64,
}

/// How much more time Bochs gets than QEMU.
const IN_BOCHS: u64 = 4;

const CREATE: Setup = Setup {
    script: "toolstack_create",
    args: "",
    disk: toolstack::EXAMPLE_DISK,
    on_nvme: false,
    memory_mib: toolstack::MEMORY_MIB,
    checks: 7 + 10,
    limit: 400,
};

const CREATE_DEBIAN12: Setup = Setup { disk: Disk { suite: "bookworm", ..toolstack::EXAMPLE_DISK }, ..CREATE };
const CREATE_BACKPORTS: Setup = Setup { disk: Disk { suite: BACKPORTS, ..toolstack::EXAMPLE_DISK }, ..CREATE };

const ON_NVME: Setup = Setup { on_nvme: true, ..CREATE };

const GRUB_PVH: Setup = Setup {
    script: "toolstack_grub_pvh",
    disk: Disk { partitions: &[256, 512], grub: true, ..toolstack::EXAMPLE_DISK },
    checks: 5 + 8,
    ..CREATE
};

const FOUR_GUESTS: Setup = Setup {
    script: "toolstack_guests",
    args: "corten.guests=4",
    disk: Disk { partitions: &[128, 384, 128], ..toolstack::EXAMPLE_DISK },
    on_nvme: false,
    memory_mib: 2048,
    checks: 4 * 4 + 8,
    limit: 600,
};

const TWO_GUESTS: Setup = Setup { args: "corten.guests=2", checks: 2 * 2 + 6, ..FOUR_GUESTS };

const OWN_TESTS: Setup = Setup { script: "toolstack_own_tests", checks: 4, limit: 400, ..CREATE };
const RECORD: Setup = Setup { script: "toolstack_record", checks: 0, limit: 600, ..CREATE };
const CYCLES: Setup = Setup { script: "toolstack_cycles", args: "corten.cycles=10", checks: 2, ..CREATE };
const LONG_CYCLES: Setup = Setup { args: "corten.cycles=200", limit: 5400, ..CYCLES };
const MAXMEM: Setup = Setup { script: "toolstack_maxmem", checks: 7 + 20, limit: 600, ..CREATE };
const MAXMEM_DEBIAN12: Setup = Setup { disk: Disk { suite: "bookworm", ..toolstack::EXAMPLE_DISK }, ..MAXMEM };
const SHIM: Setup = Setup { script: "toolstack_shim", checks: 5 + 6, ..CREATE };

pub fn cases() -> Vec<Case> {
    let case = |name: &str, setup: Setup, about, quick| Case {
        name: name.into(),
        about,
        quick,
        on_xen: true,
        in_one_version: true,
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        prepare: Box::new(move || prepare(setup.disk)),
        run: Box::new(move |context| checks(context, setup)),
    };
    let in_bochs = |case: Case| Case {
        about: "the same in Bochs",
        quick: false,
        engines: |engine| matches!(engine, Engine::Bochs(_)),
        ..case
    };
    let cases = || {
        vec![
            Case {
                in_one_version: false,
                ..case(
                    "toolstack_create",
                    CREATE,
                    "xl makes a Debian domain with disks and a network, and ends it without a trace",
                    true,
                )
            },
            case("toolstack_create_12", CREATE_DEBIAN12, "the same with the kernel of Debian 12", false),
            case(
                "toolstack_grub_pvh",
                GRUB_PVH,
                "Debian's GRUB, a 32-bit guest, shows the menu of its disk and starts Debian from it",
                true,
            ),
            case("toolstack_shim", SHIM, "Debian's kernel as a PV guest in a PVH domain, by Xen's shim", false),
            case(
                "toolstack_maxmem",
                MAXMEM,
                "a domain that boots in half of what it may have, and is ballooned up and down",
                true,
            ),
            case("toolstack_maxmem_12", MAXMEM_DEBIAN12, "the same with the kernel of Debian 12", false),
            case("toolstack_own_tests", OWN_TESTS, "Xen's own tests out of xen-utils pass", true),
            Case {
                run: Box::new(compare),
                ..case("toolstack_compare", RECORD, "xl and its kin say what they say on Xen 4.20", true)
            },
            Case {
                on_xen: false,
                ..case(
                    "toolstack_cycles",
                    CYCLES,
                    "ten domains made and ended by xl, half of them killed while they boot",
                    true,
                )
            },
        ]
    };
    let long = vec![
        case("toolstack_create_backports", CREATE_BACKPORTS, "the same with the newest kernel for Debian 13", false),
        case("toolstack_nvme", ON_NVME, "a domain whose disk is a partition of an NVMe disk", false),
        case(
            "toolstack_four_guests",
            FOUR_GUESTS,
            "four domains at once work on their disks and send one another what they wrote",
            false,
        ),
        Case { about: "two of them in Bochs", ..in_bochs(case("toolstack_two_guests", TWO_GUESTS, "", false)) },
        Case { on_xen: false, ..case("toolstack_long_cycles", LONG_CYCLES, "the same two hundred times", false) },
    ];
    cases().into_iter().chain(long).chain(cases().into_iter().map(in_bochs)).collect()
}

/// Fetches and makes what a boot with the toolstack needs.
fn prepare(disk: Disk<'_>) -> Result<()> {
    disk.prepare()?;
    toolstack::initramfs().map(drop)
}

/// Boots the Dom0 with the toolstack, with whichever hypervisor the context has, runs the script (one of `tests-qemu/dom0`) in it, and
/// answers what the console said.
fn boot(context: &Context<'_>, setup: Setup) -> Result<Run> {
    std::fs::create_dir_all(&context.logs)?;
    let disk = context.logs.join("disk.img");
    setup.disk.write(&disk)?;
    let Setup { script, args, .. } = setup;
    let args = format!("{} {} {args} corten.run={script}", dom0::KERNEL_ARGS, toolstack::KERNEL_ARGS);
    let drive = format!("file={},format=raw,if=none,id=example", disk.display());
    let nvme = ["-drive", &drive, "-device", "nvme,serial=corten,drive=example"].map(String::from);
    let boot = Boot {
        corten_args: toolstack::DOM0_MEMORY.into(),
        modules: vec![module(&toolstack::dom0()?.kernel, &args), module(&toolstack::initramfs_path()?, "")],
        memory_mib: setup.memory_mib,
        disk: (!setup.on_nvme).then(|| disk.clone()),
        devices: if setup.on_nvme { nvme.into() } else { Vec::new() },
        limit: if matches!(context.engine, Engine::Bochs(_)) { setup.limit * IN_BOCHS } else { setup.limit },
        ..Boot::default()
    };
    let run = context.boot("run", boot)?;
    let _ = std::fs::remove_file(disk);
    if !context.on_xen() {
        host_is_well(&run)?;
    }
    if !run.console.contains("=== DOM0 SCRIPT DONE ===") {
        bail!("{script} did not come to its end ({:?}):\n    {}", run.end, last_lines(&run.console, 15));
    }
    Ok(run)
}

/// Every check that the script and its domains made must have come out well.
fn checks(context: &Context<'_>, setup: Setup) -> Result<()> {
    let run = boot(context, setup)?;
    let checks: Vec<&str> = run.console.lines().filter(|line| line.contains("CHECK ")).collect();
    let failures: Vec<&str> = checks.iter().copied().filter(|line| line.contains(" FAIL")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    ensure!(checks.len() >= setup.checks, "only {} checks were made", checks.len());
    Ok(())
}

fn record(context: &Context<'_>) -> Result<String> {
    let run = boot(context, RECORD)?;
    let waited: Vec<&str> = run.console.lines().filter(|line| line.contains("WAITED in vain")).collect();
    ensure!(waited.is_empty(), "{}", waited.join("\n    "));
    Ok(run.console)
}

/// Writes the recording of Xen anew.
pub fn renew(context: &Context<'_>) -> Result<()> {
    prepare(RECORD.disk)?;
    let file = paths::root().join("xtask/src/test/toolstack/xen-4.20.txt");
    std::fs::write(&file, recording::trimmed(&record(context)?))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn compare(context: &Context<'_>) -> Result<()> {
    let console = record(context)?;
    let mut rules = Rule::all(DIFFERENCES)?;
    if matches!(context.engine, Engine::Bochs(_)) {
        rules.extend(Rule::all(DIFFERENCES_IN_BOCHS)?);
    }
    let wrong = recording::compare(&parse(XEN)?, &parse(&console)?, &rules);
    let shown = wrong.get(..SHOWN).unwrap_or(&wrong).join("\n    ");
    ensure!(wrong.is_empty(), "{} differences from Xen:\n    {shown}", wrong.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recording_is_whole_and_equal_to_itself() {
        let said = parse(XEN).expect("a recording");
        assert!(said.len() > 50, "{}", said.len());
        let rules = Rule::all(DIFFERENCES).expect("rules");
        assert_eq!(recording::compare(&said, &said, &rules), Vec::<String>::new());
    }

    #[test]
    fn every_difference_that_is_allowed_is_about_something_that_is_said() {
        let said = parse(XEN).expect("a recording");
        let rules = [DIFFERENCES, DIFFERENCES_IN_BOCHS].map(|text| Rule::all(text).expect("rules")).concat();
        for rule in rules.iter().filter(|rule| !rule.is_about_more()) {
            let used = said.iter().flat_map(|said| said.fields().into_iter().map(move |field| (said.name, field)));
            assert!(used.into_iter().any(|(name, field)| rule.is_about(name, &field.path)), "{rule:?}");
        }
    }

    #[test]
    fn another_state_or_a_missing_command_is_a_difference() {
        let said = parse(XEN).expect("a recording");
        let rules = Rule::all(DIFFERENCES).expect("rules");
        let doctored = |from: &str, to: &str| {
            assert!(XEN.contains(from), "{from}");
            let text = XEN.replace(from, to);
            recording::compare(&said, &parse(&text).expect("a recording"), &rules).len()
        };
        assert!(doctored("--p---", "-b----") > 0);
        assert!(doctored("<<< destroy 0", "<<< destroy 1") == 1);
        assert!(doctored("the answer is 42", "the answer is 41") == 1);
        assert!(doctored("xen_pagesize ", "page_size ") > 0);
        assert_eq!(doctored(">>> pause: xl pause example\n<<< pause 0\n", ""), 1);
    }
}
