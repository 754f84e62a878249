//! The image: `target/corten/corten`, the multiboot2 ELF, and `corten.gz`.

use crate::{packages, paths, progress, symbols};
use anyhow::{Context, Result};
use std::path::PathBuf;
use xshell::{Shell, cmd};

/// Builds Corten and returns the path of the ELF that GRUB loads.
pub fn build() -> Result<PathBuf> {
    packages::need(&["objcopy", "gzip"])?;
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    let out = paths::target_dir("corten")?;
    let (image, debug) = (out.join("corten"), out.join("corten.debug"));
    progress::step("build Corten", |_| {
        cmd!(sh, "cargo build --quiet --release --package boot --target x86_64-unknown-none").quiet().run()?;
        let built = paths::target().join("x86_64-unknown-none/release/boot");
        std::fs::copy(&built, &debug).with_context(|| format!("no {}", built.display()))?;
        symbols::embed(&debug)?;
        cmd!(sh, "objcopy --strip-debug {debug} {image}").quiet().run()?;
        cmd!(sh, "gzip --keep --force --best --no-name {image}").quiet().run()?;
        Ok(())
    })?;
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
