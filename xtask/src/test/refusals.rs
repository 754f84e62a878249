//! Bad input: each boot ends with a clear line on the console, or goes on after one. Never silence, never a host fault.

use super::case::{Boot, Case, Context, host_is_well, last_lines, module};
use crate::dom0::Dom0;
use crate::engine::Engine;
use crate::image::Module;
use crate::{build, paths};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::PathBuf;

/// What is wrong, and what has to be said of it.
#[derive(Clone, Copy)]
struct Refusal {
    name: &'static str,
    about: &'static str,
    kernel: Kernel,
    args: &'static str,
    engines: fn(&Engine) -> bool,
    /// A CPU model as the engine names it.
    cpu: Option<&'static str>,
    /// A board of QEMU.
    board: Option<&'static str>,
    /// All of these are said, on one line.
    says: &'static [&'static str],
    /// It is only said, and the guest runs.
    goes_on: bool,
}

/// What is loaded in the place of a kernel.
#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    Guest,
    None,
    /// Half of Debian's kernel.
    Truncated,
    /// Debian's kernel with a payload that nobody knows.
    UnknownCompression,
    /// An ELF file without the PVH note.
    NotPvh,
    /// A text file.
    Text,
}

const fn refusal(name: &'static str, about: &'static str, kernel: Kernel, says: &'static [&'static str]) -> Refusal {
    Refusal {
        name,
        about,
        kernel,
        args: "dom0_mem=128M",
        engines: |_| true,
        cpu: None,
        board: None,
        says,
        goes_on: false,
    }
}

const REFUSALS: &[Refusal] = &[
    Refusal {
        engines: in_bochs,
        cpu: Some("p4_prescott_celeron_336"),
        ..refusal("refuses_no_vmx", "a CPU without VMX", Kernel::Guest, &["VMX"])
    },
    Refusal {
        engines: in_bochs,
        cpu: Some("core2_penryn_t9600"),
        ..refusal("refuses_no_ept", "a CPU without EPT", Kernel::Guest, &["EPT"])
    },
    Refusal {
        engines: in_qemu,
        cpu: Some("EPYC,-svm"),
        ..refusal("refuses_no_svm", "an AMD CPU without SVM", Kernel::Guest, &["SVM"])
    },
    Refusal {
        engines: in_qemu,
        cpu: Some("EPYC,+svm,-npt"),
        ..refusal("refuses_no_npt", "an AMD CPU without nested paging", Kernel::Guest, &["nested paging (NPT)"])
    },
    Refusal {
        engines: in_qemu,
        board: Some("pc"),
        goes_on: true,
        ..refusal("no_mcfg", "a machine without PCI Express", Kernel::Guest, &["no MCFG"])
    },
    Refusal {
        args: "dom0_mem=64G",
        ..refusal("refuses_dom0_mem", "more memory for Dom0 than there is", Kernel::Guest, &["dom0_mem=", "lower it"])
    },
    refusal("refuses_no_kernel", "no module", Kernel::None, &["no Dom0 kernel", "module2"]),
    refusal("refuses_truncated_kernel", "half a kernel", Kernel::Truncated, &["kernel"]),
    refusal(
        "refuses_compression",
        "an unknown payload",
        Kernel::UnknownCompression,
        &["kernel payload", "no known format"],
    ),
    refusal("refuses_no_pvh", "a kernel without the PVH note", Kernel::NotPvh, &["not a PVH kernel"]),
    refusal("refuses_text", "a file that is no kernel", Kernel::Text, &["kernel"]),
    Refusal {
        args: "dom0_mem=128M frobnicate=7",
        goes_on: true,
        ..refusal("unknown_option", "an option that nobody knows", Kernel::Guest, &["unknown option frobnicate=7"])
    },
];

pub fn cases() -> Vec<Case> {
    REFUSALS
        .iter()
        .map(|refusal| Case {
            name: refusal.name.to_string(),
            about: refusal.about,
            quick: true,
            on_xen: false,
            in_one_version: false,
            engines: refusal.engines,
            prepare: Box::new(|| input(refusal.kernel).map(drop)),
            run: Box::new(|context| run(refusal, context)),
        })
        .collect()
}

fn in_bochs(engine: &Engine) -> bool {
    matches!(engine, Engine::Bochs(_))
}

fn in_qemu(engine: &Engine) -> bool {
    matches!(engine, Engine::Qemu(_))
}

fn run(refusal: &Refusal, context: &Context<'_>) -> Result<()> {
    let mut modules: Vec<Module> = input(refusal.kernel)?.iter().map(|file| module(file, "")).collect();
    if refusal.kernel == Kernel::None {
        modules.clear();
    }
    let run = context.boot(
        "run",
        Boot {
            corten_args: refusal.args.to_string(),
            modules,
            cpu: refusal.cpu.map(str::to_string),
            board: refusal.board,
            limit: 40,
            ..Boot::default()
        },
    )?;
    let said = run.console.lines().any(|line| {
        line.contains("(corten)")
            && !line.contains("command line:")
            && refusal.says.iter().all(|word| line.contains(word))
    });
    if !said {
        bail!("no line says {:?}; the end of the console:\n    {}", refusal.says, last_lines(&run.console, 8));
    }
    let ran = run.console.contains("GUEST ");
    ensure!(ran == refusal.goes_on, "the guest {}", if ran { "ran all the same" } else { "did not run" });
    if refusal.goes_on { host_is_well(&run) } else { Ok(()) }
}

/// The file that is loaded, made from what is at hand.
fn input(kernel: Kernel) -> Result<Option<PathBuf>> {
    let dir = paths::target_dir("tests/inputs")?;
    let made = |name: &str, data: &[u8]| -> Result<Option<PathBuf>> {
        let path = dir.join(format!("{name}-{}", data.len()));
        if !path.exists() {
            paths::write_whole(&path, data)?;
        }
        Ok(Some(path))
    };
    match kernel {
        Kernel::None => Ok(None),
        Kernel::Guest => Ok(Some(build::guest("version_and_features"))),
        Kernel::NotPvh => Ok(Some(build::guest("dom0_sleep"))),
        Kernel::Text => made("text", b"This is no kernel.\n".repeat(300).as_slice()),
        Kernel::Truncated => {
            let image = std::fs::read(Dom0::fetch("trixie")?.kernel)?;
            made("truncated", image.get(..image.len() / 2).unwrap_or_default())
        }
        Kernel::UnknownCompression => {
            let mut image = std::fs::read(Dom0::fetch("trixie")?.kernel)?;
            let start = payload(&image).context("Debian's kernel is no bzImage")?;
            image.get_mut(start..start + 8).context("the payload is beyond the image")?.copy_from_slice(b"nonsense");
            made("unknown-compression", &image)
        }
    }
}

/// Where a bzImage's payload begins (Documentation/arch/x86/boot.rst).
fn payload(image: &[u8]) -> Option<usize> {
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let offset = u32::from_le_bytes(image.get(0x248..0x24c)?.try_into().ok()?);
    Some((setup_sectors + 1) * 512 + offset as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_begins_after_the_setup_sectors() {
        let mut image = vec![0u8; 0x400];
        image[0x1f1] = 3;
        image[0x248] = 0x10;
        assert_eq!(payload(&image), Some(4 * 512 + 0x10));
        assert_eq!(payload(&image[..0x240]), None);
    }
}
