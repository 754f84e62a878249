//! A CPU that the firmware lists and that does not start: it is left out with a line that says so, and the others run.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module, nothing_to_prepare};
use crate::build;
use anyhow::{Result, ensure};

/// The APIC ids of the CPUs that there are, and of one that there is not. It is not the last to be started.
const PRESENT: [u8; 2] = [0, 1];
const LISTED: [u8; 3] = [0, 9, 1];
/// Takes two vCPUs that run at the same time.
const GUEST: &str = "shoot_down";

pub fn case() -> Case {
    Case {
        name: "missing_cpu".into(),
        about: "a CPU that does not start is reported and left out",
        quick: true,
        on_xen: false,
        in_one_version: false,
        engines: |_| true,
        prepare: nothing_to_prepare(),
        run: Box::new(run),
    }
}

fn run(context: &Context<'_>) -> Result<()> {
    let boot = Boot {
        corten_args: format!("dom0_mem=128M dom0_max_vcpus={}", PRESENT.len()),
        modules: vec![module(&build::guest(GUEST), "")],
        cpus: PRESENT.len() as u32,
        acpi: Some(madt(&LISTED)),
        limit: 120,
        ..Boot::default()
    };
    let run = context.boot("run", boot)?;
    host_is_well(&run)?;
    for said in [
        "the CPU with APIC id 9 (ACPI's 9) is left out: it does not start",
        "2 CPUs run",
        &format!("GUEST {GUEST} DONE"),
    ] {
        ensure!(run.console.contains(said), "{said:?} is not said:\n    {}", last_lines(&run.console, 12));
    }
    let failure = run.console.lines().find(|line| line.contains(" FAIL"));
    ensure!(failure.is_none(), "{}", failure.unwrap_or_default());
    Ok(())
}

/// A MADT with these CPUs, by their APIC ids, and the one IO-APIC of either engine's board (ACPI 6.5, 5.2.12).
fn madt(cpus: &[u8]) -> Vec<u8> {
    let mut table = b"APIC\0\0\0\0\x03\0CORTENMISSING \x01\0\0\0TEST\x01\0\0\0".to_vec();
    // The local APICs' address, and that there are 8259s too.
    table.extend(0xfee0_0000u32.to_le_bytes());
    table.extend(1u32.to_le_bytes());
    for &cpu in cpus {
        table.extend([0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    table.extend([1, 12, 2, 0]);
    table.extend(0xfec0_0000u32.to_le_bytes());
    table.extend(0u32.to_le_bytes());
    // The PIT is at pin 2; the SCI is active high and level-triggered.
    table.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    table.extend([2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]);
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = table.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_its_length_and_adds_up_to_nothing() {
        let table = madt(&LISTED);
        assert_eq!(table[..4], *b"APIC");
        assert_eq!(table[4..8], (44 + 3 * 8 + 12 + 2 * 10u32).to_le_bytes());
        assert_eq!(table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)), 0);
    }
}
