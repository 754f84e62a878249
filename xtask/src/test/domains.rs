//! Domains that are made at boot beside Dom0.

use super::case::{Case, Context, module};
use super::debian;
use crate::dom0::Dom0;
use crate::engine::Engine;
use anyhow::{Result, ensure};

const SUITE: &str = "trixie";

pub fn cases() -> Vec<Case> {
    vec![Case {
        on_xen: false,
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        run: Box::new(beside_debian),
        ..debian::case(
            "domains_debian13",
            "two Debian domains run beside Debian's Dom0 and end by themselves",
            SUITE,
            true,
        )
    }]
}

/// Two domains of Debian's kernel and our initramfs. Both end while Dom0 is at its checks; a third is described wrongly.
fn beside_debian(context: &Context<'_>) -> Result<()> {
    let dom0 = Dom0::fetch(SUITE)?;
    let initramfs = dom0.initramfs_path()?;
    let mut boot = debian::boot(SUITE, "checks", "")?;
    boot.cpus = 2;
    boot.memory_mib = 1536;
    let kernel = "earlyprintk=xen,keep corten.console=/dev/kmsg corten.run=poweroff";
    for (name, vcpus) in [("one", 1), ("two", 2)] {
        boot.modules.push(module(&dom0.kernel, &format!("domain name={name} memory=192M vcpus={vcpus} -- {kernel}")));
        boot.modules.push(module(&initramfs, &format!("domain-initrd name={name}")));
    }
    boot.modules.push(module(&dom0.kernel, "domain name=three memory=192M colour=red -- quiet"));
    let run = context.boot("run", boot)?;
    debian::judge(context, &run)?;
    for name in ["one", "two"] {
        let said = |what: &str| run.console.lines().any(|line| line.contains(name) && line.contains(what));
        for what in ["=== DOM0 INIT REACHED ===", "=== DOM0 SCRIPT DONE ===", "powers off", "its memory is free again"]
        {
            ensure!(said(what), "domain {name}: no line says {what:?}");
        }
    }
    ensure!(run.console.contains("domain three: colour=red"), "the domain that is described wrongly is not refused");
    Ok(())
}
