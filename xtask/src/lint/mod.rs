//! `cargo xtask lint`: formatting, clippy with warnings denied, and the house rules.

mod rules;
mod source;

use crate::{paths, progress};
use anyhow::{Context, Result, bail};
use rules::{File, RULES};
use std::path::Path;
use xshell::{Shell, cmd};

/// The crates that the host compiles, and the ones for the bare machine.
const HOST: &[&str] = &["xen-abi", "mm", "sched", "hypervisor", "arch-x86", "xtask"];
const BARE: &[&str] = &["boot", "tests-qemu"];
const FOLDERS: &[&str] =
    &["hypervisor", "hypervisor/xen-abi", "mm", "sched", "arch-x86", "boot", "tests-qemu", "xtask"];

pub fn command() -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    progress::step("formatting", |_| Ok(cmd!(sh, "cargo fmt --all --check").quiet().run()?))?;
    let packages = |names: &'static [&'static str]| names.iter().flat_map(|name| ["--package", name]);
    let host = packages(HOST);
    progress::step("clippy, host", |_| {
        Ok(cmd!(sh, "cargo clippy --quiet --all-targets {host...} -- --deny warnings").quiet().run()?)
    })?;
    let bare = packages(BARE);
    progress::step("clippy, bare machine", |_| {
        let target = "x86_64-unknown-none";
        Ok(cmd!(sh, "cargo clippy --quiet --target {target} {bare...} -- --deny warnings").quiet().run()?)
    })?;
    progress::step("house rules", |_| house_rules(&paths::root()))
}

/// Looks at every source file and manifest.
fn house_rules(root: &Path) -> Result<()> {
    let table = std::fs::read_to_string(root.join("hypervisor/xen-abi/src/layout.rs")).unwrap_or_default();
    let mut wrong = Vec::new();
    for folder in FOLDERS {
        let manifest = root.join(folder).join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).with_context(|| format!("no {}", manifest.display()))?;
        for complaint in rules::dependencies_point_one_way(folder, &text) {
            wrong.push(format!("{folder}/Cargo.toml:{}: {}", complaint.line, complaint.what));
        }
        let mut sources = Vec::new();
        rust_files(&root.join(folder).join("src"), &mut sources)?;
        for path in sources {
            let text = std::fs::read_to_string(&path)?;
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            let file = File { path: name, lines: source::lines(&text) };
            let complaints =
                RULES.iter().flat_map(|rule| rule(&file)).chain(rules::layouts_are_asserted(&file, &table));
            wrong.extend(complaints.map(|complaint| format!("{}:{}: {}", file.path, complaint.line, complaint.what)));
        }
    }
    match wrong.len() {
        0 => Ok(()),
        count => bail!("{count} against the house rules:\n{}", wrong.join("\n")),
    }
}

fn rust_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_in_the_tree_fails_the_lint() {
        let root = std::env::temp_dir().join(format!("corten-lint-{}", std::process::id()));
        for folder in FOLDERS {
            std::fs::create_dir_all(root.join(folder).join("src")).expect("a folder");
            std::fs::write(root.join(folder).join("Cargo.toml"), "[dependencies]\n").expect("a manifest");
        }
        assert!(house_rules(&root).is_ok());
        std::fs::write(root.join("hypervisor/src/bad.rs"), "fn a() { b.unwrap(); }\n").expect("a source");
        let error = house_rules(&root).expect_err("a complaint").to_string();
        assert!(error.contains("hypervisor/src/bad.rs:1"), "{error}");
        std::fs::remove_dir_all(&root).expect("to clean up");
    }
}
