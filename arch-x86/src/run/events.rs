//! What is injected at the next entry: INIT and SIPI first, then NMIs, then interrupts by priority.

use core::sync::atomic::Ordering;

use hypervisor::domain::Callback;
use hypervisor::event;
use hypervisor::machine::Machine;
use hypervisor::vcpu::hold;

use super::Running;
use crate::event::Event;
use crate::state::CpuState;

impl Running<'_> {
    /// Before every entry: whether there is something to prepare. With nothing pending it is a few loads.
    #[inline]
    pub(super) fn has_events(&self) -> bool {
        self.vcpu.machine.wants_attention() || !self.context.pending.is_empty()
    }

    /// Puts in place what is injected at the entry.
    pub(super) fn prepare_events(&mut self) {
        let shared = &self.vcpu.machine;
        if shared.lapic_due.swap(false, Ordering::AcqRel) {
            self.expire_lapic_timer();
        }
        self.take_startup();
        if !self.context.pending.is_empty() {
            // An event is on its way already; the next one waits for its turn.
            if self.next_interrupt().is_some() {
                self.context.engine.set_interrupt_window(true);
            }
            return;
        }
        if shared.inbox.nmi_pending() {
            if self.context.engine.accepts_nmi() {
                shared.inbox.take_nmi();
                self.context.pending.redeliver(Event::Nmi);
                if self.next_interrupt().is_some() {
                    self.context.engine.set_interrupt_window(true);
                }
                return;
            }
            self.context.engine.set_nmi_window(true);
        }
        let Some(next) = self.next_interrupt() else { return };
        if !self.context.engine.interruptible() {
            self.context.engine.set_interrupt_window(true);
            return;
        }
        match next {
            Interrupt::Callback(vector) => {
                shared.upcall_due.store(false, Ordering::Release);
                self.context.pending.redeliver(Event::Interrupt(vector));
            }
            Interrupt::Lapic(vector) => {
                self.context.vlapic.acknowledge(&shared.inbox, vector);
                self.context.pending.redeliver(Event::Interrupt(vector));
            }
        }
        if self.next_interrupt().is_some() {
            self.context.engine.set_interrupt_window(true);
        }
    }

    /// The interrupt to deliver next. The event callback goes past the local APIC and before it, as on Xen.
    #[inline]
    fn next_interrupt(&self) -> Option<Interrupt> {
        let shared = &self.vcpu.machine;
        if shared.upcall_due.load(Ordering::Acquire)
            && let Callback::Vector(vector) = self.domain.callback()
        {
            return Some(Interrupt::Callback(vector));
        }
        self.context.vlapic.deliverable(&shared.inbox).map(Interrupt::Lapic)
    }

    /// A vCPU that halts would be woken at once.
    pub(super) fn could_be_woken_now(&mut self) -> bool {
        let shared = &self.vcpu.machine;
        if !shared.wants_attention() {
            return false;
        }
        if shared.lapic_due.swap(false, Ordering::AcqRel) {
            self.expire_lapic_timer();
        }
        // With interrupts off none of them would wake it.
        let interrupt = self.context.engine.interrupts_enabled() && self.next_interrupt().is_some();
        shared.inbox.nmi_pending() || shared.inbox.startup_pending() || interrupt
    }

    fn expire_lapic_timer(&mut self) {
        let now = self.system.machine.now();
        let _ = self.context.vlapic.expire_timer(now, crate::time::rdtsc(), &self.vcpu.machine.inbox);
        self.lapic_timer_changed();
    }

    /// The vCPU's local APIC timer was set: its deadline goes to this CPU's queue.
    pub(super) fn lapic_timer_changed(&mut self) {
        use crate::vdev::vlapic::Deadline;
        let deadline = self.context.vlapic.deadline().map(|deadline| match deadline {
            Deadline::At(at) => at,
            Deadline::GuestTsc(tsc) => crate::machine::clock().nanos_after(tsc),
        });
        self.vcpu.machine.set_lapic_deadline(deadline);
        self.system.machine.timer_changed(self.domain, self.vcpu);
    }

    /// INIT and SIPI, if they came.
    pub(super) fn take_startup(&mut self) {
        let inbox = &self.vcpu.machine.inbox;
        let Some(startup) = inbox.take_startup() else { return };
        if startup.reset {
            self.context.vlapic.reset(inbox);
            self.context.pending = Default::default();
            self.context.regs = Default::default();
            self.vcpu.set_hold(hold::OFFLINE);
            self.lapic_timer_changed();
            // The reset has dropped the request, but what asked for it is still pending, and no later event would ask again.
            event::raise_if_pending(self.system, self.domain, self.vcpu);
        }
        if let Some(page) = startup.start_page {
            let state = CpuState::sipi(page);
            self.context.engine.reset(&state, self.policy.cr4_allowed);
            self.context.regs = state.general;
            self.vcpu.clear_hold(hold::OFFLINE | hold::BLOCKED);
        }
    }
}

enum Interrupt {
    Callback(u8),
    Lapic(u8),
}
