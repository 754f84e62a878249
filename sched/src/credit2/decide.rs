//! Who runs next on a CPU, and for how long.

use super::caps::{Caps, Draw};
use super::credit;
use super::queue::RunQueue;
use super::tree::{Row, Which};
use super::unit::Place;
use crate::{CpuId, CpuSet, Nanos};

/// No time slice is longer.
const LONGEST_SLICE: Nanos = Nanos::from_millis(10);

/// One who prefers this CPU goes before one who does not if it has less credit by no more than so much time of its own.
const PREFERENCE: Nanos = Nanos::from_micros(500);

/// Whoever runs is ahead of the first of those who wait by no more than so much time of its own.
const MOST_AHEAD: Nanos = Nanos::from_millis(20);

/// What was decided.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Choice {
    pub next: Option<Row>,
    pub until: Option<Nanos>,
    /// What ran before and still wants to: it is nowhere, and is to be placed.
    pub left: Option<Row>,
    /// Someone was parked.
    pub parked: bool,
}

impl RunQueue {
    pub fn decide(&mut self, cpu: CpuId, now: Nanos, caps: &mut Caps) -> Choice {
        self.claimed.remove(cpu);
        if let Some(row) = self.goes_on_alone(cpu, now, caps) {
            return Choice { next: Some(row), ..Choice::default() };
        }
        let mut choice = Choice::default();
        let Some(record) = self.record_mut(cpu) else { return choice };
        let (current, handed) = (record.current.take(), record.handed.take());

        // A CPU is handed something only while it is idle, so that it has one of the two at most.
        let stays = match handed {
            Some(row) => self.in_budget(row, now, caps, &mut choice).then_some(row),
            None => current.filter(|&row| self.can_stay(row, cpu, now, caps, &mut choice)),
        };
        let fresh = handed.is_some();
        let next = match stays {
            Some(row) if fresh || self.is_protected(row, now) => Some(row),
            Some(row) => {
                let level = self.unit(row).map_or(0, |unit| unit.level);
                let yielded = self.unit(row).is_some_and(|unit| unit.yielded);
                match self.first_for(cpu, now, caps, &mut choice) {
                    Some((other, better)) if yielded || better > level => {
                        self.leave(row);
                        choice.left = Some(row);
                        Some(other)
                    }
                    _ => Some(row),
                }
            }
            None => self.first_for(cpu, now, caps, &mut choice).map(|(row, _)| row),
        };
        match next {
            Some(row) => self.start(row, cpu, now, &mut choice),
            None => self.set_idle(cpu),
        }
        choice
    }

    /// The usual case on a machine with CPUs enough, and the shortest way through it: what runs wants to go on, and nobody waits.
    fn goes_on_alone(&mut self, cpu: CpuId, now: Nanos, caps: &Caps) -> Option<Row> {
        if !self.waiting.is_empty() {
            return None;
        }
        let row = self.record(cpu)?.current?;
        let unit = self.unit(row)?;
        let may_run = unit.resting.is_none() && unit.affinity.hard.contains(cpu);
        if !may_run || unit.allotment.is_some() || caps.limits(unit.domain) {
            return None;
        }
        self.charge(row, now);
        self.reset(row, None);
        self.unit_mut(row)?.yielded = false;
        self.tickless.insert(cpu);
        self.record_mut(cpu)?.until = None;
        Some(row)
    }

    /// Whether what ran on the CPU may go on; if not, it has left.
    fn can_stay(&mut self, row: Row, cpu: CpuId, now: Nanos, caps: &mut Caps, choice: &mut Choice) -> bool {
        self.charge(row, now);
        let Some(unit) = self.unit_mut(row) else { return false };
        if unit.resting.is_some() {
            let (domain, rest) = (unit.domain, unit.allotment.take());
            if let Some(rest) = rest.filter(|_| caps.limits(domain)) {
                caps.settle(domain, rest);
            }
            self.leave(row);
            return false;
        }
        if !unit.affinity.hard.contains(cpu) {
            self.leave(row);
            choice.left = Some(row);
            return false;
        }
        self.in_budget(row, now, caps, choice)
    }

    /// Whether the vCPU has budget, or gets some; if not, it is parked.
    fn in_budget(&mut self, row: Row, now: Nanos, caps: &mut Caps, choice: &mut Choice) -> bool {
        let Some(unit) = self.unit_mut(row) else { return false };
        if !caps.limits(unit.domain) {
            unit.allotment = None;
            return true;
        }
        match unit.allotment {
            Some(left) if left > 0 => return true,
            rest => caps.settle(unit.domain, rest.unwrap_or(0)),
        }
        unit.allotment = None;
        match caps.draw(unit.domain, now) {
            Draw::Unlimited => true,
            Draw::Granted(time) => {
                unit.allotment = Some(time);
                true
            }
            Draw::Empty => {
                unit.place = Place::Parked;
                unit.yielded = false;
                caps.park(unit.domain, unit.key);
                choice.parked = true;
                false
            }
        }
    }

    /// Whether the CPU's next decision is made already: it was handed something, or the rate limit keeps what runs there.
    pub fn is_bound(&self, cpu: CpuId, now: Nanos) -> bool {
        let Some(record) = self.record(cpu) else { return true };
        let keeps = |row| self.unit(row).is_some_and(|unit| unit.resting.is_none()) && self.is_protected(row, now);
        record.handed.is_some() || record.current.is_some_and(keeps)
    }

    /// The rate limit: what has begun to run runs on for a while, unless it yields.
    fn is_protected(&self, row: Row, now: Nanos) -> bool {
        self.unit(row).is_some_and(|unit| !unit.yielded && now.since(unit.since) < self.params.ratelimit)
    }

    /// The first of those who wait for this CPU, one who prefers it if that costs the others little. It stays in the tree.
    fn first_for(
        &mut self,
        cpu: CpuId,
        now: Nanos,
        caps: &mut Caps,
        choice: &mut Choice,
    ) -> Option<(Row, credit::Level)> {
        loop {
            let (first, level) = self.waiting.first_on(cpu)?;
            let preferring = self.waiting.first(Which::Preferred, &CpuSet::of(cpu)).filter(|&(row, less)| {
                let grace = self.unit(row).map_or(0, |unit| credit::burn(PREFERENCE, unit.weight, 0).0);
                less.saturating_add(grace) >= level
            });
            let (row, level) = preferring.unwrap_or((first, level));
            if self.in_budget(row, now, caps, choice) {
                return Some((row, level));
            }
            self.waiting.remove(row);
        }
    }

    /// The vCPU runs on this CPU, from now on or further on.
    fn start(&mut self, row: Row, cpu: CpuId, now: Nanos, choice: &mut Choice) {
        let Some(unit) = self.unit_mut(row) else { return };
        let place = core::mem::replace(&mut unit.place, Place::Current(cpu));
        unit.yielded = false;
        unit.last = Some(cpu);
        unit.charged = now;
        if place != Place::Current(cpu) {
            unit.since = now;
        }
        if place == Place::Waiting {
            self.waiting.remove(row);
        }
        choice.next = Some(row);
        self.idle.remove(cpu);
        let waiting = self.waiting.first_on(cpu).map(|(_, level)| level);
        // What it has just lost its place to is not in the tree yet, but will wait for this CPU like the others.
        let left = choice.left.and_then(|left| self.unit(left)).filter(|left| left.affinity.hard.contains(cpu));
        let rival = left.map(|left| left.level).max(waiting);
        self.reset(row, rival);
        choice.until = self.slice_end(row, rival, now);
        if rival.is_none() {
            self.tickless.insert(cpu);
        } else {
            self.tickless.remove(cpu);
        }
        if let Some(record) = self.record_mut(cpu) {
            record.current = Some(row);
            record.until = choice.until;
        }
    }

    /// The next runner has no credit left: it gets a full one. Where someone waits for the same CPU everyone gets as much, by a lower floor;
    /// one that is alone there leaves the others as they are, for it gains nothing that they could have had.
    fn reset(&mut self, row: Row, rival: Option<credit::Level>) {
        let (full, floor) = (self.full, self.floor);
        let Some(unit) = self.unit_mut(row) else { return };
        match rival {
            None if unit.level <= floor => unit.level = floor.saturating_add(full),
            Some(_) if unit.level <= floor => self.floor = unit.level.saturating_sub(full),
            // One that wants more than the CPU can give must not save up what it could not have had.
            rival => {
                let (most, _) = credit::burn(MOST_AHEAD, unit.weight, 0);
                unit.level = unit.level.min(rival.unwrap_or(floor).saturating_add(most));
            }
        }
    }

    /// Until it has as little credit as the first of those who wait for the CPU.
    fn slice_end(&self, row: Row, rival: Option<credit::Level>, now: Nanos) -> Option<Nanos> {
        let unit = self.unit(row)?;
        let slice = rival.map(|rival| {
            let protected = unit.since.saturating_add(self.params.ratelimit);
            let even = credit::time_to_burn(unit.level.saturating_sub(rival), unit.weight);
            let slice = even.clamp(self.least_slice(), LONGEST_SLICE.max(self.params.ratelimit));
            // Where the other is ahead already, it is the rate limit that keeps this one here.
            if even == Nanos::ZERO && now < protected { protected } else { now.saturating_add(slice).max(protected) }
        });
        let budget = unit.allotment.map(|left| now.saturating_add(Nanos(left.max(0).unsigned_abs())));
        match (slice, budget) {
            (Some(slice), Some(budget)) => Some(slice.min(budget)),
            (slice, budget) => slice.or(budget),
        }
    }

    fn leave(&mut self, row: Row) {
        if let Some(unit) = self.unit_mut(row) {
            unit.place = Place::Off;
            unit.yielded = false;
        }
    }
}
