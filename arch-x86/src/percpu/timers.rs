//! A CPU's timers. Those of a vCPU are where it ran last.

use core::sync::atomic::Ordering;

use hypervisor::vcpu::Vcpu;
use sched::{Nanos, OutOfMemory, TimerSlot, VcpuKey};

use super::{PerCpu, all, get, this};
use crate::apic::local;
use crate::machine::{X86, clock};

/// The timer slot of the running vCPU's time slice.
const SLICE_SLOT: TimerSlot = TimerSlot(0);
/// That of the next budget of a domain that has used up its own.
const REPLENISH_SLOT: TimerSlot = TimerSlot(1);
/// The vCPUs' own follow.
pub(super) const FIRST_VCPU_SLOT: u32 = 2;

fn slot_of(key: VcpuKey) -> TimerSlot {
    TimerSlot(key.0.saturating_add(FIRST_VCPU_SLOT))
}

/// Makes room for the timers of so many vCPUs on every CPU.
pub(super) fn reserve(vcpus: usize) -> Result<(), OutOfMemory> {
    all().try_for_each(|cpu| cpu.timers.lock().reserve(vcpus + FIRST_VCPU_SLOT as usize))
}

/// A vCPU that runs no more has no timers.
pub(super) fn cancel(vcpu: &Vcpu<X86>) {
    vcpu.machine.set_lapic_deadline(None);
    let (at, key) = vcpu.machine.place();
    if let Some(cpu) = get(at) {
        cpu.timers.lock().cancel(slot_of(key));
    }
}

/// When a vCPU next wants to be looked after may have changed.
#[inline]
pub fn timer_changed(vcpu: &Vcpu<X86>) {
    let here = this();
    loop {
        let (at, key) = vcpu.machine.place();
        let cpu = if at == here.id { here } else { get(at).unwrap_or(here) };
        let mut timers = cpu.timers.lock();
        // It moves with the lock held.
        if vcpu.machine.place().0 != cpu.id {
            continue;
        }
        // Whoever changes a deadline comes here afterwards, so that the last to come sees all of them.
        match earlier(vcpu.next_deadline(), vcpu.machine.lapic_deadline()) {
            Some(deadline) => timers.set(slot_of(key), deadline),
            None => timers.cancel(slot_of(key)),
        };
        let earliest = timers.next();
        drop(timers);
        if cpu.id == here.id {
            here.arm(earliest);
        } else if earliest.is_some_and(|at| at.0 < cpu.armed.load(Ordering::Relaxed)) {
            cpu.rearm.store(true, Ordering::Release);
            cpu.kick();
        }
        return;
    }
}

fn earlier(a: Option<Nanos>, b: Option<Nanos>) -> Option<Nanos> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl PerCpu {
    /// A vCPU that comes to run here brings its timers.
    pub fn take_timers(&self, vcpu: &Vcpu<X86>) {
        let (from, key) = vcpu.machine.place();
        if from == self.id {
            return;
        }
        match get(from) {
            Some(from) => {
                let mut timers = from.timers.lock();
                timers.cancel(slot_of(key));
                vcpu.machine.move_to(self.id);
            }
            None => vcpu.machine.move_to(self.id),
        }
        timer_changed(vcpu);
    }

    /// Sets when this CPU is to decide again, and when a domain's budget is due.
    pub(super) fn set_slice(&self, until: Option<Nanos>, replenish: Option<Nanos>) {
        let mut timers = self.timers.lock();
        match until {
            Some(end) => timers.set(SLICE_SLOT, end),
            None => timers.cancel(SLICE_SLOT),
        };
        if let Some(at) = replenish {
            timers.set(REPLENISH_SLOT, at);
        }
        let earliest = timers.next();
        drop(timers);
        self.arm(earliest);
    }

    pub(super) fn set_replenish(&self, at: Nanos) {
        self.timers.lock().set(REPLENISH_SLOT, at);
    }

    /// Sets this CPU's own timer.
    #[inline]
    fn arm(&self, earliest: Option<Nanos>) {
        let wanted = earliest.map_or(u64::MAX, |at| at.0);
        if self.armed.swap(wanted, Ordering::Relaxed) != wanted {
            local::set_timer(earliest.map(|at| clock().tsc_at(at)));
        }
    }

    /// Another CPU may have set a timer here.
    pub fn rearm(&self) {
        if self.rearm.swap(false, Ordering::Acquire) {
            let earliest = self.timers.lock().next();
            self.arm(earliest);
        }
    }

    /// The hardware timer fired: `act` on each vCPU whose time has come.
    pub fn expire(&self, now: Nanos, mut act: impl FnMut(VcpuKey)) {
        self.armed.store(u64::MAX, Ordering::Relaxed);
        loop {
            let due = self.timers.lock().pop_due(now);
            match due {
                Some(SLICE_SLOT) => self.reschedule.store(true, Ordering::Relaxed),
                Some(REPLENISH_SLOT) => self.replenish(now),
                Some(slot) => act(VcpuKey(slot.0 - FIRST_VCPU_SLOT)),
                None => break,
            }
        }
        let earliest = self.timers.lock().next();
        self.arm(earliest);
    }
}
