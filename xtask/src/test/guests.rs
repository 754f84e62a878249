//! The test guests: one behaviour each, run as Dom0's kernel.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module, nothing_to_prepare};
use crate::build;
use crate::console::{End, Run};
use crate::engine::Engine;
use crate::engine::qemu::{Accelerator, TCG_CPU};
use anyhow::{Context as _, Result, bail, ensure};

/// How a guest's run has to end.
#[derive(Clone, Copy)]
enum Ends {
    /// With `GUEST name DONE n` and power-off.
    Done,
    /// With the hypervisor saying this of Dom0 (one of them: Xen's words, or Corten's).
    Says(&'static [&'static str]),
}

/// What a guest needs, and how it is judged.
#[derive(Clone, Copy)]
struct Guest {
    name: &'static str,
    about: &'static str,
    args: &'static str,
    cpus: u32,
    limit: u64,
    ends: Ends,
    engines: fn(&Engine) -> bool,
    /// It runs once on each of these.
    machines: &'static [Equipment],
    /// Checks that real Xen does not pass, and on which engine.
    xen_differs: &'static [(&'static str, &'static str)],
    /// Checks that an engine's emulated machine does not pass, whoever runs on it.
    machine_differs: &'static [(&'static str, &'static str)],
}

/// What a machine has beside its board's own devices, and what the guest is told of it on its command line.
#[derive(Clone, Copy)]
struct Equipment {
    name: &'static str,
    /// As QEMU names them.
    devices: &'static [&'static str],
    /// A feature that its CPUs lack, as QEMU names it: a machine that QEMU emulates alone.
    without: Option<&'static str>,
    /// It has one CPU, which the guest's vCPUs share.
    shared: bool,
    told: &'static str,
}

const PLAIN: Equipment = Equipment { name: "run", devices: &[], without: None, shared: false, told: "" };

const fn guest(name: &'static str, about: &'static str) -> Guest {
    Guest {
        name,
        about,
        args: "",
        cpus: 1,
        limit: 60,
        ends: Ends::Done,
        engines: |_| true,
        machines: &[PLAIN],
        xen_differs: &[],
        machine_differs: &[],
    }
}

const GUESTS: &[Guest] = &[
    Guest {
        xen_differs: &[
            ("qemu", "the TSC is not emulated"),
            ("qemu", "legacy XSAVE area"),
            ("qemu", "XSAVE area with AVX"),
        ],
        ..guest("cpuid_leaves", "Xen's CPUID leaves, and what CPUID hides")
    },
    guest("compat_hypercalls", "hypercalls of a 32-bit caller, and a shared page of its width"),
    guest("hypercall_page", "the hypercall page does what the instruction does"),
    Guest {
        xen_differs: &[("qemu", "PAT after reset")],
        ..guest("msrs_allowed", "MSRs that kernels use have an answer")
    },
    Guest {
        xen_differs: &[("qemu", "a reserved type in the PAT")],
        // TCG's WRMSR, which does not exit here, takes any address.
        machine_differs: &[
            ("qemu", "a system call entry that is not canonical"),
            ("qemu", "a GS base that is not canonical"),
        ],
        ..guest("msrs_refused", "MSRs that guests must not have are #GP")
    },
    guest("events_two_level", "event channels, two-level"),
    guest("events_fifo", "event channels, FIFO"),
    guest("timers", "the hypervisor's timers and the local APIC's"),
    guest("version_and_features", "what the hypervisor says of itself"),
    guest("poll_and_yield", "yield, block, poll, watchdog"),
    guest("vmx_instructions", "instructions that a guest is not offered are #UD"),
    guest("rip_wraps", "an exit at the end of 32-bit memory goes on at its beginning"),
    Guest {
        cpus: 2,
        limit: 120,
        machines: &[
            PLAIN,
            Equipment { name: "one_cpu", shared: true, ..PLAIN },
            Equipment { name: "no_xsave", shared: true, without: Some("xsave"), ..PLAIN },
        ],
        ..guest("fpu_state", "x87, SSE and AVX registers, XCR0, DR0-DR3 and TSC_AUX survive exits and another vCPU")
    },
    guest("apic_priority", "the task priority, by its register and by CR8"),
    Guest {
        // TCG ignores the high half of a value for CR0, and has no INT1.
        machine_differs: &[("qemu", "a high bit of CR0"), ("qemu", "INT1 is #DB")],
        ..guest("exceptions", "exceptions, NMI, STI shadow, control registers")
    },
    Guest {
        ends: Ends::Says(&["Triple fault", "triple fault"]),
        ..guest("triple_fault", "a triple fault ends the guest alone")
    },
    Guest {
        ends: Ends::Says(&["Hardware Dom0 halted", "(domain 0) powers off"]),
        ..guest("shutdown_poweroff", "SCHEDOP_shutdown: power off")
    },
    Guest {
        ends: Ends::Says(&["rebooting machine", "(domain 0) reboots"]),
        ..guest("shutdown_reboot", "SCHEDOP_shutdown: reboot")
    },
    Guest {
        ends: Ends::Says(&["Hardware Dom0 crashed", "(domain 0) has crashed"]),
        ..guest("shutdown_crash", "SCHEDOP_shutdown: crash")
    },
    guest("memory_ops", "memory map, reservations, pages placed and removed"),
    guest("grant_self", "grants mapped, copied, refused"),
    Guest { limit: 90, ..guest("runstate_and_clock", "system time, wall clock, runstates") },
    guest("bad_pointer", "arguments that cannot be reached are -EFAULT"),
    Guest { limit: 240, ..guest("malformed_hypercalls", "100,000 calls that make no sense") },
    Guest { cpus: 2, limit: 120, ..guest("apic_ipi", "INIT, SIPI and IPIs between two vCPUs") },
    Guest {
        cpus: 2,
        limit: 120,
        ..guest("shoot_down", "a page that is taken away is out of another vCPU's reach at once")
    },
    guest("ports", "ports that pass, are emulated, or read as ones"),
    Guest {
        // Holes below 4 GiB are the machine's own, and QEMU's bus answers zeroes.
        machine_differs: &[("qemu", "a hole"), ("qemu", "ADD from a hole")],
        ..guest("mmio_exits", "IO-APIC, local APIC page, holes")
    },
    Guest {
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        machines: &[Equipment { devices: &["e1000e", "edu"], ..PLAIN }],
        ..guest("pci_config", "configuration space by ports and memory, BARs, MSI and MSI-X")
    },
    Guest {
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        machines: &[
            Equipment { name: "intel", devices: &["intel-iommu"], told: "registers=fed90000", ..PLAIN },
            Equipment { name: "amd", devices: &["amd-iommu"], told: "registers=fed80000", ..PLAIN },
        ],
        xen_differs: &[("qemu", "no IOMMU by the ports"), ("qemu", "no IOMMU by memory")],
        ..guest("iommu_hidden", "the IOMMU's tables, function and registers are out of sight")
    },
];

pub fn cases() -> Vec<Case> {
    GUESTS.iter().map(|guest| case(*guest)).collect()
}

fn case(guest: Guest) -> Case {
    Case {
        name: guest.name.to_string(),
        about: guest.about,
        quick: true,
        on_xen: true,
        in_one_version: false,
        engines: guest.engines,
        prepare: nothing_to_prepare(),
        run: Box::new(move |context| {
            let is_emulated = matches!(context.engine, Engine::Qemu(Accelerator::Tcg));
            let mut there = guest.machines.iter().filter(|equipment| is_emulated || equipment.without.is_none());
            there.try_for_each(|equipment| {
                run(&guest, equipment, context).with_context(|| format!("on machine \"{}\"", equipment.name))
            })
        }),
    }
}

fn run(guest: &Guest, equipment: &Equipment, context: &Context<'_>) -> Result<()> {
    let vcpus = if guest.cpus > 1 { format!("dom0_max_vcpus={} ", guest.cpus) } else { String::new() };
    let run = context.boot(
        equipment.name,
        Boot {
            corten_args: format!("dom0_mem=128M {vcpus}{}", guest.args).trim_end().to_string(),
            modules: vec![module(&build::guest(guest.name), equipment.told)],
            devices: equipment.devices.iter().flat_map(|device| ["-device".to_string(), device.to_string()]).collect(),
            cpu: equipment.without.map(|feature| format!("{TCG_CPU},-{feature}")),
            cpus: if equipment.shared { 1 } else { guest.cpus },
            limit: guest.limit,
            until: match guest.ends {
                Ends::Done => Vec::new(),
                Ends::Says(words) => words.iter().map(|word| word.to_string()).collect(),
            },
            ..Boot::default()
        },
    )?;
    if !context.on_xen() {
        host_is_well(&run)?;
    }
    let by_xen = guest.xen_differs.iter().filter(|_| context.on_xen());
    let differs: Vec<&str> = by_xen
        .chain(guest.machine_differs)
        .filter(|(engine, _)| context.engine.name().starts_with(engine))
        .map(|(_, check)| *check)
        .collect();
    judge(guest, &run, &differs)
}

/// No check may have failed but those in `differs`, and the guest must have come to its end.
fn judge(guest: &Guest, run: &Run, differs: &[&str]) -> Result<()> {
    let checks: Vec<&str> =
        run.console.lines().filter_map(|line| line.split_once("TEST ").map(|(_, rest)| rest)).collect();
    let failures: Vec<&str> = checks
        .iter()
        .copied()
        .filter(|check| check.contains(" FAIL") && !differs.iter().any(|name| check.contains(name)))
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    match guest.ends {
        Ends::Done => {
            let done = format!("GUEST {} DONE {}", guest.name, checks.len());
            if !run.console.lines().any(|line| line.trim_end().ends_with(&done)) {
                bail!("no \"{done}\" ({:?}); the end of its console:\n    {}", run.end, last_lines(&run.console, 12));
            }
            ensure!(run.end == End::PoweredOff, "it did not power off");
        }
        Ends::Says(words) => ensure!(
            words.iter().any(|word| run.console.contains(word)),
            "none of {words:?} was said; the end of its console:\n    {}",
            last_lines(&run.console, 12)
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SAMPLE: Guest = guest("sample", "");

    fn console(text: &str) -> Run {
        Run { end: End::PoweredOff, console: text.to_string(), took: Duration::ZERO }
    }

    #[test]
    fn a_guest_that_checked_everything_passes() {
        let run = console("TEST sample: a ok\r\nTEST sample: b ok\r\nGUEST sample DONE 2\r\n");
        assert!(judge(&SAMPLE, &run, &[]).is_ok());
    }

    #[test]
    fn a_failed_check_fails_unless_xen_is_known_to_differ() {
        let run = console("TEST sample: a FAIL: got 1, want 2\nGUEST sample DONE 1\n");
        assert!(judge(&SAMPLE, &run, &[]).is_err());
        assert!(judge(&SAMPLE, &run, &["a FAIL"]).is_ok());
    }

    #[test]
    fn a_guest_that_stops_early_or_loses_a_check_fails() {
        assert!(judge(&SAMPLE, &console("TEST sample: a ok\n"), &[]).is_err());
        assert!(judge(&SAMPLE, &console("TEST sample: a ok\nGUEST sample DONE 2\n"), &[]).is_err());
        assert!(judge(&SAMPLE, &console(""), &[]).is_err());
    }

    #[test]
    fn every_guest_has_its_file_and_every_file_is_a_test() {
        let dir = crate::paths::root().join("tests-qemu/src/bin");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .expect("the guests")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_string))
            .filter(|name| !["dom0_", "domain_", "bench_"].iter().any(|kind| name.starts_with(kind)))
            .collect();
        files.sort();
        let mut names: Vec<&str> = GUESTS.iter().map(|guest| guest.name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }
}
