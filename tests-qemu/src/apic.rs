//! The local APIC, by its page (xAPIC) or by MSRs (x2APIC).

use crate::cpu;
use core::sync::atomic::{AtomicBool, Ordering};

pub const BASE_MSR: u32 = 0x1b;
pub const PAGE: u64 = 0xfee0_0000;

// Register numbers: offset in the page / 16, or MSR - 0x800 (SDM Vol. 3, 11.4.1 and 11.12.1).
pub const ID: u32 = 0x02;
pub const VERSION: u32 = 0x03;
pub const TASK_PRIORITY: u32 = 0x08;
pub const EOI: u32 = 0x0b;
pub const SPURIOUS: u32 = 0x0f;
pub const IN_SERVICE: u32 = 0x10;
pub const REQUESTED: u32 = 0x20;
pub const ERROR_STATUS: u32 = 0x28;
pub const ICR: u32 = 0x30;
pub const LVT_TIMER: u32 = 0x32;
pub const LVT_LINT0: u32 = 0x35;
pub const TIMER_INITIAL: u32 = 0x38;
pub const TIMER_CURRENT: u32 = 0x39;
pub const TIMER_DIVIDE: u32 = 0x3e;

pub const MASKED: u32 = 1 << 16;

static X2APIC: AtomicBool = AtomicBool::new(false);

pub fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        cpu::rdmsr(0x800 + register) as u32
    } else {
        cpu::read32(PAGE + u64::from(register) * 16)
    }
}

pub fn write(register: u32, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        cpu::wrmsr(0x800 + register, value.into());
    } else {
        cpu::write32(PAGE + u64::from(register) * 16, value);
    }
}

/// Software-enables the APIC, in the mode that it is in.
pub fn enable() {
    write(SPURIOUS, 0x1ff);
}

/// Changes to x2APIC mode; there is no way back but through a reset.
pub fn enter_x2apic() {
    cpu::wrmsr(BASE_MSR, cpu::rdmsr(BASE_MSR) | 1 << 10);
    X2APIC.store(true, Ordering::Relaxed);
}

/// Sends an inter-processor interrupt: `low` as in the ICR's low half.
pub fn send(destination: u32, low: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        cpu::wrmsr(0x800 + ICR, u64::from(destination) << 32 | u64::from(low));
    } else {
        write(ICR + 1, destination << 24);
        write(ICR, low);
    }
}

/// To this vCPU, by the "self" shorthand.
pub fn send_self(vector: u8) {
    send(0, 0x4_4000 | u32::from(vector));
}

/// Acknowledges, unless the vector came as an upcall that the APIC knows nothing of (its in-service bit is clear).
pub(crate) fn end_of_interrupt(vector: u8) {
    if bit(IN_SERVICE, vector) {
        write(EOI, 0);
    }
}

/// A vector's bit in one of the 256-bit registers.
pub fn bit(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector / 32)) & 1 << (vector % 32) != 0
}
