//! The emulators that Corten runs in, behind one shape: a machine is described, started and watched.

pub mod bochs;
mod cores;
pub mod qemu;

use crate::image::Protocol;
use crate::packages;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use cores::Core;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Choice {
    Bochs,
    Qemu,
    Kvm,
}

/// What starts the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Firmware {
    #[default]
    Bios,
    Uefi,
}

/// What a user may say about the emulators themselves.
#[derive(Args, Clone, Default)]
pub struct Options {
    /// The Bochs to use (default: bochs-bin on the path; also in CORTEN_BOCHS)
    #[arg(long, value_name = "FILE")]
    pub bochs: Option<PathBuf>,
    /// Use this version of Bochs; 3.0 is fetched from Debian 13 where the machine's own is another
    #[arg(long, value_name = "VERSION")]
    pub bochs_version: Option<String>,
    /// CPU model as the engine names it
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
}

/// A machine to emulate.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What it boots from; without it that is its disk.
    pub iso: Option<PathBuf>,
    pub memory_mib: u32,
    pub cpus: u32,
    pub disk: Option<PathBuf>,
    pub cpu: Option<String>,
    pub firmware: Firmware,
    /// Another board than q35, as QEMU names it.
    pub board: Option<&'static str>,
    /// QEMU's arguments for what else the machine has.
    pub devices: Vec<String>,
    pub debug: bool,
    /// A reset starts the machine again; without it QEMU ends.
    pub reboots: bool,
    /// An IOMMU where the engine has one: Xen's PVH Dom0 needs it to see reserved memory.
    pub iommu: bool,
    /// What it boots hands its locks on in the order of those who wait, as Xen does.
    pub waits_in_turn: bool,
    /// Where the engine's own log and the console's go.
    pub logs: PathBuf,
}

impl Machine {
    /// One CPU, nothing special.
    pub fn plain(iso: &Path, memory_mib: u32, logs: &Path) -> Machine {
        Machine { iso: Some(iso.to_path_buf()), ..Machine::of_disk(memory_mib, logs) }
    }

    /// One that boots from the disk that it is to get.
    pub fn of_disk(memory_mib: u32, logs: &Path) -> Machine {
        Machine {
            iso: None,
            memory_mib,
            cpus: 1,
            disk: None,
            cpu: None,
            firmware: Firmware::default(),
            board: None,
            devices: Vec::new(),
            debug: false,
            reboots: false,
            iommu: false,
            waits_in_turn: false,
            logs: logs.to_path_buf(),
        }
    }
}

pub enum Engine {
    Bochs(bochs::Bochs),
    Qemu(qemu::Accelerator),
}

impl Engine {
    /// The engine asked for, or the best one: KVM where it offers nested VMX, else Bochs.
    pub fn choose(choice: Option<Choice>, options: &Options) -> Result<Engine> {
        match choice {
            Some(Choice::Bochs) => Ok(Engine::Bochs(bochs::Bochs::find(options)?)),
            Some(Choice::Qemu) => {
                packages::need(&["qemu-system-x86_64"])?;
                Ok(Engine::Qemu(qemu::Accelerator::Tcg))
            }
            Some(Choice::Kvm) => match qemu::kvm_offers_nesting() {
                true => Ok(Engine::Qemu(qemu::Accelerator::Kvm)),
                false => bail!("--engine kvm: the KVM of this machine offers guests neither vmx nor svm"),
            },
            None if qemu::kvm_offers_nesting() => Ok(Engine::Qemu(qemu::Accelerator::Kvm)),
            None => Engine::choose(Some(Choice::Bochs), options),
        }
    }

    /// Whether Linux can be kept busy on two and more CPUs under a hypervisor here. In Bochs 3.0 it is interrupted, by and by, where it does not allow
    /// it, and crashes in its entry code: under Xen 4.20, too, with and without VPIDs, PCIDs and page-table isolation; not without a hypervisor.
    pub fn bears_busy_cpus(&self) -> bool {
        !matches!(self, Engine::Bochs(bochs) if bochs.version == "3.0")
    }

    /// For people: `bochs 2.7`, `qemu`, `kvm`.
    pub fn name(&self) -> String {
        match self {
            Engine::Bochs(bochs) => format!("bochs {}", bochs.version),
            Engine::Qemu(qemu::Accelerator::Tcg) => "qemu".into(),
            Engine::Qemu(qemu::Accelerator::Kvm) => "kvm".into(),
        }
    }

    /// Modules of Dom0's kernel for the disks and networks of this machine.
    pub fn dom0_modules(&self) -> &'static str {
        match self {
            Engine::Bochs(_) => "ata_piix,sd_mod,ext4",
            Engine::Qemu(_) => "ahci,nvme,virtio_pci,virtio_blk,virtio_net,e1000e,sd_mod,ext4",
        }
    }

    /// How Xen has to be started here.
    pub fn xen_protocol(&self) -> Protocol {
        match self {
            Engine::Bochs(_) => Protocol::Multiboot1,
            Engine::Qemu(_) => Protocol::Multiboot2,
        }
    }

    /// Starts the machine. Its first serial port is connected to the `Running` that comes back.
    pub fn start(&self, machine: &Machine) -> Result<Running> {
        std::fs::create_dir_all(&machine.logs)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let (mut command, core) = match self {
            Engine::Bochs(bochs) => (bochs.command(machine, port)?, None),
            Engine::Qemu(accelerator) => {
                let core = qemu::needs_one_core(*accelerator, machine).then(Core::take).transpose()?;
                (qemu::command(*accelerator, machine, port, core.as_ref())?, core)
            }
        };
        let log = std::fs::File::create(machine.logs.join("engine.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A process group of its own, so that Ctrl-C in the terminal reaches it through us alone.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let console = accept(&listener, &mut child, &machine.logs)?;
        Ok(Running { child, console, _core: core })
    }
}

/// Waits for the engine to connect its serial port. An engine that ends first has said why in its log.
fn accept(listener: &TcpListener, child: &mut Child, logs: &Path) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
        let ended = child.try_wait()?.is_some();
        if ended || Instant::now() > limit {
            let _ = child.kill();
            let log = std::fs::read_to_string(logs.join("engine.log")).unwrap_or_default();
            let last = log.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
            bail!("the engine did not start; the end of {}:\n{last}", logs.join("engine.log").display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A machine that runs. Dropping it ends it.
pub struct Running {
    child: Child,
    pub console: TcpStream,
    /// What it is kept on, if it has to be.
    _core: Option<Core>,
}

impl Running {
    /// Whether the machine has been powered off, or its engine has failed.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `program` with nothing of a terminal about it.
fn headless(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("TERM", "dumb");
    command
}
