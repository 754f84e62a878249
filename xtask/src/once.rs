//! `cargo xtask boot-once`: one boot without a terminal, for scripts and for people who debug.

use crate::cli::{MachineArgs, OnceArgs};
use crate::console::{self, End};
use crate::engine::{Engine, Machine, bochs};
use crate::image::Medium;
use crate::{paths, progress, toolstack};
use anyhow::Result;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// RAM of a machine unless the user says otherwise.
const MEMORY_MIB: u32 = 1024;

pub fn machine(args: &MachineArgs, hypervisor: &str, iso: &Path, logs: PathBuf) -> Result<Machine> {
    Ok(Machine {
        cpus: args.cpus,
        disk: args.disk.as_ref().map(std::fs::canonicalize).transpose()?,
        cpu: args.options.cpu.clone(),
        firmware: args.firmware,
        debug: args.debug,
        iommu: hypervisor == "xen",
        waits_in_turn: hypervisor == "xen",
        ..Machine::plain(iso, args.memory.unwrap_or(MEMORY_MIB), &logs)
    })
}

pub fn command(args: &OnceArgs) -> Result<ExitCode> {
    let engine = Engine::choose(args.machine.engine, &args.machine.options)?;
    let (mut boot, mut machine_args) = (args.boot.clone(), args.machine.clone());
    let logs = paths::target_dir("once")?;
    if args.toolstack {
        toolstack::add(&mut boot, &mut machine_args, &logs)?;
    }
    let medium = Medium::from_cli(&boot, engine.xen_protocol())?;
    let iso = logs.join("boot.iso");
    progress::step("make the boot medium", |_| medium.write_iso(&iso))?;
    let mut running = engine.start(&machine(&machine_args, &boot.hypervisor, &iso, logs.clone())?)?;
    let mut out = std::io::stdout();
    let limit = Duration::from_secs(args.limit);
    let run = console::watch(&mut running, &logs.join("console.log"), limit, &args.until, &mut |bytes| {
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    })?;
    drop(running);
    let ticks = match engine {
        Engine::Bochs(_) => bochs::ticks(&logs).map(|ticks| format!(", {ticks} ticks")).unwrap_or_default(),
        Engine::Qemu(_) => String::new(),
    };
    eprintln!(
        "\n[{}: {:?} after {:.1} s{ticks}; logs in {}]",
        engine.name(),
        run.end,
        run.took.as_secs_f32(),
        logs.display()
    );
    let expected = if !args.until.is_empty() { End::Said } else { End::PoweredOff };
    Ok(if run.end == expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
