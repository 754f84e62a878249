//! A virtual local APIC: xAPIC and x2APIC, as the SDM has it (Vol. 3, chapter 11), less what no domain has: an 8259
//! behind LINT0, SMIs, performance counters.
//!
//! It is in two parts. The [`LapicInbox`] is what others write, with atomics: requests, NMI, INIT, start-up. The
//! [`Vlapic`] belongs to the CPU that runs the vCPU: priorities, what is in service, registers, the timer. Neither
//! holds a clock or knows another vCPU: the time is an argument, and what has to happen elsewhere comes back as an
//! [`Effect`].

mod base;
mod icr;
mod in_service;
mod inbox;
mod message;
mod registers;
mod save;
mod timer;

pub use inbox::{LapicInbox, Posted, Startup};
pub use message::{Delivery, Destination, Identity, Message, Mode, Numbering, Target, x2apic_logical_id};
pub use registers::X2APIC_MSRS;
pub use save::Inconsistent;
pub use timer::{BUS_CYCLE_NS, Deadline, SHORTEST_PERIOD};

use in_service::InService;
use sched::Nanos;
use timer::{Timer, TimerMode};

/// What the run loop has to do about a register that was written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    Nothing,
    /// Send this within the domain.
    Ipi(Message),
    /// A level-triggered interrupt has been served: tell the domain's I/O APICs.
    EoiBroadcast(u8),
    /// Ask [`Vlapic::deadline`] again.
    TimerChanged,
    /// The APIC base MSR has put the APIC into another mode: the page at 0xfee00000 and the x2APIC MSRs change meaning.
    /// The deadline may have changed too.
    ModeChanged(Mode),
}

/// The access raises #GP(0).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// SDM Vol. 3, figure 11-9: what the error status register reports.
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// The local vector table's entries, in the order of their registers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Lvt {
    Timer = 0,
    Thermal = 1,
    Performance = 2,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

const LVT_ENTRIES: usize = 6;
const LVT_MASKED: u32 = 1 << 16;
const SVR_ENABLED: u32 = 1 << 8;
const DFR_FLAT: u32 = 0xffff_ffff;

#[derive(Clone, Debug)]
pub struct Vlapic {
    /// IA32_APIC_BASE.
    base: u64,
    x2apic_id: u32,
    mode: Mode,
    /// By both the APIC base MSR and the spurious vector register.
    enabled: bool,
    task_priority: u8,
    processor_priority: u8,
    in_service: InService,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    /// Errors since the ESR was last written; the write makes them readable.
    errors: u32,
    icr: u64,
    lvt: [u32; LVT_ENTRIES],
    timer: Timer,
}

impl Vlapic {
    /// The APIC after power-up, in xAPIC mode, and the inbox that goes with it. The boot vCPU runs; the others wait for
    /// INIT and SIPI.
    pub const fn new(x2apic_id: u32, is_boot_vcpu: bool) -> (Vlapic, LapicInbox) {
        let vlapic = Vlapic {
            base: base::at_power_up(is_boot_vcpu),
            x2apic_id,
            mode: Mode::Xapic,
            enabled: false,
            task_priority: 0,
            processor_priority: 0,
            in_service: InService::NONE,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: 0xff,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; LVT_ENTRIES],
            timer: Timer::new(),
        };
        let inbox = LapicInbox::new(vlapic.identity(), !is_boot_vcpu);
        (vlapic, inbox)
    }

    /// INIT: as after power-up, but the mode stays (SDM Vol. 3, 11.4.7.3 and 11.12.5.1). The timer is off; requests are
    /// dropped.
    pub fn reset(&mut self, inbox: &LapicInbox) {
        *self = Vlapic { base: self.base, mode: self.mode, ..Vlapic::new(self.x2apic_id, false).0 };
        inbox.clear();
        inbox.publish(self.identity());
    }

    pub const fn mode(&self) -> Mode {
        self.mode
    }

    pub const fn x2apic_id(&self) -> u32 {
        self.x2apic_id
    }

    const fn identity(&self) -> Identity {
        let software_enabled = self.svr & SVR_ENABLED != 0;
        Identity::new(self.x2apic_id, self.mode, software_enabled, (self.ldr >> 24) as u8, self.dfr >> 28 == 0)
    }

    /// After a change of the mode, SVR, LDR or DFR.
    fn identity_changed(&mut self, inbox: &LapicInbox) {
        self.enabled = self.mode != Mode::Disabled && self.svr & SVR_ENABLED != 0;
        inbox.publish(self.identity());
    }

    // Delivery.

    /// The vector to inject next: the highest requested, if its priority class is above the processor's. A vCPU that
    /// cannot take it now (interrupts disabled) leaves it requested.
    #[inline]
    pub fn deliverable(&self, inbox: &LapicInbox) -> Option<u8> {
        if !inbox.any_requested() || !self.enabled {
            return None;
        }
        inbox.highest_requested().filter(|vector| vector >> 4 > self.processor_priority >> 4)
    }

    /// The class of the highest request that only the priorities hold back: with a TPR threshold of this value the vCPU
    /// exits as soon as it lowers its task priority enough.
    pub fn blocked_class(&self, inbox: &LapicInbox) -> Option<u8> {
        if !self.enabled {
            return None;
        }
        let class = inbox.highest_requested()? >> 4;
        (class <= self.processor_priority >> 4).then_some(class)
    }

    /// The vCPU takes the vector that [`deliverable`](Self::deliverable) gave: it goes from requested to in service.
    #[inline]
    pub fn acknowledge(&mut self, inbox: &LapicInbox, vector: u8) {
        inbox.withdraw(vector);
        self.in_service.begin(vector);
        // It was deliverable, so its class is the highest.
        self.processor_priority = vector & 0xf0;
    }

    /// The guest is done with what it served last.
    #[inline]
    pub fn eoi(&mut self, inbox: &LapicInbox) -> Effect {
        let vector = self.in_service.end();
        self.update_processor_priority();
        // Nothing was in service: vector 0, which is never level-triggered.
        if inbox.is_level(vector) { Effect::EoiBroadcast(vector) } else { Effect::Nothing }
    }

    /// SDM Vol. 3, 11.8.3.1: the task's priority, or the class of what is in service if that is higher.
    #[inline]
    fn update_processor_priority(&mut self) {
        let serving = self.in_service.highest() & 0xf0;
        self.processor_priority = if self.task_priority & 0xf0 >= serving { self.task_priority } else { serving };
    }

    // Task priority.

    #[inline]
    pub const fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// MOV to CR8, whose upper bits the caller has checked. An interrupt may have become deliverable.
    #[inline]
    pub fn set_cr8(&mut self, class: u8) {
        self.set_task_priority(class << 4);
    }

    #[inline]
    pub fn set_task_priority(&mut self, priority: u8) {
        self.task_priority = priority;
        self.update_processor_priority();
    }

    pub const fn task_priority(&self) -> u8 {
        self.task_priority
    }

    // The timer.

    fn lvt(&self, entry: Lvt) -> u32 {
        self.lvt.get(entry as usize).copied().unwrap_or(LVT_MASKED)
    }

    /// When to call [`expire_timer`](Self::expire_timer). None while nothing would come of it.
    #[inline]
    pub fn deadline(&self) -> Option<Deadline> {
        match self.timer.deadline()? {
            // A masked count may run out unseen; a masked TSC deadline must still read as zero afterwards.
            Deadline::At(_) if self.lvt(Lvt::Timer) & LVT_MASKED != 0 => None,
            deadline => Some(deadline),
        }
    }

    /// The deadline may have passed. True if it has; the timer's interrupt is then requested unless masked, and the
    /// deadline is a new one or none.
    #[inline]
    pub fn expire_timer(&mut self, now: Nanos, guest_tsc: u64, inbox: &LapicInbox) -> bool {
        let expired = self.timer.expire(now, guest_tsc);
        if expired {
            self.raise(Lvt::Timer, inbox);
        }
        expired
    }

    /// IA32_TSC_DEADLINE.
    #[inline]
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    #[inline]
    pub fn set_tsc_deadline(&mut self, guest_tsc: u64) -> Effect {
        if self.timer.set_tsc_deadline(guest_tsc) { Effect::TimerChanged } else { Effect::Nothing }
    }

    // Interrupts of the APIC's own.

    /// Requests what an entry of the local vector table says, unless it is masked.
    fn raise(&mut self, entry: Lvt, inbox: &LapicInbox) {
        let lvt = self.lvt(entry);
        if lvt & LVT_MASKED != 0 || !self.enabled {
            return;
        }
        if lvt as u8 >= 16 {
            // The run loop is on its way back into the guest: nobody needs to be told.
            let _ = inbox.post(lvt as u8, false);
        } else if entry != Lvt::Error {
            self.fail(error::RECEIVE_ILLEGAL_VECTOR, inbox);
        }
    }

    /// Records an error and, the first time, requests the error interrupt.
    fn fail(&mut self, error: u32, inbox: &LapicInbox) {
        let new = self.errors & error == 0;
        self.errors |= error;
        if new {
            self.raise(Lvt::Error, inbox);
        }
    }
}

#[cfg(test)]
mod tests;
