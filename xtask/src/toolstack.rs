//! A Dom0 with Xen's own toolstack, unmodified, out of Debian's packages: `xl` and what it needs, and an example domain.

use crate::cli::{Boot, MachineArgs};
use crate::cpio::Archive;
use crate::dom0::Dom0;
use crate::packages::{self, Suite};
use crate::{paths, progress};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// The release that has Xen 4.20.
const SUITE: &str = "trixie";
const PACKAGES: &[&str] =
    &["xen-utils-4.20", "xenstore-utils", "bash", "bsdutils", "iproute2", "mount", "strace", "util-linux"];
/// Kernel modules for the toolstack and its back ends.
const MODULES: &[&str] = &[
    "xen_evtchn",
    "xen_gntdev",
    "xen_gntalloc",
    "xen_privcmd",
    "xenfs",
    "xen_blkback",
    "xen_netback",
    "bridge",
    "tun",
    "loop",
];
/// What of the packages comes along: a folder, and how the names begin.
const FILES: &[(&str, &str)] = &[
    ("etc/xen", ""),
    ("usr/lib/xen-4.20/bin", ""),
    ("usr/lib/xen-4.20/boot", ""),
    ("usr/lib/xen-common", ""),
    ("usr/sbin", "x"),
    ("usr/bin", "xen"),
    ("usr/bin", "bash"),
    ("usr/bin", "ip"),
    ("usr/bin", "flock"),
    ("usr/bin", "script"),
    ("usr/bin", "strace"),
    ("usr/sbin", "ip"),
    ("usr/sbin", "losetup"),
];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// glibc opens it by name when a thread is cancelled.
const UNNAMED_LIBRARY: &str = "libgcc_s.so.1";
const LINKER: &str = "ld-linux-x86-64.so.2";
/// Made, empty, for the daemons.
const FOLDERS: &[&str] = &[
    "run",
    "var",
    "var/lib",
    "var/lib/xen",
    "var/lib/xenstored",
    "var/log",
    "var/log/xen",
    "var/log/xen/console",
    "root/example",
];

/// MiB that the machine has, and Dom0's share.
pub const MEMORY_MIB: u32 = 1536;
pub const DOM0_MEMORY: &str = "dom0_mem=512M";
/// What Dom0's kernel is told.
pub const KERNEL_ARGS: &str = "corten.start=toolstack";

/// MiB of the example's disk that is a file.
const FILE_MIB: u64 = 256;
/// MiB of the disk that GRUB starts from.
const GRUB_MIB: u64 = 64;
const GRUB: &str = "grub-i386-xen_pvh.bin";
const MKFS: &str = "/sbin/mkfs.ext4";
pub const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// The Dom0 that the toolstack runs in.
pub fn dom0() -> Result<Dom0> {
    Dom0::fetch(SUITE)
}

/// Dom0's initramfs with the toolstack in it.
pub fn initramfs() -> Result<PathBuf> {
    initramfs_for(&dom0()?)
}

/// That, with the modules of this kernel.
fn initramfs_for(dom0: &Dom0) -> Result<PathBuf> {
    let tree = packages::cached(&format!("toolstack-{SUITE}-{:08x}", packages::digest(PACKAGES)), |dir| {
        Suite::new(SUITE)?.unpack_closure(PACKAGES, dir)
    })?;
    dom0.initramfs_with("toolstack", MODULES, |archive| {
        for folder in FOLDERS {
            archive.directory(folder);
        }
        for (name, to) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("var/run", "/run"), ("var/lock", "/run/lock")] {
            archive.symlink(name, to);
        }
        archive.symlink("bin/bash", "/usr/bin/bash");
        for name in ["example.cfg", "grub.cfg", "shim.cfg"] {
            archive.file(&format!("root/{name}"), 0o644, &read(&scripts().join(name))?);
        }
        Packer { tree: &tree, archive, packed: BTreeSet::new(), needed: BTreeSet::new() }.pack()
    })
}

/// Where `initramfs` has left it.
pub fn initramfs_path() -> Result<PathBuf> {
    dom0()?.path("toolstack")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Puts files of an unpacked package tree in the archive, with their folders and the libraries that they need.
struct Packer<'a> {
    tree: &'a Path,
    archive: &'a mut Archive,
    packed: BTreeSet<PathBuf>,
    needed: BTreeSet<String>,
}

impl Packer<'_> {
    fn pack(mut self) -> Result<()> {
        for (folder, start) in FILES {
            self.folder(Path::new(folder), start)?;
        }
        self.needed.insert(UNNAMED_LIBRARY.to_string());
        while let Some(library) = self.needed.pop_first() {
            let folder = if library == LINKER { "usr/lib64" } else { LIBRARIES };
            let path = Path::new(folder).join(&library);
            ensure!(self.tree.join(&path).exists(), "no package has the library {library}");
            if !self.packed.contains(&path) {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    fn folder(&mut self, folder: &Path, start: &str) -> Result<()> {
        let there = self.tree.join(folder);
        let entries = std::fs::read_dir(&there).with_context(|| format!("no {}", there.display()))?;
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names.iter().filter(|name| name.to_string_lossy().starts_with(start)) {
            let path = folder.join(name);
            let kind = self.tree.join(&path).symlink_metadata()?.file_type();
            if kind.is_dir() {
                self.folder(&path, "")?;
            } else if kind.is_symlink() {
                let to = std::fs::read_link(self.tree.join(&path))?;
                self.parents(&path);
                self.archive.symlink(&path.to_string_lossy(), &to.to_string_lossy());
            } else {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// A file, by its contents where it is a link.
    fn file(&mut self, path: &Path) -> Result<()> {
        let there = self.tree.join(path);
        let data = read(&there)?;
        self.parents(path);
        self.archive.file(&path.to_string_lossy(), there.metadata()?.permissions().mode() & 0o777, &data);
        self.packed.insert(path.to_path_buf());
        if data.starts_with(b"\x7fELF") {
            self.needed.extend(libraries(&data).with_context(|| format!("{}", there.display()))?);
        }
        Ok(())
    }

    fn parents(&mut self, path: &Path) {
        let above: Vec<&Path> = path.ancestors().skip(1).filter(|folder| *folder != Path::new("")).collect();
        for folder in above.into_iter().rev() {
            if self.packed.insert(folder.to_path_buf()) {
                self.archive.directory(&folder.to_string_lossy());
            }
        }
    }
}

/// What a program's dynamic section says that it needs, its linker included.
fn libraries(image: &[u8]) -> Result<Vec<String>> {
    let file = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(image)?;
    let common = file.find_common_data()?;
    let (Some(dynamic), Some(strings)) = (common.dynamic, common.dynsyms_strs) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in dynamic.iter().filter(|entry| entry.d_tag == elf::abi::DT_NEEDED) {
        names.push(strings.get(entry.d_val() as usize)?.to_string());
    }
    if !names.is_empty() {
        names.push(LINKER.to_string());
    }
    Ok(names)
}

/// The disk that domains live on: the second partition is a file system with the example's kernel, its initramfs and a file that is
/// one of its disks; the other partitions are disks of domains.
#[derive(Clone, Copy)]
pub struct Disk<'a> {
    /// MiB of each partition.
    pub partitions: &'a [u64],
    /// The Debian release whose kernel is the example's.
    pub suite: &'a str,
    /// Beside the example's files there are GRUB and a disk that it starts from.
    pub grub: bool,
}

/// What the example domain needs.
pub const EXAMPLE_DISK: Disk<'_> = Disk { partitions: &[256, 384], suite: SUITE, grub: false };

impl Disk<'_> {
    /// Fetches and makes what it is made of.
    pub fn prepare(&self) -> Result<()> {
        packages::need(&["mkfs.ext4"])?;
        Dom0::fetch(self.suite)?.guest_initramfs()?;
        if self.grub { grub().map(drop) } else { Ok(()) }
    }

    pub fn write(&self, disk: &Path) -> Result<()> {
        self.prepare()?;
        let debian = Dom0::fetch(self.suite)?;
        let guest = debian.guest_initramfs_path()?;
        let grub = self.grub.then(grub).transpose()?;
        progress::step("make the domains' disks", |_| {
            let sh = Shell::new()?;
            let files = sh.create_temp_dir()?;
            copy(&debian.kernel, &files.path().join("vmlinuz"))?;
            copy(&guest, &files.path().join("initrd"))?;
            std::fs::File::create(files.path().join("disk.img"))?.set_len(FILE_MIB * MIB)?;
            if let Some(grub) = grub {
                copy(&grub, &files.path().join(GRUB))?;
                write_grub_disk(&sh, &debian.kernel, &guest, &files.path().join("grub.img"))?;
            }
            let _ = std::fs::remove_file(disk);
            let image = std::fs::File::create(disk).with_context(|| format!("cannot make {}", disk.display()))?;
            let (mut partitions, mut end) = (Vec::new(), 1);
            for size in self.partitions {
                partitions.push((end, *size));
                end += size;
            }
            image.set_len(end * MIB)?;
            std::os::unix::fs::FileExt::write_all_at(&image, &partition_table(&partitions), 0)?;
            let (start, size) = *partitions.get(1).context("a disk without a partition for files")?;
            let (mkfs, offset, size) = (MKFS, format!("offset={}", start * MIB), format!("{}k", size * 1024));
            let files = files.path();
            cmd!(sh, "{mkfs} -q -F -L corten-example -d {files} -E {offset} {disk} {size}").quiet().run()?;
            Ok(())
        })
    }
}

/// A disk with a menu of GRUB's and what its entry starts. It is one file system of a kind that any GRUB reads.
fn write_grub_disk(sh: &Shell, kernel: &Path, initrd: &Path, disk: &Path) -> Result<()> {
    let files = sh.create_temp_dir()?;
    let boot = paths::make_dir(files.path().join("boot/grub"))?;
    copy(&scripts().join("menu.cfg"), &boot.join("grub.cfg"))?;
    copy(kernel, &files.path().join("boot/vmlinuz"))?;
    copy(initrd, &files.path().join("boot/initrd"))?;
    let (mkfs, files, size) = (MKFS, files.path(), format!("{GRUB_MIB}m"));
    Ok(cmd!(sh, "{mkfs} -t ext2 -q -F -d {files} {disk} {size}").quiet().run()?)
}

/// Debian's GRUB as a domain's kernel.
fn grub() -> Result<PathBuf> {
    let pattern = format!("./usr/lib/grub-xen/{GRUB}");
    let dir = packages::cached("grub-xen", |dir| Suite::new(SUITE)?.unpack("grub-xen-host", &[&pattern], dir))?;
    Ok(dir.join(pattern))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).with_context(|| format!("cannot read {}", from.display()))
}

fn scripts() -> PathBuf {
    paths::root().join("tests-qemu/dom0")
}

/// A master boot record with Linux partitions, each by its first MiB and its MiB.
pub fn partition_table(partitions: &[(u64, u64)]) -> [u8; SECTOR as usize] {
    const TABLE: usize = 446;
    const LINUX: u8 = 0x83;
    let mut record = [0; SECTOR as usize];
    for ((start, size), entry) in partitions.iter().zip(record[TABLE..].chunks_exact_mut(16)) {
        let sectors = |mib: u64| ((mib * MIB / SECTOR) as u32).to_le_bytes();
        entry[4] = LINUX;
        entry[8..12].copy_from_slice(&sectors(*start));
        entry[12..16].copy_from_slice(&sectors(*size));
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

/// Turns a boot of the plain Dom0 into one of this; the disk is made in `logs`.
pub fn add(boot: &mut Boot, machine: &mut MachineArgs, logs: &Path) -> Result<()> {
    if boot.kernel.is_some() || boot.initrd.is_some() || machine.disk.is_some() {
        bail!("--toolstack brings its own kernel, initramfs and disk; leave out --kernel, --initrd and --disk");
    }
    boot.initrd = Some(initramfs_for(&Dom0::fetch(&boot.suite)?)?);
    boot.dom0_args = format!("{KERNEL_ARGS} {}", boot.dom0_args);
    if !boot.corten_args.contains("dom0_mem=") {
        boot.corten_args = format!("{DOM0_MEMORY} {}", boot.corten_args);
    }
    machine.memory.get_or_insert(MEMORY_MIB);
    let disk = logs.join("disk.img");
    Disk { suite: &boot.suite, ..EXAMPLE_DISK }.write(&disk)?;
    machine.disk = Some(disk);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_where_the_table_says() {
        let table = partition_table(&[(1, 256), (257, 384)]);
        assert_eq!(table[446 + 8..446 + 16], [0, 8, 0, 0, 0, 0, 8, 0]);
        assert_eq!(table[462 + 4], 0x83);
        assert_eq!(table[462 + 8..462 + 12], (257u32 * 2048).to_le_bytes());
        assert_eq!(table[510..], [0x55, 0xaa]);
    }

    #[test]
    fn a_program_names_its_libraries() {
        let own = std::fs::read(std::env::current_exe().expect("a name")).expect("a program");
        let names = libraries(&own).expect("ELF");
        assert!(names.iter().any(|name| name.starts_with("libc.so")) && names.iter().any(|name| name == LINKER));
        assert!(libraries(b"#!/bin/sh").is_err());
    }
}
