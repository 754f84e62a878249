//! The host tests: `cargo test` of every crate that runs on ordinary Linux.

use super::report::Report;
use crate::paths;
use anyhow::Result;
use xshell::{Shell, cmd};

const CRATES: &[&str] = &["xen-abi", "mm", "sched", "hypervisor", "arch-x86", "xtask"];

pub fn run(report: &mut Report) -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    let packages: Vec<&str> = CRATES.iter().flat_map(|name| ["--package", name]).collect();
    println!("host tests: {}", CRATES.join(" "));
    test(&sh, &packages, report)?;
    if paths::root().join("boot/src/lib.rs").exists() {
        test(&sh, &["--package", "boot", "--lib"], report)?;
    }
    println!("host tests: what CPUs say to one another, in every interleaving");
    // Built apart: the flag would have everything else built anew.
    let target = paths::target_dir("loom")?;
    let _flags = sh.push_env("RUSTFLAGS", "--cfg loom");
    let _target = sh.push_env("CARGO_TARGET_DIR", target);
    test(&sh, &["--package", "sched", "--test", "interleavings", "--release"], report)
}

fn test(sh: &Shell, arguments: &[&str], report: &mut Report) -> Result<()> {
    let output = cmd!(sh, "cargo test --no-fail-fast --quiet {arguments...}").quiet().ignore_status().output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (passed, failed) = count(&text);
    report.host_passed += passed;
    report.host_failed += failed;
    if !output.status.success() {
        println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        // What does not compile fails too, though no test says so.
        report.host_failed += usize::from(failed == 0);
    }
    println!(
        "host tests: {passed} passed, {failed} failed{}",
        if output.status.success() { "" } else { " (see above)" }
    );
    Ok(())
}

/// Sums up cargo's "test result" lines.
fn count(text: &str) -> (usize, usize) {
    let results = text.lines().filter_map(|line| line.strip_prefix("test result: "));
    results.fold((0, 0), |(passed, failed), line| {
        let number = |word: &str| {
            let before = line.split(word).next().unwrap_or_default();
            before.rsplit([' ', '.', ';']).find(|text| !text.is_empty()).and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        (passed + number(" passed"), failed + number(" failed"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_crates_add_up() {
        let text = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; finished in 0.1s\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored;\n";
        assert_eq!(count(text), (15, 2));
    }
}
