//! The image: `target/corten/corten`, the multiboot2 ELF, and `corten.gz`.

use crate::{packages, paths, progress, symbols};
use anyhow::{Context, Result};
use std::path::PathBuf;
use xshell::{Shell, cmd};

/// Builds Corten and returns the path of the ELF that GRUB loads.
pub fn build() -> Result<PathBuf> {
    packages::need(&["gzip"])?;
    progress::step("build Corten", |_| {
        let (sh, image) = (Shell::new()?, elf("release", "corten")?);
        cmd!(sh, "gzip --keep --force --best --no-name {image}").quiet().run()?;
        Ok(image)
    })
}

/// The name of the image with the assertions that the one for users goes without.
const CHECKED: &str = "corten-checked";

/// Builds Corten with its assertions.
pub fn checked() -> Result<()> {
    progress::step("build Corten with its assertions", |_| elf("checked", CHECKED).map(drop))
}

/// Where [`checked`] leaves its ELF.
pub fn checked_image() -> PathBuf {
    paths::target().join("corten").join(CHECKED)
}

/// Builds the image by a profile. In `target/corten` it is called `name`, and has a sibling with the debug information.
fn elf(profile: &str, name: &str) -> Result<PathBuf> {
    packages::need(&["objcopy"])?;
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    let out = paths::target_dir("corten")?;
    let (image, debug) = (out.join(name), out.join(format!("{name}.debug")));
    cmd!(sh, "cargo build --quiet --profile {profile} --package boot --target x86_64-unknown-none").quiet().run()?;
    let built = paths::target().join(format!("x86_64-unknown-none/{profile}/boot"));
    std::fs::copy(&built, &debug).with_context(|| format!("no {}", built.display()))?;
    symbols::embed(&debug)?;
    cmd!(sh, "objcopy --strip-debug {debug} {image}").quiet().run()?;
    Ok(image)
}

/// A test guest, or a helper for Dom0.
pub fn guest(name: &str) -> PathBuf {
    paths::target().join("x86_64-unknown-none/guest").join(name)
}

/// Builds the test guests, and the helpers that run inside Dom0.
pub fn guests() -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    progress::step("build the test guests", |_| {
        Ok(cmd!(sh, "cargo build --quiet --profile guest --package tests-qemu --target x86_64-unknown-none")
            .quiet()
            .run()?)
    })
}
