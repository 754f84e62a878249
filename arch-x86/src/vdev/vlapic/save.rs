//! The local APIC as two records of an HVM context: the register page, and what the page does not hold.

use sched::Nanos;
use xen_abi::hvm_save::{Lapic, LapicRegs};

use super::base;
use super::in_service::InService;
use super::registers::number;
use super::{DFR_FLAT, LVT_ENTRIES, LVT_MASKED, LapicInbox, Lvt, Mode, SVR_ENABLED, TimerMode, Vlapic};

/// Bits of [`Lapic::disabled`].
const BASE_DISABLED: u32 = 1 << 0;
const SOFTWARE_DISABLED: u32 = 1 << 1;

/// A record holds a state that no local APIC can be in.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Inconsistent;

/// Registers whose value [`Vlapic::read_register`] gives and the page takes as it is.
const SAVED: [core::ops::RangeInclusive<u32>; 6] = [
    number::ID..=number::VERSION,
    number::TASK_PRIORITY..=number::PROCESSOR_PRIORITY,
    number::LOGICAL_DESTINATION..=number::ERROR_STATUS,
    number::ICR..=number::LVT_ERROR,
    number::INITIAL_COUNT..=number::CURRENT_COUNT,
    number::DIVIDE_CONFIGURATION..=number::DIVIDE_CONFIGURATION,
];

fn put(page: &mut LapicRegs, register: u32, value: u32) {
    let offset = (register as usize) << 4;
    if let Some(bytes) = page.data.get_mut(offset..).and_then(|bytes| bytes.first_chunk_mut()) {
        *bytes = value.to_le_bytes();
    }
}

fn get(page: &LapicRegs, register: u32) -> u32 {
    let offset = (register as usize) << 4;
    page.data.get(offset..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

impl Vlapic {
    /// The vCPU does not run and nobody posts to it.
    pub fn save(&self, now: Nanos, inbox: &LapicInbox) -> (Lapic, LapicRegs) {
        let mut page = LapicRegs { data: [0; 1024] };
        for register in SAVED.into_iter().flatten() {
            put(&mut page, register, self.read_register(register, || now, inbox).unwrap_or(0));
        }
        let off = |condition, bit| if condition { bit } else { 0 };
        let record = Lapic {
            apic_base_msr: self.base,
            disabled: off(self.mode == Mode::Disabled, BASE_DISABLED)
                | off(self.svr & SVR_ENABLED == 0, SOFTWARE_DISABLED),
            timer_divisor: self.timer.divisor(),
            tdt_msr: self.timer.tsc_deadline(),
            pending_esr: self.errors,
            pad: 0,
        };
        (record, page)
    }

    /// Puts a saved state into this APIC and its inbox, whatever they were. The APIC's id is the vCPU's own and stays.
    /// The vCPU does not run and nobody posts to it. Afterwards ask [`deadline`](Self::deadline).
    pub fn restore(
        &mut self,
        record: &Lapic,
        page: &LapicRegs,
        now: Nanos,
        inbox: &LapicInbox,
    ) -> Result<(), Inconsistent> {
        let base = record.apic_base_msr;
        let mode = match base::mode_of(base) {
            Some(mode) if base::is_valid(base) => mode,
            _ => return Err(Inconsistent),
        };
        let svr = get(page, number::SPURIOUS_VECTOR) & super::registers::SVR_DEFINED;
        let forced = if svr & SVR_ENABLED == 0 { LVT_MASKED } else { 0 };
        let mut lvt = [LVT_MASKED; LVT_ENTRIES];
        for (number, entry) in (number::LVT_TIMER..).zip(&mut lvt) {
            *entry = get(page, number) & Lvt::from_number(number).map_or(0, Lvt::writable) | forced;
        }
        let timer_mode = TimerMode::of(lvt.first().copied().unwrap_or(LVT_MASKED));
        let initial = get(page, number::INITIAL_COUNT);
        let count = get(page, number::CURRENT_COUNT);
        if count > initial {
            return Err(Inconsistent);
        }
        let in_service = core::array::from_fn(|index| get(page, number::IN_SERVICE.wrapping_add(index as u32)));
        let in_service = InService::from_words(in_service).ok_or(Inconsistent)?;
        self.reset(inbox);
        self.in_service = in_service;
        for index in 0..8u32 {
            let [requested, level] =
                [number::REQUEST, number::TRIGGER_MODE].map(|first| get(page, first.wrapping_add(index)));
            inbox.load(index as usize, requested, level);
        }
        self.base = base;
        self.mode = mode;
        self.ldr = if mode == Mode::Xapic { get(page, number::LOGICAL_DESTINATION) & 0xff00_0000 } else { 0 };
        self.dfr = get(page, number::DESTINATION_FORMAT) | DFR_FLAT >> 4;
        self.svr = svr;
        self.esr = get(page, number::ERROR_STATUS);
        self.errors = record.pending_esr;
        self.icr = u64::from(get(page, number::ICR)) | u64::from(get(page, number::ICR_UPPER)) << 32;
        self.lvt = lvt;
        let divide = get(page, number::DIVIDE_CONFIGURATION);
        self.timer = super::Timer::restore(timer_mode, divide, initial, count, record.tdt_msr, now);
        self.set_task_priority(get(page, number::TASK_PRIORITY) as u8);
        self.identity_changed(inbox);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Deadline;
    use super::*;

    fn at(now: u64) -> impl Fn() -> Nanos + Copy {
        move || Nanos(now)
    }

    fn busy() -> (Vlapic, LapicInbox) {
        let (mut apic, inbox) = Vlapic::new(4, false);
        for (offset, value) in [
            (0xf0, 0x1ff),
            (0xd0, 0x0400_0000),
            (0x370, 0xfe),
            (0x310, 0x0200_0000),
            (0x3e0, 0b1011),
            (0x320, 0x200ec),
            (0x380, 10_000),
            (0x80, 0x20),
            (0x40, 1),
        ] {
            let _ = apic.write_mmio(offset, 4, value, at(0), &inbox);
        }
        for (vector, level) in [(0x41, false), (0x71, true), (0x33, false)] {
            let _ = inbox.post(vector, level);
        }
        let vector = apic.deliverable(&inbox).unwrap();
        apic.acknowledge(&inbox, vector);
        (apic, inbox)
    }

    #[test]
    fn a_saved_apic_goes_on_where_it_was() {
        let (apic, inbox) = busy();
        let (record, page) = apic.save(Nanos(30_000), &inbox);
        let (mut copy, copy_inbox) = Vlapic::new(4, true);
        let later = 1_000_000_000;
        copy.restore(&record, &page, Nanos(later), &copy_inbox).unwrap();

        let (record_again, page_again) = copy.save(Nanos(later), &copy_inbox);
        assert_eq!(record, record_again);
        assert_eq!(page.data, page_again.data);
        assert_eq!(apic.deadline(), Some(Deadline::At(Nanos(100_000))));
        assert_eq!(copy.deadline(), Some(Deadline::At(Nanos(later + 70_000))), "70 µs were left");
        assert_eq!(copy_inbox.identity(), inbox.identity());

        // 0xfe is the error interrupt: an undefined register was written.
        assert_eq!(copy.deliverable(&copy_inbox), apic.deliverable(&inbox));
        let _ = copy.eoi(&copy_inbox);
        assert_eq!(copy.deliverable(&copy_inbox), Some(0x71));
        copy.acknowledge(&copy_inbox, 0x71);
        assert_eq!(copy.eoi(&copy_inbox), super::super::Effect::EoiBroadcast(0x71));
        assert_eq!(copy.deliverable(&copy_inbox), Some(0x41));
    }

    #[test]
    fn the_page_is_laid_out_as_the_registers_are() {
        let (apic, inbox) = busy();
        let (record, page) = apic.save(Nanos(30_000), &inbox);
        assert_eq!(get(&page, 0x02), 4 << 24);
        assert_eq!(get(&page, 0x0f), 0x1ff);
        assert_eq!(get(&page, 0x39), 7_000);
        assert_eq!(get(&page, 0x17), 1 << (0xfe & 31), "0xfe is in service");
        assert_eq!(get(&page, 0x23), 1 << (0x71 & 31), "0x71 is requested");
        assert_eq!((record.disabled, record.timer_divisor, record.pending_esr), (0, 1, 1 << 7));
        let (off, inbox) = Vlapic::new(0, true);
        assert_eq!(off.save(Nanos(0), &inbox).0.disabled, SOFTWARE_DISABLED);
    }

    #[test]
    fn an_impossible_state_is_refused() {
        let (apic, inbox) = busy();
        let (record, mut page) = apic.save(Nanos(0), &inbox);
        let (mut copy, copy_inbox) = Vlapic::new(4, true);
        let bad = Lapic { apic_base_msr: 0xfee0_0400, ..record };
        assert_eq!(copy.restore(&bad, &page, Nanos(0), &copy_inbox), Err(Inconsistent));
        put(&mut page, number::CURRENT_COUNT, 10_001);
        assert_eq!(copy.restore(&record, &page, Nanos(0), &copy_inbox), Err(Inconsistent));
        put(&mut page, number::CURRENT_COUNT, 0);
        put(&mut page, number::IN_SERVICE, 1);
        assert_eq!(copy.restore(&record, &page, Nanos(0), &copy_inbox), Err(Inconsistent));
        assert!(!copy_inbox.wants_attention());
    }

    #[test]
    fn restored_requests_below_sixteen_are_dropped() {
        let (apic, inbox) = busy();
        let (record, mut page) = apic.save(Nanos(0), &inbox);
        put(&mut page, number::REQUEST, 0xffff);
        let (mut copy, copy_inbox) = Vlapic::new(4, true);
        copy.restore(&record, &page, Nanos(0), &copy_inbox).unwrap();
        let (_, page) = copy.save(Nanos(0), &copy_inbox);
        assert_eq!(get(&page, number::REQUEST), 0);
    }
}
