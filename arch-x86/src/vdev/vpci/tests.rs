use std::vec::Vec;

use mm::addr::GuestPhys;

use super::*;
use crate::pci::fake::{FakeBus, FakeFunction};
use crate::pci::{Fault, program_msi, program_msix_entry, scan};

const NIC: Sbdf = Sbdf::new(0, 0, 3, 0);
const COMMAND: u16 = 4;
const STATUS: u16 = 6;
const BAR0: u16 = 0x10;
const BAR1: u16 = 0x14;
const ROM: u16 = 0x30;

/// Dom0 on a bus.
struct Dom0 {
    bus: FakeBus,
    vpci: Vpci,
    /// What the last access asked for.
    effects: Effects,
}

impl Dom0 {
    fn on(bus: FakeBus) -> Dom0 {
        let (mut vpci, mut effects) = (Vpci::new(false), Effects::new());
        scan(&bus, 0, [0], |function| {
            vpci.insert(&bus, function, &mut effects).unwrap();
            true
        });
        bus.writes.borrow_mut().clear();
        Dom0 { bus, vpci, effects }
    }

    fn with(function: FakeFunction) -> Dom0 {
        Dom0::on(FakeBus::default().with(NIC, function))
    }

    fn read(&self, register: u16, width: Width) -> u32 {
        self.vpci.config_read(&self.bus, NIC, register, width)
    }

    fn long(&self, register: u16) -> u32 {
        self.read(register, Width::Long)
    }

    fn word(&self, register: u16) -> u16 {
        self.read(register, Width::Word) as u16
    }

    fn write(&mut self, register: u16, width: Width, value: u32) -> &[Effect] {
        self.effects.clear();
        self.vpci.config_write(&self.bus, NIC, register, width, value, &mut self.effects);
        &self.effects
    }

    fn set_word(&mut self, register: u16, value: u16) -> &[Effect] {
        self.write(register, Width::Word, value.into())
    }

    fn set_long(&mut self, register: u16, value: u32) -> &[Effect] {
        self.write(register, Width::Long, value)
    }

    fn out(&mut self, port: u16, width: Width, value: u32) -> &[Effect] {
        self.effects.clear();
        self.vpci.port_write(&self.bus, port, width, value, &mut self.effects);
        &self.effects
    }

    fn r#in(&self, port: u16, width: Width) -> u32 {
        self.vpci.port_read(&self.bus, port, width)
    }

    fn memory(&self, address: u64, width: Width) -> Option<u64> {
        self.vpci.memory_read(&self.bus, GuestPhys(address), width)
    }

    fn set_memory(&mut self, address: u64, width: Width, value: u64) -> &[Effect] {
        self.effects.clear();
        assert!(self.vpci.memory_write(&self.bus, GuestPhys(address), width, value, &mut self.effects));
        &self.effects
    }
}

fn map(frame: u64, frames: u64) -> Effect {
    Effect::Map { gfn: Gfn(frame), mfn: Mfn(frame), frames }
}

fn unmap(frame: u64, frames: u64) -> Effect {
    Effect::Unmap { gfn: Gfn(frame), frames }
}

fn nic() -> FakeFunction {
    FakeFunction::new(0x8086, 0x100e).command(2).bar(0, 0xfebc_0000, 0x2_0000)
}

// ---- Ports and windows ----

#[test]
fn a_register_is_read_through_the_ports() {
    let mut dom0 = Dom0::with(nic());
    dom0.out(0xcf8, Width::Long, 0x8000_0000 | 3 << 11);
    assert_eq!(dom0.r#in(0xcf8, Width::Long), 0x8000_1800);
    assert_eq!(dom0.r#in(0xcfc, Width::Long), 0x100e_8086);
    assert_eq!(dom0.r#in(0xcfc, Width::Word), 0x8086);
    assert_eq!(dom0.r#in(0xcfe, Width::Word), 0x100e);
    assert_eq!(dom0.r#in(0xcff, Width::Byte), 0x10);
    assert_eq!(dom0.r#in(0xcfd, Width::Word), 0x0e80, "unaligned");
    assert_eq!(dom0.r#in(0xcfe, Width::Long), 0xffff_100e, "beyond the data port there is nothing");
}

#[test]
fn the_address_is_taken_only_as_a_long_and_data_only_while_enabled() {
    let mut dom0 = Dom0::with(nic());
    dom0.out(0xcf8, Width::Long, 0x8000_1803);
    assert_eq!(dom0.r#in(0xcf8, Width::Long), 0x8000_1800, "registers are longs");
    dom0.out(0xcf8, Width::Byte, 0xff);
    dom0.out(0xcfb, Width::Byte, 0);
    assert_eq!(dom0.r#in(0xcf8, Width::Long), 0x8000_1800);
    assert_eq!(dom0.r#in(0xcf9, Width::Byte), 0xff);
    dom0.out(0xcf8, Width::Long, 0x0000_1800);
    assert_eq!(dom0.r#in(0xcfc, Width::Long), u32::MAX);
    dom0.out(0xcfc, Width::Long, 0);
    assert!(dom0.bus.writes.borrow().is_empty());
}

#[test]
fn a_write_that_crosses_the_data_port_writes_what_is_in_it() {
    let mut dom0 = Dom0::with(nic());
    dom0.out(0xcf8, Width::Long, 0x8000_183c);
    dom0.out(0xcfc, Width::Byte, 0);
    dom0.out(0xcff, Width::Word, 0x1234);
    assert_eq!(dom0.bus.writes.borrow().as_slice(), [(NIC, 0x3c, 0), (NIC, 0x3f, 0x34)]);
}

#[test]
fn amd_reaches_extended_registers_through_the_ports() {
    let mut function = nic();
    function.set(0x104, &[0x78, 0x56, 0x34, 0x12]);
    let mut dom0 = Dom0::with(function);
    dom0.out(0xcf8, Width::Long, 0x8100_1804);
    assert_eq!(dom0.r#in(0xcfc, Width::Long), dom0.long(4), "not on Intel");
    dom0.vpci.extended_ports = true;
    dom0.out(0xcf8, Width::Long, 0x8100_1804);
    assert_eq!(dom0.r#in(0xcfc, Width::Long), 0x1234_5678);
}

fn window() -> Ecam {
    Ecam { base: GuestPhys(0xe000_0000), segment: 0, first_bus: 0, last_bus: 0x3f }
}

#[test]
fn a_register_is_read_through_the_window() {
    let mut function = nic();
    function.set(0x100, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut dom0 = Dom0::with(function);
    assert_eq!(dom0.memory(0xe001_8000, Width::Long), None, "no window yet");
    dom0.vpci.add_ecam(window()).unwrap();
    assert_eq!(dom0.memory(0xe001_8000, Width::Long), Some(0x100e_8086));
    assert_eq!(dom0.memory(0xe001_8102, Width::Byte), Some(3));
    assert_eq!(dom0.memory(0xe001_8100, Width::Quad), Some(0x0807_0605_0403_0201));
    assert_eq!(dom0.memory(0xe001_8101, Width::Long), Some(0x0504_0302), "unaligned");
    assert_eq!(dom0.memory(0xe002_0000, Width::Word), Some(0xffff), "an empty slot");
    assert!(dom0.vpci.owns(GuestPhys(0xe3ff_ffff)) && !dom0.vpci.owns(GuestPhys(0xe400_0000)));
}

#[test]
fn a_write_through_the_window_has_the_same_effects() {
    let mut dom0 = Dom0::with(nic());
    dom0.vpci.add_ecam(window()).unwrap();
    assert_eq!(dom0.set_memory(0xe001_8004, Width::Word, 0), [unmap(0xfebc0, 0x20)]);
    assert_eq!(dom0.set_memory(0xe001_8004, Width::Word, 2), [map(0xfebc0, 0x20)]);
}

#[test]
fn a_window_that_begins_at_a_later_bus_counts_from_bus_zero() {
    let there = Sbdf::new(0, 0x20, 0, 0);
    let bus = FakeBus::default().with(there, nic());
    let mut dom0 = Dom0::on(bus);
    dom0.vpci.add_ecam(Ecam { first_bus: 0x20, ..window() }).unwrap();
    assert_eq!(dom0.memory(0xe200_0000, Width::Long), Some(0x100e_8086));
    assert_eq!(dom0.memory(0xe000_0000, Width::Long), None);
}

#[test]
fn windows_may_be_told_twice_and_do_not_overlap() {
    let mut vpci = Vpci::new(false);
    assert_eq!(vpci.add_ecam(window()), Ok(()));
    assert_eq!(vpci.add_ecam(window()), Ok(()));
    assert_eq!(vpci.ecam().len(), 1);
    assert_eq!(vpci.add_ecam(Ecam { base: GuestPhys(0xe100_0000), ..window() }), Err(Errno::EINVAL));
    assert_eq!(vpci.add_ecam(Ecam { base: GuestPhys(u64::MAX - 0xfff), ..window() }), Err(Errno::EINVAL));
}

// ---- What is passed through ----

#[test]
fn a_register_without_meaning_for_corten_goes_to_the_device() {
    let mut dom0 = Dom0::with(nic());
    assert_eq!(dom0.write(0x3c, Width::Byte, 11), []);
    assert_eq!(dom0.read(0x3c, Width::Byte), 11);
}

#[test]
fn reading_a_register_reads_the_device_once() {
    let dom0 = Dom0::with(nic().msi(0x50, 0));
    for register in [0, 4, 0x10, 0x50, 0x54, 0x58, 0x5c, 0x60] {
        let before = dom0.bus.reads.get();
        dom0.long(register);
        assert_eq!(dom0.bus.reads.get() - before, 1, "{register:#x}");
    }
}

#[test]
fn the_status_register_is_the_devices() {
    let mut dom0 = Dom0::with(nic());
    assert_eq!(dom0.set_word(STATUS, 0xf900), []);
    assert_eq!(dom0.bus.writes.borrow().as_slice(), [(NIC, STATUS, 0xf900)]);
}

#[test]
fn an_empty_slot_reads_as_all_ones() {
    let dom0 = Dom0::with(nic());
    assert_eq!(dom0.vpci.config_read(&dom0.bus, Sbdf::new(0, 0, 9, 0), 0, Width::Long), u32::MAX);
}

// ---- Memory decoding and BARs ----

#[test]
fn what_decodes_at_boot_is_mapped() {
    let dom0 = Dom0::with(nic().bar_64(2, 0x10_0000_0000, 0x1_0000_0000));
    assert_eq!(dom0.effects.as_slice(), [map(0xfebc0, 0x20), map(0x100_0000, 0x10_0000)]);
    let dom0 = Dom0::with(nic().command(0));
    assert_eq!(dom0.effects.as_slice(), []);
}

#[test]
fn linux_sizes_a_bar_and_finds_everything_as_it_was() {
    let mut dom0 = Dom0::with(nic().command(3).io_bar(1, 0xc000, 64));
    let command = dom0.word(COMMAND);
    assert_eq!(dom0.set_word(COMMAND, command & !3), [unmap(0xfebc0, 0x20)]);
    for (register, mask) in [(BAR0, 0xfffe_0000), (BAR1, 0xffff_ffc1)] {
        let before = dom0.long(register);
        assert_eq!(dom0.set_long(register, u32::MAX), []);
        assert_eq!(dom0.long(register), mask);
        assert_eq!(dom0.set_long(register, before), []);
        assert_eq!(dom0.long(register), before);
    }
    assert_eq!(dom0.set_word(COMMAND, command), [map(0xfebc0, 0x20)]);
}

#[test]
fn a_bar_that_moves_is_mapped_where_it_went() {
    let mut dom0 = Dom0::with(FakeFunction::new(1, 2).command(2).bar_64(0, 0xfe00_0000, 0x4000));
    assert_eq!(dom0.set_word(COMMAND, 0), [unmap(0xfe000, 4)]);
    dom0.set_long(BAR0, 0x4000_0000);
    dom0.set_long(BAR1, 0x7);
    assert_eq!(dom0.set_word(COMMAND, 2), [map(0x74_0000, 4)]);
}

#[test]
fn a_bar_does_not_move_while_it_decodes() {
    let mut dom0 = Dom0::with(nic());
    assert_eq!(dom0.set_long(BAR0, 0xc000_0000), []);
    assert_eq!(dom0.long(BAR0), 0xfebc_0000);
}

#[test]
fn the_command_register_can_be_written_by_bytes() {
    let mut dom0 = Dom0::with(nic());
    assert_eq!(dom0.write(COMMAND, Width::Byte, 0), [unmap(0xfebc0, 0x20)]);
    assert_eq!(dom0.write(COMMAND + 1, Width::Byte, 4), [], "INTx off, nothing else");
    assert_eq!(dom0.write(COMMAND, Width::Byte, 6), [map(0xfebc0, 0x20)]);
    assert_eq!(dom0.word(COMMAND), 0x0406);
}

#[test]
fn decoding_goes_off_before_the_mapping_does() {
    let mut dom0 = Dom0::with(nic());
    dom0.set_word(COMMAND, 0);
    assert_eq!(dom0.bus.word(NIC, COMMAND), 0, "the device has it when the effect is returned");
}

#[test]
fn turning_on_what_is_on_maps_nothing() {
    let mut dom0 = Dom0::with(nic());
    assert_eq!(dom0.set_word(COMMAND, 6), []);
}

#[test]
fn a_bar_is_not_turned_on_over_ram() {
    let bus = FakeBus::default().with_ram(0..0x4000_0000).with(NIC, nic().command(0).bar(0, 0x1000_0000, 0x1000));
    let mut dom0 = Dom0::on(bus);
    assert_eq!(dom0.set_word(COMMAND, 7), []);
    assert_eq!(dom0.word(COMMAND), 5, "all but memory");
    dom0.set_long(BAR0, 0xf000_0000);
    assert_eq!(dom0.set_word(COMMAND, 7), [map(0xf0000, 1)]);
}

#[test]
fn a_bar_without_an_address_is_not_mapped() {
    let mut dom0 = Dom0::with(nic().command(0).bar(1, 0, 0x1000));
    assert_eq!(dom0.set_word(COMMAND, 2), [map(0xfebc0, 0x20)]);
}

#[test]
fn the_rom_is_mapped_while_both_switches_are_on() {
    let mut dom0 = Dom0::with(nic().rom(0xfeb0_0000, 0x1_0000));
    assert_eq!(dom0.set_long(ROM, 0xfea0_0001), [map(0xfea00, 0x10)], "it may move while it is off");
    assert_eq!(dom0.set_long(ROM, 0xfe90_0001), [], "and not while it is on");
    assert_eq!(dom0.long(ROM), 0xfea0_0001);
    assert_eq!(dom0.set_word(COMMAND, 0), [unmap(0xfea00, 0x10), unmap(0xfebc0, 0x20)]);
    assert_eq!(dom0.set_long(ROM, 0xfe90_0001), []);
    assert_eq!(dom0.set_word(COMMAND, 2), [map(0xfebc0, 0x20), map(0xfe900, 0x10)]);
    assert_eq!(dom0.set_long(ROM, 0xfe90_0000), [unmap(0xfe900, 0x10)]);
}

#[test]
fn a_rom_is_not_turned_on_over_ram() {
    let bus = FakeBus::default().with_ram(0..0x4000_0000).with(NIC, nic().rom(0, 0x1_0000));
    let mut dom0 = Dom0::on(bus);
    assert_eq!(dom0.set_long(ROM, 0x1000_0001), []);
    assert_eq!(dom0.long(ROM), 0);
}

#[test]
fn a_frame_that_two_bars_share_stays_until_both_are_gone() {
    let other = Sbdf::new(0, 0, 4, 0);
    let small = |start| FakeFunction::new(1, 2).command(2).bar(0, start, 0x100);
    let bus = FakeBus::default().with(NIC, small(0xfeb0_0000)).with(other, small(0xfeb0_0100));
    let mut dom0 = Dom0::on(bus);
    assert_eq!(dom0.effects.as_slice(), [map(0xfeb00, 1)], "once");
    assert_eq!(dom0.set_word(COMMAND, 0), []);
    dom0.effects.clear();
    dom0.vpci.config_write(&dom0.bus, other, COMMAND, Width::Word, 0, &mut dom0.effects);
    assert_eq!(dom0.effects.as_slice(), [unmap(0xfeb00, 1)]);
}

#[test]
fn a_reset_that_nobody_told_of_is_noticed() {
    let mut dom0 = Dom0::with(nic());
    dom0.bus.change(NIC, |function| {
        function.set(0x04, &[0, 0]);
        function.set(0x10, &[0, 0, 0, 0]);
    });
    // Linux restores the BARs and then the command register.
    assert_eq!(dom0.set_long(BAR0, 0xfebc_0000), [unmap(0xfebc0, 0x20)]);
    assert_eq!(dom0.long(BAR0), 0xfebc_0000);
    assert_eq!(dom0.set_word(COMMAND, 2), [map(0xfebc0, 0x20)]);
}

#[test]
fn a_bar_that_was_resized_is_mapped_whole() {
    let mut function = FakeFunction::new(1, 2).command(0).bar_64(0, 0x8000_0000, 0x1000_0000).capability(0x40, &[0x10]);
    function.set(0x100, &0x0001_0015u32.to_le_bytes());
    let mut dom0 = Dom0::with(function);
    dom0.bus.change(NIC, |function| function.allow(0x10, &(!0x1fff_ffffu32).to_le_bytes()));
    assert_eq!(dom0.set_word(COMMAND, 2), [map(0x80000, 0x2_0000)]);
}

// ---- Functions that come, go and hide ----

#[test]
fn a_faulty_function_is_hidden() {
    let mut function = nic().capability(0x50, &[0x01]);
    function.config[0x51] = 0x50;
    let mut dom0 = Dom0::with(function);
    assert_eq!(dom0.effects.as_slice(), [], "nothing of it is mapped");
    assert_eq!(dom0.long(0), u32::MAX);
    assert_eq!(dom0.read(2, Width::Byte), 0xff);
    assert_eq!(dom0.set_word(COMMAND, 7), []);
    assert!(dom0.bus.writes.borrow().is_empty());
    assert!(matches!(dom0.vpci.functions().next().unwrap().fault, Some(Fault::Capabilities { offset: 0x50 })));
}

#[test]
fn a_function_over_ram_is_hidden() {
    let dom0 = Dom0::on(FakeBus::default().with_ram(0..0x1_0000_0000).with(NIC, nic()));
    assert_eq!(dom0.long(0), u32::MAX);
    assert!(dom0.vpci.function(NIC).is_none());
}

#[test]
fn what_corten_keeps_for_itself_disappears() {
    let mut dom0 = Dom0::with(nic());
    dom0.effects.clear();
    dom0.vpci.hide(NIC, &mut dom0.effects);
    assert_eq!(dom0.effects.as_slice(), [unmap(0xfebc0, 0x20)]);
    assert_eq!(dom0.long(0), u32::MAX);
    let mut effects = Effects::new();
    assert_eq!(dom0.vpci.remove(NIC, &mut effects), Ok(()));
    assert_eq!(dom0.vpci.add(&dom0.bus, NIC, &mut effects), Ok(()));
    assert_eq!(dom0.long(0), u32::MAX, "and does not come back");
}

#[test]
fn a_function_that_is_plugged_in_is_mapped_when_dom0_tells_of_it() {
    let mut dom0 = Dom0::on(FakeBus::default());
    let mut effects = Effects::new();
    assert_eq!(dom0.vpci.add(&dom0.bus, NIC, &mut effects), Err(Errno::ENODEV));
    dom0.bus.plug(NIC, nic());
    assert_eq!(dom0.long(0), 0x100e_8086, "Dom0 finds it by itself");
    assert_eq!(dom0.vpci.add(&dom0.bus, NIC, &mut effects), Ok(()));
    assert_eq!(effects.as_slice(), [map(0xfebc0, 0x20)]);
    effects.clear();
    assert_eq!(dom0.vpci.add(&dom0.bus, NIC, &mut effects), Ok(()));
    assert_eq!(effects.as_slice(), [], "once");
}

#[test]
fn a_function_that_is_removed_leaves_nothing_behind() {
    let mut dom0 = Dom0::with(nic().msi(0x50, 0));
    dom0.set_word(0x52, 1);
    let mut effects = Effects::new();
    assert_eq!(dom0.vpci.remove(NIC, &mut effects), Ok(()));
    assert_eq!(effects.as_slice(), [unmap(0xfebc0, 0x20), Effect::MsiUnbind { sbdf: NIC }]);
    assert_eq!(dom0.vpci.remove(NIC, &mut effects), Err(Errno::ENODEV));
}

// ---- MSI ----

const GUEST: Message = Message { address: 0xfee0_2000, data: 0x4051 };
const CORTEN: Message = Message { address: 0xfee0_0000, data: 0x0031 };

/// As Linux does it: message, then enable.
fn enable_msi(dom0: &mut Dom0) -> Vec<Effect> {
    assert_eq!(dom0.set_long(0x54, GUEST.address as u32), []);
    assert_eq!(dom0.set_long(0x58, 0), []);
    assert_eq!(dom0.set_word(0x5c, GUEST.data as u16), []);
    let control = dom0.word(0x52);
    dom0.set_word(0x52, control & !0x70 | 1).to_vec()
}

#[test]
fn msi_is_bound_when_it_goes_on_and_the_device_gets_cortens_message() {
    let mut dom0 = Dom0::with(nic().msi(0x50, 2));
    assert_eq!(enable_msi(&mut dom0), [Effect::MsiBind { sbdf: NIC, message: GUEST, log2_vectors: 0 }]);
    assert_eq!(dom0.bus.word(NIC, 0x52) & 1, 0, "the device waits for its message");
    let msi = dom0.vpci.function(NIC).unwrap().msi.unwrap();
    program_msi(&dom0.bus, NIC, &msi, CORTEN, 0);
    assert_eq!((dom0.bus.long(NIC, 0x54), dom0.bus.word(NIC, 0x5c)), (0xfee0_0000, 0x31));
    assert_eq!(dom0.bus.word(NIC, 0x52) & 0x71, 1);
    assert_eq!((dom0.long(0x54), dom0.word(0x5c)), (0xfee0_2000, 0x4051), "Dom0 sees its own");
    assert_eq!(dom0.word(0x52), 0x0185, "on, 64 bits, maskable, four vectors");
}

#[test]
fn a_message_that_changes_while_msi_is_on_is_routed_anew() {
    let mut dom0 = Dom0::with(nic().msi(0x50, 0));
    enable_msi(&mut dom0);
    let message = Message { address: 0xfee0_4000, ..GUEST };
    assert_eq!(dom0.set_long(0x54, 0xfee0_4000), [Effect::MsiRoute { sbdf: NIC, message }]);
    let message = Message { data: 0x61, ..message };
    assert_eq!(dom0.set_word(0x5c, 0x61), [Effect::MsiRoute { sbdf: NIC, message }]);
    assert_eq!(dom0.bus.long(NIC, 0x54), 0, "and nothing reaches the device");
}

#[test]
fn msi_goes_off_in_the_device_at_once() {
    let mut dom0 = Dom0::with(nic().msi(0x50, 0));
    enable_msi(&mut dom0);
    let msi = dom0.vpci.function(NIC).unwrap().msi.unwrap();
    program_msi(&dom0.bus, NIC, &msi, CORTEN, 0);
    assert_eq!(dom0.set_word(0x52, 0x0180), [Effect::MsiUnbind { sbdf: NIC }]);
    assert_eq!(dom0.bus.word(NIC, 0x52) & 1, 0);
    assert_eq!(dom0.set_word(0x52, 0x0180), [], "once");
}

#[test]
fn the_vectors_in_use_are_what_the_guest_asks_and_the_device_has() {
    let mut dom0 = Dom0::with(nic().msi(0x50, 2));
    assert_eq!(
        dom0.set_word(0x52, 0x21),
        [Effect::MsiBind { sbdf: NIC, message: Message::default(), log2_vectors: 2 }]
    );
    assert_eq!(dom0.word(0x52) >> 4 & 7, 2);
    let msi = dom0.vpci.function(NIC).unwrap().msi.unwrap();
    program_msi(&dom0.bus, NIC, &msi, CORTEN, 2);
    assert_eq!(dom0.set_word(0x52, 0x71), [], "seven is reserved, and means no more than the device has");
    let Some(Effect::MsiBind { log2_vectors, .. }) = dom0.set_word(0x52, 0x11).first().copied() else {
        panic!("fewer vectors are bound anew")
    };
    assert_eq!(log2_vectors, 1);
}

#[test]
fn the_mask_is_the_devices() {
    let mut dom0 = Dom0::with(nic().msi(0x50, 0));
    assert_eq!(dom0.set_long(0x60, 1), []);
    assert_eq!(dom0.bus.long(NIC, 0x60), 1);
    assert_eq!(dom0.long(0x60), 1);
}

#[test]
fn the_register_beside_32_bit_data_is_not_touched() {
    // A 32-bit capability without masking: its data is followed at once by something else.
    let mut function = nic().capability(0x50, &[0x05, 0, 0, 0]);
    function.set(0x5a, &[0xcd, 0xab]);
    function.allow(0x5a, &[0xff, 0xff]);
    let mut dom0 = Dom0::with(function);
    dom0.set_long(0x58, 0x1234_0041);
    assert_eq!(dom0.bus.long(NIC, 0x58), 0x1234_0000);
    assert_eq!(dom0.long(0x58), 0x1234_0041);
    dom0.set_word(0x5a, 0x5678);
    assert_eq!(dom0.long(0x58), 0x5678_0041);
    dom0.write(0x59, Width::Byte, 0xff);
    assert_eq!(dom0.long(0x58), 0x5678_ff41);
}

#[test]
fn msi_that_firmware_left_on_goes_off() {
    let mut function = nic().msi(0x50, 0);
    function.config[0x52] |= 1;
    let dom0 = Dom0::with(function);
    assert_eq!(dom0.bus.word(NIC, 0x52) & 1, 0);
    assert_eq!(dom0.word(0x52) & 1, 0);
}

#[test]
fn msi_is_bound_again_after_a_reset() {
    let mut dom0 = Dom0::with(nic().msi(0x50, 0));
    enable_msi(&mut dom0);
    let msi = dom0.vpci.function(NIC).unwrap().msi.unwrap();
    program_msi(&dom0.bus, NIC, &msi, CORTEN, 0);
    assert_eq!(dom0.set_word(0x52, 0x181), [], "on already");
    dom0.bus.change(NIC, |function| function.config[0x52] &= !1);
    assert!(matches!(dom0.set_word(0x52, 0x181), [Effect::MsiBind { .. }]));
    assert_eq!(dom0.vpci.reset(&dom0.bus, NIC, &mut dom0.effects), Ok(()));
    assert!(dom0.effects.contains(&Effect::MsiUnbind { sbdf: NIC }));
    assert_eq!(dom0.word(0x52) & 1, 0);
}

// ---- MSI-X ----

const TABLE: u64 = 0xfeb0_2000;
const PENDING: u64 = 0xfeb0_3000;

/// Five entries at 0x2000 of an 0x8000-byte BAR, pending bits at 0x3000.
fn msix_nic() -> FakeFunction {
    FakeFunction::new(0x8086, 0x10d3).command(2).bar(0, 0xfeb0_0000, 0x8000).msix(0x70, 5, (0, 0x2000), (0, 0x3000))
}

fn entry(entry: u16, message: Message, masked: bool) -> Effect {
    Effect::MsixEntry { sbdf: NIC, entry, message, masked }
}

#[test]
fn the_frames_of_the_table_are_not_mapped() {
    let mut dom0 = Dom0::with(msix_nic());
    let holes = [unmap(0xfeb02, 1), unmap(0xfeb03, 1)];
    assert_eq!(dom0.effects.as_slice(), [holes, [map(0xfeb00, 2), map(0xfeb04, 4)]].concat());
    assert_eq!(dom0.set_word(COMMAND, 0), [unmap(0xfeb00, 2), unmap(0xfeb04, 4)]);
    assert!(!dom0.vpci.owns(GuestPhys(TABLE)), "nothing is there while decoding is off");
}

#[test]
fn a_table_and_pending_bits_in_one_frame_leave_one_hole() {
    let function =
        FakeFunction::new(1, 2).command(2).bar(0, 0xfeb0_0000, 0x4000).msix(0x70, 4, (0, 0x1000), (0, 0x1800));
    assert_eq!(Dom0::with(function).effects.as_slice(), [unmap(0xfeb01, 1), map(0xfeb00, 1), map(0xfeb02, 2)]);
}

#[test]
fn a_bar_that_is_all_table_is_not_mapped() {
    let function = FakeFunction::new(1, 2).command(2).bar(0, 0xfeb0_0000, 0x1000).msix(0x70, 4, (0, 0), (0, 0x800));
    assert_eq!(Dom0::with(function).effects.as_slice(), [unmap(0xfeb00, 1)]);
}

/// As Linux does it: on with everything masked, all entries masked, messages written, entries unmasked, then the mask off.
#[test]
fn entries_are_bound_as_linux_unmasks_them() {
    let mut dom0 = Dom0::with(msix_nic());
    assert_eq!(dom0.set_word(0x72, 0xc004), [Effect::MsixSync { sbdf: NIC }]);
    assert!(dom0.vpci.msix_entries(NIC).all(|(_, _, masked)| masked));
    for index in 0..5 {
        assert_eq!(
            dom0.set_memory(TABLE + index * 16 + 12, Width::Long, 1),
            [entry(index as u16, Message::default(), true)]
        );
    }
    let at = TABLE + 2 * 16;
    assert_eq!(dom0.set_memory(at, Width::Long, GUEST.address), []);
    assert_eq!(dom0.set_memory(at + 4, Width::Long, 0), []);
    assert_eq!(dom0.set_memory(at + 8, Width::Long, GUEST.data.into()), [], "a masked entry waits");
    assert_eq!(dom0.set_memory(at + 12, Width::Long, 0), [entry(2, GUEST, false)]);
    assert_eq!(dom0.set_word(0x72, 0x8004), []);
    assert_eq!(dom0.bus.word(NIC, 0x72), 0x8004, "the control register is the device's");

    let table = dom0.vpci.msix_table(NIC).unwrap();
    program_msix_entry(&dom0.bus, table, 2, CORTEN, false);
    let memory = dom0.bus.memory.borrow();
    let device: Vec<u32> = (0..4).map(|long| memory[&(at + long * 4)]).collect();
    assert_eq!(device, [0xfee0_0000, 0, 0x31, 0]);
    drop(memory);
    assert_eq!(dom0.memory(at, Width::Quad), Some(0xfee0_2000), "Dom0 sees its own");
    assert_eq!(dom0.memory(at + 8, Width::Quad), Some(0x4051));
}

#[test]
fn an_unmasked_entry_that_changes_is_routed_anew() {
    let mut dom0 = Dom0::with(msix_nic());
    dom0.set_word(0x72, 0x8000);
    dom0.set_memory(TABLE + 12, Width::Long, 0);
    let message = Message { address: 0xfee0_1000, data: 0 };
    assert_eq!(dom0.set_memory(TABLE, Width::Long, 0xfee0_1000), [entry(0, message, false)]);
    let message = Message { data: 0x51, ..message };
    assert_eq!(dom0.set_memory(TABLE + 8, Width::Quad, 0x51), [entry(0, message, false)]);
    assert_eq!(dom0.set_memory(TABLE + 8, Width::Quad, 1 << 32 | 0x51), [entry(0, message, true)]);
}

#[test]
fn entries_written_before_msix_goes_on_are_bound_when_it_does() {
    let mut dom0 = Dom0::with(msix_nic());
    assert_eq!(dom0.set_memory(TABLE + 16, Width::Quad, GUEST.address), []);
    assert_eq!(dom0.set_memory(TABLE + 24, Width::Quad, GUEST.data.into()), []);
    assert_eq!(dom0.set_word(0x72, 0x8000), [Effect::MsixSync { sbdf: NIC }]);
    let unmasked: Vec<_> = dom0.vpci.msix_entries(NIC).filter(|&(_, _, masked)| !masked).collect();
    assert_eq!(unmasked, [(1, GUEST, false)]);
}

#[test]
fn msix_that_goes_off_is_unbound_once() {
    let mut dom0 = Dom0::with(msix_nic());
    dom0.set_word(0x72, 0x8000);
    assert_eq!(dom0.set_word(0x72, 0), [Effect::MsixUnbind { sbdf: NIC }]);
    assert_eq!(dom0.set_word(0x72, 0), []);
}

#[test]
fn msix_is_synchronised_again_after_a_reset() {
    let mut dom0 = Dom0::with(msix_nic());
    dom0.set_word(0x72, 0x8000);
    dom0.bus.change(NIC, |function| function.config[0x73] = 0);
    assert_eq!(dom0.set_word(0x72, 0x8000), [Effect::MsixSync { sbdf: NIC }]);
}

#[test]
fn what_else_is_in_the_tables_frames_is_the_devices() {
    let mut dom0 = Dom0::with(msix_nic());
    assert_eq!(dom0.set_memory(TABLE + 5 * 16, Width::Long, 0xabcd), []);
    assert_eq!(dom0.bus.memory.borrow()[&(TABLE + 80)], 0xabcd);
    dom0.bus.memory.borrow_mut().insert(PENDING, 0b100);
    assert_eq!(dom0.memory(PENDING, Width::Quad), Some(0b100), "the pending bits are the device's");
    assert_eq!(dom0.memory(TABLE + 81, Width::Byte), Some(0xab));
    assert_eq!(dom0.memory(0xfeb0_1000, Width::Long), None, "mapped");
}

#[test]
fn bytes_written_into_the_table_are_dropped() {
    let mut dom0 = Dom0::with(msix_nic());
    dom0.set_word(0x72, 0x8000);
    assert_eq!(dom0.set_memory(TABLE + 12, Width::Byte, 0), []);
    assert_eq!(dom0.memory(TABLE + 12, Width::Byte), Some(1));
    assert!(dom0.bus.memory.borrow().is_empty());
}

#[test]
fn an_access_over_the_end_of_the_table_stays_in_its_frame() {
    let mut dom0 = Dom0::with(msix_nic());
    assert_eq!(dom0.memory(TABLE + 4 * 16 + 14, Width::Long), Some(0));
    assert_eq!(dom0.memory(PENDING + 0xffe, Width::Long), Some(0xffff_0000), "the next frame is mapped");
    dom0.vpci.hide(NIC, &mut dom0.effects);
    assert_eq!(dom0.memory(TABLE, Width::Long), None);
}

// ---- Whatever Dom0 does ----

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn width() -> impl Strategy<Value = Width> {
        prop_oneof![Just(Width::Byte), Just(Width::Word), Just(Width::Long)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What is mapped is exactly what the device decodes, after any writes at all.
        #[test]
        fn what_is_mapped_is_what_is_decoded(writes in prop::collection::vec((0u16..0x80, width(), any::<u32>()), 1..200)) {
            let bus = FakeBus::default().with_ram(0..0x4000_0000).with(NIC, msix_nic().msi(0x50, 2).rom(0, 0x1000));
            let mut dom0 = Dom0::on(bus);
            let mut mapped = std::collections::BTreeSet::new();
            let mut follow = |effects: &[Effect]| {
                for effect in effects {
                    match *effect {
                        Effect::Map { gfn, frames, .. } => (gfn.0..gfn.0 + frames).for_each(|f| assert!(mapped.insert(f))),
                        Effect::Unmap { gfn, frames } => (gfn.0..gfn.0 + frames).for_each(|f| _ = mapped.remove(&f)),
                        _ => {}
                    }
                }
                mapped.clone()
            };
            follow(&dom0.effects);
            for (register, width, value) in writes {
                let now = follow(dom0.write(register, width, value));
                let function = dom0.vpci.function(NIC).unwrap();
                let mut decoded = std::collections::BTreeSet::new();
                if function.decodes_memory(&dom0.bus) {
                    for (_, place) in function.places(&dom0.bus) {
                        let (first, end) = place.frames();
                        decoded.extend((first.0..end.0).filter(|&f| !dom0.vpci.owns(GuestPhys(f << 12))));
                    }
                }
                prop_assert_eq!(now, decoded);
            }
        }

        /// Dom0's messages never reach the device.
        #[test]
        fn the_device_never_sees_a_message_of_dom0(writes in prop::collection::vec((0x50u16..0x64, width(), any::<u32>()), 1..100)) {
            let mut dom0 = Dom0::with(nic().msi(0x50, 2));
            for (register, width, value) in writes {
                dom0.write(register, width, value);
                prop_assert_eq!(dom0.bus.long(NIC, 0x54), 0);
                prop_assert_eq!(dom0.bus.long(NIC, 0x58), 0);
                prop_assert_eq!(dom0.bus.word(NIC, 0x5c), 0);
                prop_assert_eq!(dom0.bus.word(NIC, 0x52) & 1, 0);
            }
        }

        /// Ports and windows take any access.
        #[test]
        fn no_access_is_too_strange(
            accesses in prop::collection::vec((0xcf8u16..0xd00, width(), any::<u32>(), 0u64..0x400_0000, any::<u64>()), 1..100)
        ) {
            let mut dom0 = Dom0::with(msix_nic());
            dom0.vpci.add_ecam(window()).unwrap();
            for (port, width, value, offset, quad) in accesses {
                dom0.out(port, width, value);
                dom0.r#in(port, width);
                dom0.memory(0xe000_0000 + offset, Width::Quad);
                dom0.set_memory(0xe000_0000 + offset, width, quad);
            }
        }
    }
}
