//! Debian's Xen toolstack in Dom0.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module};
use crate::console::Run;
use crate::dom0;
use crate::engine::Engine;
use crate::toolstack::{self, Disk};
use anyhow::{Result, bail, ensure};

/// What a boot with the toolstack has beside it.
#[derive(Clone, Copy)]
struct Setup {
    script: &'static str,
    disk: Disk<'static>,
    memory_mib: u32,
    /// CHECK lines that there are at least, of domains and of the script.
    checks: usize,
    limit: u64,
}

const CREATE: Setup = Setup {
    script: "toolstack_create",
    disk: toolstack::EXAMPLE_DISK,
    memory_mib: toolstack::MEMORY_MIB,
    checks: 7 + 10,
    limit: 400,
};

const CREATE_DEBIAN12: Setup = Setup { disk: Disk { suite: "bookworm", ..toolstack::EXAMPLE_DISK }, ..CREATE };

const GRUB_PVH: Setup = Setup {
    script: "toolstack_grub_pvh",
    disk: Disk { partitions: &[256, 512], grub: true, ..toolstack::EXAMPLE_DISK },
    checks: 5 + 8,
    ..CREATE
};

const FOUR_GUESTS: Setup = Setup {
    script: "toolstack_four_guests",
    disk: Disk { partitions: &[128, 384, 128], ..toolstack::EXAMPLE_DISK },
    memory_mib: 2048,
    checks: 4 * 4 + 8,
    limit: 600,
};

const TWO_GUESTS: Setup = Setup {
    script: "toolstack_two_guests",
    disk: Disk { partitions: &[256, 384, 256], ..toolstack::EXAMPLE_DISK },
    memory_mib: 2048,
    checks: 2 * 5 + 9,
    limit: 1200,
};

const SHIM: Setup = Setup { script: "toolstack_shim", checks: 5 + 6, ..CREATE };

pub fn cases() -> Vec<Case> {
    let case = |name: &str, setup: Setup, about, quick| Case {
        name: name.into(),
        about,
        quick,
        on_xen: true,
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        prepare: Box::new(move || prepare(setup.disk)),
        run: Box::new(move |context| checks(context, setup)),
    };
    vec![
        case(
            "toolstack_create",
            CREATE,
            "xl makes a Debian domain with disks and a network, and ends it without a trace",
            true,
        ),
        case("toolstack_create_12", CREATE_DEBIAN12, "the same with the kernel of Debian 12", false),
        case(
            "toolstack_grub_pvh",
            GRUB_PVH,
            "Debian's GRUB, a 32-bit guest, shows the menu of its disk and starts Debian from it",
            true,
        ),
        case(
            "toolstack_four_guests",
            FOUR_GUESTS,
            "four domains at once work on their disks and send one another what they wrote",
            false,
        ),
        Case {
            engines: |_| true,
            ..case("toolstack_two_guests", TWO_GUESTS, "two domains at once, in Bochs too", false)
        },
        case("toolstack_shim", SHIM, "Debian's kernel as a PV guest in a PVH domain, by Xen's shim", false),
    ]
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
    let script = setup.script;
    let args = format!("{} {} corten.run={script}", dom0::KERNEL_ARGS, toolstack::KERNEL_ARGS);
    let boot = Boot {
        corten_args: toolstack::DOM0_MEMORY.into(),
        modules: vec![module(&toolstack::dom0()?.kernel, &args), module(&toolstack::initramfs_path()?, "")],
        memory_mib: setup.memory_mib,
        disk: Some(disk.clone()),
        limit: setup.limit,
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
