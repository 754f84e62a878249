//! QEMU: SVM by emulation (TCG has no VMX), or the machine's own VMX or SVM through KVM where it nests.

use super::cores::Core;
use super::{Firmware, Machine, headless};
use crate::packages;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    Tcg,
    Kvm,
}

const PROGRAM: &str = "qemu-system-x86_64";
/// TCG's RDTSCP intercept and MWAIT misbehave.
pub const TCG_CPU: &str = "EPYC,+svm,+npt,-rdtscp,-monitor";

/// Debian's OVMF, with room for its variables: each machine gets a copy of those.
const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Whether the threads of this machine must not run at the same time. Whenever a CPU loads x87 state (FLDENV, FRSTOR, FXRSTOR, XRSTOR), TCG
/// clears a flag of the *first* CPU, by an instruction that is not locked. The same word says whether that CPU uses nested page tables and takes
/// interrupts: what it sets or clears there meanwhile is lost, and a guest runs without its nested tables, or the host with them. Threads that
/// share a core do not come into each other's instructions. Seen in 7.2; sources of later versions read the same.
///
/// Xen's locks are had in the order of those who wait (tickets), and four CPUs and more do not get anywhere on one core with that: they keep all
/// cores, and the risk.
pub fn needs_one_core(accelerator: Accelerator, machine: &Machine) -> bool {
    let most = if machine.waits_in_turn { 3 } else { u32::MAX };
    accelerator == Accelerator::Tcg && (2..=most).contains(&machine.cpus)
}

/// All of it on one core, if there is one.
pub fn command(accelerator: Accelerator, machine: &Machine, console_port: u16, core: Option<&Core>) -> Result<Command> {
    let mut command = match core {
        Some(Core(number)) => {
            packages::need(&["taskset"])?;
            let mut command = headless(Path::new("taskset"));
            command.args(["--cpu-list", &number.to_string(), PROGRAM]);
            command
        }
        None => headless(Path::new(PROGRAM)),
    };
    let (accel, cpu) = match accelerator {
        Accelerator::Tcg => ("tcg,thread=multi", TCG_CPU),
        Accelerator::Kvm => ("kvm", "host"),
    };
    let mut board = machine.board.unwrap_or("q35").to_string();
    if accelerator == Accelerator::Tcg {
        board.push_str(",kernel-irqchip=off");
    }
    command.args(["-accel", accel, "-M", &board, "-cpu", machine.cpu.as_deref().unwrap_or(cpu)]);
    command.args(["-m", &machine.memory_mib.to_string(), "-smp", &machine.cpus.to_string()]);
    if machine.iommu {
        command.args(["-device", "amd-iommu"]);
    }
    if machine.firmware == Firmware::Uefi {
        packages::need(&["OVMF"])?;
        let variables = machine.logs.join("variables.fd");
        std::fs::copy(OVMF_VARIABLES, &variables).with_context(|| format!("cannot copy {OVMF_VARIABLES}"))?;
        command.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF}"));
        command.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", variables.display()));
    }
    match (&machine.iso, machine.firmware) {
        (Some(iso), Firmware::Bios) => {
            command.arg("-cdrom").arg(iso).args(["-boot", "d"]);
        }
        (Some(iso), Firmware::Uefi) => {
            // Without an index it would try disks and networks first.
            let iso = format!("if=none,id=iso,media=cdrom,readonly=on,file={}", iso.display());
            command.arg("-drive").arg(iso).args(["-device", "ide-cd,bus=ide.2,drive=iso,bootindex=0"]);
        }
        (None, _) => {}
    }
    command.args(&machine.devices);
    if let Some(disk) = &machine.disk {
        command.arg("-drive").arg(format!("file={},format=raw,if=ide", disk.display()));
    }
    command.args(["-serial", &format!("tcp:127.0.0.1:{console_port}")]);
    command.args(["-display", "none", "-monitor", "none"]);
    if !machine.reboots {
        command.arg("-no-reboot");
    }
    command.arg("-debugcon").arg(format!("file:{}", machine.logs.join("debugcon.log").display()));
    if machine.debug {
        command.args(["-S", "-gdb", "tcp:127.0.0.1:1234"]);
    }
    Ok(command)
}

/// Asks KVM, through QEMU, whether a guest's CPU can have VMX or SVM. The device file may exist and offer neither.
pub fn kvm_offers_nesting() -> bool {
    if !Path::new("/dev/kvm").exists() || !crate::packages::has(PROGRAM) {
        return false;
    }
    let mut command = headless(Path::new(PROGRAM));
    command.args(["-accel", "kvm", "-M", "none", "-cpu", "host", "-display", "none", "-monitor", "none"]);
    command.args(["-qmp", "stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let question = r#"{"execute":"qmp_capabilities"}
{"execute":"query-cpu-model-expansion","arguments":{"type":"full","model":{"name":"host"}}}
{"execute":"quit"}
"#;
    if let Some(mut input) = child.stdin.take() {
        let _ = input.write_all(question.as_bytes());
    }
    let Ok(output) = child.wait_with_output() else { return false };
    let answer = String::from_utf8_lossy(&output.stdout);
    answer.contains("\"vmx\": true") || answer.contains("\"svm\": true")
}
