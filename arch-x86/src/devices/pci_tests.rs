use std::vec::Vec;

use mm::addr::HostPhys;
use mm::fake;
use sched::CpuId;
use xen_abi::types::DomainId;

use super::*;
use crate::apic::vectors::{self, PLACES, Source, Target};
use crate::pci::config::ConfigAccess;
use crate::pci::fake::{FakeBus, FakeFunction};

const NIC: Sbdf = Sbdf::new(0, 0, 3, 0);
const BRIDGE: Sbdf = Sbdf::new(0, 0, 4, 0);
/// The CPU that takes the interrupts.
const CPU: Target = Target { cpu: CpuId(3), apic_id: 6 };
const GUEST: Message = Message { address: 0xfee0_2000, data: 0x51 };
const TABLE: u64 = 0xfeb0_2000;

fn p2m() -> P2m<fake::Format> {
    P2m::new(fake::Format::default(), fake::memory(256), DomainId::DOM0).unwrap()
}

/// A p2m in which everything below 4 GiB is mapped as device memory, but for the first GiB.
fn p2m_with_holes() -> P2m<fake::Format> {
    let p2m = p2m();
    let _ = map(&p2m, Gfn(0x4_0000), 0xc_0000).spend();
    p2m
}

fn bus(hardware: FakeBus, p2m: &P2m<fake::Format>) -> PciBus<FakeBus> {
    let bus = PciBus::new(hardware.with_ram(0..0x4000_0000), false);
    bus.discover(p2m, 0, 0..=0xff, &[0x3f8..=0x3ff]);
    bus
}

fn is_mapped(p2m: &P2m<fake::Format>, address: u64) -> bool {
    p2m.lookup(GuestPhys(address).gfn()).is_some_and(|found| found.kind == PageKind::Mmio)
}

/// Writes configuration space and carries out what follows.
fn write(bus: &PciBus<FakeBus>, p2m: &P2m<fake::Format>, register: u16, width: Width, value: u32) {
    let mut effects = Effects::new();
    bus.functions.lock().config_write(&bus.hardware, NIC, register, width, value, &mut effects);
    follow(bus, p2m, &effects);
}

fn write_table(bus: &PciBus<FakeBus>, p2m: &P2m<fake::Format>, offset: u64, value: u32) {
    let mut effects = Effects::new();
    let at = GuestPhys(TABLE + offset);
    assert!(bus.functions.lock().memory_write(&bus.hardware, at, Width::Long, value.into(), &mut effects));
    follow(bus, p2m, &effects);
}

fn follow(bus: &PciBus<FakeBus>, p2m: &P2m<fake::Format>, effects: &Effects) {
    for &effect in effects {
        let _ = follow_in_memory(p2m, effect).spend();
        bus.follow_in_messages(effect, |_| [CPU].into_iter().collect());
    }
}

/// The message that the device holds in an entry of its table, and whether it is masked.
fn device_entry(bus: &PciBus<FakeBus>, entry: u64) -> (Message, bool) {
    let at = HostPhys(TABLE + entry * 16);
    let address = bus.hardware.read_memory(at, Width::Quad);
    let rest = bus.hardware.read_memory(HostPhys(at.0 + 8), Width::Quad);
    (Message { address, data: rest as u32 }, rest >> 32 & 1 != 0)
}

/// The guest's vector behind what the device sends.
fn received(bus: &PciBus<FakeBus>, sent: Message) -> Option<u8> {
    assert_eq!(sent.address, 0xfee0_0000 | u64::from(CPU.apic_id) << 12);
    match vectors::source(CPU.cpu, sent.data as u8) {
        Some(Source::Message(index)) => bus.messages.route(index).map(|message| message.vector),
        _ => None,
    }
}

fn msix_nic() -> FakeFunction {
    FakeFunction::new(0x8086, 0x10d3).command(2).bar(0, 0xfeb0_0000, 0x8000).msix(0x70, 5, (0, 0x2000), (0, 0x3000))
}

#[test]
fn a_table_of_messages_is_never_in_dom0_s_memory() {
    let p2m = p2m_with_holes();
    let bus = bus(FakeBus::default().with(NIC, msix_nic()), &p2m);
    let pages = || (0xfeb0_0000..0xfeb0_8000).step_by(0x1000).map(|at| is_mapped(&p2m, at)).collect::<Vec<_>>();
    let without_table = [true, true, false, false, true, true, true, true];
    assert_eq!(pages(), without_table);
    write(&bus, &p2m, 4, Width::Word, 0);
    assert_eq!(pages(), [false; 8]);
    write(&bus, &p2m, 4, Width::Word, 2);
    assert_eq!(pages(), without_table);
    assert!(is_mapped(&p2m, 0xfeaf_f000) && is_mapped(&p2m, 0xfeb0_8000), "what lies around stays");
}

#[test]
fn a_bar_above_4_gib_is_mapped_while_it_is_decoded() {
    let p2m = p2m_with_holes();
    let nic = FakeFunction::new(1, 2).command(2).bar_64(0, 0x38_0000_0000, 0x4_0000);
    let bus = bus(FakeBus::default().with(NIC, nic), &p2m);
    assert!(is_mapped(&p2m, 0x38_0000_0000) && is_mapped(&p2m, 0x38_0003_f000) && !is_mapped(&p2m, 0x38_0004_0000));
    write(&bus, &p2m, 4, Width::Word, 0);
    assert!(!is_mapped(&p2m, 0x38_0000_0000));
}

#[test]
fn what_dom0_has_put_in_a_bar_s_place_is_left_alone() {
    let p2m = p2m();
    p2m.insert(Gfn(0xfeb04), Mfn(7), PageKind::Foreign, MemoryType::WriteBack).unwrap();
    let nic = FakeFunction::new(1, 2).bar(0, 0xfeb0_0000, 0x8000);
    let bus = bus(FakeBus::default().with(NIC, nic), &p2m);
    assert!(!is_mapped(&p2m, 0xfeb0_0000), "nothing is decoded yet");
    for command in [2, 0] {
        write(&bus, &p2m, 4, Width::Word, command);
        assert_eq!(is_mapped(&p2m, 0xfeb0_3000), command != 0);
        assert_eq!(is_mapped(&p2m, 0xfeb0_5000), command != 0);
        assert_eq!(p2m.lookup(Gfn(0xfeb04)).map(|found| (found.mfn, found.kind)), Some((Mfn(7), PageKind::Foreign)));
    }
}

#[test]
fn what_is_corten_s_own_is_hidden() {
    let mut iommu = FakeFunction::new(0x1022, 0x1451);
    iommu.set(0x09, &[0, 6, 8]);
    let mut console = FakeFunction::new(0x1415, 0xc158).io_bar(1, 0x3f8, 8);
    console.set(0x09, &[2, 0, 7]);
    let mut other_port = FakeFunction::new(0x1415, 0xc158).io_bar(1, 0x2f8, 8);
    other_port.set(0x09, &[2, 0, 7]);
    let behind_another_root = Sbdf::new(0, 0x80, 0, 0);
    let hardware = FakeBus::default()
        .with(NIC, console.clone())
        .with(BRIDGE, iommu)
        .with(Sbdf::new(0, 0, 5, 0), other_port)
        .with(behind_another_root, console)
        .with(Sbdf::new(0, 0x80, 1, 0), FakeFunction::new(1, 2).command(2).bar_64(0, 0x38_0000_0000, 0x4_0000));
    let p2m = p2m();
    let bus = bus(hardware, &p2m);
    assert!(is_mapped(&p2m, 0x38_0000_0000), "what another root bus has is Dom0's too");
    let functions = bus.functions.lock();
    assert!(functions.function(behind_another_root).is_none());
    assert!(functions.function(NIC).is_none() && functions.function(BRIDGE).is_none());
    assert!(functions.function(Sbdf::new(0, 0, 5, 0)).is_some());
    assert_eq!(functions.functions().count(), 5);
}

// Host vectors are the machine's: tests that bind some find theirs by what the device sends.

#[test]
fn msi_is_received_as_the_guest_wrote_it() {
    let p2m = p2m();
    let nic = FakeFunction::new(1, 2).msi(0x50, 3);
    let bus = bus(FakeBus::default().with(NIC, nic), &p2m);
    let sent = || Message { address: bus.hardware.long(NIC, 0x54).into(), data: bus.hardware.word(NIC, 0x5c).into() };
    write(&bus, &p2m, 0x54, Width::Long, GUEST.address as u32);
    write(&bus, &p2m, 0x5c, Width::Word, GUEST.data);
    write(&bus, &p2m, 0x52, Width::Word, 1);
    assert_eq!(bus.hardware.word(NIC, 0x52) & 1, 1, "the device's MSI is on");
    assert_eq!(received(&bus, sent()), Some(0x51));

    let before = sent();
    write(&bus, &p2m, 0x5c, Width::Word, 0x61);
    assert_eq!((sent(), received(&bus, sent())), (before, Some(0x61)), "the device goes on sending what it sends");

    // After a reset: the device has forgotten, Dom0 writes everything again.
    bus.hardware.write(NIC, 0x52, Width::Word, 0);
    bus.hardware.write(NIC, 0x54, Width::Long, 0);
    write(&bus, &p2m, 0x52, Width::Word, 1);
    assert_eq!((sent(), received(&bus, sent())), (before, Some(0x61)));

    // Four vectors in a row.
    write(&bus, &p2m, 0x5c, Width::Word, 0x70);
    write(&bus, &p2m, 0x52, Width::Word, 0x21);
    let first = sent();
    assert_eq!(first.data % 4, 0);
    assert_eq!((0..4).map(|n| received(&bus, first.nth(n))).collect::<Vec<_>>(), [0x70, 0x71, 0x72, 0x73].map(Some));
    write(&bus, &p2m, 0x52, Width::Word, 0);
    assert_eq!(bus.hardware.word(NIC, 0x52) & 1, 0);
    assert!((0..4).all(|n| received(&bus, first.nth(n)).is_none()));
    assert!((0..PLACES as u32).all(|index| bus.messages.route(index).is_none()));
}

#[test]
fn an_entry_of_msix_is_received_as_the_guest_wrote_it() {
    let p2m = p2m_with_holes();
    let bus = bus(FakeBus::default().with(NIC, msix_nic()), &p2m);
    let set_entry = |entry: u64, data: u32| {
        for (long, value) in [GUEST.address as u32, 0, data, 0].into_iter().enumerate() {
            write_table(&bus, &p2m, entry * 16 + long as u64 * 4, value);
        }
    };
    set_entry(1, 0x51);
    assert_eq!(device_entry(&bus, 1), Default::default(), "MSI-X is off");
    write(&bus, &p2m, 0x72, Width::Word, 0x8004);
    let (sent, masked) = device_entry(&bus, 1);
    assert_eq!((received(&bus, sent), masked), (Some(0x51), false));
    assert!(device_entry(&bus, 0).1, "what the guest has not unmasked is masked in the device");

    set_entry(4, 0x52);
    let (last, masked) = device_entry(&bus, 4);
    assert_ne!(last.data, sent.data);
    assert_eq!((received(&bus, last), masked), (Some(0x52), false));

    write_table(&bus, &p2m, 16 + 12, 1);
    assert_eq!(device_entry(&bus, 1), (sent, true));
    write_table(&bus, &p2m, 16 + 8, 0x61);
    write_table(&bus, &p2m, 16 + 12, 0);
    assert_eq!((device_entry(&bus, 1), received(&bus, sent)), ((sent, false), Some(0x61)), "it keeps its vector");

    write(&bus, &p2m, 0x72, Width::Word, 4);
    assert!(device_entry(&bus, 1).1 && device_entry(&bus, 4).1, "nothing comes any more");
    assert_eq!((received(&bus, sent), received(&bus, last)), (None, None));

    write(&bus, &p2m, 0x72, Width::Word, 0x8004);
    let (again, masked) = device_entry(&bus, 4);
    assert_eq!((received(&bus, again), masked), (Some(0x52), false), "the guest's table has not changed");
    write(&bus, &p2m, 0x72, Width::Word, 4);
}

#[test]
fn an_entry_whose_message_is_no_interrupt_stays_masked_in_the_device() {
    let p2m = p2m_with_holes();
    let bus = bus(FakeBus::default().with(NIC, msix_nic()), &p2m);
    write(&bus, &p2m, 0x72, Width::Word, 0x8004);
    write_table(&bus, &p2m, 0, 0x1234_5000);
    write_table(&bus, &p2m, 12, 0);
    assert!(device_entry(&bus, 0).1);
    assert!(bus.messages.route(0).is_none());
}
