//! `cargo xtask bench boot`: ticks from power-on to power-off with Debian's kernel and a busybox initramfs.

use crate::cli::BenchArgs;
use crate::console::{self, End};
use crate::dom0::{Dom0, KERNEL_ARGS};
use crate::engine::{Choice, Engine, Machine, bochs};
use crate::image::{Hypervisor, Medium, Module};
use crate::{paths, progress};
use anyhow::{Result, ensure};
use std::process::ExitCode;
use std::time::Duration;

/// Boots of each hypervisor where only time tells.
const ROUNDS: usize = 3;

/// What one boot came to.
struct Boot {
    ticks: Option<u64>,
    seconds: f32,
}

pub fn command(args: &BenchArgs) -> Result<ExitCode> {
    let engine = Engine::choose(Some(args.engine.unwrap_or(Choice::Bochs)), &args.options)?;
    let dom0 = Dom0::fetch(&args.suite)?;
    let initrd = dom0.small_initramfs()?;
    let modules = [
        Module { file: dom0.kernel.clone(), args: format!("{KERNEL_ARGS} corten.run=poweroff") },
        Module { file: initrd, args: String::new() },
    ];
    let names: Vec<&str> = std::iter::once("corten").chain(args.against.as_deref()).collect();
    // Ticks repeat. Seconds do not: the median of several boots in turn says more than one.
    let rounds = if matches!(engine, Engine::Bochs(_)) { 1 } else { ROUNDS };
    let mut boots: Vec<Vec<Boot>> = names.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (name, boots) in names.iter().zip(&mut boots) {
            boots.push(measure(&engine, name, &modules)?);
        }
    }
    let results: Vec<(&str, Boot)> = names.into_iter().zip(boots.into_iter().filter_map(median)).collect();
    println!(
        "{} in {}, from power-on to power-off:",
        dom0.kernel.file_name().unwrap_or_default().display(),
        engine.name()
    );
    for (name, boot) in &results {
        match boot.ticks {
            Some(ticks) => println!("{name:8} {ticks:>14} ticks {:>8.1} s", boot.seconds),
            None => println!("{name:8} {:>8.1} s", boot.seconds),
        }
    }
    let slower = match results.as_slice() {
        [(_, corten), (_, other)] => {
            let ratio = match (corten.ticks, other.ticks) {
                (Some(ours), Some(theirs)) => ours as f64 / theirs as f64,
                _ => f64::from(corten.seconds / other.seconds),
            };
            println!("ratio    {ratio:.3}");
            ratio > 1.0
        }
        _ => false,
    };
    Ok(if slower { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The one in the middle, by time.
fn median(mut boots: Vec<Boot>) -> Option<Boot> {
    boots.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let middle = boots.len() / 2;
    boots.into_iter().nth(middle)
}

fn measure(engine: &Engine, name: &str, modules: &[Module]) -> Result<Boot> {
    let mut hypervisor = Hypervisor::locate(name)?;
    hypervisor.set_args("dom0_mem=512M", engine.xen_protocol());
    let is_xen = hypervisor.is_xen;
    progress::step(&format!("boot {name} in {}", engine.name()), |_| {
        let logs = paths::target_dir(&format!("bench/boot/{name}"))?;
        let iso = logs.join("boot.iso");
        Medium { hypervisor, modules: modules.to_vec(), acpi: None }.write_iso(&iso)?;
        let machine = Machine { iommu: is_xen, ..Machine::plain(&iso, 1024, &logs) };
        let mut running = engine.start(&machine)?;
        let run = console::watch(&mut running, &logs.join("console.log"), Duration::from_secs(600), &[], &mut |_| {})?;
        let reached = run.console.contains("DOM0 SCRIPT DONE") && run.end == End::PoweredOff;
        ensure!(reached, "Dom0 did not reach its end ({:?}); see {}", run.end, logs.display());
        let ticks = match engine {
            Engine::Bochs(_) => Some(bochs::ticks(&logs)?),
            Engine::Qemu(_) => None,
        };
        Ok(Boot { ticks, seconds: run.took.as_secs_f32() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_in_the_middle_counts() {
        let boot = |seconds| Boot { ticks: None, seconds };
        assert_eq!(median(vec![boot(9.0), boot(30.0), boot(8.0)]).map(|boot| boot.seconds), Some(9.0));
        assert!(median(Vec::new()).is_none());
    }
}
