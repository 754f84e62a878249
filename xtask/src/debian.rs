//! Debian 13 as a user has it: installed on a disk, with GRUB, systemd, apt and Xen's toolstack.
//!
//! The disk is made without a privilege and without a network but Debian's archive: mmdebstrap unpacks and configures the packages, mke2fs
//! fills a file system with them, and GRUB is installed by the machine itself when it first runs.

use crate::console::{self, End};
use crate::engine::{Choice, Engine, Machine, Options};
use crate::packages::{self, Suite};
use crate::toolstack::{MIB, partition_table};
use crate::{paths, progress};
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use xshell::{Shell, cmd};

const SUITE: &str = "trixie";
const PACKAGES: &str = "apt,systemd-sysv,udev,kmod,cpio,zstd,initramfs-tools,linux-image-amd64,grub-pc,xen-hypervisor-common,xen-utils-4.20";
/// The initramfs has what this disk needs. With all modules it would be five times as large, and its unpacking as slow.
const MODULES: &str = "ahci\nata_piix\nsd_mod\next4\n";
const SIZE_MIB: u64 = 2048;
const STEPS_MIB: u64 = 16;
/// Where the file system begins: GRUB is in front of it.
const START_MIB: u64 = 1;
/// How long the first boot may take, in seconds.
const LIMIT: u64 = 600;
const MKFS: &str = "/sbin/mkfs.ext4";

const SERVICE: &str = include_str!("../../tests-qemu/debian/steps.service");
const FSTAB: &str = include_str!("../../tests-qemu/debian/fstab");
const GRUB: &str = include_str!("../../tests-qemu/debian/grub.cfg");
const PREPARE: &str = include_str!("../../tests-qemu/debian/prepare.sh");

/// The disk, as its first boot has left it. It is to be copied before it is booted.
pub fn disk() -> Result<PathBuf> {
    let digest = packages::digest(&[PACKAGES, MODULES, SERVICE, FSTAB, GRUB, PREPARE]);
    let dir = packages::cached(&format!("debian-{SUITE}-{digest:08x}"), |dir| {
        packages::need(&["mkfs.ext4", "mmdebstrap", "fakeroot", "newuidmap"])?;
        let tree = dir.join("tree.tar");
        unpack(dir, &tree)?;
        let disk = dir.join("disk.img");
        progress::step("make the disk", |_| write(&tree, &disk))?;
        progress::step("boot it and install GRUB", |_| first_boot(dir, &tree, &disk))?;
        Ok(std::fs::remove_file(tree)?)
    })?;
    Ok(dir.join("disk.img"))
}

/// A disk for `/mnt/steps`: the machine runs its file `steps` once it is up.
pub fn steps(files: &[(&str, &Path)], disk: &Path) -> Result<()> {
    let sh = Shell::new()?;
    let tree = sh.create_temp_dir()?;
    for (name, file) in files {
        let to = tree.path().join(name);
        std::fs::copy(file, &to).with_context(|| format!("cannot copy {}", file.display()))?;
        std::fs::set_permissions(to, PermissionsExt::from_mode(0o755))?;
    }
    let (tree, size) = (tree.path(), format!("{STEPS_MIB}m"));
    let _ = std::fs::remove_file(disk);
    Ok(cmd!(sh, "{MKFS} -q -F -L steps -d {tree} {disk} {size}").quiet().ignore_stdout().run()?)
}

/// QEMU's arguments for that disk.
pub fn steps_device(disk: &Path) -> Vec<String> {
    vec!["-drive".into(), format!("file={},format=raw,if=virtio,readonly=on", disk.display())]
}

/// The packages, configured, and our few files as an archive.
fn unpack(dir: &Path, tree: &Path) -> Result<()> {
    let own = dir.join("own");
    let files = [
        ("etc/initramfs-tools/conf.d/modules", "MODULES=list\n"),
        ("etc/initramfs-tools/modules", MODULES),
        ("etc/systemd/system/steps.service", SERVICE),
        ("etc/default/grub.d/zz-test.cfg", GRUB),
        ("etc/hostname", "debian\n"),
        ("etc/fstab", FSTAB),
    ];
    for (name, text) in files {
        let file = own.join(name);
        paths::make_dir(file.parent().unwrap_or(&own).to_path_buf())?;
        std::fs::write(&file, text)?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644))?;
    }
    let source = Suite::new(SUITE)?.source()?;
    let sh = Shell::new()?;
    let hooks = [
        format!("--essential-hook=copy-in {0}/etc/initramfs-tools /etc", own.display()),
        format!("--customize-hook=copy-in {0}/etc /", own.display()),
        "--customize-hook=chroot \"$1\" systemctl enable steps.service".to_string(),
    ];
    let options = ["--quiet", "--variant=minbase", "--dpkgopt=force-confold"];
    progress::step(&format!("fetch and configure a Debian {SUITE}"), |_| {
        Ok(cmd!(sh, "mmdebstrap {options...} --include={PACKAGES} {hooks...} {SUITE} {tree} {source}")
            .quiet()
            .ignore_stdout()
            .run()?)
    })?;
    Ok(std::fs::remove_dir_all(own)?)
}

/// Owners and devices, which need a privilege elsewhere, are made for mkfs to believe in. Backups of passwords stay out: they have no mode by
/// which whoever is not root could read them.
fn write(tree: &Path, disk: &Path) -> Result<()> {
    let image = std::fs::File::create(disk).with_context(|| format!("cannot make {}", disk.display()))?;
    image.set_len(SIZE_MIB * MIB)?;
    image.write_all_at(&partition_table(&[(START_MIB, SIZE_MIB - START_MIB)]), 0)?;
    let sh = Shell::new()?;
    let files = sh.create_temp_dir()?;
    let (files, offset) = (files.path(), format!("offset={}", START_MIB * MIB));
    let size = format!("{}m", SIZE_MIB - START_MIB);
    let line =
        r#"set -e; tar -x -f "$1" -C "$2" --exclude="./etc/*shadow-"; "$3" -q -F -L debian -E "$4" -d "$2" "$5" "$6""#;
    Ok(cmd!(sh, "fakeroot -- sh -c {line} write {tree} {files} {MKFS} {offset} {disk} {size}").quiet().run()?)
}

/// Starts the kernel without a loader, for GRUB to be installed.
fn first_boot(dir: &Path, tree: &Path, disk: &Path) -> Result<()> {
    let sh = Shell::new()?;
    let files = sh.create_temp_dir()?;
    let boot = files.path();
    cmd!(sh, "tar -x -f {tree} -C {boot} --strip-components=2 --wildcards ./boot/vmlinuz-* ./boot/initrd.img-*")
        .quiet()
        .run()?;
    let named = |start: &str| -> Result<String> {
        let found = sh
            .read_dir(boot)?
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)));
        Ok(found.with_context(|| format!("no /boot/{start}…"))?.display().to_string())
    };
    let (script, second) = (boot.join("prepare"), boot.join("steps.img"));
    std::fs::write(&script, PREPARE)?;
    steps(&[("steps", &script)], &second)?;
    let mut devices = steps_device(&second);
    devices.extend(["-kernel".into(), named("vmlinuz-")?, "-initrd".into(), named("initrd.img-")?]);
    devices.extend(["-append".into(), "root=LABEL=debian ro console=ttyS0".into()]);
    let machine = Machine { disk: Some(disk.to_path_buf()), devices, ..Machine::of_disk(1024, dir) };
    let mut running = Engine::choose(Some(Choice::Qemu), &Options::default())?.start(&machine)?;
    let log = paths::target_dir("cache")?.join("debian.log");
    let run = console::watch(&mut running, &log, Duration::from_secs(LIMIT), &[], &mut |_| {})?;
    let done = run.end == End::PoweredOff && run.console.contains("=== PREPARED ===");
    ensure!(done, "the first boot of Debian did not come to its end ({:?}): see {}", run.end, log.display());
    Ok(())
}
