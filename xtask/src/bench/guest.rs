//! `cargo xtask bench guest`: what a domain that `xl` makes takes to come to its `/init`, and how much memory beside its own.

use crate::cli::BenchArgs;
use crate::console;
use crate::engine::{Choice, Engine, Machine};
use crate::image::{Hypervisor, Medium, Module};
use crate::toolstack::{self, Disk};
use crate::{build, dom0, packages, paths, progress};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// A figure by its name in the script (`tests-qemu/dom0/toolstack_bench.sh`), what it is, and the most that it may be. `init` stands for the
/// whole of the wait: that for `xl create` is part of it.
const FIGURES: [(&str, &str, Option<u64>); 3] = [
    ("create", "ms from `xl create` to where `xl unpause` may come", None),
    ("init", "ms from `xl unpause` to its /init", None),
    // 1 MiB for 256 MiB of guest.
    ("overhead", "pages beside its own", Some(256)),
];

type Figures = BTreeMap<String, Vec<u64>>;

pub fn command(args: &BenchArgs) -> Result<ExitCode> {
    let engine = Engine::choose(Some(args.engine.unwrap_or(Choice::Qemu)), &args.options)?;
    let disk = Disk { suite: &args.suite, ..toolstack::EXAMPLE_DISK };
    packages::need(&["grub-mkrescue", "xorriso", "mformat"])?;
    build::guests()?;
    disk.prepare()?;
    toolstack::initramfs()?;
    let names: Vec<&str> = std::iter::once("corten").chain(args.against.as_deref()).collect();
    let results = names.iter().map(|name| measure(&engine, name, disk)).collect::<Result<Vec<Figures>>>()?;
    println!("a domain with the kernel of Debian's {}, in {}:", args.suite, engine.name());
    let (text, above) = table(&names, &results)?;
    print!("{text}");
    Ok(if above == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(engine: &Engine, name: &str, disk: Disk<'_>) -> Result<Figures> {
    let mut hypervisor = Hypervisor::locate(name)?;
    hypervisor.set_args(toolstack::DOM0_MEMORY, engine.xen_protocol());
    let is_xen = hypervisor.is_xen;
    progress::step(&format!("domains on {name} in {}", engine.name()), |_| {
        let logs = paths::target_dir(&format!("bench/guest/{name}"))?;
        let (iso, image) = (logs.join("boot.iso"), logs.join("disk.img"));
        disk.write(&image)?;
        let args = format!("{} {} corten.run=toolstack_bench", dom0::KERNEL_ARGS, toolstack::KERNEL_ARGS);
        let modules = vec![
            Module { file: toolstack::dom0()?.kernel, args },
            Module { file: toolstack::initramfs_path()?, args: String::new() },
        ];
        Medium { hypervisor, modules, acpi: None }.write_iso(&iso)?;
        let machine =
            Machine { iommu: is_xen, disk: Some(image.clone()), ..Machine::plain(&iso, toolstack::MEMORY_MIB, &logs) };
        let mut running = engine.start(&machine)?;
        let run = console::watch(&mut running, &logs.join("console.log"), Duration::from_secs(900), &[], &mut |_| {})?;
        drop(running);
        let _ = std::fs::remove_file(image);
        let done = run.console.contains("DOM0 SCRIPT DONE");
        ensure!(done, "it did not come to its end ({:?}); see {}", run.end, logs.display());
        read(&run.console)
    })
}

/// Takes the `BENCH NAME NUMBER` lines.
fn read(console: &str) -> Result<Figures> {
    let mut figures = Figures::new();
    for line in console.lines() {
        let Some((_, rest)) = line.split_once("BENCH ") else { continue };
        let (name, number) = rest.trim().split_once(' ').with_context(|| format!("not a figure: {line}"))?;
        let number = number.parse().with_context(|| format!("not a number: {line}"))?;
        figures.entry(name.to_string()).or_default().push(number);
    }
    Ok(figures)
}

/// The medians side by side, and how many of the first column are beyond their bound or the second column's.
fn table(names: &[&str], results: &[Figures]) -> Result<(String, usize)> {
    let mut text = format!("{:52}", "");
    for name in names {
        text.push_str(&format!("{name:>9}"));
    }
    text.push('\n');
    let mut above = 0;
    for (name, about, bound) in FIGURES {
        let mut medians = Vec::new();
        for figures in results {
            let mut values = figures.get(name).cloned().with_context(|| format!("{name} was not measured"))?;
            values.sort_unstable();
            medians.push(values.get(values.len() / 2).copied().unwrap_or_default());
        }
        text.push_str(&format!("{about:52}"));
        for median in &medians {
            text.push_str(&format!("{median:>9}"));
        }
        let bound = bound.or(medians.get(1).copied());
        if bound.zip(medians.first().copied()).is_some_and(|(bound, ours)| ours > bound) {
            above += 1;
            text.push_str("  ABOVE");
        }
        text.push('\n');
    }
    Ok((text, above))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_compared_with_what_was_measured_beside_them_or_their_bound() {
        let console = |create: u64, overhead: u64| {
            let round =
                |more: u64| format!("BENCH create {}\r\nBENCH init 9\r\nBENCH overhead {overhead}\r\n", create + more);
            [round(0), round(50), round(9000)].concat()
        };
        let figures = |create, overhead| read(&console(create, overhead)).expect("figures");
        let both = |ours, theirs| table(&["corten", "xen"], &[ours, theirs]).expect("a table").1;
        assert_eq!(both(figures(100, 200), figures(100, 900)), 0);
        assert_eq!(both(figures(101, 200), figures(100, 900)), 1);
        assert_eq!(both(figures(100, 257), figures(100, 900)), 1);
        assert!(table(&["corten"], &[figures(100, 200)]).expect("a table").0.contains("150"));
        assert!(table(&["corten"], &[Figures::new()]).is_err());
    }
}
