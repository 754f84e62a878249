//! The registers, as the guest reaches them: as a page in xAPIC mode, as MSRs in x2APIC mode. A register has one number
//! in both: bits 9:4 of its offset in the page, the MSR's distance from 0x800 (SDM Vol. 3, tables 11-1 and 11-6).

use sched::Nanos;

use super::{
    Effect, GeneralProtection, LVT_MASKED, LapicInbox, Lvt, Mode, Numbering, SVR_ENABLED, TimerMode, Vlapic, error,
    icr, x2apic_logical_id,
};

/// The first of the x2APIC MSRs.
pub const X2APIC_MSRS: u32 = 0x800;

/// Six entries in the local vector table, no suppression of EOI broadcasts: what Xen's guests see.
const VERSION: u32 = 0x0005_0014;

pub(super) mod number {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TASK_PRIORITY: u32 = 0x08;
    pub const ARBITRATION_PRIORITY: u32 = 0x09;
    pub const PROCESSOR_PRIORITY: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const REMOTE_READ: u32 = 0x0c;
    pub const LOGICAL_DESTINATION: u32 = 0x0d;
    pub const DESTINATION_FORMAT: u32 = 0x0e;
    pub const SPURIOUS_VECTOR: u32 = 0x0f;
    pub const IN_SERVICE: u32 = 0x10;
    pub const IN_SERVICE_LAST: u32 = 0x17;
    pub const TRIGGER_MODE: u32 = 0x18;
    pub const TRIGGER_MODE_LAST: u32 = 0x1f;
    pub const REQUEST: u32 = 0x20;
    pub const REQUEST_LAST: u32 = 0x27;
    pub const ERROR_STATUS: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_UPPER: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE_CONFIGURATION: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Bits of the spurious vector register that a guest may set. Focus checking does nothing, but old kernels switch it
/// off.
pub(super) const SVR_DEFINED: u32 = 0xff | SVR_ENABLED | 1 << 9;
const DIVIDE_DEFINED: u32 = 0b1011;
/// Read-only in an LVT entry: delivery status, remote IRR.
const LVT_STATUS: u32 = 1 << 12 | 1 << 14;

const LVT_ORDER: [Lvt; super::LVT_ENTRIES] =
    [Lvt::Timer, Lvt::Thermal, Lvt::Performance, Lvt::Lint0, Lvt::Lint1, Lvt::Error];

impl Lvt {
    pub(super) fn from_number(register: u32) -> Option<Lvt> {
        let index = register.checked_sub(number::LVT_TIMER)?;
        LVT_ORDER.get(index as usize).copied()
    }

    /// The bits that a guest may write.
    pub(super) const fn writable(self) -> u32 {
        let common = 0xff | LVT_MASKED;
        match self {
            Lvt::Timer => common | 3 << 17,
            Lvt::Thermal | Lvt::Performance => common | 7 << 8,
            Lvt::Lint0 | Lvt::Lint1 => common | 7 << 8 | 1 << 13 | 1 << 15,
            Lvt::Error => common,
        }
    }
}

impl Vlapic {
    // xAPIC: the page.

    /// Reads `size` bytes (1, 2 or 4) at an offset into the APIC's page. Outside xAPIC mode nothing answers there: all
    /// ones.
    pub fn read_mmio(&mut self, offset: u16, size: u8, now: impl FnOnce() -> Nanos, inbox: &LapicInbox) -> u64 {
        if self.mode != Mode::Xapic {
            return u64::MAX;
        }
        // 32 bits of every 16 bytes are the register.
        let within = u32::from(offset & 0xf);
        if offset >= 0x400 || within.saturating_add(u32::from(size)) > 4 {
            self.fail(error::ILLEGAL_REGISTER, inbox);
            return 0;
        }
        match self.read_register(u32::from(offset >> 4), now, inbox) {
            Some(value) => u64::from(value) >> (within << 3),
            None => {
                self.fail(error::ILLEGAL_REGISTER, inbox);
                0
            }
        }
    }

    /// Writes `size` bytes at an offset into the APIC's page. Registers are written whole; of narrower writes (which
    /// the SDM leaves undefined) only those at a register's start do something, as if the rest were zero: there are
    /// kernels that write EOI as a byte.
    #[inline]
    pub fn write_mmio(
        &mut self,
        offset: u16,
        size: u8,
        value: u64,
        now: impl FnOnce() -> Nanos,
        inbox: &LapicInbox,
    ) -> Effect {
        if self.mode != Mode::Xapic {
            return Effect::Nothing;
        }
        let value = match size {
            1 => value as u32 & 0xff,
            2 => value as u32 & 0xffff,
            _ => value as u32,
        };
        if offset & 0xf != 0 || offset >= 0x400 {
            self.fail(error::ILLEGAL_REGISTER, inbox);
            return Effect::Nothing;
        }
        match u32::from(offset >> 4) {
            number::EOI => self.eoi(inbox),
            number::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & icr::DEFINED);
                self.send(self.icr, Numbering::Xapic, inbox)
            }
            number::ICR_UPPER => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                Effect::Nothing
            }
            number::LOGICAL_DESTINATION => {
                self.ldr = value & 0xff00_0000;
                self.identity_changed(inbox);
                Effect::Nothing
            }
            number::DESTINATION_FORMAT => {
                // The model is bits 31:28: all ones is flat, all zeros cluster. The rest reads as ones.
                self.dfr = value | !0xf000_0000;
                self.identity_changed(inbox);
                Effect::Nothing
            }
            // Read-only; writes are ignored. The id can be written on some processors, but nothing needs it.
            number::ID
            | number::VERSION
            | number::ARBITRATION_PRIORITY
            | number::PROCESSOR_PRIORITY
            | number::REMOTE_READ
            | number::IN_SERVICE..=number::REQUEST_LAST
            | number::CURRENT_COUNT => Effect::Nothing,
            register => self.write_register(register, value, now, inbox).unwrap_or_else(|| {
                self.fail(error::ILLEGAL_REGISTER, inbox);
                Effect::Nothing
            }),
        }
    }

    // x2APIC: the MSRs.

    /// Reads MSR 0x800 to 0x8ff.
    pub fn read_x2apic(
        &self,
        msr: u32,
        now: impl FnOnce() -> Nanos,
        inbox: &LapicInbox,
    ) -> Result<u64, GeneralProtection> {
        if self.mode != Mode::X2apic {
            return Err(GeneralProtection);
        }
        match msr.wrapping_sub(X2APIC_MSRS) {
            number::ICR => Ok(self.icr),
            number::ICR_UPPER
            | number::DESTINATION_FORMAT
            | number::ARBITRATION_PRIORITY
            | number::REMOTE_READ
            | number::EOI
            | number::SELF_IPI => Err(GeneralProtection),
            register => self.read_register(register, now, inbox).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// Writes MSR 0x800 to 0x8ff. Reserved bits and read-only registers raise #GP (SDM Vol. 3, 11.12.1.2).
    #[inline]
    pub fn write_x2apic(
        &mut self,
        msr: u32,
        value: u64,
        now: impl FnOnce() -> Nanos,
        inbox: &LapicInbox,
    ) -> Result<Effect, GeneralProtection> {
        if self.mode != Mode::X2apic {
            return Err(GeneralProtection);
        }
        // The two that an operating system writes all the time.
        match msr.wrapping_sub(X2APIC_MSRS) {
            number::EOI if value == 0 => Ok(self.eoi(inbox)),
            number::ICR if value as u32 & !icr::DEFINED == 0 => {
                self.icr = value;
                Ok(self.send(value, Numbering::X2apic, inbox))
            }
            register => self.write_other_x2apic(register, value, now, inbox),
        }
    }

    #[inline(never)]
    fn write_other_x2apic(
        &mut self,
        register: u32,
        value: u64,
        now: impl FnOnce() -> Nanos,
        inbox: &LapicInbox,
    ) -> Result<Effect, GeneralProtection> {
        // 32 bits wide all of them.
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        let defined = match register {
            number::SELF_IPI if value <= 0xff => {
                // Shorthand "self", fixed, edge (SDM Vol. 3, 11.12.11).
                return Ok(self.send(1 << 18 | u64::from(value), Numbering::X2apic, inbox));
            }
            number::TASK_PRIORITY => 0xff,
            number::SPURIOUS_VECTOR => SVR_DEFINED,
            number::ERROR_STATUS => 0,
            number::LVT_TIMER..=number::LVT_ERROR => Lvt::from_number(register).map_or(0, Lvt::writable) | LVT_STATUS,
            number::INITIAL_COUNT => u32::MAX,
            number::DIVIDE_CONFIGURATION => DIVIDE_DEFINED,
            _ => return Err(GeneralProtection),
        };
        if value & !defined != 0 {
            return Err(GeneralProtection);
        }
        self.write_register(register, value, now, inbox).ok_or(GeneralProtection)
    }

    // What both have.

    pub(super) fn read_register(&self, register: u32, now: impl FnOnce() -> Nanos, inbox: &LapicInbox) -> Option<u32> {
        let x2apic = self.mode == Mode::X2apic;
        Some(match register {
            number::ID if x2apic => self.x2apic_id,
            number::ID => self.x2apic_id << 24,
            number::VERSION => VERSION,
            number::TASK_PRIORITY => u32::from(self.task_priority),
            number::PROCESSOR_PRIORITY => u32::from(self.processor_priority),
            number::ARBITRATION_PRIORITY | number::REMOTE_READ | number::EOI => 0,
            number::LOGICAL_DESTINATION if x2apic => x2apic_logical_id(self.x2apic_id),
            number::LOGICAL_DESTINATION => self.ldr,
            number::DESTINATION_FORMAT => self.dfr,
            number::SPURIOUS_VECTOR => self.svr,
            number::IN_SERVICE..=number::IN_SERVICE_LAST => self.in_service.word(register & 7),
            number::TRIGGER_MODE..=number::TRIGGER_MODE_LAST => inbox.tmr_word((register & 7) as usize),
            number::REQUEST..=number::REQUEST_LAST => inbox.irr_word((register & 7) as usize),
            number::ERROR_STATUS => self.esr,
            number::ICR => self.icr as u32,
            number::ICR_UPPER => (self.icr >> 32) as u32,
            number::LVT_TIMER..=number::LVT_ERROR => self.lvt(Lvt::from_number(register)?),
            number::INITIAL_COUNT => self.timer.initial_count(),
            number::CURRENT_COUNT => self.timer.current_count(now()),
            number::DIVIDE_CONFIGURATION => self.timer.divide_config(),
            _ => return None,
        })
    }

    fn write_register(
        &mut self,
        register: u32,
        value: u32,
        now: impl FnOnce() -> Nanos,
        inbox: &LapicInbox,
    ) -> Option<Effect> {
        Some(match register {
            number::TASK_PRIORITY => {
                self.set_task_priority(value as u8);
                Effect::Nothing
            }
            number::SPURIOUS_VECTOR => self.write_spurious_vector(value, inbox),
            number::ERROR_STATUS => {
                // The write makes readable what has gathered since the last.
                self.esr = self.errors;
                self.errors = 0;
                Effect::Nothing
            }
            number::LVT_TIMER..=number::LVT_ERROR => self.write_lvt(Lvt::from_number(register)?, value, now),
            number::INITIAL_COUNT => {
                if self.timer.set_initial_count(value, now()) {
                    Effect::TimerChanged
                } else {
                    Effect::Nothing
                }
            }
            number::DIVIDE_CONFIGURATION => {
                self.timer.set_divide_config(value, now());
                Effect::TimerChanged
            }
            _ => return None,
        })
    }

    fn write_spurious_vector(&mut self, value: u32, inbox: &LapicInbox) -> Effect {
        self.svr = value & SVR_DEFINED;
        self.identity_changed(inbox);
        if self.svr & SVR_ENABLED != 0 {
            return Effect::Nothing;
        }
        // SDM Vol. 3, 11.4.7.2: switched off by software, the whole local vector table is masked and stays so.
        for lvt in &mut self.lvt {
            *lvt |= LVT_MASKED;
        }
        Effect::TimerChanged
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32, now: impl FnOnce() -> Nanos) -> Effect {
        let forced = if self.svr & SVR_ENABLED == 0 { LVT_MASKED } else { 0 };
        let value = value & entry.writable() | forced;
        let old = self.lvt(entry);
        if let Some(lvt) = self.lvt.get_mut(entry as usize) {
            *lvt = value;
        }
        if entry != Lvt::Timer {
            return Effect::Nothing;
        }
        let now = now();
        if old & LVT_MASKED != 0 && TimerMode::of(old) != TimerMode::TscDeadline {
            // What ran out while masked goes unnoticed.
            self.timer.expire(now, 0);
        }
        self.timer.set_mode(TimerMode::of(value), now);
        Effect::TimerChanged
    }
}
