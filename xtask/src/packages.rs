//! Debian packages: the tools that this machine lacks, and what is booted (kernels, busybox, Xen, a newer Bochs).
//!
//! What is booted comes from a named suite through an apt configuration of our own, so that the machine's own
//! sources stay as they are. apt chooses the version and checks the signatures.

use crate::{paths, progress};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// A program and the Debian package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("objcopy", "binutils"),
    ("gzip", "gzip"),
    ("xz", "xz-utils"),
    ("dpkg-deb", "dpkg"),
    ("mmdebstrap", "mmdebstrap"),
    ("fakeroot", "fakeroot"),
    ("newuidmap", "uidmap"),
    ("grub-mkrescue", "grub-common"),
    ("xorriso", "xorriso"),
    ("mformat", "mtools"),
    ("mkfs.ext4", "e2fsprogs"),
    ("bochs-bin", "bochs"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("taskset", "util-linux"),
];
/// Files that a program needs although it does not say so until it runs, or that are what is wanted.
const FILES: &[(&str, &str, &str)] = &[
    ("grub-mkrescue", "/usr/lib/grub/i386-pc/multiboot2.mod", "grub-pc-bin"),
    ("grub-mkrescue", "/usr/lib/grub/x86_64-efi/multiboot2.mod", "grub-efi-amd64-bin"),
    ("OVMF", "/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    ("bochs-bin", "/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    ("bochs-bin", "/usr/share/vgabios/vgabios.bin", "vgabios"),
    ("bochs-bin", "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_rfb_gui.so", "bochs-term"),
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Whether `tool` is on the path, or where only the administrator's path leads.
pub fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).is_file())
}

/// Installs what is missing of these tools, or names it in one line.
pub fn need(tools: &[&str]) -> Result<()> {
    let mut packages: Vec<&str> = Vec::new();
    let missing = TOOLS.iter().filter(|(tool, _)| tools.contains(tool) && !has(tool)).map(|(_, package)| *package);
    let absent = FILES.iter().filter(|(tool, file, _)| tools.contains(tool) && !Path::new(file).exists());
    for package in missing.chain(absent.map(|(_, _, package)| *package)) {
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    if packages.is_empty() { Ok(()) } else { install(&packages) }
}

fn install(packages: &[&str]) -> Result<()> {
    let sh = Shell::new()?;
    let names = packages.join(" ");
    let root = cmd!(sh, "id -u").quiet().read()? == "0";
    if !root && cmd!(sh, "sudo -n true").quiet().ignore_stderr().run().is_err() {
        bail!("packages are missing; install them with: sudo apt-get install {names}");
    }
    let prefix: &[&str] = if root { &[] } else { &["sudo", "-n"] };
    progress::step(&format!("install {names}"), |_| {
        let apt = |arguments: &[&str]| {
            cmd!(sh, "env {prefix...} DEBIAN_FRONTEND=noninteractive apt-get {arguments...}")
                .quiet()
                .ignore_stdout()
                .run()
        };
        let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
        arguments.extend(packages);
        if apt(&arguments).is_err() {
            apt(&["update", "-qq"])?;
            apt(&arguments).with_context(|| format!("apt-get install {names}"))?;
        }
        Ok(())
    })
}

/// A Debian suite seen through an apt configuration of its own.
pub struct Suite {
    name: String,
    dir: PathBuf,
}

impl Suite {
    pub fn new(name: &str) -> Result<Suite> {
        let dir = paths::target_dir(&format!("cache/apt/{name}"))?;
        Ok(Suite { name: name.to_string(), dir })
    }

    /// The options that make apt see this suite alone. Its idea of what is installed is an empty file, so that what
    /// it downloads is complete.
    fn options(&self) -> Vec<OsString> {
        let dir = self.dir.display();
        [
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=-".into(),
            format!("Dir::State={dir}/state"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".into(), option.into()])
        .collect()
    }

    /// Fetches the lists, once.
    fn update(&self) -> Result<()> {
        let stamp = self.dir.join("updated");
        if stamp.exists() {
            return Ok(());
        }
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            paths::make_dir(self.dir.join(sub))?;
        }
        let trust = if Path::new(KEYRING).exists() || install(&["debian-archive-keyring"]).is_ok() {
            format!("signed-by={KEYRING}")
        } else {
            eprintln!(
                "warning: no {KEYRING} (package debian-archive-keyring): packages of {} go unverified",
                self.name
            );
            "trusted=yes".to_string()
        };
        std::fs::write(self.dir.join("sources.list"), format!("deb [{trust}] {} {} main\n", mirror(), self.name))?;
        std::fs::write(self.dir.join("status"), "")?;
        let (sh, options) = (Shell::new()?, self.options());
        progress::step(&format!("apt-get update for Debian {}", self.name), |_| {
            Ok(cmd!(sh, "apt-get {options...} update -qq").quiet().run()?)
        })?;
        paths::write_whole(&stamp, b"")
    }

    /// The line of a sources list that names it.
    pub fn source(&self) -> Result<String> {
        self.update()?;
        Ok(std::fs::read_to_string(self.dir.join("sources.list"))?.trim_end().to_string())
    }

    /// The packages that an empty one such as `linux-image-amd64` stands for: those whose names begin in one of these ways, on which it depends
    /// by whatever way.
    pub fn stands_for(&self, package: &str, beginnings: &[&str]) -> Result<Vec<String>> {
        self.update()?;
        let sh = Shell::new()?;
        let mut found: Vec<String> = Vec::new();
        let mut waiting = vec![package.to_string()];
        while let Some(next) = waiting.pop() {
            let options = self.options();
            let text =
                cmd!(sh, "apt-cache {options...} show {next}").quiet().ignore_stderr().read().unwrap_or_default();
            let depends = text.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
            let names = depends.split(", ").filter_map(|name| name.split(' ').next());
            for name in names.filter(|name| beginnings.iter().any(|beginning| name.starts_with(beginning))) {
                if !found.iter().any(|known| known == name) {
                    found.push(name.to_string());
                    waiting.push(name.to_string());
                }
            }
        }
        ensure!(!found.is_empty(), "Debian {} has no {package}; name another suite", self.name);
        Ok(found)
    }

    /// Unpacks the files of `package` that match `patterns` (all, if there are none) into `to`.
    pub fn unpack(&self, package: &str, patterns: &[&str], to: &Path) -> Result<()> {
        self.update()?;
        let (sh, options) = (Shell::new()?, self.options());
        progress::step(&format!("fetch {package} of Debian {}", self.name), |step| {
            let debs = sh.create_temp_dir()?;
            sh.change_dir(debs.path());
            cmd!(sh, "apt-get {options...} download -qq {package}").quiet().run()?;
            step.at(format!("unpack {package}"));
            for deb in sh.read_dir(debs.path())? {
                unpack_deb(&deb, patterns, to)?;
            }
            Ok(())
        })
    }

    /// Unpacks `packages` and everything that they depend on.
    pub fn unpack_closure(&self, packages: &[&str], to: &Path) -> Result<()> {
        self.update()?;
        let (sh, options) = (Shell::new()?, self.options());
        progress::step(&format!("fetch {} of Debian {}", packages.join(" "), self.name), |step| {
            cmd!(sh, "apt-get {options...} install -y -qq --no-install-recommends --download-only {packages...}")
                .quiet()
                .ignore_stdout()
                .run()?;
            let archives = sh.read_dir(self.dir.join("cache/archives"))?;
            for deb in archives.iter().filter(|file| file.extension().is_some_and(|e| e == "deb")) {
                step.at(format!("unpack {}", deb.file_name().unwrap_or_default().display()));
                unpack_deb(deb, &[], to)?;
                std::fs::remove_file(deb)?;
            }
            Ok(())
        })
    }
}

fn unpack_deb(deb: &Path, patterns: &[&str], to: &Path) -> Result<()> {
    need(&["dpkg-deb", "xz"])?;
    let sh = Shell::new()?;
    paths::make_dir(to.to_path_buf())?;
    let mut filter: Vec<&str> = Vec::new();
    if !patterns.is_empty() {
        filter.push("--wildcards");
        filter.extend(patterns);
    }
    let line = r#"set -o pipefail; deb=$1 to=$2; shift 2; dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner -C "$to" "$@""#;
    // tar complains of patterns that match nothing: kernels of two suites lay their modules out differently.
    let run = cmd!(sh, "bash -c {line} unpack {deb} {to} {filter...}").quiet();
    let run = if patterns.is_empty() { run } else { run.ignore_status().ignore_stderr() };
    Ok(run.run()?)
}

/// The machine's own Debian mirror, or the one that every Debian machine can use.
fn mirror() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.flatten().map(|entry| entry.path()));
    }
    files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|text| debian_mirror(&text))
        .unwrap_or_else(|| "http://deb.debian.org/debian".to_string())
}

/// The first mirror of Debian's main archive (not of its security updates) that a sources file names.
fn debian_mirror(text: &str) -> Option<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines.flat_map(str::split_whitespace);
    words
        .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        .map(|word| word.trim_end_matches('/').to_string())
}

/// Tells lists of patterns apart, so that what was unpacked by another list is not taken for what is wanted now (FNV-1a).
pub fn digest(patterns: &[&str]) -> u32 {
    let bytes = patterns.iter().flat_map(|pattern| pattern.bytes().chain([0]));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A cached directory: made by `fill` once, whole or not at all.
pub fn cached(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = paths::target_dir("cache")?.join(name);
    if !dir.exists() {
        let part = dir.with_extension(format!("part{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&part);
        std::fs::create_dir_all(&part)?;
        fill(&part)?;
        std::fs::rename(&part, &dir)?;
    }
    Ok(dir)
}

/// Debian 13's Xen 4.20: what Corten is measured against.
pub fn xen() -> Result<PathBuf> {
    let dir = cached("xen-4.20", |dir| Suite::new("trixie")?.unpack("xen-hypervisor-4.20-amd64", &["./boot/*"], dir))?;
    let image = dir.join("boot/xen-4.20-amd64.gz");
    if image.exists() { Ok(image) } else { bail!("Debian's Xen package has no {}", image.display()) }
}

/// Xen's public headers.
pub fn xen_headers() -> Result<PathBuf> {
    let dir = cached("libxen-dev", |dir| Suite::new("trixie")?.unpack("libxen-dev", &["./usr/include/*"], dir))?;
    Ok(dir.join("usr/include/xen"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_taken_from_either_format_of_sources() {
        let deb822 =
            "Types: deb\n# http://snapshot.debian.org/archive/debian/2025/\nURIs: http://mirror.example/debian\n";
        assert_eq!(debian_mirror(deb822).as_deref(), Some("http://mirror.example/debian"));
        let line = "deb https://deb.debian.org/debian/ trixie main\n";
        assert_eq!(debian_mirror(line).as_deref(), Some("https://deb.debian.org/debian"));
    }

    #[test]
    fn other_patterns_have_another_digest() {
        assert_ne!(digest(&["a", "b"]), digest(&["ab"]));
        assert_ne!(digest(&["a", "b"]), digest(&["a", "b", "c"]));
    }

    #[test]
    fn security_updates_and_other_vendors_are_no_mirror() {
        let text = "URIs: http://deb.debian.org/debian-security\ndeb http://archive.ubuntu.com/ubuntu noble main\n";
        assert_eq!(debian_mirror(text), None);
    }
}
