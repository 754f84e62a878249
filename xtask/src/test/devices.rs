//! Disks and network cards of a PCIe machine with Debian's own drivers, all at once.

use super::case::{Case, Context};
use super::debian;
use crate::engine::{Engine, Firmware};
use anyhow::{Context as _, Result, ensure};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of each disk, of which 64 MiB are written.
const DISK_SIZE: u64 = 80 << 20;
const NET_SIZE: usize = 16 << 20;

/// The network cards: driver, QEMU's name for it, the network's first three bytes, and where it is plugged in.
const CARDS: [(&str, &str, &str, &str); 2] =
    [("virtio_net", "virtio-net-pci", "10.0.2", "port2"), ("e1000e", "e1000e", "10.0.3", "port3")];

/// AHCI is the chipset's own. NVMe, a network card and a device with more memory than fits below 4 GiB are behind PCI Express root
/// ports, the other disk behind a bridge to conventional PCI.
const BRIDGES: &[&str] = &[
    "pcie-root-port,id=port1,chassis=1,slot=1",
    "pcie-root-port,id=port2,chassis=2,slot=2",
    "pcie-root-port,id=port3,chassis=3,slot=3",
    "pcie-root-port,id=port4,chassis=4,slot=4",
    "pcie-pci-bridge,id=conventional,bus=port4",
    "pci-testdev,membar=8G",
];
/// A disk's name, and its device.
const DISKS: &[(&str, &str)] = &[
    ("sata", "ide-hd,bus=ide.0"),
    ("nvme", "nvme,serial=corten,bus=port1"),
    ("virtio", "virtio-blk-pci,bus=conventional,addr=1"),
];

/// One way to run it.
#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    about: &'static str,
    suite: &'static str,
    firmware: Firmware,
    cpus: u32,
    kernel_args: &'static str,
}

const PLAIN: Variant = Variant {
    name: "debian13_devices",
    about: "AHCI, NVMe, virtio and e1000e carry data, all at once",
    suite: "trixie",
    firmware: Firmware::Bios,
    cpus: 1,
    kernel_args: "",
};
const VARIANTS: [Variant; 4] = [
    PLAIN,
    // OVMF puts every 64-bit BAR above 4 GiB, and interrupts move between the CPUs.
    Variant {
        name: "debian13_devices_uefi",
        about: "the same, started by UEFI, with two CPUs",
        firmware: Firmware::Uefi,
        cpus: 2,
        ..PLAIN
    },
    Variant {
        name: "debian13_devices_intx",
        about: "the same over interrupt lines that the devices share",
        kernel_args: " pci=nomsi",
        ..PLAIN
    },
    Variant { name: "debian12_devices", suite: "bookworm", ..PLAIN },
];

pub fn cases() -> Vec<Case> {
    VARIANTS
        .into_iter()
        .map(|variant| Case {
            // Its Dom0 locks up there while it looks at the BAR of 8 GiB.
            on_xen: false,
            engines: |engine| matches!(engine, Engine::Qemu(_)),
            prepare: Box::new(move || debian::prepare(variant.suite, variant.firmware)),
            run: Box::new(move |context| run(context, &variant)),
            ..debian::case(variant.name, variant.about, variant.suite, false)
        })
        .collect()
}

fn run(context: &Context<'_>, variant: &Variant) -> Result<()> {
    std::fs::create_dir_all(&context.logs)?;
    let mut boot = debian::boot(variant.suite, "devices", context.engine.dom0_modules())?;
    boot.firmware = variant.firmware;
    boot.cpus = variant.cpus;
    boot.corten_args.push_str(&format!(" dom0_max_vcpus={}", variant.cpus));
    boot.limit = 400;
    let mut device = |kind: &str, text: String| boot.devices.extend([format!("-{kind}"), text]);
    for bridge in BRIDGES {
        device("device", bridge.to_string());
    }
    for (name, model) in DISKS {
        let image = context.logs.join(format!("{name}.img"));
        std::fs::File::create(&image)?.set_len(DISK_SIZE)?;
        device("drive", format!("if=none,id={name},format=raw,file={}", image.display()));
        device("device", format!("{model},drive={name}"));
    }
    // Not the card that the board has by default.
    device("nic", "none".into());
    let mut peers = Vec::new();
    let mut words = Vec::new();
    for (driver, model, network, bus) in CARDS {
        let peer = Peer::start(driver)?;
        words.push(format!("{driver}:{network}:{}:{}", peer.from, peer.to));
        peers.push(peer);
        device("netdev", format!("user,id={driver},net={network}.0/24,host={network}.2"));
        device("device", format!("{model},netdev={driver},bus={bus}"));
    }
    if let Some(kernel) = boot.modules.first_mut() {
        kernel.args.push_str(&format!("{} corten.net={}", variant.kernel_args, words.join(",")));
    }
    let run = context.boot("run", boot)?;
    for (name, _) in DISKS {
        let _ = std::fs::remove_file(context.logs.join(format!("{name}.img")));
    }
    debian::judge(context, &run)?;
    for peer in peers {
        peer.is_content()?;
    }
    ensure!(run.console.lines().any(has_high_bar), "no BAR is above 4 GiB");
    Ok(())
}

/// A BAR that begins above 4 GiB, as the kernel prints it.
fn has_high_bar(line: &str) -> bool {
    let Some((_, rest)) = line.split_once("[mem 0x") else { return false };
    let start = rest.split('-').next().unwrap_or_default();
    line.contains("pci 0000:") && u64::from_str_radix(start, 16).is_ok_and(|start| start >= 1 << 32)
}

/// The host's end of a card's connections: it sends 16 MiB to whoever connects to one port, and compares what comes back at the other.
struct Peer {
    name: &'static str,
    from: u16,
    to: u16,
    equal: Arc<AtomicBool>,
}

impl Peer {
    fn start(name: &'static str) -> Result<Peer> {
        let (sender, receiver) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let equal = Arc::new(AtomicBool::new(false));
        let peer =
            Peer { name, from: sender.local_addr()?.port(), to: receiver.local_addr()?.port(), equal: equal.clone() };
        let data = Arc::new(pattern(name));
        let sent = data.clone();
        std::thread::spawn(move || {
            for stream in sender.incoming().flatten() {
                let _ = send(stream, &sent);
            }
        });
        std::thread::spawn(move || {
            for stream in receiver.incoming().flatten() {
                if let Ok(same) = compare(stream, &data) {
                    equal.store(same, Ordering::Release);
                }
            }
        });
        Ok(peer)
    }

    fn is_content(&self) -> Result<()> {
        ensure!(self.equal.load(Ordering::Acquire), "{}: what came back is not what was sent", self.name);
        Ok(())
    }
}

/// Different for each card, and without a period that a lost or doubled packet could hide in.
fn pattern(name: &str) -> Vec<u8> {
    let mut state = name.bytes().fold(1u64, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..NET_SIZE / 4).flat_map(|_| next().to_le_bytes()).collect()
}

fn send(mut stream: TcpStream, data: &[u8]) -> Result<()> {
    stream.write_all(data)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(())
}

/// Takes as much as was sent, and answers whether it is the same.
fn compare(mut stream: TcpStream, data: &[u8]) -> Result<bool> {
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    let mut got = vec![0; data.len()];
    stream.read_exact(&mut got).context("the guest sent less")?;
    let same = got == data;
    stream.write_all(if same { b"equal" } else { b"different" })?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_content_with_its_own_bytes_alone() {
        let peer = Peer::start("one").expect("ports");
        let mut bytes = Vec::new();
        TcpStream::connect(("127.0.0.1", peer.from)).expect("connects").read_to_end(&mut bytes).expect("reads");
        assert_eq!(bytes.len(), NET_SIZE);
        let answer = |bytes: &[u8]| {
            let mut stream = TcpStream::connect(("127.0.0.1", peer.to)).expect("connects");
            stream.write_all(bytes).expect("sends");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("reads");
            answer
        };
        assert_eq!(answer(&pattern("two")), "different");
        assert!(peer.is_content().is_err());
        assert_eq!(answer(&bytes), "equal");
    }

    #[test]
    fn a_bar_above_4_gib_is_told_from_one_below() {
        assert!(has_high_bar("[    3.0] pci 0000:01:00.0: BAR 0 [mem 0x380000000000-0x380000003fff 64bit]"));
        assert!(has_high_bar("[    3.0] pci 0000:01:00.0: reg 0x10: [mem 0x180000000-0x1800fffff 64bit]"));
        assert!(!has_high_bar("[    3.0] pci 0000:01:00.0: BAR 0 [mem 0xfe000000-0xfe003fff 64bit]"));
        assert!(!has_high_bar("[    3.0] pci_bus 0000:00: root bus resource [mem 0x100000000-0x8ffffffff window]"));
    }
}
