//! One test that boots a machine, and what it may use.

use crate::console::{self, Run};
use crate::engine::{Engine, Firmware, Machine};
use crate::image::{Hypervisor, Medium, Module, Protocol};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a case does on one engine.
pub type Action = Box<dyn Fn(&Context<'_>) -> Result<()> + Send + Sync>;

/// A test. `run` gets everything by its [`Context`] and says in an error what went wrong.
pub struct Case {
    pub name: String,
    pub about: &'static str,
    /// Part of the quick set.
    pub quick: bool,
    /// Makes sense with Xen in Corten's place, and passes there.
    pub on_xen: bool,
    /// Takes so long that of several versions of Bochs one will do.
    pub in_one_version: bool,
    /// Which kinds of engine it is for.
    pub engines: fn(&Engine) -> bool,
    pub prepare: Box<dyn Fn() -> Result<()> + Send + Sync>,
    pub run: Action,
}

/// Where a case runs.
pub struct Context<'a> {
    pub engine: &'a Engine,
    pub hypervisor: &'a Hypervisor,
    /// Of this case on this engine: whole logs stay there.
    pub logs: PathBuf,
}

/// A boot that a case asks for.
pub struct Boot {
    pub corten_args: String,
    pub modules: Vec<Module>,
    pub memory_mib: u32,
    pub cpus: u32,
    pub cpu: Option<String>,
    pub disk: Option<PathBuf>,
    pub firmware: Firmware,
    /// An ACPI table in the place of the firmware's own.
    pub acpi: Option<Vec<u8>>,
    /// Another board than q35, as QEMU names it.
    pub board: Option<&'static str>,
    /// QEMU's arguments for what else the machine has.
    pub devices: Vec<String>,
    /// A reset is part of the run.
    pub reboots: bool,
    pub limit: u64,
    /// The run is over once the console says one of these.
    pub until: Vec<String>,
}

impl Default for Boot {
    fn default() -> Boot {
        Boot {
            corten_args: String::new(),
            modules: Vec::new(),
            memory_mib: 512,
            cpus: 1,
            cpu: None,
            disk: None,
            firmware: Firmware::default(),
            acpi: None,
            board: None,
            devices: Vec::new(),
            reboots: false,
            limit: 60,
            until: Vec::new(),
        }
    }
}

impl Context<'_> {
    pub fn on_xen(&self) -> bool {
        self.hypervisor.is_xen
    }

    /// Boots once and watches to the end. The logs of `step` are in a directory of that name.
    pub fn boot(&self, step: &str, boot: Boot) -> Result<Run> {
        let logs = self.logs.join(step);
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let iso = logs.join("boot.iso");
        let mut args = boot.corten_args;
        if self.on_xen() {
            // Dom0 powers off behind Xen's back, before Xen has sent what it buffers.
            args = format!("{args} sync_console");
        }
        let protocol = self.engine.xen_protocol();
        let hypervisor = self.hypervisor.clone().with_args(&args, protocol);
        Medium { hypervisor, modules: boot.modules, acpi: boot.acpi }.write_iso(&iso)?;
        let machine = Machine {
            cpus: boot.cpus,
            disk: boot.disk,
            cpu: boot.cpu,
            firmware: boot.firmware,
            board: boot.board,
            reboots: boot.reboots,
            iommu: self.on_xen() && !boot.devices.iter().any(|device| device.contains("iommu")),
            waits_in_turn: self.on_xen(),
            devices: boot.devices,
            ..Machine::plain(&iso, boot.memory_mib, &logs)
        };
        let run = self.watch(&machine, boot.limit, boot.until)?;
        let _ = std::fs::remove_file(iso);
        Ok(run)
    }

    /// Starts the machine and watches it for `limit` seconds, to its end, or until the console says one of `until`.
    pub fn watch(&self, machine: &Machine, limit: u64, until: Vec<String>) -> Result<Run> {
        let mut running = self.engine.start(machine)?;
        let limit = Duration::from_secs(limit * super::PATIENCE);
        // Nothing comes after these.
        let until: Vec<String> = until.into_iter().chain(LAST_WORDS.map(str::to_string)).collect();
        console::watch(&mut running, &machine.logs.join("console.log"), limit, &until, &mut |_| {})
    }
}

/// What Corten says last before it stops.
const LAST_WORDS: [&str; 3] =
    ["(corten) halted (noreboot)", "(corten) rebooting in a few seconds", "Corten cannot go on; halted"];

/// What Corten prints when it is itself at fault: no run may show one.
const HOST_FAULTS: [&str; 5] = [
    "(corten) panic:",
    "(corten) fatal exception",
    "(corten) another crash",
    "the CPU refuses to enter the guest",
    "is released once too often",
];

/// Fails where the hypervisor broke.
pub fn host_is_well(run: &Run) -> Result<()> {
    match run.console.lines().find(|line| HOST_FAULTS.iter().any(|fault| line.contains(fault))) {
        Some(line) => bail!("the hypervisor says: {}", line.trim()),
        None => Ok(()),
    }
}

/// The end of a console, for messages.
pub fn last_lines(console: &str, count: usize) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n    ")
}

pub fn module(file: &Path, args: &str) -> Module {
    Module { file: file.to_path_buf(), args: args.to_string() }
}

/// For cases without anything to fetch.
pub fn nothing_to_prepare() -> Box<dyn Fn() -> Result<()> + Send + Sync> {
    Box::new(|| Ok(()))
}

impl Hypervisor {
    /// The image with the arguments that it has by default, and these.
    fn with_args(mut self, args: &str, protocol: Protocol) -> Hypervisor {
        self.set_args(args, protocol);
        self
    }
}
