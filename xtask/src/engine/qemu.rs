//! QEMU: SVM by emulation (TCG has no VMX), or the machine's own VMX or SVM through KVM where it nests.

use super::{Machine, headless};
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
const TCG_CPU: &str = "EPYC,+svm,+npt,-rdtscp,-monitor";

pub fn command(accelerator: Accelerator, machine: &Machine, console_port: u16) -> Command {
    let mut command = headless(Path::new(PROGRAM));
    let (accel, cpu) = match accelerator {
        Accelerator::Tcg => ("tcg,thread=multi", TCG_CPU),
        Accelerator::Kvm => ("kvm", "host"),
    };
    let board = if accelerator == Accelerator::Tcg { "q35,kernel-irqchip=off" } else { "q35" };
    command.args(["-accel", accel, "-M", board, "-cpu", machine.cpu.as_deref().unwrap_or(cpu)]);
    command.args(["-m", &machine.memory_mib.to_string(), "-smp", &machine.cpus.to_string()]);
    if machine.iommu {
        command.args(["-device", "amd-iommu"]);
    }
    command.arg("-cdrom").arg(&machine.iso);
    if let Some(disk) = &machine.disk {
        command.arg("-drive").arg(format!("file={},format=raw,if=ide", disk.display()));
    }
    command.args(["-serial", &format!("tcp:127.0.0.1:{console_port}")]);
    command.args(["-display", "none", "-monitor", "none", "-boot", "d"]);
    if !machine.reboots {
        command.arg("-no-reboot");
    }
    command.arg("-debugcon").arg(format!("file:{}", machine.logs.join("debugcon.log").display()));
    if machine.debug {
        command.args(["-S", "-gdb", "tcp:127.0.0.1:1234"]);
    }
    command
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
