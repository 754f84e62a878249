//! A vCPU as a run queue holds it.

use super::credit::{self, Level};
use super::tree::Sets;
use crate::{Admission, Affinity, CpuId, DomainKey, Nanos, Rest, VcpuKey, VcpuState, Weight};

/// Where a vCPU is: in one place, since this is one value.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it rests, or is on its way.
    Off,
    /// In the tree of those who wait.
    Waiting,
    /// Given to an idle CPU, which has been tickled to take it.
    Handed(CpuId),
    /// What the last decision on this CPU was. It may have been told to rest since; it is here until the CPU decides again.
    Current(CpuId),
    /// Its domain has used up its budget.
    Parked,
}

#[derive(Copy, Clone, Debug)]
pub(super) struct Unit {
    pub key: VcpuKey,
    pub domain: DomainKey,
    pub weight: Weight,
    pub affinity: Affinity,
    pub place: Place,
    /// Nothing while it wants to run.
    pub resting: Option<Rest>,
    pub level: Level,
    /// It has never been woken, and has no level yet.
    pub is_new: bool,
    /// What was too little to lower the level.
    pub fraction: u32,
    pub yielded: bool,
    /// Where it ran last.
    pub last: Option<CpuId>,
    /// When it began to run, for the rate limit.
    pub since: Nanos,
    /// Up to when it has paid for running.
    pub charged: Nanos,
    /// What it has left of what it drew from its domain's budget, in nanoseconds; below 0 it has run for too long. Nothing without a cap.
    pub allotment: Option<i64>,
    pub ran: Nanos,
}

impl Unit {
    pub fn new(key: VcpuKey, admission: Admission, now: Nanos) -> Unit {
        let Admission { domain, weight, affinity } = admission;
        Unit {
            key,
            domain,
            weight,
            affinity,
            place: Place::Off,
            resting: Some(Rest::Offline),
            level: 0,
            is_new: true,
            fraction: 0,
            yielded: false,
            last: None,
            since: now,
            charged: now,
            allotment: None,
            ran: Nanos::ZERO,
        }
    }

    pub fn sets(&self) -> Sets {
        Sets { hard: self.affinity.hard, preferred: self.affinity.preferred() }
    }

    pub fn state(&self) -> VcpuState {
        match (self.resting, self.place) {
            (Some(rest), _) => rest.into(),
            (None, Place::Current(cpu)) => VcpuState::Running(cpu),
            (None, _) => VcpuState::Runnable,
        }
    }

    /// Its level as it is now, though it has not paid yet.
    pub fn level_at(&self, now: Nanos) -> Level {
        match self.place {
            Place::Current(_) => {
                let (burnt, _) = credit::burn(now.since(self.charged), self.weight, self.fraction);
                self.level.saturating_sub(burnt)
            }
            _ => self.level,
        }
    }

    /// Pays for having run up to `now`.
    pub fn charge(&mut self, now: Nanos) {
        if let Place::Current(_) = self.place {
            let span = now.since(self.charged);
            let (burnt, fraction) = credit::burn(span, self.weight, self.fraction);
            self.level = self.level.saturating_sub(burnt);
            self.fraction = fraction;
            self.ran = self.ran.saturating_add(span);
            let spent = i64::try_from(span.0).unwrap_or(i64::MAX);
            self.allotment = self.allotment.map(|left| left.saturating_sub(spent));
            self.charged = self.charged.max(now);
        }
    }
}
