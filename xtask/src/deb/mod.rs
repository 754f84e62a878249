//! `cargo xtask deb`: the Debian package, whose image Debian's own GRUB scripts find and offer.
//!
//! The same sources give the same package, byte for byte: its times are those of the last commit.

use crate::{build, packages, paths, progress};
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

const PACKAGE: &str = "corten";
/// The version of Corten, and of the packaging.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-1");
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");
const MAINTAINER: &str = "The Corten developers <corten-hypervisor@users.noreply.github.com>";
/// Debian's `20_linux_xen` takes every `/boot/xen*` and offers the last by version first: this one before Xen's own of 4.20.
pub const IMAGE: &str = "boot/xen-4.20-corten.gz";
const POSTINST: &str = include_str!("postinst");
const POSTRM: &str = include_str!("postrm");

pub fn command() -> Result<PathBuf> {
    let deb = build()?;
    println!("{}", deb.display());
    Ok(deb)
}

/// Builds Corten and its package.
pub fn build() -> Result<PathBuf> {
    packages::need(&["dpkg-deb", "gzip"])?;
    let image = build::build()?.with_extension("gz");
    let deb = path();
    progress::step(&format!("pack {PACKAGE}_{VERSION}_amd64.deb"), |_| pack(&image, &deb))?;
    Ok(deb)
}

/// Where `build` leaves it.
pub fn path() -> PathBuf {
    paths::target().join(format!("{PACKAGE}_{VERSION}_amd64.deb"))
}

fn pack(image: &Path, deb: &Path) -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    let epoch = epoch(&sh)?;
    let tree = sh.create_temp_dir()?;
    let tree = tree.path();
    let doc = format!("usr/share/doc/{PACKAGE}");
    put(tree, IMAGE, 0o644, &std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?)?;
    put(tree, &format!("{doc}/copyright"), 0o644, copyright(&sh)?.as_bytes())?;
    let date = cmd!(sh, "env LC_ALL=C date --utc --rfc-email --date=@{epoch}").quiet().read()?;
    let changelog = cmd!(sh, "gzip --best --no-name").stdin(changelog(&date)).quiet().output()?.stdout;
    put(tree, &format!("{doc}/changelog.Debian.gz"), 0o644, &changelog)?;

    let installed = [IMAGE.to_string(), format!("{doc}/changelog.Debian.gz"), format!("{doc}/copyright")];
    sh.change_dir(tree);
    let size = installed.iter().map(|name| kib(&tree.join(name))).sum::<Result<u64>>()?;
    let sums = cmd!(sh, "md5sum {installed...}").quiet().read()? + "\n";
    put(tree, "DEBIAN/control", 0o644, control(size).as_bytes())?;
    put(tree, "DEBIAN/md5sums", 0o644, sums.as_bytes())?;
    put(tree, "DEBIAN/postinst", 0o755, POSTINST.as_bytes())?;
    put(tree, "DEBIAN/postrm", 0o755, POSTRM.as_bytes())?;
    std::fs::set_permissions(tree, PermissionsExt::from_mode(0o755))?;
    cmd!(sh, "env SOURCE_DATE_EPOCH={epoch} dpkg-deb --root-owner-group -Zxz --build {tree} {deb}")
        .quiet()
        .ignore_stdout()
        .run()?;
    Ok(())
}

/// The time that everything in the package bears: `SOURCE_DATE_EPOCH`, else the last commit's.
fn epoch(sh: &Shell) -> Result<String> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => cmd!(sh, "git log -1 --format=%ct").quiet().read().context("no commit to date the package by")?,
    };
    let seconds: u64 =
        text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH={text}: no seconds since 1970"))?;
    Ok(seconds.to_string())
}

/// Writes `name` in `tree`. Whatever the user's umask is, its folders can be read by all.
fn put(tree: &Path, name: &str, mode: u32, data: &[u8]) -> Result<()> {
    let mut folder = tree.to_path_buf();
    let path = Path::new(name);
    for part in path.parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        paths::make_dir(folder.clone())?;
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755))?;
    }
    let path = tree.join(path);
    std::fs::write(&path, data).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?)
}

fn kib(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.len().div_ceil(1024))
}

/// `size` is what is installed, in KiB.
fn control(size: u64) -> String {
    format!(
        "Package: {PACKAGE}\n\
         Version: {VERSION}\n\
         Architecture: amd64\n\
         Maintainer: {MAINTAINER}\n\
         Installed-Size: {size}\n\
         Depends: xen-hypervisor-common\n\
         Recommends: xen-utils-4.20\n\
         Provides: xen-hypervisor, xen-hypervisor-4.20, xen-hypervisor-amd64\n\
         Section: kernel\n\
         Priority: optional\n\
         Homepage: {REPOSITORY}\n\
         Description: hypervisor that speaks Xen's ABI, in memory-safe Rust\n\
         \x20Corten is a type-1 hypervisor for x86-64 that is booted by GRUB in Xen's\n\
         \x20place. It runs Debian's kernel as PVH Dom0, and PVH domains by the\n\
         \x20toolstack of Xen 4.20.\n\
         \x20.\n\
         \x20The CPU needs VMX with EPT, or SVM with nested paging.\n"
    )
}

fn changelog(date: &str) -> String {
    format!(
        "{PACKAGE} ({VERSION}) unstable; urgency=medium\n\n  \
         * Built from the sources at {REPOSITORY}.\n\n \
         -- {MAINTAINER}  {date}\n"
    )
}

/// Corten's licences, and those of the crates that are linked into the image.
fn copyright(sh: &Shell) -> Result<String> {
    let mit = std::fs::read_to_string(paths::root().join("LICENSE-MIT")).context("cannot read LICENSE-MIT")?;
    let options = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--no-dedupe", "--format", "{p}|{l}|{r}"];
    let crates = cmd!(sh, "cargo tree --quiet --locked --package boot --target x86_64-unknown-none {options...}");
    let crates = crates.quiet().read()?;
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: Corten\n\
         Source: {REPOSITORY}\n\
         Comment:\n \
         The image is linked with these libraries, each under the licence named:\n\
         {}\n\
         Files: *\n\
         Copyright: 2026 The Corten developers\n\
         License: Expat or Apache-2.0\n\n\
         License: Expat\n\
         {}\n\
         License: Apache-2.0\n \
         On Debian systems the text of the Apache License, Version 2.0, is in\n \
         /usr/share/common-licenses/Apache-2.0.\n",
        linked(&crates),
        indented(mit.split_once("\n\n").and_then(|(_, rest)| rest.split_once("\n\n")).map_or("", |(_, text)| text)),
    ))
}

/// A line for each crate that `cargo tree` lists, but for our own, which have a path.
fn linked(tree: &str) -> String {
    let mut lines: Vec<String> = tree
        .lines()
        .filter(|line| !line.contains(" (/"))
        .filter_map(|line| {
            let mut fields = line.splitn(3, '|');
            let (name, licence, home) = (fields.next()?, fields.next()?, fields.next()?);
            Some(format!("  {name}: {licence}; {home}\n").replace("; \n", "\n"))
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

/// As a field's further lines: one space before each, and a dot where there is none.
fn indented(text: &str) -> String {
    text.trim_end()
        .lines()
        .map(|line| if line.is_empty() { " .\n".to_string() } else { format!(" {line}\n") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_crates_are_not_named_among_those_linked() {
        let spin = "spin v0.9.9|MIT|https://a\n";
        let tree = format!("boot v0.1.0 (/home/me/boot)|MIT|\n{spin}elf v1.0.0|MIT|\n{spin}");
        assert_eq!(linked(&tree), "  elf v1.0.0: MIT\n  spin v0.9.9: MIT; https://a\n");
    }

    #[test]
    fn empty_lines_of_a_field_are_dots() {
        assert_eq!(indented("a\n\nb\n"), " a\n .\n b\n");
    }

    #[test]
    fn the_image_is_found_by_grubs_script_and_put_before_xens_own() {
        let name = IMAGE.strip_prefix("boot/").expect("in /boot");
        assert!(name.starts_with("xen-") && !name.starts_with("xen-syms-") && !name.ends_with(".config"));
        let sh = Shell::new().expect("shell");
        let names = format!("xen-4.20-amd64.gz\n{name}\nxen-4.17-amd64.gz\n");
        let sorted = cmd!(sh, "env LC_ALL=C sort --reverse --version-sort").stdin(names).read().expect("sort");
        assert_eq!(sorted.lines().next(), Some(name));
    }
}
