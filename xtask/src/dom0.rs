//! The small Dom0: a stock Debian kernel, and an initramfs of busybox, a few of that kernel's modules and our scripts.

use crate::cpio::Archive;
use crate::packages::{self, Suite};
use crate::{build, paths, progress};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// Dom0's command line: Xen's console, which Corten puts on its own.
pub const KERNEL_ARGS: &str = "console=hvc0";

/// That of a domain beside Dom0: it has Xen's debug console only, and `/init` writes to it by the kernel's log.
pub const DOMAIN_KERNEL_ARGS: &str = "earlyprintk=xen,keep corten.console=/dev/kmsg";

/// Modules for the disks, networks and file systems of Bochs and QEMU; what they depend on comes along.
const MODULES: &[&str] = &[
    "ata_piix",
    "ata_generic",
    "ahci",
    "sd_mod",
    "sr_mod",
    "nvme",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "e1000",
    "e1000e",
    "ne2k_pci",
    "ext4",
    "crc32c_generic",
    "af_packet",
];
/// Programs that run inside Dom0.
const HELPERS: &[&str] = &["dom0_memory", "dom0_sleep"];
/// Where they are in the kernel's package: unpacking all of it would take a minute and half a gigabyte.
const MODULE_FOLDERS: &[&str] = &[
    "drivers/ata",
    "drivers/scsi",
    "drivers/cdrom",
    "drivers/nvme",
    "drivers/virtio",
    "drivers/block",
    "drivers/net/ethernet/intel",
    "drivers/net/ethernet/8390",
    "drivers/net/mii.ko*",
    "drivers/net/virtio_net.ko*",
    "drivers/net/net_failover.ko*",
    "net/core",
    "net/packet",
    "drivers/ptp",
    "drivers/pps",
    "fs/ext4",
    "fs/jbd2",
    "fs/mbcache.ko*",
    "crypto",
    "lib",
    "arch/x86/crypto",
    "drivers/usb/common",
    "block",
    "drivers/xen",
    "drivers/net/xen-netback",
    "drivers/net/xen-netfront.ko*",
    "drivers/net/tun.ko*",
    "net/bridge",
    "net/802",
    "net/llc",
];

/// A kernel and what goes with it.
pub struct Dom0 {
    pub kernel: PathBuf,
    tree: PathBuf,
    suite: String,
}

impl Dom0 {
    /// The kernel that the suite's `linux-image-amd64` stands for, byte for byte as packaged.
    pub fn fetch(suite: &str) -> Result<Dom0> {
        let mut patterns = vec!["./boot/*".to_string()];
        for top in ["./lib/modules/*", "./usr/lib/modules/*"] {
            patterns.extend(MODULE_FOLDERS.iter().map(|folder| format!("{top}/kernel/{folder}")));
            patterns.push(format!("{top}/modules.builtin"));
            // Where kernels from 7 on are.
            patterns.push(format!("{top}/vmlinuz"));
        }
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let tree = packages::cached(&format!("linux-{suite}-{:08x}", packages::digest(&patterns)), |dir| {
            let from = Suite::new(suite)?;
            let packages =
                from.stands_for("linux-image-amd64", &["linux-image-", "linux-binary-", "linux-modules-"])?;
            packages.iter().try_for_each(|package| from.unpack(package, &patterns, dir))
        })?;
        let kernel = files(&tree, &["boot", "lib/modules", "usr/lib/modules"])
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
            .with_context(|| format!("no kernel in {}; remove it to fetch it again", tree.display()))?;
        Ok(Dom0 { kernel, tree, suite: suite.to_string() })
    }

    /// The initramfs with modules for disks and networks.
    pub fn initramfs(&self) -> Result<PathBuf> {
        self.assemble("initramfs", MODULES, |_| Ok(()))
    }

    /// That, with modules and files for more; `name` is what it is called.
    pub fn initramfs_with(
        &self,
        name: &str,
        modules: &[&str],
        extra: impl FnOnce(&mut Archive) -> Result<()>,
    ) -> Result<PathBuf> {
        self.assemble(name, &[MODULES, modules].concat(), extra)
    }

    /// Where `initramfs` has left it.
    pub fn initramfs_path(&self) -> Result<PathBuf> {
        self.path("initramfs")
    }

    /// Where the initramfs of this name is, once it has been made.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        Ok(paths::target_dir("dom0")?.join(format!("{name}-{}.cpio", self.suite)))
    }

    /// Busybox and the scripts alone: what a boot is measured with.
    pub fn small_initramfs(&self) -> Result<PathBuf> {
        self.assemble("busybox", &[], |_| Ok(()))
    }

    /// Those, and Xen's front ends: for a domain that the toolstack makes.
    pub fn guest_initramfs(&self) -> Result<PathBuf> {
        self.assemble("guest", &["xen_blkfront", "xen_netfront"], |_| Ok(()))
    }

    /// Where `guest_initramfs` has left it.
    pub fn guest_initramfs_path(&self) -> Result<PathBuf> {
        self.path("guest")
    }

    fn assemble(
        &self,
        name: &str,
        modules: &[&str],
        extra: impl FnOnce(&mut Archive) -> Result<()>,
    ) -> Result<PathBuf> {
        let out = self.path(name)?;
        progress::step(&format!("assemble {name}-{}.cpio", self.suite), |_| {
            let mut archive = Archive::default();
            for dir in ["bin", "dev", "proc", "sys", "tmp", "mnt", "root", "modules", "scripts", "usr", "usr/sbin"] {
                archive.directory(dir);
            }
            archive.symlink("sbin", "usr/sbin");
            // What the kernel runs when the toolstack asks for it.
            for program in ["poweroff", "reboot"] {
                let script = format!("#!/bin/busybox sh\nexec /bin/{program} -f\n");
                archive.file(&format!("usr/sbin/{program}"), 0o755, script.as_bytes());
            }
            archive.device("dev/console", 5, 1);
            archive.device("dev/null", 1, 3);
            let scripts = paths::root().join("tests-qemu/dom0");
            archive.file("init", 0o755, &read(&scripts.join("init"))?);
            let mut files: Vec<PathBuf> = std::fs::read_dir(&scripts)?.flatten().map(|e| e.path()).collect();
            files.sort();
            for script in files.iter().filter(|path| path.extension().is_some_and(|e| e == "sh")) {
                let name = script.file_stem().unwrap_or_default().to_string_lossy();
                archive.file(&format!("scripts/{name}"), 0o755, &read(script)?);
            }
            let busybox = busybox()?;
            archive.file("bin/busybox", 0o755, &read(&busybox)?);
            for applet in applets(&busybox)? {
                if applet != "busybox" {
                    archive.symlink(&format!("bin/{applet}"), "busybox");
                }
            }
            // Helpers of our own, where the test guests have been built.
            for helper in HELPERS {
                if let Ok(image) = std::fs::read(build::guest(helper)) {
                    archive.file(&format!("bin/{helper}"), 0o755, &image);
                }
            }
            let index = Modules::index(&self.tree);
            let mut packed: Vec<String> = Vec::new();
            for name in modules {
                let needed = index.with_dependencies(&[name])?;
                let names: Vec<&str> = needed.iter().map(|module| module.name.as_str()).collect();
                archive.file(&format!("modules/{name}.needs"), 0o644, (names.join("\n") + "\n").as_bytes());
                for module in needed {
                    if !packed.contains(&module.name) {
                        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.image);
                        packed.push(module.name);
                    }
                }
            }
            extra(&mut archive)?;
            paths::write_whole(&out, &archive.finish())
        })?;
        Ok(out)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Debian 13's statically linked busybox.
fn busybox() -> Result<PathBuf> {
    let dir = packages::cached("busybox", |dir| {
        Suite::new("trixie")?.unpack("busybox-static", &["./bin/*", "./usr/bin/*"], dir)
    })?;
    let found = ["usr/bin/busybox", "bin/busybox"].map(|name| dir.join(name)).into_iter().find(|path| path.exists());
    found.context("Debian's busybox-static has no busybox")
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let sh = Shell::new()?;
    Ok(cmd!(sh, "{busybox} --list").quiet().read()?.lines().map(str::to_string).collect())
}

/// The files in these folders of an unpacked package, however deep.
fn files(tree: &Path, folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| tree.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

/// A module ready for insmod: decompressed.
struct Module {
    name: String,
    image: Vec<u8>,
}

/// The kernel modules of a package by name. `-` and `_` in names are the same, as for modprobe.
struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    fn index(tree: &Path) -> Modules {
        let module = |path: PathBuf| {
            let name = path.file_name()?.to_string_lossy().split_once(".ko")?.0.replace('-', "_");
            Some((name, path))
        };
        Modules { files: files(tree, &["lib/modules", "usr/lib/modules"]).into_iter().filter_map(module).collect() }
    }

    /// The modules named and all that they need, each after what it needs. A name that is not there is built in.
    fn with_dependencies(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order: Vec<Module> = Vec::new();
        for name in names {
            self.add(&name.replace('-', "_"), &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<Module>) -> Result<()> {
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let image = if path.extension().is_some_and(|e| e == "xz") {
            let sh = Shell::new()?;
            cmd!(sh, "xz -dc {path}").quiet().output()?.stdout
        } else {
            read(path)?
        };
        for dependency in dependencies(&image)? {
            self.add(&dependency, order)?;
        }
        order.push(Module { name: name.to_string(), image });
        Ok(())
    }
}

/// What the module's own `.modinfo` says that it needs, hard (`depends=`) or first (`softdep=pre:`).
fn dependencies(image: &[u8]) -> Result<Vec<String>> {
    let file = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(image)?;
    let Some(section) = file.section_header_by_name(".modinfo")? else { return Ok(Vec::new()) };
    let (data, _) = file.section_data(&section)?;
    let mut names = Vec::new();
    for record in data.split(|byte| *byte == 0).filter_map(|record| std::str::from_utf8(record).ok()) {
        if let Some(list) = record.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")));
        } else if let Some(list) = record.strip_prefix("softdep=pre: ") {
            let before = list.split("post:").next().unwrap_or_default();
            names.extend(before.split_whitespace().map(|name| match name {
                // An algorithm, not a module: this one is the module that always works.
                "crc32c" | "crypto-crc32c" => "crc32c_generic".to_string(),
                name => name.replace('-', "_"),
            }));
        }
    }
    Ok(names)
}
