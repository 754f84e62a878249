//! Domains that are made at boot beside Dom0.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module, nothing_to_prepare};
use super::debian;
use crate::build;
use crate::console::End;
use crate::dom0::Dom0;
use crate::engine::Engine;
use anyhow::{Context as _, Result, ensure};

const SUITE: &str = "trixie";

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            on_xen: false,
            engines: |engine| matches!(engine, Engine::Qemu(_)),
            run: Box::new(beside_debian),
            ..debian::case(
                "domains_debian13",
                "two Debian domains run beside Debian's Dom0 and end by themselves",
                SUITE,
                false,
            )
        },
        Case {
            on_xen: false,
            prepare: nothing_to_prepare(),
            run: Box::new(shares),
            ..debian::case("domains_share", "two busy domains share a CPU by their weights", SUITE, true)
        },
    ]
}

/// Two hogs of weights 256 and 512 on the one CPU share it 1:2, within 3 %.
fn shares(context: &Context<'_>) -> Result<()> {
    let guest = build::guest("domain_share");
    let hog =
        |name: &str, weight: u32| module(&guest, &format!("domain name={name} memory=64M weight={weight} -- hog=b"));
    let boot = Boot {
        corten_args: "dom0_mem=128M".into(),
        modules: vec![module(&guest, "wait=e"), hog("light", 256), hog("heavy", 512)],
        limit: 120,
        ..Boot::default()
    };
    let run = context.boot("run", boot)?;
    host_is_well(&run)?;
    ensure!(run.end == End::PoweredOff, "it did not power off; its end:\n    {}", last_lines(&run.console, 12));
    let ratio = share(&run.console, "heavy")? / share(&run.console, "light")?;
    ensure!((ratio / 2.0 - 1.0).abs() <= 0.03, "the weights are 1:2, and the shares 1:{ratio:.3}");
    Ok(())
}

/// The part of the CPU that a domain says it got: "(light) … SHARE 1 of 3".
fn share(console: &str, name: &str) -> Result<f64> {
    let tag = format!("({name}) ");
    let mut own = console.lines().filter(|line| line.contains(&tag));
    let said = own.find_map(|line| line.split_once("SHARE ")?.1.split_once(" of "));
    let (got, all) = said.with_context(|| format!("domain {name} does not say what it got"))?;
    Ok(got.trim().parse::<f64>()? / all.trim().parse::<f64>()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_read_from_the_domains_own_line() {
        let console = "(heavy) SHARE 6 of 9\r\n(light) SHARE 3 of 9\r\n";
        assert_eq!(share(console, "heavy").ok(), Some(6.0 / 9.0));
        assert!(share(console, "other").is_err());
    }
}
