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
    let names = std::iter::once("corten").chain(args.against.as_deref());
    let mut results = Vec::new();
    for name in names {
        let boot = measure(&engine, name, &modules)?;
        results.push((name, boot));
    }
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

fn measure(engine: &Engine, name: &str, modules: &[Module]) -> Result<Boot> {
    let mut hypervisor = Hypervisor::locate(name)?;
    hypervisor.set_args("dom0_mem=512M", engine.xen_protocol());
    let is_xen = hypervisor.is_xen;
    progress::step(&format!("boot {name} in {}", engine.name()), |_| {
        let logs = paths::target_dir(&format!("bench/boot/{name}"))?;
        let iso = logs.join("boot.iso");
        Medium { hypervisor, modules: modules.to_vec() }.write_iso(&iso)?;
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
