//! Debian's Xen toolstack in Dom0.

mod recording;

use super::case::{Boot, Case, Context, host_is_well, last_lines, module};
use crate::console::Run;
use crate::dom0;
use crate::engine::Engine;
use crate::{paths, toolstack};
use anyhow::{Context as _, Result, bail, ensure};
use recording::{Rule, parse};

/// What Xen 4.20 says to the script `toolstack_record`, on the same machine.
const XEN: &str = include_str!("xen-4.20.txt");
/// Where others may say something else.
const DIFFERENCES: &str = include_str!("differences.txt");
/// Where, in Bochs, others may do so too.
const DIFFERENCES_IN_BOCHS: &str = include_str!("differences-bochs.txt");
/// Of differences that are too many, the first ones.
const SHOWN: usize = 60;

pub fn cases() -> Vec<Case> {
    let in_qemu = |name: &str, about, on_xen, run: fn(&Context<'_>) -> Result<()>| Case {
        name: name.into(),
        about,
        quick: true,
        on_xen,
        engines: |engine| matches!(engine, Engine::Qemu(_)),
        prepare: Box::new(prepare),
        run: Box::new(run),
    };
    let in_bochs = |case: Case| Case {
        about: "the same in Bochs",
        quick: false,
        engines: |engine| matches!(engine, Engine::Bochs(_)),
        ..case
    };
    let own = || in_qemu("toolstack_own_tests", "Xen's own tests out of xen-utils pass", true, own_tests);
    let compare = || in_qemu("toolstack_compare", "xl and its kin say what they say on Xen 4.20", true, compare);
    vec![
        in_qemu(
            "toolstack_create",
            "xl makes a Debian domain with disks and a network, and ends it without a trace",
            false,
            create,
        ),
        own(),
        in_bochs(own()),
        compare(),
        in_bochs(compare()),
    ]
}

/// Fetches and makes what a boot with the toolstack needs.
pub fn prepare() -> Result<()> {
    crate::packages::need(&["mkfs.ext4"])?;
    toolstack::dom0()?.guest_initramfs()?;
    toolstack::initramfs().map(drop)
}

/// Boots the Dom0 with the toolstack, with whichever hypervisor the context has, runs `script` (one of `tests-qemu/dom0`) in it, and
/// answers what the console said.
fn boot(context: &Context<'_>, script: &str, limit: u64) -> Result<Run> {
    std::fs::create_dir_all(&context.logs)?;
    let disk = context.logs.join("disk.img");
    toolstack::write_disk(&disk)?;
    let args = format!("{} {} corten.run={script}", dom0::KERNEL_ARGS, toolstack::KERNEL_ARGS);
    let boot = Boot {
        corten_args: toolstack::DOM0_MEMORY.into(),
        modules: vec![module(&toolstack::dom0()?.kernel, &args), module(&toolstack::initramfs_path()?, "")],
        memory_mib: toolstack::MEMORY_MIB,
        disk: Some(disk.clone()),
        limit,
        ..Boot::default()
    };
    let run = context.boot("run", boot)?;
    let _ = std::fs::remove_file(disk);
    if !context.on_xen() {
        host_is_well(&run)?;
    }
    if !run.console.contains("=== DOM0 SCRIPT DONE ===") {
        bail!("{script} did not come to its end ({:?}):\n    {}", run.end, last_lines(&run.console, 15));
    }
    Ok(run)
}

fn create(context: &Context<'_>) -> Result<()> {
    let run = boot(context, "toolstack_create", 400)?;
    // The domain's own and the script's.
    checks(&run, 7 + 10)
}

fn own_tests(context: &Context<'_>) -> Result<()> {
    checks(&boot(context, "toolstack_own_tests", 400)?, 4)
}

/// Fails unless so many checks were made, all of them with success.
fn checks(run: &Run, least: usize) -> Result<()> {
    let checks: Vec<&str> = run.console.lines().filter(|line| line.contains("CHECK ")).collect();
    let failures: Vec<&str> = checks.iter().copied().filter(|line| line.contains(" FAIL")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    ensure!(checks.len() >= least, "only {} checks were made", checks.len());
    Ok(())
}

fn record(context: &Context<'_>) -> Result<String> {
    let run = boot(context, "toolstack_record", 600)?;
    let waited: Vec<&str> = run.console.lines().filter(|line| line.contains("WAITED in vain")).collect();
    ensure!(waited.is_empty(), "{}", waited.join("\n    "));
    Ok(run.console)
}

/// Writes the recording of Xen anew.
pub fn renew(context: &Context<'_>) -> Result<()> {
    let file = paths::root().join("xtask/src/test/toolstack/xen-4.20.txt");
    std::fs::write(&file, recording::trimmed(&record(context)?))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn compare(context: &Context<'_>) -> Result<()> {
    let console = record(context)?;
    let mut rules = Rule::all(DIFFERENCES)?;
    if matches!(context.engine, Engine::Bochs(_)) {
        rules.extend(Rule::all(DIFFERENCES_IN_BOCHS)?);
    }
    let wrong = recording::compare(&parse(XEN)?, &parse(&console)?, &rules);
    let shown = wrong.get(..SHOWN).unwrap_or(&wrong).join("\n    ");
    ensure!(wrong.is_empty(), "{} differences from Xen:\n    {shown}", wrong.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recording_is_whole_and_equal_to_itself() {
        let said = parse(XEN).expect("a recording");
        assert!(said.len() > 50, "{}", said.len());
        let rules = Rule::all(DIFFERENCES).expect("rules");
        assert_eq!(recording::compare(&said, &said, &rules), Vec::<String>::new());
    }

    #[test]
    fn every_difference_that_is_allowed_is_about_something_that_is_said() {
        let said = parse(XEN).expect("a recording");
        let rules = [DIFFERENCES, DIFFERENCES_IN_BOCHS].map(|text| Rule::all(text).expect("rules")).concat();
        for rule in rules.iter().filter(|rule| !rule.is_about_more()) {
            let used = said.iter().flat_map(|said| said.fields().into_iter().map(move |field| (said.name, field)));
            assert!(used.into_iter().any(|(name, field)| rule.is_about(name, &field.path)), "{rule:?}");
        }
    }

    #[test]
    fn another_state_or_a_missing_command_is_a_difference() {
        let said = parse(XEN).expect("a recording");
        let rules = Rule::all(DIFFERENCES).expect("rules");
        let doctored = |from: &str, to: &str| {
            assert!(XEN.contains(from), "{from}");
            let text = XEN.replace(from, to);
            recording::compare(&said, &parse(&text).expect("a recording"), &rules).len()
        };
        assert!(doctored("--p---", "-b----") > 0);
        assert!(doctored("<<< destroy 0", "<<< destroy 1") == 1);
        assert!(doctored("the answer is 42", "the answer is 41") == 1);
        assert!(doctored("xen_pagesize ", "page_size ") > 0);
        assert_eq!(doctored(">>> pause: xl pause example\n<<< pause 0\n", ""), 1);
    }
}
