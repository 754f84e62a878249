//! What Corten itself takes up: its image, and the machine's memory.

use super::case::{Boot, Case, Context, host_is_well, module, nothing_to_prepare};
use crate::build;
use anyhow::{Context as _, Result, ensure};

/// Of the ELF file without symbols.
const IMAGE: u64 = 3 << 19;
/// On a machine of 2 GiB, in KiB: the image, the frame table of 16 bytes a frame, page tables, Dom0's structures.
const OWN_MEMORY: u64 = 12 << 10;
const MACHINE_MIB: u32 = 2048;

pub fn case() -> Case {
    Case {
        name: "sizes".into(),
        about: "Corten's image, and its own memory on a machine of 2 GiB",
        quick: true,
        on_xen: false,
        in_one_version: false,
        engines: |_| true,
        prepare: nothing_to_prepare(),
        run: Box::new(run),
    }
}

fn run(context: &Context<'_>) -> Result<()> {
    let image = std::fs::metadata(&context.hypervisor.image)?.len();
    ensure!(image <= IMAGE, "the image has {image} bytes; {IMAGE} are allowed");
    let run = context.boot(
        "run",
        Boot {
            corten_args: "dom0_mem=1G".into(),
            modules: vec![module(&build::guest("version_and_features"), "")],
            memory_mib: MACHINE_MIB,
            ..Boot::default()
        },
    )?;
    host_is_well(&run)?;
    let own = own_memory(&run.console).context("Corten does not say how much memory is its own")?;
    ensure!(own <= OWN_MEMORY, "{own} KiB are Corten's own; {OWN_MEMORY} are allowed");
    println!("image {} KiB, own memory {own} KiB of {MACHINE_MIB} MiB", image >> 10);
    Ok(())
}

/// "… 1032540 KiB are free, 9220 KiB Corten's own"
fn own_memory(console: &str) -> Option<u64> {
    let line = console.lines().find_map(|line| line.split_once(" KiB Corten's own").map(|(before, _)| before))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_read_from_the_log() {
        let line = "(corten) [    0.3] info  dom0: starts with 1 vCPU; 518196 KiB are free, 9220 KiB Corten's own\r\n";
        assert_eq!(own_memory(line), Some(9220));
        assert_eq!(own_memory("nothing"), None);
    }
}
