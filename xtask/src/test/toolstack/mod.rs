//! Debian's Xen toolstack in Dom0.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module};
use crate::console::Run;
use crate::dom0;
use crate::engine::Engine;
use crate::toolstack;
use anyhow::{Result, bail, ensure};

pub fn cases() -> Vec<Case> {
    let create = |about, quick, engines| Case {
        name: "toolstack_create".into(),
        about,
        quick,
        on_xen: false,
        engines,
        prepare: Box::new(prepare),
        run: Box::new(create),
    };
    vec![create("xl makes a Debian domain with disks and a network, and ends it without a trace", true, |engine| {
        matches!(engine, Engine::Qemu(_))
    })]
}

/// Fetches and makes what a boot with the toolstack needs.
pub fn prepare() -> Result<()> {
    crate::packages::need(&["mkfs.ext4"])?;
    toolstack::dom0()?.guest_initramfs()?;
    toolstack::initramfs().map(drop)
}

/// Boots the Dom0 with the toolstack, with whichever hypervisor the context has, runs `script` (one of `tests-qemu/dom0`) in it, and
/// answers what the console said.
fn boot(context: &Context<'_>, script: &str, limit: u64) -> Result<Run> {
    std::fs::create_dir_all(&context.logs)?;
    let disk = context.logs.join("disk.img");
    toolstack::write_disk(&disk)?;
    let args = format!("{} {} corten.run={script}", dom0::KERNEL_ARGS, toolstack::KERNEL_ARGS);
    let boot = Boot {
        corten_args: toolstack::DOM0_MEMORY.into(),
        modules: vec![module(&toolstack::dom0()?.kernel, &args), module(&toolstack::initramfs_path()?, "")],
        memory_mib: toolstack::MEMORY_MIB,
        disk: Some(disk.clone()),
        limit,
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

fn create(context: &Context<'_>) -> Result<()> {
    let run = boot(context, "toolstack_create", 400)?;
    let checks: Vec<&str> = run.console.lines().filter(|line| line.contains("CHECK ")).collect();
    let failures: Vec<&str> = checks.iter().copied().filter(|line| line.contains(" FAIL")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    // The domain's own and the script's.
    ensure!(checks.len() >= 7 + 10, "only {} checks were made", checks.len());
    Ok(())
}
