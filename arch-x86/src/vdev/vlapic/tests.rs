//! A guest driving its APIC. Most steps only set the scene, so their effects are not looked at.
#![allow(unused_must_use)]

use super::*;
use proptest::prelude::*;

const X2APIC_BASE: u64 = 0xfee0_0c00;
const SVR: u16 = 0xf0;
const TPR: u16 = 0x80;
const EOI: u16 = 0xb0;
const ESR: u16 = 0x280;
const ICR: u16 = 0x300;
const ICR_UPPER: u16 = 0x310;
const LVT_TIMER: u16 = 0x320;
const LVT_ERROR: u16 = 0x370;
const INITIAL_COUNT: u16 = 0x380;
const CURRENT_COUNT: u16 = 0x390;
const DIVIDE: u16 = 0x3e0;

/// A vCPU's APIC with the time that its machine would tell.
struct Apic {
    vlapic: Vlapic,
    inbox: LapicInbox,
    now: Nanos,
}

impl Apic {
    fn new(id: u32) -> Apic {
        let (vlapic, inbox) = Vlapic::new(id, true);
        let mut apic = Apic { vlapic, inbox, now: Nanos(0) };
        assert_eq!(apic.write(SVR, 0x1ff), Effect::Nothing);
        apic
    }

    fn x2apic(id: u32) -> Apic {
        let mut apic = Apic::new(id);
        apic.vlapic.set_apic_base(X2APIC_BASE, &apic.inbox).unwrap();
        apic
    }

    fn write(&mut self, offset: u16, value: u32) -> Effect {
        let now = self.now;
        self.vlapic.write_mmio(offset, 4, value.into(), || now, &self.inbox)
    }

    fn read(&mut self, offset: u16) -> u32 {
        let now = self.now;
        self.vlapic.read_mmio(offset, 4, || now, &self.inbox) as u32
    }

    fn wrmsr(&mut self, register: u32, value: u64) -> Result<Effect, GeneralProtection> {
        let now = self.now;
        self.vlapic.write_x2apic(X2APIC_MSRS + register, value, || now, &self.inbox)
    }

    fn rdmsr(&self, register: u32) -> Result<u64, GeneralProtection> {
        self.vlapic.read_x2apic(X2APIC_MSRS + register, || self.now, &self.inbox)
    }

    /// What the run loop does before an entry with interrupts enabled.
    fn deliver(&mut self) -> Option<u8> {
        let vector = self.vlapic.deliverable(&self.inbox)?;
        self.vlapic.acknowledge(&self.inbox, vector);
        Some(vector)
    }

    fn eoi(&mut self) -> Effect {
        self.vlapic.eoi(&self.inbox)
    }

    fn post(&self, vector: u8) {
        let _ = self.inbox.post(vector, false);
    }
}

#[test]
fn interrupts_nest_by_priority_class_only() {
    let mut apic = Apic::new(0);
    apic.post(0x41);
    assert_eq!(apic.deliver(), Some(0x41));
    apic.post(0x4f);
    assert_eq!(apic.deliver(), None, "the same class waits");
    apic.post(0x52);
    assert_eq!(apic.deliver(), Some(0x52));
    assert_eq!(apic.read(0xa0), 0x50);
    assert_eq!(apic.eoi(), Effect::Nothing);
    assert_eq!(apic.deliver(), None, "0x41 is in service still");
    assert_eq!(apic.eoi(), Effect::Nothing);
    assert_eq!(apic.deliver(), Some(0x4f));
}

#[test]
fn the_task_priority_holds_back_its_class_and_those_below() {
    let mut apic = Apic::new(0);
    apic.post(0x61);
    apic.vlapic.set_cr8(6);
    assert_eq!(apic.read(TPR), 0x60);
    assert_eq!(apic.deliver(), None);
    assert_eq!(apic.vlapic.blocked_class(&apic.inbox), Some(6));
    apic.write(TPR, 0x5f);
    assert_eq!(apic.vlapic.cr8(), 5);
    assert_eq!(apic.vlapic.blocked_class(&apic.inbox), None);
    assert_eq!(apic.deliver(), Some(0x61));
}

#[test]
fn a_level_interrupt_is_broadcast_at_its_eoi_and_an_edge_one_is_not() {
    let mut apic = Apic::new(0);
    let _ = apic.inbox.post(0x71, true);
    apic.post(0x31);
    assert_eq!(apic.deliver(), Some(0x71));
    assert_eq!(apic.read(0x180 + (0x71 >> 5) * 0x10), 1 << (0x71 & 31), "the TMR says so");
    assert_eq!(apic.write(EOI, 0), Effect::EoiBroadcast(0x71));
    assert_eq!(apic.deliver(), Some(0x31));
    assert_eq!(apic.write(EOI, 0), Effect::Nothing);
    assert_eq!(apic.write(EOI, 0), Effect::Nothing, "an EOI with nothing in service");
}

#[test]
fn an_apic_off_by_software_holds_requests_until_it_is_on() {
    let mut apic = Apic::new(0);
    apic.post(0x55);
    assert_eq!(apic.write(SVR, 0xff), Effect::TimerChanged);
    assert_eq!(apic.deliver(), None);
    assert!(!apic.inbox.identity().is_software_enabled());
    assert_eq!(apic.write(SVR, 0x1ff), Effect::Nothing);
    assert!(apic.inbox.identity().is_software_enabled());
    assert_eq!(apic.deliver(), Some(0x55));
}

#[test]
fn switching_off_by_software_masks_the_local_vector_table_for_good() {
    let mut apic = Apic::new(0);
    apic.write(LVT_ERROR, 0xfe);
    assert_eq!(apic.read(LVT_ERROR), 0xfe);
    apic.write(SVR, 0xff);
    assert_eq!(apic.read(LVT_ERROR), 0x100fe);
    apic.write(LVT_ERROR, 0xfd);
    assert_eq!(apic.read(LVT_ERROR), 0x100fd);
    apic.write(SVR, 0x1ff);
    assert_eq!(apic.read(LVT_ERROR), 0x100fd);
}

#[test]
fn registers_start_as_the_manual_says() {
    let (vlapic, inbox) = Vlapic::new(4, false);
    let mut apic = Apic { vlapic, inbox, now: Nanos(0) };
    let values = [0x20, 0x30, 0x80, 0xa0, 0xd0, 0xe0, 0xf0, 0x280, 0x300, 0x320, 0x370, 0x380, 0x3e0]
        .map(|offset| apic.read(offset));
    assert_eq!(values, [0x0400_0000, 0x0005_0014, 0, 0, 0, 0xffff_ffff, 0xff, 0, 0, 0x10000, 0x10000, 0, 0]);
    assert_eq!(apic.vlapic.apic_base(), 0xfee0_0800);
    assert!(apic.inbox.waits_for_sipi());
    assert_eq!(Vlapic::new(0, true).0.apic_base(), 0xfee0_0900);
}

#[test]
fn an_xapic_ipi_goes_where_both_halves_of_the_icr_say() {
    let mut apic = Apic::new(0);
    assert_eq!(apic.write(ICR_UPPER, 0x0600_0000), Effect::Nothing);
    assert_eq!(
        apic.write(ICR, 0x000c_40fd),
        Effect::Ipi(Message { vector: 0xfd, delivery: Delivery::Fixed, level: false, target: Target::EveryoneElse })
    );
    let to = Target::Destination(Destination::physical(6, Numbering::Xapic));
    assert_eq!(
        apic.write(ICR, 0x40fd),
        Effect::Ipi(Message { vector: 0xfd, delivery: Delivery::Fixed, level: false, target: to })
    );
    assert_eq!(apic.read(ICR), 0x40fd);
    assert_eq!(apic.read(ICR_UPPER), 0x0600_0000);
}

#[test]
fn linux_starts_a_cpu_with_init_deassert_and_two_sipis() {
    let mut apic = Apic::new(0);
    let to = Target::Destination(Destination::physical(2, Numbering::Xapic));
    apic.write(ICR_UPPER, 2 << 24);
    let init = Message { vector: 0, delivery: Delivery::Init, level: false, target: to };
    assert_eq!(apic.write(ICR, 0xc500), Effect::Ipi(init));
    assert_eq!(apic.write(ICR, 0x8500), Effect::Nothing, "the deassertion");
    let sipi = Message { vector: 0x9a, delivery: Delivery::StartUp, level: false, target: to };
    assert_eq!(apic.write(ICR, 0x69a), Effect::Ipi(sipi));

    let (_, inbox) = Vlapic::new(2, false);
    let identities = [(0, apic.inbox.identity()), (1, inbox.identity())];
    assert_eq!(init.receivers(Some(0), identities.iter().copied(), 0).collect::<Vec<_>>(), [1]);
    let _ = inbox.accept(init.delivery, init.vector, false);
    assert_eq!(inbox.accept(sipi.delivery, sipi.vector, false), Posted::New);
    assert_eq!(inbox.take_startup(), Some(Startup { reset: true, start_page: Some(0x9a) }));
}

#[test]
fn an_ipi_to_oneself_needs_no_run_loop() {
    let mut apic = Apic::x2apic(6);
    for (register, value) in [(0x30, 0x0004_00ec), (0x30, 6 << 32 | 0x40ec), (0x3f, 0xec)] {
        assert_eq!(apic.wrmsr(register, value), Ok(Effect::Nothing));
        assert_eq!(apic.deliver(), Some(0xec), "{register:#x}");
        assert_eq!(apic.wrmsr(0xb, 0), Ok(Effect::Nothing));
    }
}

#[test]
fn an_x2apic_ipi_carries_32_bits_of_destination() {
    let mut apic = Apic::x2apic(0);
    let to = |destination| {
        Ok(Effect::Ipi(Message {
            vector: 0xfb,
            delivery: Delivery::Fixed,
            level: false,
            target: Target::Destination(destination),
        }))
    };
    assert_eq!(apic.wrmsr(0x30, 0x102 << 32 | 0xfb), to(Destination::physical(0x102, Numbering::X2apic)));
    assert_eq!(apic.wrmsr(0x30, 0x10003 << 32 | 0x8fb), to(Destination::logical(0x10003, Numbering::X2apic)));
    assert_eq!(apic.rdmsr(0x30), Ok(0x10003 << 32 | 0x8fb));
}

#[test]
fn an_illegal_vector_is_an_error_and_no_ipi() {
    let mut apic = Apic::new(0);
    apic.write(LVT_ERROR, 0xfe);
    assert_eq!(apic.write(ICR, 0xc000f), Effect::Nothing);
    assert_eq!(apic.read(ESR), 0, "not before the ESR is written");
    apic.write(ESR, 0);
    assert_eq!(apic.read(ESR), 1 << 5);
    assert_eq!(apic.deliver(), Some(0xfe));
    apic.eoi();
    apic.write(ESR, 0);
    assert_eq!(apic.read(ESR), 0);
}

#[test]
fn an_undefined_register_is_an_error_in_the_page_and_a_fault_as_an_msr() {
    let mut apic = Apic::new(0);
    assert_eq!(apic.read(0x40), 0);
    apic.write(ESR, 0);
    assert_eq!(apic.read(ESR), 1 << 7);
    assert_eq!(apic.write(0x3f0, 0x41), Effect::Nothing, "the self-IPI register is the x2APIC's");
    assert_eq!(apic.deliver(), None);
    let apic = Apic::x2apic(0);
    assert_eq!(apic.rdmsr(0x04), Err(GeneralProtection));
}

#[test]
fn the_page_answers_in_xapic_mode_and_the_msrs_in_x2apic_mode_only() {
    let mut apic = Apic::new(2);
    assert_eq!(apic.rdmsr(0x02), Err(GeneralProtection));
    assert_eq!(apic.wrmsr(0x30, 0xfb), Err(GeneralProtection));
    let mut apic2 = Apic::x2apic(2);
    assert_eq!(apic2.read(0x20), u32::MAX);
    assert_eq!(apic2.write(TPR, 0xff), Effect::Nothing);
    assert_eq!(apic2.vlapic.task_priority(), 0);
    assert_eq!(apic2.rdmsr(0x02), Ok(2));
    assert_eq!(apic.read(0x20), 2 << 24);
}

#[test]
fn reserved_bits_of_x2apic_registers_fault() {
    let mut apic = Apic::x2apic(0);
    for (register, value) in [
        (0x08, 0x100),
        (0x0b, 1),
        (0x0f, 1 << 10),
        (0x28, 1),
        (0x30, 1 << 12),
        (0x30, 1 << 13),
        (0x30, 1 << 16),
        (0x30, 1 << 20),
        (0x32, 1 << 19),
        (0x37, 1 << 8),
        (0x3e, 4),
        (0x3f, 0x100),
        (0x38, 1 << 32),
    ] {
        assert_eq!(apic.wrmsr(register, value), Err(GeneralProtection), "{register:#x} = {value:#x}");
    }
    for read_only in [0x02, 0x03, 0x0a, 0x0d, 0x10, 0x18, 0x20, 0x39] {
        assert_eq!(apic.wrmsr(read_only, 0), Err(GeneralProtection), "{read_only:#x}");
    }
    for write_only in [0x0b, 0x3f, 0x0e, 0x31, 0x09, 0x0c] {
        assert_eq!(apic.rdmsr(write_only), Err(GeneralProtection), "{write_only:#x}");
    }
}

#[test]
fn the_logical_id_of_x2apic_mode_follows_from_the_id() {
    let mut apic = Apic::new(0x26);
    apic.write(0xd0, 0x0400_0000);
    apic.vlapic.set_apic_base(X2APIC_BASE, &apic.inbox).unwrap();
    assert_eq!(apic.rdmsr(0x0d), Ok(0x0002_0040));
    assert_eq!(apic.inbox.identity().mode(), Mode::X2apic);
}

#[test]
fn logical_destination_and_format_are_published() {
    let mut apic = Apic::new(2);
    apic.write(0xd0, 0x4200_00ff);
    assert_eq!(apic.read(0xd0), 0x4200_0000);
    apic.write(0xe0, 0);
    assert_eq!(apic.read(0xe0), 0x0fff_ffff);
    let identity = apic.inbox.identity();
    assert_eq!((identity.logical_id(), identity.is_cluster()), (0x42, true));
}

#[test]
fn a_one_shot_timer_interrupts_once() {
    let mut apic = Apic::new(0);
    apic.write(DIVIDE, 0b1011);
    assert_eq!(apic.write(LVT_TIMER, 0xec), Effect::TimerChanged);
    apic.now = Nanos(500);
    assert_eq!(apic.write(INITIAL_COUNT, 1_000), Effect::TimerChanged);
    assert_eq!(apic.vlapic.deadline(), Some(Deadline::At(Nanos(10_500))));
    apic.now = Nanos(5_500);
    assert_eq!(apic.read(CURRENT_COUNT), 500);
    assert!(!apic.vlapic.expire_timer(Nanos(10_499), 0, &apic.inbox));
    assert!(apic.vlapic.expire_timer(Nanos(10_500), 0, &apic.inbox));
    assert_eq!(apic.vlapic.deadline(), None);
    assert_eq!(apic.deliver(), Some(0xec));
    apic.now = Nanos(20_000);
    assert_eq!((apic.read(CURRENT_COUNT), apic.read(INITIAL_COUNT)), (0, 1_000));
}

#[test]
fn a_masked_timer_counts_but_does_not_interrupt_not_even_later() {
    let mut apic = Apic::new(0);
    apic.write(DIVIDE, 0b1011);
    apic.write(LVT_TIMER, 0x100ec);
    apic.write(INITIAL_COUNT, 1_000);
    assert_eq!(apic.vlapic.deadline(), None, "no reason to wake up for it");
    apic.now = Nanos(4_000);
    assert_eq!(apic.read(CURRENT_COUNT), 600);
    apic.now = Nanos(40_000);
    apic.write(LVT_TIMER, 0xec);
    assert_eq!(apic.vlapic.deadline(), None);
    assert_eq!(apic.deliver(), None);
}

#[test]
fn a_periodic_timer_unmasked_in_mid_period_fires_at_its_end() {
    let mut apic = Apic::new(0);
    apic.write(DIVIDE, 0b1011);
    apic.write(LVT_TIMER, 0x300ec);
    apic.write(INITIAL_COUNT, 10_000);
    apic.now = Nanos(250_000);
    apic.write(LVT_TIMER, 0x200ec);
    assert_eq!(apic.vlapic.deadline(), Some(Deadline::At(Nanos(300_000))));
}

#[test]
fn a_tsc_deadline_interrupts_when_the_guests_tsc_is_there() {
    let mut apic = Apic::x2apic(0);
    assert_eq!(apic.vlapic.set_tsc_deadline(77), Effect::Nothing, "not in this mode");
    assert_eq!(apic.wrmsr(0x32, 0x400ec), Ok(Effect::TimerChanged));
    assert_eq!(apic.vlapic.set_tsc_deadline(1_000), Effect::TimerChanged);
    assert_eq!(apic.vlapic.deadline(), Some(Deadline::GuestTsc(1_000)));
    assert_eq!(apic.vlapic.tsc_deadline(), 1_000);
    assert!(!apic.vlapic.expire_timer(Nanos(1 << 40), 999, &apic.inbox));
    assert!(apic.vlapic.expire_timer(Nanos(0), 1_000, &apic.inbox));
    assert_eq!(apic.vlapic.tsc_deadline(), 0);
    assert_eq!(apic.deliver(), Some(0xec));
    assert_eq!(apic.vlapic.set_tsc_deadline(2_000), Effect::TimerChanged);
    assert_eq!(apic.vlapic.set_tsc_deadline(0), Effect::TimerChanged);
    assert_eq!(apic.vlapic.deadline(), None);
}

#[test]
fn a_timer_with_an_illegal_vector_reports_an_error() {
    let mut apic = Apic::x2apic(0);
    apic.wrmsr(0x32, 0x40005).unwrap();
    let _ = apic.vlapic.set_tsc_deadline(1);
    assert!(apic.vlapic.expire_timer(Nanos(0), 1, &apic.inbox));
    assert_eq!(apic.deliver(), None);
    apic.wrmsr(0x28, 0).unwrap();
    assert_eq!(apic.rdmsr(0x28), Ok(1 << 6));
}

#[test]
fn init_resets_the_registers_and_keeps_the_mode() {
    let mut apic = Apic::x2apic(6);
    apic.vlapic.set_cr8(3);
    apic.wrmsr(0x32, 0x400ec).unwrap();
    let _ = apic.vlapic.set_tsc_deadline(1);
    apic.post(0x41);
    apic.post(0x51);
    assert_eq!(apic.deliver(), Some(0x51));
    apic.vlapic.reset(&apic.inbox);
    assert_eq!(apic.vlapic.mode(), Mode::X2apic);
    assert_eq!(apic.vlapic.apic_base(), X2APIC_BASE | 0x100);
    assert_eq!(apic.rdmsr(0x02), Ok(6));
    assert_eq!(apic.rdmsr(0x32), Ok(0x10000));
    assert_eq!(apic.rdmsr(0x0a), Ok(0));
    assert_eq!(apic.vlapic.deadline(), None);
    apic.wrmsr(0x0f, 0x1ff).unwrap();
    assert_eq!(apic.deliver(), None);
}

#[test]
fn a_byte_wide_eoi_is_an_eoi() {
    let mut apic = Apic::new(0);
    apic.post(0x41);
    assert_eq!(apic.deliver(), Some(0x41));
    let _ = apic.vlapic.write_mmio(EOI, 1, 0xabcd, || Nanos(0), &apic.inbox);
    assert_eq!(apic.read(0x120), 0);
}

#[test]
fn narrow_reads_see_their_part_of_a_register() {
    let mut apic = Apic::new(0);
    let mut read = |offset, size| apic.vlapic.read_mmio(offset, size, || Nanos(0), &apic.inbox);
    assert_eq!(read(0x30, 1) & 0xff, 0x14);
    assert_eq!(read(0x32, 1) & 0xff, 0x05);
    assert_eq!(read(0x32, 2) & 0xffff, 0x0005);
    assert_eq!(read(0x32, 4), 0, "not across the register's end");
}

/// What the SDM says, written as plainly as possible.
#[derive(Default)]
struct Model {
    requested: std::collections::BTreeSet<u8>,
    in_service: std::collections::BTreeSet<u8>,
    task_priority: u8,
}

impl Model {
    fn processor_class(&self) -> u8 {
        (self.task_priority >> 4).max(self.in_service.last().map_or(0, |vector| vector >> 4))
    }

    fn deliver(&mut self) -> Option<u8> {
        let vector = *self.requested.last()?;
        if vector >> 4 <= self.processor_class() {
            return None;
        }
        self.requested.remove(&vector);
        self.in_service.insert(vector);
        Some(vector)
    }
}

proptest! {
    #[test]
    fn priorities_are_those_of_a_plain_model(
        steps in prop::collection::vec((0..5u8, any::<u8>()), 0..300),
    ) {
        let mut apic = Apic::x2apic(0);
        let mut model = Model::default();
        for (what, value) in steps {
            match what {
                0 | 1 if value >= 16 => {
                    apic.post(value);
                    model.requested.insert(value);
                }
                2 => prop_assert_eq!(apic.deliver(), model.deliver()),
                3 => {
                    apic.eoi();
                    model.in_service.pop_last();
                }
                4 => {
                    apic.wrmsr(0x08, value.into()).unwrap();
                    model.task_priority = value;
                }
                _ => {}
            }
            prop_assert_eq!(apic.rdmsr(0x0a).unwrap() as u8 >> 4, model.processor_class());
        }
    }

    #[test]
    fn no_access_panics(
        x2apic in any::<bool>(),
        steps in prop::collection::vec((any::<bool>(), 0..0x1010u16, 0..9u8, any::<u64>(), any::<u32>()), 0..100),
    ) {
        let mut apic = if x2apic { Apic::x2apic(3) } else { Apic::new(3) };
        for (write, offset, size, value, later) in steps {
            apic.now += Nanos(later.into());
            let now = apic.now;
            if write {
                let _ = apic.vlapic.write_mmio(offset, size, value, || now, &apic.inbox);
                let _ = apic.wrmsr(u32::from(offset) & 0xff, value);
            } else {
                let _ = apic.vlapic.read_mmio(offset, size, || now, &apic.inbox);
                let _ = apic.rdmsr(u32::from(offset));
            }
            let _ = apic.vlapic.expire_timer(now, value, &apic.inbox);
            let _ = apic.vlapic.deadline();
            let _ = apic.deliver();
        }
    }
}
