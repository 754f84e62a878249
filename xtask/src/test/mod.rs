//! `cargo xtask test`: the host tests, then Corten itself in the engines.

mod case;
mod costs;
mod deb;
mod debian;
mod devices;
mod domains;
mod guests;
mod host;
mod refusals;
mod report;
mod runner;
mod sizes;
mod smp;
mod toolstack;

use crate::cli::TestArgs;
use crate::engine::{Choice, Engine, Options};
use crate::image::Hypervisor;
use crate::{build, packages, paths};
use anyhow::{Result, bail};
use case::{Case, Context};
use report::{Outcome, Report};
use std::process::ExitCode;

/// How long any one run may take on a machine that has other things to do: the cases' own limits are multiplied by it.
pub const PATIENCE: u64 = 2;

/// A version of Bochs beside the installed one, for `--full`.
const OTHER_BOCHS: [&str; 2] = ["2.7", "3.0"];

pub fn command(args: &TestArgs) -> Result<ExitCode> {
    let mut report = Report::default();
    let all = cases();
    if args.list {
        for case in &all {
            println!("{:28} {}", case.name, case.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let parts: Vec<&str> = args.what.iter().map(String::as_str).collect();
    let names: Vec<&str> =
        parts.iter().copied().filter(|part| !["host", "bochs", "qemu", "kvm"].contains(part)).collect();
    for name in &names {
        if !all.iter().any(|case| case.name == *name) {
            bail!("no test is called {name}; `cargo xtask test --list` has their names");
        }
    }
    if parts.is_empty() || parts.contains(&"host") {
        host::run(&mut report)?;
    }
    let engines = engines(args, &parts, !names.is_empty())?;
    if !engines.is_empty() {
        let chosen = |case: &Case| match names.is_empty() {
            true => args.full || case.quick,
            false => names.contains(&case.name.as_str()),
        };
        let on_xen = args.hypervisor == "xen";
        let runs = |case: &Case| engines.iter().any(|engine| (case.engines)(engine)) && (!on_xen || case.on_xen);
        let (cases, left_out): (Vec<Case>, Vec<Case>) = all.into_iter().filter(chosen).partition(runs);
        let runs_nowhere = |case: &&Case| !cases.iter().any(|other| other.name == case.name);
        if let Some(case) = left_out.iter().find(runs_nowhere).filter(|_| !names.is_empty()) {
            bail!("{} is not for {}", case.name, if on_xen { "Xen" } else { "the engine that was asked for" });
        }
        prepare(&cases)?;
        let hypervisor = Hypervisor::locate(&args.hypervisor)?;
        runner::run_all(&cases, &engines, &hypervisor, args.jobs, &mut report)?;
    }
    report.print();
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Renews what `toolstack_compare` compares with.
pub fn record() -> Result<()> {
    packages::need(&["grub-mkrescue", "xorriso", "mformat"])?;
    let engine = Engine::choose(Some(Choice::Qemu), &Options::default())?;
    let logs = paths::target_dir("record")?;
    toolstack::renew(&Context { engine: &engine, hypervisor: &Hypervisor::locate("xen")?, logs })
}

/// Every test that boots something.
fn cases() -> Vec<Case> {
    let mut cases = guests::cases();
    cases.extend(refusals::cases());
    cases.push(costs::case());
    cases.push(sizes::case());
    cases.push(smp::case());
    cases.extend(debian::cases());
    cases.extend(devices::cases());
    cases.extend(domains::cases());
    cases.extend(toolstack::cases());
    cases.push(deb::case());
    cases
}

/// The engines to run in: those asked for, else one for each vendor; with `--full` both versions of Bochs.
fn engines(args: &TestArgs, parts: &[&str], names_given: bool) -> Result<Vec<Engine>> {
    let mut engines = Vec::new();
    for (part, choice) in [("bochs", Choice::Bochs), ("qemu", Choice::Qemu), ("kvm", Choice::Kvm)] {
        if parts.contains(&part) {
            engines.push(Engine::choose(Some(choice), &args.options)?);
        }
    }
    if engines.is_empty() && (parts.is_empty() || names_given) {
        engines.push(Engine::choose(Some(Choice::Bochs), &args.options)?);
        engines.push(Engine::choose(Some(Choice::Qemu), &args.options)?);
        if args.full && args.options.bochs_version.is_none() {
            let installed = engines.iter().map(Engine::name).collect::<Vec<_>>();
            for version in OTHER_BOCHS.iter().filter(|version| !installed.contains(&format!("bochs {version}"))) {
                let options = Options { bochs_version: Some(version.to_string()), ..args.options.clone() };
                engines.push(Engine::choose(Some(Choice::Bochs), &options)?);
            }
        }
    }
    Ok(engines)
}

/// Builds and fetches what the cases need before any of them runs, so that no run's time limit pays for it.
fn prepare(cases: &[Case]) -> Result<()> {
    packages::need(&["grub-mkrescue", "xorriso", "mformat", "mkfs.ext4"])?;
    build::guests()?;
    for case in cases {
        (case.prepare)()?;
    }
    Ok(())
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Outcome {
        match result {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        }
    }
}
