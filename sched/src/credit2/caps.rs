//! Caps: how much of the machine a domain may use, though there were more.

use crate::{DomainKey, Nanos, OutOfMemory, TimerQueue, TimerSlot, VcpuKey};
use alloc::vec::Vec;

/// What a domain may still run in this period.
#[derive(Copy, Clone, Debug, Default)]
struct Budget {
    /// What each period brings, in nanoseconds; 0 is no limit.
    quota: i64,
    /// What is left of it, not counting what vCPUs have drawn. Below 0 is debt: someone ran on beyond the end of what it had.
    left: i64,
    /// When the period began that `left` is of.
    period: Nanos,
    /// How many vCPUs share it.
    vcpus: u32,
    /// The first of those that wait for it.
    parked: Option<VcpuKey>,
}

/// A vCPU's place in the list of those that wait for their domain's budget.
#[derive(Copy, Clone, Debug, Default)]
struct Link {
    listed: bool,
    next: Option<VcpuKey>,
}

/// What a vCPU gets of its domain's budget.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Draw {
    Unlimited,
    Granted(i64),
    Empty,
}

/// Below this a vCPU does not share its domain's budget with the others: it would spend it on switching.
const LEAST: i64 = 1_000_000;

/// The budgets of all domains. It has a lock of its own, taken inside that of a run queue, and only for domains with a cap.
#[derive(Debug)]
pub(super) struct Caps {
    budgets: Vec<Budget>,
    links: Vec<Link>,
    /// When the budget of a domain comes for which a vCPU waits: a slot is a domain.
    due: TimerQueue,
    period: Nanos,
}

impl Caps {
    pub const fn new(period: Nanos) -> Caps {
        Caps { budgets: Vec::new(), links: Vec::new(), due: TimerQueue::new(), period }
    }

    pub fn reserve(&mut self, vcpus: usize, domains: usize) -> Result<(), OutOfMemory> {
        let (more_vcpus, more_domains) =
            (vcpus.saturating_sub(self.links.len()), domains.saturating_sub(self.budgets.len()));
        self.due.reserve(domains)?;
        self.links.try_reserve(more_vcpus).map_err(|_| OutOfMemory)?;
        self.budgets.try_reserve(more_domains).map_err(|_| OutOfMemory)?;
        if more_vcpus > 0 {
            self.links.resize(vcpus, Link::default());
        }
        if more_domains > 0 {
            self.budgets.resize(domains, Budget::default());
        }
        Ok(())
    }

    pub fn knows(&self, domain: DomainKey) -> bool {
        domain.index() < self.budgets.len()
    }

    pub fn enter(&mut self, domain: DomainKey) {
        if let Some(budget) = self.budgets.get_mut(domain.index()) {
            budget.vcpus = budget.vcpus.saturating_add(1);
        }
    }

    pub fn leave(&mut self, domain: DomainKey, vcpu: VcpuKey) {
        let mut parked = self.budgets.get_mut(domain.index()).and_then(|budget| {
            budget.vcpus = budget.vcpus.saturating_sub(1);
            budget.parked
        });
        let Some(&Link { listed: true, next }) = self.links.get(vcpu.index()) else { return };
        self.unlist(vcpu);
        if parked == Some(vcpu) {
            if let Some(budget) = self.budgets.get_mut(domain.index()) {
                budget.parked = next;
            }
            return;
        }
        while let Some(link) = parked.and_then(|at| self.links.get_mut(at.index())) {
            if link.next == Some(vcpu) {
                link.next = next;
                return;
            }
            parked = link.next;
        }
    }

    /// Changes a cap, in percent of a CPU. The new budget starts full.
    pub fn set(&mut self, domain: DomainKey, cap: u32, now: Nanos) {
        let quota = i64::try_from(self.period.0.saturating_mul(u64::from(cap)) / 100).unwrap_or(i64::MAX);
        if let Some(budget) = self.budgets.get_mut(domain.index()) {
            (budget.quota, budget.left, budget.period) = (quota, quota, now);
        }
    }

    #[inline]
    pub fn limits(&self, domain: DomainKey) -> bool {
        self.budgets.get(domain.index()).is_some_and(|budget| budget.quota > 0)
    }

    /// Takes a part of what is left, for one vCPU.
    pub fn draw(&mut self, domain: DomainKey, now: Nanos) -> Draw {
        let period = self.period;
        let Some(budget) = self.budgets.get_mut(domain.index()).filter(|budget| budget.quota > 0) else {
            return Draw::Unlimited;
        };
        budget.refill(now, period);
        if budget.left <= 0 {
            return Draw::Empty;
        }
        let share = budget.quota.checked_div(i64::from(budget.vcpus)).unwrap_or(budget.quota);
        let granted = share.max(LEAST).min(budget.left);
        budget.left = budget.left.saturating_sub(granted);
        Draw::Granted(granted)
    }

    /// Gives back what a vCPU has not used, or makes up for what it has used too much.
    pub fn settle(&mut self, domain: DomainKey, rest: i64) {
        if let Some(budget) = self.budgets.get_mut(domain.index()) {
            budget.left = budget.left.saturating_add(rest).min(budget.quota);
        }
    }

    /// A vCPU waits for its domain's next budget.
    pub fn park(&mut self, domain: DomainKey, vcpu: VcpuKey) {
        let period = self.period;
        let (Some(budget), Some(link)) = (self.budgets.get_mut(domain.index()), self.links.get_mut(vcpu.index()))
        else {
            return;
        };
        // One that was parked, rested and is parked again is still in the list.
        if !link.listed {
            *link = Link { listed: true, next: budget.parked.replace(vcpu) };
        }
        self.due.set(TimerSlot(domain.0), budget.period.saturating_add(period));
    }

    /// When the first budget comes that someone waits for.
    pub fn next_due(&self) -> Option<Nanos> {
        self.due.next()
    }

    /// A domain whose vCPUs can go on. Call until there is none.
    pub fn pop_due(&mut self, now: Nanos) -> Option<DomainKey> {
        let period = self.period;
        while let Some(TimerSlot(slot)) = self.due.pop_due(now) {
            let Some(budget) = self.budgets.get_mut(slot as usize) else { continue };
            budget.refill(now, period);
            if budget.left > 0 {
                return Some(DomainKey(slot));
            }
            // Still in debt.
            self.due.set(TimerSlot(slot), budget.period.saturating_add(period));
        }
        None
    }

    /// Takes one that waits out of the list. Call until there is none.
    pub fn pop_parked(&mut self, domain: DomainKey) -> Option<VcpuKey> {
        let budget = self.budgets.get_mut(domain.index())?;
        let vcpu = budget.parked?;
        budget.parked = self.links.get(vcpu.index()).and_then(|link| link.next);
        if budget.parked.is_none() {
            self.due.cancel(TimerSlot(domain.0));
        }
        self.unlist(vcpu);
        Some(vcpu)
    }

    fn unlist(&mut self, vcpu: VcpuKey) {
        if let Some(link) = self.links.get_mut(vcpu.index()) {
            *link = Link::default();
        }
    }
}

impl Budget {
    /// What is left over of a period is lost; debt is not.
    fn refill(&mut self, now: Nanos, period: Nanos) {
        let periods = now.since(self.period).0.checked_div(period.0).unwrap_or(0);
        if periods > 0 {
            let came = self.quota.saturating_mul(i64::try_from(periods).unwrap_or(i64::MAX));
            self.left = self.left.saturating_add(came).min(self.quota);
            self.period = self.period.saturating_add(Nanos(periods.saturating_mul(period.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: DomainKey = DomainKey(0);
    const PERIOD: Nanos = Nanos::from_millis(10);

    fn caps(cap: u32, vcpus: u32) -> Caps {
        let mut caps = Caps::new(PERIOD);
        caps.reserve(4, 1).unwrap();
        (0..vcpus).for_each(|_| caps.enter(D));
        caps.set(D, cap, Nanos::ZERO);
        caps
    }

    #[test]
    fn a_domain_without_a_cap_is_not_limited() {
        assert_eq!(caps(0, 1).draw(D, Nanos::ZERO), Draw::Unlimited);
    }

    #[test]
    fn vcpus_share_their_domains_budget() {
        let mut caps = caps(50, 2);
        assert_eq!(caps.draw(D, Nanos::ZERO), Draw::Granted(2_500_000));
        assert_eq!(caps.draw(D, Nanos::ZERO), Draw::Granted(2_500_000));
        assert_eq!(caps.draw(D, Nanos::ZERO), Draw::Empty);
        assert_eq!(caps.draw(D, PERIOD), Draw::Granted(2_500_000));
    }

    #[test]
    fn budget_does_not_pile_up_and_debt_does_not_vanish() {
        let mut caps = caps(20, 1);
        assert_eq!(caps.draw(D, Nanos::from_secs(1)), Draw::Granted(2_000_000));
        caps.settle(D, -500_000);
        assert_eq!(caps.draw(D, Nanos::from_secs(1) + PERIOD), Draw::Granted(1_500_000));
    }

    #[test]
    fn the_parked_go_on_when_the_debt_is_paid() {
        let mut caps = caps(10, 2);
        caps.settle(D, -2_500_000);
        [0, 1, 0].into_iter().for_each(|vcpu| caps.park(D, VcpuKey(vcpu)));
        assert_eq!(caps.next_due(), Some(PERIOD));
        assert_eq!(caps.pop_due(PERIOD), None);
        assert_eq!(caps.next_due(), Some(PERIOD + PERIOD));
        assert_eq!(caps.pop_due(PERIOD + PERIOD), Some(D));
        assert_eq!([(); 3].map(|()| caps.pop_parked(D)), [Some(VcpuKey(1)), Some(VcpuKey(0)), None]);
        assert_eq!(caps.next_due(), None);
    }

    #[test]
    fn one_that_leaves_is_no_longer_waited_for() {
        for leaver in 0..3 {
            let mut caps = caps(10, 3);
            (0..3).for_each(|vcpu| caps.park(D, VcpuKey(vcpu)));
            caps.leave(D, VcpuKey(leaver));
            let left: Vec<u32> = core::iter::from_fn(|| caps.pop_parked(D)).map(|vcpu| vcpu.0).collect();
            assert_eq!(left, [2, 1, 0].into_iter().filter(|&vcpu| vcpu != leaver).collect::<Vec<_>>());
        }
    }
}
