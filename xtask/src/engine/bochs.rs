//! Bochs: the place for VMX. 2.7 (Debian 12) is a debugger build and wants to be told to continue; 3.0 is not.

use super::{Firmware, Machine, Options, headless};
use crate::packages::{self, Suite};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Instructions that Bochs executes in a second of the machine's own time. With `sync=none` the TSC counts them.
pub const INSTRUCTIONS_PER_SECOND: u64 = 50_000_000;
/// Who has which version.
const SUITES: [(&str, &str); 2] = [("2.7", "bookworm"), ("3.0", "trixie")];
const CPU: &str = "corei7_haswell_4770";

pub struct Bochs {
    program: PathBuf,
    /// A fetched Bochs runs on the libraries that came with it: the directory of all of them.
    tree: Option<PathBuf>,
    pub version: String,
    debugger: bool,
}

impl Bochs {
    pub fn find(options: &Options) -> Result<Bochs> {
        let given = options.bochs.clone().or_else(|| std::env::var_os("CORTEN_BOCHS").map(PathBuf::from));
        let own = match given {
            Some(program) => Bochs::probe(program, None)?,
            None => {
                packages::need(&["bochs-bin"])?;
                Bochs::probe("bochs-bin".into(), None)?
            }
        };
        match options.bochs_version.as_deref() {
            Some(wanted) if wanted != own.version => Bochs::fetch(wanted),
            _ => Ok(own),
        }
    }

    /// Another Debian's Bochs with all its libraries, for machines that have another version.
    fn fetch(wanted: &str) -> Result<Bochs> {
        let Some((_, suite)) = SUITES.iter().find(|(version, _)| *version == wanted) else {
            bail!("--bochs-version {wanted}: Debian has {:?}", SUITES.map(|(version, _)| version));
        };
        let tree = packages::cached(&format!("bochs-{suite}"), |dir| {
            Suite::new(suite)?.unpack_closure(&["bochs", "bochs-term", "bochsbios", "vgabios"], dir)
        })?;
        let bochs = Bochs::probe(tree.join("usr/bin/bochs-bin"), Some(tree))?;
        match bochs.version == wanted {
            true => Ok(bochs),
            false => bail!("--bochs-version {wanted}: Debian's {suite} has {}", bochs.version),
        }
    }

    fn probe(program: PathBuf, tree: Option<PathBuf>) -> Result<Bochs> {
        let mut bochs = Bochs { program, tree, version: String::new(), debugger: false };
        let output = bochs.base().arg("--help").output().with_context(|| format!("{}", bochs.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let version = text.split("Bochs x86 Emulator ").nth(1).and_then(|rest| rest.split_whitespace().next());
        bochs.version = version.with_context(|| format!("{} is not Bochs", bochs.program.display()))?.to_string();
        bochs.debugger = text.contains("-rc filename");
        Ok(bochs)
    }

    /// The program, through its own dynamic linker if it brought one.
    fn base(&self) -> Command {
        let Some(tree) = &self.tree else { return headless(&self.program) };
        let lib = tree.join("usr/lib/x86_64-linux-gnu");
        let mut command = headless(&lib.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(format!("{0}:{0}/pulseaudio", lib.display())).arg(&self.program);
        command.env("LTDL_LIBRARY_PATH", lib.join("bochs/plugins"));
        command
    }

    pub fn command(&self, machine: &Machine, console_port: u16) -> Result<Command> {
        if machine.debug {
            bail!("--debug: Debian's Bochs has no gdb stub; use --engine qemu or kvm");
        }
        if machine.firmware != Firmware::Bios || machine.board.is_some() || !machine.devices.is_empty() {
            bail!("Bochs has neither UEFI nor other boards and devices; use --engine qemu or kvm");
        }
        let Some(iso) = &machine.iso else { bail!("here Bochs boots from CDs only; use --engine qemu or kvm") };
        let rc = machine.logs.join("bochsrc");
        std::fs::write(&rc, self.bochsrc(machine, iso, console_port))?;
        let mut command = self.base();
        command.arg("-q").arg("-f").arg(&rc);
        if self.debugger {
            let go = machine.logs.join("debugger");
            std::fs::write(&go, "c\n")?;
            command.arg("-rc").arg(go);
        }
        Ok(command)
    }

    fn bochsrc(&self, machine: &Machine, iso: &Path, console_port: u16) -> String {
        let share = self.tree.clone().unwrap_or_else(|| Path::new("/").to_path_buf());
        let (bios, vga) =
            (share.join("usr/share/bochs/BIOS-bochs-latest"), share.join("usr/share/vgabios/vgabios.bin"));
        let cpu = machine.cpu.as_deref().unwrap_or(CPU);
        let disk = match &machine.disk {
            Some(disk) => format!("ata1-master: type=disk, path={}, mode=flat, translation=lba\n", disk.display()),
            None => String::new(),
        };
        format!(
            "config_interface: textconfig\n\
             display_library: rfb, options=\"timeout=0\"\n\
             memory: guest={memory}, host={memory}\n\
             romimage: file={bios}, options=fastboot\n\
             vgaromimage: file={vga}\n\
             cpu: model={cpu}, count={cpus}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=cdrom, path={iso}, status=inserted\n\
             ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n\
             {disk}\
             boot: cdrom\n\
             com1: enabled=1, mode=socket-client, dev=localhost:{console_port}\n\
             sound: driver=dummy\n\
             log: {log}\n\
             panic: action=fatal\n\
             error: action=report\n\
             info: action=report\n\
             debug: action=ignore\n\
             clock: sync=none\n",
            memory = machine.memory_mib,
            bios = bios.display(),
            vga = vga.display(),
            cpus = machine.cpus,
            iso = iso.display(),
            log = machine.logs.join("bochs.log").display(),
        )
    }
}

/// Ticks from power-on to the end of the run: each line of Bochs's log begins with the ticks so far.
pub fn ticks(logs: &Path) -> Result<u64> {
    let path = logs.join("bochs.log");
    let log = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    last_tick(&String::from_utf8_lossy(&log)).with_context(|| format!("no ticks in {}", path.display()))
}

fn last_tick(log: &str) -> Option<u64> {
    log.lines().rev().find_map(|line| line.get(..11)?.trim_start_matches('0').parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_a_tick_is_the_length_of_the_run() {
        let log = "00000000000i[      ] Bochs x86 Emulator 3.0\n03760000123i[ACPI  ] ACPI control: soft power off\n(0) quit\n";
        assert_eq!(last_tick(log), Some(3_760_000_123));
    }
}
