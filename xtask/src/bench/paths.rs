//! `cargo xtask bench paths`: the guests of [`super::costs`], run and read.

use super::costs::{COSTS, GUESTS};
use crate::cli::BenchArgs;
use crate::console;
use crate::engine::{Choice, Engine, Machine};
use crate::image::{Hypervisor, Medium, Module};
use crate::{build, paths, progress};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

type Measured = BTreeMap<String, u64>;

pub fn command(args: &BenchArgs) -> Result<ExitCode> {
    let engine = Engine::choose(Some(Choice::Bochs), &args.options)?;
    build::guests()?;
    let logs = paths::target_dir("bench")?;
    let corten = measure(&engine, &Hypervisor::locate("corten")?, &logs.join("corten"))?;
    let xen = match args.against.as_deref() {
        Some(name) => Some(measure(&engine, &Hypervisor::locate(name)?, &logs.join("against"))?),
        None => None,
    };
    let (text, above) = table(&corten, xen.as_ref());
    print!("{text}");
    Ok(if above == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures, and fails if a path costs more than it costs in Xen. For the tests.
pub fn none_above_xen(engine: &Engine, hypervisor: &Hypervisor, logs: &Path) -> Result<()> {
    let (text, above) = table(&measure(engine, hypervisor, logs)?, None);
    std::fs::write(logs.join("table.txt"), &text)?;
    ensure!(above == 0, "{above} paths cost more than in Xen:\n{text}");
    Ok(())
}

/// Runs every measuring guest on a hypervisor.
fn measure(engine: &Engine, hypervisor: &Hypervisor, logs: &Path) -> Result<Measured> {
    let mut all = Measured::new();
    for &(guest, cpus) in GUESTS {
        let on = hypervisor.image.file_name().unwrap_or_default().display();
        let console = progress::step(&format!("{guest} on {on} in {}", engine.name()), |_| {
            let logs = paths::make_dir(logs.join(guest))?;
            let iso = logs.join("boot.iso");
            let mut hypervisor = hypervisor.clone();
            // With several CPUs in Bochs it stops in x2APIC mode, at a check of its own.
            let console = if hypervisor.is_xen { " sync_console x2apic=0" } else { "" };
            hypervisor.set_args(&format!("dom0_mem=128M dom0_max_vcpus={cpus}{console}"), engine.xen_protocol());
            let module = Module { file: build::guest(guest), args: String::new() };
            Medium { hypervisor, modules: vec![module], acpi: None }.write_iso(&iso)?;
            let mut running = engine.start(&Machine { cpus, ..Machine::plain(&iso, 1024, &logs) })?;
            let run =
                console::watch(&mut running, &logs.join("console.log"), Duration::from_secs(180), &[], &mut |_| {})?;
            ensure!(run.console.contains(&format!("GUEST {guest} DONE")), "it did not finish; see {}", logs.display());
            Ok(run.console)
        })?;
        read(&console, &mut all)?;
    }
    Ok(all)
}

/// Takes the `path NAME TICKS` lines.
fn read(console: &str, all: &mut Measured) -> Result<()> {
    for line in console.lines() {
        if let Some(rest) = line.split_once("path ").map(|(_, rest)| rest.trim()) {
            let (name, ticks) = rest.split_once(' ').with_context(|| format!("not a measurement: {line}"))?;
            all.insert(name.to_string(), ticks.parse().with_context(|| format!("not a number: {line}"))?);
        }
    }
    Ok(())
}

/// The table, and how many paths cost more than Xen's.
fn table(corten: &Measured, xen: Option<&Measured>) -> (String, usize) {
    let mut text = format!("{:50} {:>9} {:>9} {:>9}\n", "instructions", "Corten", "Xen 4.20", "budget");
    let mut above = 0;
    for cost in COSTS {
        let reference = xen.and_then(|xen| xen.get(cost.name)).copied().unwrap_or(cost.xen);
        let (value, verdict) = match corten.get(cost.name) {
            Some(value) if *value <= cost.budget => (value.to_string(), ""),
            Some(value) if *value <= reference => (value.to_string(), "  over budget"),
            Some(value) => {
                above += 1;
                (value.to_string(), "  ABOVE XEN")
            }
            None => {
                above += 1;
                ("-".to_string(), "  NOT MEASURED")
            }
        };
        text.push_str(&format!("{:50} {value:>9} {reference:>9} {:>9}{verdict}\n", cost.about, cost.budget));
    }
    (text, above)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(value: u64) -> Measured {
        COSTS.iter().map(|cost| (cost.name.to_string(), value)).collect()
    }

    #[test]
    fn measurements_are_read_from_a_console() {
        let mut all = Measured::new();
        read("(XEN) hello\r\npath cpuid 300\r\npath close 1500\r\n", &mut all).expect("two measurements");
        assert_eq!(all.get("cpuid"), Some(&300));
        assert!(read("path cpuid many\n", &mut all).is_err());
    }

    #[test]
    fn what_costs_more_than_xen_or_was_not_measured_is_counted() {
        assert_eq!(table(&measured(100), None).1, 0);
        assert_eq!(table(&measured(1_000_000), None).1, COSTS.len());
        assert_eq!(table(&measured(1_000_000), Some(&measured(2_000_000))).1, 0);
        assert_eq!(table(&Measured::new(), None).1, COSTS.len());
    }
}
