//! The package on a Debian 13 as a user has it: installed by apt, booted by the menu that Debian's scripts write, removed.

use super::case::{Case, Context};
use super::debian::judge;
use crate::engine::{Engine, Machine};
use crate::{deb, debian, paths};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use xshell::{Shell, cmd};

const MEMORY_MIB: u32 = 1024;
const LIMIT: u64 = 900;
/// Boots, each of which says so.
const STEPS: usize = 3;

pub fn case() -> Case {
    Case {
        name: "deb_install".into(),
        about: "the package on an installed Debian: apt, GRUB's menu, xl, and removal",
        quick: false,
        on_xen: false,
        in_one_version: false,
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        prepare: Box::new(|| {
            deb::build()?;
            debian::disk().map(drop)
        }),
        run: Box::new(run),
    }
}

fn run(context: &Context<'_>) -> Result<()> {
    std::fs::create_dir_all(&context.logs).with_context(|| format!("cannot make {}", context.logs.display()))?;
    let (disk, second) = (context.logs.join("disk.img"), context.logs.join("steps.img"));
    copy(&debian::disk()?, &disk)?;
    let scripts = paths::root().join("tests-qemu");
    let (steps, lib) = (scripts.join("debian/install.sh"), scripts.join("dom0/lib.sh"));
    debian::steps(&[("steps", &steps), ("lib", &lib), ("corten.deb", &deb::path())], &second)?;
    let machine = Machine {
        disk: Some(disk.clone()),
        devices: debian::steps_device(&second),
        reboots: true,
        ..Machine::of_disk(MEMORY_MIB, &context.logs)
    };
    let run = context.watch(&machine, LIMIT, Vec::new())?;
    judge(context, &run)?;
    let came = (1..=STEPS).filter(|step| run.console.contains(&format!("=== STEP {step} ==="))).count();
    ensure!(came == STEPS, "{came} of {STEPS} boots came to their script");
    let booted = run.console.matches("info  boot: Corten ").count();
    // `xl dmesg` is not printed.
    ensure!(booted == 1, "Corten was booted {booted} times, not once");
    for image in [disk, second] {
        let _ = std::fs::remove_file(image);
    }
    Ok(())
}

/// With its holes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let sh = Shell::new()?;
    Ok(cmd!(sh, "cp --sparse=always {from} {to}").quiet().run()?)
}
