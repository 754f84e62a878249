//! The boot medium: GRUB, a hypervisor and Dom0's modules on an ISO that BIOS and UEFI boot from CD or stick.

use crate::cli::Boot;
use crate::{build, dom0, packages, paths, progress};
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// How GRUB starts the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Multiboot2,
    /// Xen's own multiboot2 path crashes in Bochs.
    Multiboot1,
}

/// A hypervisor image and how to start it.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    pub image: PathBuf,
    pub is_xen: bool,
    pub protocol: Protocol,
    pub args: String,
}

/// One file that GRUB loads for Dom0, and its command line.
#[derive(Clone, Debug)]
pub struct Module {
    pub file: PathBuf,
    pub args: String,
}

/// All that is on a boot medium.
#[derive(Clone, Debug)]
pub struct Medium {
    pub hypervisor: Hypervisor,
    pub modules: Vec<Module>,
    /// An ACPI table that takes the place of the firmware's own with that signature (BIOS).
    pub acpi: Option<Vec<u8>>,
}

/// What Corten is told unless the user says otherwise: its log on the first serial port and on the screen.
const CORTEN_ARGS: &str = "com1=115200,8n1 console=com1,vga";
/// What Xen needs to run a PVH Dom0 in emulators.
const XEN_ARGS: &str = "placeholder no-real-mode edd=off com1=115200,8n1 console=com1 dom0=pvh cpuidle=0";
/// Bochs has no IOMMU, and no usable virtual interrupt delivery.
const XEN_ARGS_IN_BOCHS: &str = "dom0-iommu=none apicv=0";

impl Hypervisor {
    /// `corten` (built now), `xen` (Debian's 4.20, fetched), or a file, with its default arguments and `args`.
    pub fn named(name: &str, args: &str, protocol: Protocol) -> Result<Hypervisor> {
        let mut hypervisor = Hypervisor::locate(name)?;
        hypervisor.set_args(args, protocol);
        Ok(hypervisor)
    }

    /// The image alone.
    pub fn locate(name: &str) -> Result<Hypervisor> {
        let image = match name {
            "corten" => build::build()?,
            "xen" => packages::xen()?,
            file => PathBuf::from(file),
        };
        Ok(Hypervisor { image, is_xen: name == "xen", protocol: Protocol::Multiboot2, args: String::new() })
    }

    /// Gives it the arguments that it has by default, and these. `protocol` is how the engine wants Xen to be started.
    pub fn set_args(&mut self, args: &str, protocol: Protocol) {
        let defaults = match (self.is_xen, protocol) {
            (false, _) => CORTEN_ARGS.to_string(),
            (true, Protocol::Multiboot1) => format!("{XEN_ARGS} {XEN_ARGS_IN_BOCHS}"),
            (true, Protocol::Multiboot2) => XEN_ARGS.to_string(),
        };
        self.protocol = if self.is_xen { protocol } else { Protocol::Multiboot2 };
        self.args = format!("{defaults} {args}").trim_end().to_string();
    }
}

impl Medium {
    /// What the command line asks for. `protocol` is how the engine wants Xen to be started.
    pub fn from_cli(boot: &Boot, protocol: Protocol) -> Result<Medium> {
        let hypervisor = Hypervisor::named(&boot.hypervisor, &boot.corten_args, protocol)?;
        let mut modules = Vec::new();
        match &boot.kernel {
            Some(kernel) => modules.push(Module { file: kernel.clone(), args: boot.dom0_args.clone() }),
            None => {
                let dom0 = dom0::Dom0::fetch(&boot.suite)?;
                let args = format!("{} {}", dom0::KERNEL_ARGS, boot.dom0_args);
                modules.push(Module { file: dom0.kernel.clone(), args: args.trim_end().to_string() });
                if boot.initrd.is_none() {
                    modules.push(Module { file: dom0.initramfs()?, args: String::new() });
                }
            }
        }
        if let Some(initrd) = &boot.initrd {
            modules.push(Module { file: initrd.clone(), args: String::new() });
        }
        for described in &boot.domain {
            modules.extend(domain_modules(described, &boot.suite)?);
        }
        Ok(Medium { hypervisor, modules, acpi: None })
    }

    /// Makes the ISO with grub-mkrescue, for i386-pc and x86_64-efi.
    pub fn write_iso(&self, iso: &Path) -> Result<()> {
        packages::need(&["grub-mkrescue", "xorriso", "mformat"])?;
        let sh = Shell::new()?;
        let tree = sh.create_temp_dir()?;
        let boot = paths::make_dir(tree.path().join("boot/grub"))?;
        let put = |from: &Path, name: &str| -> Result<()> {
            let to = tree.path().join("boot").join(name);
            if from.extension().is_some_and(|e| e == "gz") && name == "hypervisor" {
                let data = cmd!(sh, "gzip -dc {from}").quiet().output()?.stdout;
                return paths::write_whole(&to, &data);
            }
            std::fs::copy(from, &to).map(drop).with_context(|| format!("cannot read {}", from.display()))
        };
        put(&self.hypervisor.image, "hypervisor")?;
        for (index, module) in self.modules.iter().enumerate() {
            put(&module.file, &format!("module{index}"))?;
        }
        if let Some(table) = &self.acpi {
            std::fs::write(tree.path().join("boot/acpi"), table)?;
        }
        std::fs::write(boot.join("grub.cfg"), self.grub_cfg())?;
        let tree = tree.path();
        let result = cmd!(sh, "grub-mkrescue --output={iso} {tree}").quiet().ignore_stderr().ignore_stdout().run();
        if result.is_err() || !iso.exists() {
            bail!("grub-mkrescue could not make {}; run it by hand to see why", iso.display());
        }
        Ok(())
    }

    /// The menu: one entry, started at once, on the serial port as well as on the screen.
    fn grub_cfg(&self) -> String {
        let (hypervisor, module) = match self.hypervisor.protocol {
            Protocol::Multiboot2 => ("multiboot2", "module2"),
            Protocol::Multiboot1 => ("multiboot", "module"),
        };
        let mut text = String::from(
            "serial --unit=0 --speed=115200\nterminal_input console serial\nterminal_output console serial\n\
             set timeout=0\nset gfxpayload=text\nmenuentry \"Corten\" {\n",
        );
        if let Some(signature) = self.acpi.as_ref().and_then(|table| table.get(..4)) {
            let _ = writeln!(text, "  acpi --exclude={} /boot/acpi", String::from_utf8_lossy(signature));
        }
        let _ = writeln!(text, "  {hypervisor} /boot/hypervisor {}", self.hypervisor.args);
        for (index, m) in self.modules.iter().enumerate() {
            // GRUB would decompress what it recognises; Dom0 is to get its initramfs as it is.
            let nounzip = if self.hypervisor.protocol == Protocol::Multiboot2 { " --nounzip" } else { "" };
            let _ = writeln!(text, "  {module}{nounzip} /boot/module{index} {}", m.args);
        }
        text.push_str("}\n");
        text
    }
}

/// What `--domain` asks for: a kernel whose string describes the domain, and its initrd.
fn domain_modules(described: &str, suite: &str) -> Result<Vec<Module>> {
    let DomainWords { own, kernel, initrd, cmdline } = DomainWords::split(described);
    let (kernel, initrd, cmdline) = match kernel {
        Some(kernel) => (kernel, initrd, cmdline),
        None => {
            let debian = dom0::Dom0::fetch(suite)?;
            let initrd = initrd.map_or_else(|| debian.small_initramfs(), Ok)?;
            (debian.kernel, Some(initrd), format!("{} {cmdline}", dom0::DOMAIN_KERNEL_ARGS))
        }
    };
    let mut modules = vec![Module { file: kernel, args: format!("domain {own} -- {cmdline}").trim_end().to_string() }];
    modules.extend(initrd.map(|file| Module { file, args: "domain-initrd".into() }));
    Ok(modules)
}

/// The value of `--domain`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct DomainWords {
    /// What is for Corten.
    own: String,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    /// What is for the domain's kernel.
    cmdline: String,
}

impl DomainWords {
    fn split(described: &str) -> DomainWords {
        let mut words = described.split_whitespace();
        let (mut own, mut kernel, mut initrd) = (Vec::new(), None, None);
        for word in words.by_ref().take_while(|word| *word != "--") {
            match word.split_once('=') {
                Some(("kernel", file)) => kernel = Some(file.into()),
                Some(("initrd", file)) => initrd = Some(file.into()),
                _ => own.push(word),
            }
        }
        DomainWords { own: own.join(" "), kernel, initrd, cmdline: words.collect::<Vec<_>>().join(" ") }
    }
}

/// `cargo xtask image`.
pub fn command(boot: &Boot) -> Result<PathBuf> {
    let medium = Medium::from_cli(boot, Protocol::Multiboot2)?;
    let iso = paths::target_dir("corten")?.join("corten.iso");
    progress::step("make target/corten/corten.iso", |_| medium.write_iso(&iso))?;
    println!("{}", iso.display());
    Ok(iso)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(protocol: Protocol) -> Medium {
        let module = |file: &str, args: &str| Module { file: file.into(), args: args.into() };
        Medium {
            hypervisor: Hypervisor { image: "corten".into(), is_xen: false, protocol, args: "com1=115200".into() },
            modules: vec![module("vmlinuz", "console=hvc0"), module("initrd", "")],
            acpi: None,
        }
    }

    #[test]
    fn the_menu_loads_the_hypervisor_then_each_module_in_order() {
        let text = medium(Protocol::Multiboot2).grub_cfg();
        let kernel = text.find("module2 --nounzip /boot/module0 console=hvc0").expect("kernel");
        let initrd = text.find("module2 --nounzip /boot/module1").expect("initrd");
        assert!(text.find("multiboot2 /boot/hypervisor com1=115200").expect("hypervisor") < kernel);
        assert!(kernel < initrd && text.contains("set timeout=0"));
    }

    #[test]
    fn a_table_is_loaded_in_the_place_of_the_one_with_its_signature() {
        let medium = Medium { acpi: Some(b"APIC....".to_vec()), ..medium(Protocol::Multiboot2) };
        let text = medium.grub_cfg();
        let table = text.find("acpi --exclude=APIC /boot/acpi").expect("table");
        assert!(table < text.find("multiboot2 /boot/hypervisor").expect("hypervisor"));
    }

    #[test]
    fn a_domains_files_are_taken_out_of_its_description() {
        let words = DomainWords::split("name=a kernel=/boot/k memory=64M -- initrd=ram quiet");
        assert_eq!((words.own.as_str(), words.cmdline.as_str()), ("name=a memory=64M", "initrd=ram quiet"));
        assert_eq!((words.kernel, words.initrd), (Some("/boot/k".into()), None));
    }

    #[test]
    fn multiboot_1_has_its_own_commands() {
        let text = medium(Protocol::Multiboot1).grub_cfg();
        assert!(text.contains("  multiboot /boot/hypervisor") && text.contains("  module /boot/module0"));
    }
}
