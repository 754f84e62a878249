use std::vec::Vec;

use mm::addr::HostPhys;

use super::super::fake::{FakeBus, FakeFunction};
use super::super::{ConfigAccess, Fault, Place};
use super::*;

const NIC: Sbdf = Sbdf::new(0, 0, 3, 0);

fn nic() -> FakeFunction {
    FakeFunction::new(0x8086, 0x100e).command(2).bar(0, 0xfebc_0000, 0x2_0000)
}

fn find(bus: &FakeBus) -> Vec<Function> {
    let mut all = Vec::new();
    scan(bus, 0, [0], |function| {
        all.push(function);
        true
    });
    all
}

fn only(bus: &FakeBus) -> Function {
    let mut all = find(bus);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn functions_behind_bridges_are_found() {
    let (bridge, behind, deeper) = (Sbdf::new(0, 0, 1, 0), Sbdf::new(0, 1, 0, 0), Sbdf::new(0, 2, 0x1f, 0));
    let bus = FakeBus::default()
        .with(bridge, FakeFunction::bridge(1))
        .with(behind, FakeFunction::bridge(2))
        .with(deeper, nic());
    let found: Vec<Sbdf> = find(&bus).iter().map(|f| f.sbdf).collect();
    assert_eq!(found, [bridge, behind, deeper]);
}

#[test]
fn every_root_bus_is_found_and_none_twice() {
    let (bridge, behind) = (Sbdf::new(0, 0, 1, 0), Sbdf::new(0, 1, 0, 0));
    let (second_root, behind_it) = (Sbdf::new(0, 0x80, 2, 0), Sbdf::new(0, 0x85, 0, 0));
    let last = Sbdf::new(0, 0xff, 0x1f, 0);
    let bus = FakeBus::default()
        .with(bridge, FakeFunction::bridge(1))
        .with(behind, nic())
        .with(second_root, FakeFunction::bridge(0x85))
        .with(behind_it, nic())
        .with(last, nic())
        .with(Sbdf::new(1, 0x40, 0, 0), nic());
    let mut all = Vec::new();
    scan(&bus, 0, [0].into_iter().chain(0..=0xff), |function| {
        all.push(function.sbdf);
        true
    });
    assert_eq!(all, [bridge, behind, second_root, behind_it, last]);
    assert_eq!(find(&bus).len(), 2, "bus 0 and what is behind it");
}

#[test]
fn a_bus_that_is_not_there_costs_a_read_a_device() {
    let bus = FakeBus::default();
    scan(&bus, 0, 0..=0xff, |_| true);
    assert_eq!(bus.reads.get(), 256 * 32);
    assert!(bus.writes.borrow().is_empty());
}

#[test]
fn a_bridge_to_its_own_bus_ends_nowhere() {
    let bus = FakeBus::default()
        .with(Sbdf::new(0, 0, 1, 0), FakeFunction::bridge(0))
        .with(Sbdf::new(0, 0, 2, 0), FakeFunction::bridge(3))
        .with(Sbdf::new(0, 3, 0, 0), FakeFunction::bridge(3));
    assert_eq!(find(&bus).len(), 3);
}

#[test]
fn functions_are_looked_for_only_in_devices_with_several() {
    let other = Sbdf::new(0, 0, 3, 5);
    let bus = FakeBus::default().with(NIC, nic()).with(other, nic());
    assert_eq!(find(&bus).len(), 1);
    let bus = FakeBus::default().with(NIC, nic().multifunction()).with(other, nic());
    assert_eq!(find(&bus).len(), 2);
}

#[test]
fn bars_are_sized_and_left_as_they_were() {
    let function = FakeFunction::new(0x8086, 0x10d3)
        .command(3)
        .bar(0, 0xfeb8_0000, 0x2_0000)
        .io_bar(1, 0xc000, 32)
        .bar_64(2, 0x8_0000_0000, 0x4_0000_0000)
        .rom(0, 0x4_0000);
    let bus = FakeBus::default().with(NIC, function.clone());
    let found = only(&bus);
    let sizes: Vec<_> = found.bars.iter().map(|bar| (bar.register, bar.size, bar.is_64, bar.prefetchable)).collect();
    assert_eq!(sizes, [(0x10, 0x2_0000, false, false), (0x18, 0x4_0000_0000, true, true)]);
    assert_eq!(found.rom.map(|rom| rom.size), Some(0x4_0000));
    assert_eq!(
        found.places(&bus).as_slice(),
        [
            (0x10, Place { start: HostPhys(0xfeb8_0000), size: 0x2_0000 }),
            (0x18, Place { start: HostPhys(0x8_0000_0000), size: 0x4_0000_0000 }),
        ]
    );
    bus.change(NIC, |after| assert_eq!(after.config, function.config));
}

#[test]
fn no_bar_answers_while_it_is_sized() {
    let bus = FakeBus::default().with(NIC, nic());
    only(&bus);
    let writes = bus.writes.borrow();
    let position = |register, value| writes.iter().position(|&(_, r, v)| (r, v) == (register, value)).unwrap();
    assert!(position(0x04, 0) < position(0x10, u32::MAX), "decoding goes off first");
    assert!(position(0x10, 0xfebc_0000) < position(0x04, 2), "and on again last");
}

#[test]
fn a_function_that_cannot_stop_decoding_is_not_sized() {
    let mut function = nic();
    function.writable[4] = 0;
    let bus = FakeBus::default().with(NIC, function);
    assert!(only(&bus).bars.is_empty());
    assert!(!bus.writes.borrow().iter().any(|&(_, register, _)| register == 0x10));
}

#[test]
fn the_bus_numbers_of_a_bridge_are_no_bar() {
    let at = Sbdf::new(0, 0, 1, 0);
    let mut bridge = FakeFunction::bridge(1);
    // The second BAR of two claims to have an upper half.
    bridge.set(0x14, &[4]);
    bridge.allow(0x14, &[0, 0, 0xff, 0xff]);
    let bus = FakeBus::default().with(at, bridge);
    assert!(only(&bus).bars.is_empty());
    assert_eq!(bus.long(at, 0x18), 0x0001_0100);
}

#[test]
fn capabilities_are_found_in_any_order() {
    let function =
        nic().bar(1, 0xfeb0_0000, 0x4000).msix(0xa0, 5, (1, 0), (1, 0x2000)).capability(0x50, &[0x01]).msi(0x60, 3);
    let found = only(&FakeBus::default().with(NIC, function));
    assert_eq!(found.fault, None);
    let (msi, msix) = (found.msi.unwrap(), found.msix.unwrap());
    assert_eq!((msi.offset, msi.is_64, msi.maskable, msi.log2_vectors), (0x60, true, true, 3));
    assert_eq!((msix.offset, msix.entries, msix.table, msix.pending), (0xa0, 5, (0x14, 0), (0x14, 0x2000)));
}

#[test]
fn a_list_of_capabilities_that_loops_is_a_fault() {
    let mut function = nic().capability(0x50, &[0x01]).capability(0x60, &[0x09]);
    function.config[0x61] = 0x50;
    let found = only(&FakeBus::default().with(NIC, function));
    assert_eq!(found.fault, Some(Fault::Capabilities { offset: 0x50 }));
    let mut to_itself = nic().capability(0x50, &[0x01]);
    to_itself.config[0x51] = 0x50;
    assert!(only(&FakeBus::default().with(NIC, to_itself)).fault.is_some());
}

#[test]
fn a_capability_in_the_header_is_a_fault() {
    let found = only(&FakeBus::default().with(NIC, nic().capability(0x10, &[0x01])));
    assert_eq!(found.fault, Some(Fault::Capabilities { offset: 0x10 }));
}

#[test]
fn an_extended_list_that_loops_is_a_fault_and_ends() {
    let mut function = nic().capability(0x40, &[0x10]);
    function.set(0x100, &0x1400_0001u32.to_le_bytes());
    function.set(0x140, &0x1000_0002u32.to_le_bytes());
    assert!(matches!(only(&FakeBus::default().with(NIC, function)).fault, Some(Fault::Capabilities { .. })));
}

#[test]
fn a_conventional_function_whose_space_repeats_itself_has_no_extended_list() {
    let mut function = nic().capability(0x40, &[0x01]);
    let header: [u8; 256] = core::array::from_fn(|at| function.config[at]);
    function.set(0x100, &header);
    let found = only(&FakeBus::default().with(NIC, function));
    assert_eq!((found.fault, found.resizable), (None, false));
}

#[test]
fn an_msix_table_beyond_its_bar_is_a_fault() {
    let beyond = nic().msix(0x40, 64, (0, 0x1_fff0), (0, 0));
    let found = only(&FakeBus::default().with(NIC, beyond));
    assert_eq!(found.fault, Some(Fault::MsixBeyondBar { register: 0x10, offset: 0x1_fff0 }));
    let nowhere = nic().msix(0x40, 64, (7, 0), (0, 0));
    assert_eq!(only(&FakeBus::default().with(NIC, nowhere)).fault, Some(Fault::MsixBar { index: 7 }));
}

#[test]
fn a_bar_over_ram_is_a_fault_only_while_it_decodes() {
    let over = |command| {
        FakeBus::default().with_ram(0..0x8000_0000).with(NIC, nic().command(command).bar(0, 0x1000_0000, 0x1000))
    };
    let Some(fault) = only(&over(2)).fault else { panic!("not noticed") };
    assert_eq!(
        std::format!("{fault}"),
        "its BAR 0x10 (0x1000 bytes at 0x10000000) lies over memory that is not a device's"
    );
    assert_eq!(only(&over(0)).fault, None);
}

#[test]
fn a_host_bridge_is_left_alone() {
    let mut bridge = nic();
    bridge.set(0x08, &[1, 0, 0, 6]);
    let bus = FakeBus::default().with(Sbdf::new(0, 0, 0, 0), bridge);
    assert!(only(&bus).bars.is_empty());
    assert!(bus.writes.borrow().is_empty());
}

#[test]
fn a_scan_can_be_ended() {
    let bus = FakeBus::default().with(NIC, nic()).with(Sbdf::new(0, 0, 4, 0), nic());
    let mut count = 0;
    scan(&bus, 0, [0], |_| {
        count += 1;
        false
    });
    assert_eq!(count, 1);
}

#[test]
fn nothing_is_where_nothing_answers() {
    assert!(Function::probe(&FakeBus::default(), NIC).is_none());
    assert_eq!(FakeBus::default().read(NIC, 0, Width::Long), u32::MAX);
}
