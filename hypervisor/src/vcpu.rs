//! A virtual CPU as the rest of the hypervisor sees it: what of it is shared with the guest, what it waits for, and when.
//!
//! Its registers are the machine's ([`Machine::Context`]) and belong to the CPU that runs it; everything here may be touched by any
//! CPU at any time and is therefore atomic or behind a short lock.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use mm::SharedPage;
use mm::lock::{Lock, Rank};
use sched::{CpuSet, Hold, Nanos};
use spin::Once;
use xen_abi::types::VcpuId;

use crate::area::Area;
use crate::domain::Domain;
use crate::machine::Machine;
use crate::runstate::Runstate;
use crate::watchdog::Watchdogs;

/// Why a vCPU does not run; it runs when no bit is set.
pub mod hold {
    /// HLT, SCHEDOP_block: until an event or an interrupt.
    pub const BLOCKED: u32 = 1 << 0;
    /// SCHEDOP_poll: until one of its ports is pending, or the time is up.
    pub const POLLING: u32 = 1 << 1;
    /// Not brought up, or VCPUOP_down, or waiting for a SIPI.
    pub const OFFLINE: u32 = 1 << 2;
    /// Paused by the toolstack, or about to be taken down by it.
    pub const PAUSED: u32 = 1 << 3;
    /// Its domain has stopped.
    pub const STOPPED: u32 = 1 << 4;
    /// Held from outside: it does not run on by anything that the guest does.
    pub const FROM_OUTSIDE: u32 = PAUSED | STOPPED;
}

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;

pub struct Vcpu<M: Machine> {
    pub id: VcpuId,
    hold: Hold,
    /// Where VCPUOP_register_vcpu_info put its vcpu_info; before that it is in the domain's shared_info.
    registered_info: Once<Area>,
    /// The vector of HVMOP_set_evtchn_upcall_vector, 0 when there is none.
    upcall_vector: AtomicU8,
    singleshot: AtomicU64,
    periodic_next: AtomicU64,
    periodic_period: AtomicU64,
    poll_deadline: AtomicU64,
    /// The port that a SCHEDOP_poll of one port waits for; 0 when it waits for any of several.
    poll_port: AtomicU32,
    /// vCPU 0 keeps its domain's.
    pub watchdogs: Watchdogs,
    pub runstate: Lock<Runstate>,
    /// VCPUOP_register_vcpu_time_memory_area's copy of vcpu_time_info.
    pub time_area: Lock<Option<Area>>,
    /// The hard affinity that comes back when a SCHEDOP_pin_override ends.
    pub overridden: Lock<Option<CpuSet>>,
    pub machine: M::VcpuState,
}

/// A vcpu_info, wherever it is.
#[derive(Clone, Copy)]
pub struct VcpuInfo<'a> {
    page: &'a SharedPage,
    offset: usize,
}

/// Offsets in vcpu_info; the selector's width and place follow the guest's (Xen's `xen.h`).
mod info {
    pub const UPCALL_PENDING: usize = 0;
    pub const UPCALL_MASK: usize = 1;
    pub const PENDING_SEL_64: usize = 8;
    pub const PENDING_SEL_32: usize = 4;
    pub const TIME: usize = 32;
    pub const SIZE: usize = 64;
}

impl<'a> VcpuInfo<'a> {
    #[inline]
    fn byte(&self, field: usize) -> Option<&'a AtomicU8> {
        self.page.atomic_u8(self.offset.wrapping_add(field))
    }

    #[inline]
    pub fn upcall_pending(&self) -> Option<&'a AtomicU8> {
        self.byte(info::UPCALL_PENDING)
    }

    #[inline]
    pub fn upcall_mask(&self) -> Option<&'a AtomicU8> {
        self.byte(info::UPCALL_MASK)
    }

    /// `evtchn_pending_sel` of a 64-bit guest.
    #[inline]
    pub fn pending_sel_64(&self) -> Option<&'a AtomicU64> {
        self.page.atomic_u64(self.offset.wrapping_add(info::PENDING_SEL_64))
    }

    /// `evtchn_pending_sel` of a 32-bit guest.
    #[inline]
    pub fn pending_sel_32(&self) -> Option<&'a AtomicU32> {
        self.page.atomic_u32(self.offset.wrapping_add(info::PENDING_SEL_32))
    }

    /// The page and the offset of the vcpu_info within it.
    #[inline]
    pub fn place(&self) -> (&'a SharedPage, usize) {
        (self.page, self.offset)
    }

    /// The page and the offset of the `vcpu_time_info` within it.
    pub fn time(&self) -> (&'a SharedPage, usize) {
        (self.page, self.offset.wrapping_add(info::TIME))
    }
}

impl<M: Machine> Vcpu<M> {
    pub fn new(id: VcpuId, machine: M::VcpuState) -> Self {
        Vcpu {
            id,
            hold: Hold::new(hold::OFFLINE),
            registered_info: Once::new(),
            upcall_vector: AtomicU8::new(0),
            singleshot: AtomicU64::new(NEVER),
            periodic_next: AtomicU64::new(NEVER),
            periodic_period: AtomicU64::new(0),
            poll_deadline: AtomicU64::new(NEVER),
            poll_port: AtomicU32::new(0),
            watchdogs: Watchdogs::default(),
            runstate: Lock::new(Rank::Sched, Runstate::default()),
            time_area: Lock::new(Rank::Sched, None),
            overridden: Lock::new(Rank::DomainControl, None),
            machine,
        }
    }

    // ---- what it waits for ----

    /// Nothing holds it back.
    #[inline]
    pub fn is_runnable(&self) -> bool {
        self.hold.is_empty()
    }

    #[inline]
    pub fn holds(&self) -> u32 {
        self.hold.bits()
    }

    /// Sets reasons not to run; what was set before. Whoever blocks looks at what would wake it after this.
    pub fn set_hold(&self, bits: u32) -> u32 {
        self.hold.set(bits)
    }

    /// Clears reasons not to run; true if this made it runnable.
    pub fn clear_hold(&self, bits: u32) -> bool {
        self.hold.clear(bits)
    }

    /// It was brought up, and did not go down since.
    pub fn is_up(&self) -> bool {
        self.holds() & hold::OFFLINE == 0
    }

    pub fn start_poll(&self, port: u32, deadline: Option<Nanos>) {
        self.poll_port.store(port, Ordering::Relaxed);
        self.poll_deadline.store(deadline.map_or(NEVER, |nanos| nanos.0), Ordering::Relaxed);
        self.set_hold(hold::POLLING);
    }

    /// True if an event on `port` ends this vCPU's SCHEDOP_poll.
    #[inline]
    pub fn polls(&self, port: u32) -> bool {
        self.holds() & hold::POLLING != 0 && {
            let polled = self.poll_port.load(Ordering::Relaxed);
            polled == 0 || polled == port
        }
    }

    /// It polls no longer, nor does it sleep on that account.
    pub fn end_poll(&self) {
        self.poll_deadline.store(NEVER, Ordering::Relaxed);
        self.clear_hold(hold::POLLING);
    }

    /// Ends HLT, SCHEDOP_block and SCHEDOP_poll: there is an interrupt to take. True if this made it runnable.
    #[inline]
    pub fn rouse(&self) -> bool {
        self.clear_hold(hold::BLOCKED | hold::POLLING)
    }

    // ---- time ----

    pub fn set_singleshot(&self, deadline: Option<Nanos>) {
        self.singleshot.store(deadline.map_or(NEVER, |nanos| nanos.0), Ordering::Relaxed);
    }

    /// `period` zero stops the timer.
    pub fn set_periodic(&self, now: Nanos, period: Nanos) {
        self.periodic_period.store(period.0, Ordering::Relaxed);
        let next = if period.0 == 0 { NEVER } else { now.0.saturating_add(period.0) };
        self.periodic_next.store(next, Ordering::Relaxed);
    }

    /// When this vCPU next wants to be woken by time.
    #[inline]
    pub fn next_deadline(&self) -> Option<Nanos> {
        let mut next = self
            .singleshot
            .load(Ordering::Relaxed)
            .min(self.periodic_next.load(Ordering::Relaxed))
            .min(self.watchdogs.next());
        // What woke a poll left its deadline behind.
        if self.holds() & hold::POLLING != 0 {
            next = next.min(self.poll_deadline.load(Ordering::Relaxed));
        }
        (next != NEVER).then_some(Nanos(next))
    }

    /// Takes what is due at `now`. A timer that is set or stopped meanwhile is as it was set.
    pub fn take_due(&self, now: Nanos) -> Due {
        let next_period = |due: u64| {
            let period = self.periodic_period.load(Ordering::Relaxed).max(1);
            // Ticks that were missed are one tick: the guest counts time by its clock, not by ticks.
            let missed = now.0.saturating_sub(due).checked_div(period).unwrap_or(0);
            due.saturating_add(missed.saturating_add(1).saturating_mul(period))
        };
        let single = fires(&self.singleshot, now, |_| NEVER);
        let periodic = fires(&self.periodic_next, now, next_period);
        Due {
            timer: single || periodic,
            poll: fires(&self.poll_deadline, now, |_| NEVER),
            watchdog: self.watchdogs.next() <= now.0,
        }
    }

    // ---- what it shares with the guest ----

    /// Its vcpu_info: registered, or the slot in shared_info. `None` for a vCPU above 31 that registered none.
    #[inline]
    pub fn info<'a>(&'a self, domain: &'a Domain<M>) -> Option<VcpuInfo<'a>> {
        if let Some(area) = self.registered_info.get() {
            return Some(VcpuInfo { page: area.page(), offset: area.offset() });
        }
        let offset = (self.id.0 as usize).checked_mul(info::SIZE)?;
        (self.id.0 < 32).then_some(VcpuInfo { page: &domain.shared_info, offset })
    }

    pub fn has_registered_info(&self) -> bool {
        self.registered_info.get().is_some()
    }

    /// Fixes the vcpu_info's place; false if it was fixed before.
    pub fn register_info(&self, area: Area) -> bool {
        let mut done = false;
        self.registered_info.call_once(|| {
            done = true;
            area
        });
        done
    }

    #[inline]
    pub fn upcall_vector(&self) -> u8 {
        self.upcall_vector.load(Ordering::Relaxed)
    }

    pub fn set_upcall_vector(&self, vector: u8) {
        self.upcall_vector.store(vector, Ordering::Relaxed);
    }
}

/// Whether a timer is due. If it is, it is set to `next`, unless somebody else has set it in between.
#[inline]
fn fires(timer: &AtomicU64, now: Nanos, next: impl FnOnce(u64) -> u64) -> bool {
    let due = timer.load(Ordering::Relaxed);
    due <= now.0 && timer.compare_exchange(due, next(due), Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// What time brought to a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// VIRQ_TIMER is to be sent.
    pub timer: bool,
    /// Its SCHEDOP_poll is over.
    pub poll: bool,
    /// Nobody has set one of the domain's watchdogs anew.
    pub watchdog: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn vcpu() -> Vcpu<Fake> {
        let vcpu = Vcpu::new(VcpuId(0), ());
        vcpu.clear_hold(hold::OFFLINE);
        vcpu
    }

    const TIMER: Due = Due { timer: true, poll: false, watchdog: false };

    #[test]
    fn a_single_shot_fires_once() {
        let vcpu = vcpu();
        vcpu.set_singleshot(Some(Nanos(100)));
        assert_eq!(vcpu.take_due(Nanos(99)), Due::default());
        assert_eq!(vcpu.next_deadline(), Some(Nanos(100)));
        assert_eq!(vcpu.take_due(Nanos(100)), TIMER);
        assert_eq!(vcpu.take_due(Nanos(200)), Due::default());
        assert_eq!(vcpu.next_deadline(), None);
    }

    #[test]
    fn missed_periods_are_one_tick_and_the_next_is_on_time() {
        let vcpu = vcpu();
        vcpu.set_periodic(Nanos(1000), Nanos(10));
        assert_eq!(vcpu.next_deadline(), Some(Nanos(1010)));
        assert_eq!(vcpu.take_due(Nanos(1055)), TIMER);
        assert_eq!(vcpu.next_deadline(), Some(Nanos(1060)));
        vcpu.set_periodic(Nanos(0), Nanos(0));
        assert_eq!(vcpu.take_due(Nanos(u64::MAX - 1)), Due::default());
    }

    #[test]
    fn a_polls_time_ends_with_the_poll() {
        let vcpu = vcpu();
        vcpu.start_poll(3, Some(Nanos(50)));
        assert!(!vcpu.is_runnable() && vcpu.polls(3) && !vcpu.polls(4));
        assert_eq!(vcpu.next_deadline(), Some(Nanos(50)));
        assert!(vcpu.rouse(), "an interrupt ends it");
        assert_eq!(vcpu.next_deadline(), None);
        vcpu.start_poll(0, None);
        assert!(vcpu.polls(4), "several ports, or none: any event ends it");
        vcpu.end_poll();
        assert!(vcpu.is_runnable());
    }

    #[test]
    fn what_holds_it_for_other_reasons_stays() {
        let vcpu = vcpu();
        vcpu.set_hold(hold::BLOCKED | hold::PAUSED);
        assert!(!vcpu.rouse());
        assert_eq!(vcpu.holds(), hold::PAUSED);
        assert!(vcpu.clear_hold(hold::PAUSED));
    }
}
