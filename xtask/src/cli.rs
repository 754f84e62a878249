//! The command line.

use crate::engine::{Choice, Firmware, Options};
use crate::{bench, build, deb, image, layout, lint, once, packages, run, test};
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Corten", disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build target/corten/corten (the multiboot2 ELF) and corten.gz
    Build,
    /// Make target/corten/corten.iso, which BIOS and UEFI boot from CD or USB stick
    Image(Boot),
    /// Make target/corten_VERSION_amd64.deb, which Debian 13 installs and GRUB then offers
    Deb,
    /// Boot Corten with a small Debian Dom0 and put Dom0's console in this terminal (Ctrl-A x leaves)
    Run(RunArgs),
    /// Run the tests: host tests, then Corten in the engines
    Test(TestArgs),
    /// Measure: `boot` (power-on to power-off), `paths` (each path that a guest can take), `guest` (domains that `xl` makes) or `sched` (the scheduler)
    #[command(subcommand)]
    Bench(Bench),
    /// Check formatting, clippy and the house rules
    Lint,
    /// Write xen-abi's layout assertions anew from Xen's public headers
    Layout {
        /// The directory of Xen's headers (libxen-dev's /usr/include/xen; default: Debian 13's, fetched)
        headers: Option<PathBuf>,
    },
    /// Record anew, in QEMU, what Xen's toolstack says on Debian's Xen 4.20: the test toolstack_compare is held against it
    Record,
    /// Boot once without a terminal: the whole console goes to standard output, the logs to target/once
    BootOnce(OnceArgs),
}

/// What GRUB loads.
#[derive(Args, Clone, Default)]
pub struct Boot {
    /// Dom0's kernel (default: that of Debian 13's linux-image-amd64)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Dom0's initramfs (default: busybox; with --kernel none)
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Arguments added to Dom0's command line
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, default_value = "")]
    pub dom0_args: String,
    /// Arguments added to Corten's command line
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, default_value = "")]
    pub corten_args: String,
    /// A domain beside Dom0, as its module says it: "name=web memory=256M … -- for its kernel". kernel=FILE and initrd=FILE among
    /// the first words say what it runs; without them it is Debian's kernel with busybox
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub domain: Vec<String>,
    /// Debian suite that Dom0's kernel and modules come from, and those of domains that bring none
    #[arg(long, value_name = "SUITE", default_value = "trixie")]
    pub suite: String,
    /// Boot Debian's Xen 4.20 in Corten's place, or a hypervisor image of your own
    #[arg(long, value_name = "corten|xen|FILE", default_value = "corten")]
    pub hypervisor: String,
}

/// The machine that is emulated.
#[derive(Args, Clone)]
pub struct MachineArgs {
    /// bochs (VMX), qemu (SVM, emulated), kvm (nested); default: the best at hand
    #[arg(long, value_enum)]
    pub engine: Option<Choice>,
    /// RAM of the machine in MiB (default: 1024; with --toolstack 1536)
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u32>,
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Raw disk image for the machine's first disk
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// What starts the machine (UEFI: QEMU and KVM)
    #[arg(long, value_enum, default_value = "bios")]
    pub firmware: Firmware,
    /// A gdb stub where the engine has one (QEMU: port 1234, stopped until gdb says continue)
    #[arg(long)]
    pub debug: bool,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub boot: Boot,
    /// A Dom0 with Debian's Xen toolstack, where `xl create -c /root/example.cfg` makes a domain
    #[arg(long)]
    pub toolstack: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
}

#[derive(Args)]
pub struct OnceArgs {
    #[command(flatten)]
    pub boot: Boot,
    /// A Dom0 with Debian's Xen toolstack, as `run` has it
    #[arg(long)]
    pub toolstack: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Stop the engine after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub limit: u64,
    /// Stop the engine, successfully, once the console says this
    #[arg(long, value_name = "TEXT")]
    pub until: Vec<String>,
}

#[derive(Subcommand)]
enum Bench {
    /// Ticks from power-on to power-off, with Debian's kernel and a busybox initramfs
    Boot(BenchArgs),
    /// Instructions of each path, beside Xen's and the budget
    Paths(BenchArgs),
    /// How long a domain that `xl` makes takes to come to its /init, and its memory beside its own, with Debian's kernel
    Guest(BenchArgs),
    /// What a scheduling decision costs, and how fair they are; a plot in target/bench/sched.svg
    Sched,
}

#[derive(Args)]
pub struct BenchArgs {
    /// Measure this one, too, on the same machine
    #[arg(long, value_name = "xen|FILE")]
    pub against: Option<String>,
    /// Boot, guest: where to measure (default: Bochs, which counts, and for `guest` QEMU)
    #[arg(long, value_enum)]
    pub engine: Option<Choice>,
    /// Boot, guest: the Debian release of the kernel
    #[arg(long, value_name = "SUITE", default_value = "trixie")]
    pub suite: String,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args)]
pub struct TestArgs {
    /// host, bochs, qemu, kvm, or names of tests; default: the host tests, then Bochs and QEMU
    pub what: Vec<String>,
    /// Everything, not only the quick set; in both versions of Bochs (but for what takes long) and in QEMU
    #[arg(long)]
    pub full: bool,
    /// List the tests
    #[arg(long)]
    pub list: bool,
    /// How many machines run at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub jobs: usize,
    /// Try the tests on Debian's Xen 4.20 ("as Xen does" is checked, not believed), or on an image of your own
    #[arg(long, value_name = "corten|xen|FILE", default_value = "corten")]
    pub hypervisor: String,
    #[command(flatten)]
    pub options: Options,
}

impl Cli {
    pub fn dispatch(self) -> Result<ExitCode> {
        match self.command {
            Command::Build => build::build().map(|_| ExitCode::SUCCESS),
            Command::Image(boot) => image::command(&boot).map(|_| ExitCode::SUCCESS),
            Command::Deb => deb::command().map(|_| ExitCode::SUCCESS),
            Command::Run(args) => run::command(&args),
            Command::Test(args) => test::command(&args),
            Command::Bench(Bench::Boot(args)) => bench::boot(&args),
            Command::Bench(Bench::Paths(args)) => bench::paths(&args),
            Command::Bench(Bench::Guest(args)) => bench::guest(&args),
            Command::Bench(Bench::Sched) => bench::sched(),
            Command::Lint => lint::command().map(|()| ExitCode::SUCCESS),
            Command::Layout { headers } => {
                let headers = headers.map_or_else(packages::xen_headers, Ok)?;
                let table = crate::paths::root().join("hypervisor/xen-abi/src/layout.rs");
                layout::generate(&headers, &table).map(|()| ExitCode::SUCCESS)
            }
            Command::Record => test::record().map(|()| ExitCode::SUCCESS),
            Command::BootOnce(args) => once::command(&args),
        }
    }
}
