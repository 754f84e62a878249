//! A run queue: the vCPUs that share a few CPUs, and what those CPUs do.

use super::credit::{self, FULL, Level, Weights};
use super::load::{Average, Load};
use super::params::Params;
use super::tree::{Row, WaitTree};
use super::unit::{Place, Unit};
use crate::{CpuId, CpuSet, Nanos, OutOfMemory, Rest, VcpuKey, Weight};
use alloc::vec::Vec;

const NOWHERE: Row = Row::MAX;

/// What one CPU of the queue does.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct CpuRecord {
    pub current: Option<Row>,
    /// What it was given while it was idle, to take at its next decision.
    pub handed: Option<Row>,
    /// When it decides again by itself.
    pub until: Option<Nanos>,
    /// The other threads of its core.
    pub siblings: CpuSet,
}

/// One run queue: **what one lock guards**.
///
/// Two locks are needed only to move a vCPU between queues: the queue with the lower number first. The tree of those who wait, the
/// records of the CPUs and the rows of the vCPUs are all in here, and nothing points out of it. Which queue a vCPU is in can be read
/// without a lock as a hint, and is certain once that queue is locked and knows the vCPU ([`RunQueue::row`]).
#[derive(Debug)]
pub(super) struct RunQueue {
    pub cpus: CpuSet,
    first: CpuId,
    pub params: Params,
    units: Vec<Option<Unit>>,
    vacant: Vec<Row>,
    rows: Vec<Row>,
    pub waiting: WaitTree,
    /// From the first CPU of the queue to the last; those between that are of other queues have a row that nobody uses.
    records: Vec<CpuRecord>,
    /// CPUs that run nothing and have been given nothing.
    pub idle: CpuSet,
    /// Busy CPUs that have been tickled for someone, and are not to be chosen for another before they decide.
    pub claimed: CpuSet,
    /// Busy CPUs for which nobody waited when they decided, so that they have no time slice.
    pub tickless: CpuSet,
    /// Credit is counted from here: see [`Level`].
    pub floor: Level,
    /// What everyone's credit is after a reset: by the heaviest vCPU of the machine, so that it is the same in all queues.
    pub full: Level,
    /// How many members want to run.
    pub wanting: usize,
    load: Average,
    /// What added to the service given here makes it comparable with that of other queues.
    pub shift: Level,
    /// When it was last compared with others.
    pub balanced: Nanos,
    /// When someone last waited here while a CPU decided.
    pub contended: Nanos,
}

impl RunQueue {
    pub fn new(cpus: CpuSet, params: Params, siblings: impl Fn(CpuId) -> CpuSet) -> Result<RunQueue, OutOfMemory> {
        let first = cpus.first().unwrap_or_default();
        let end = cpus.iter().last().map_or(0, |last| last.index().saturating_add(1));
        let mut records = Vec::new();
        records.try_reserve_exact(end.saturating_sub(first.index())).map_err(|_| OutOfMemory)?;
        records.extend((first.0..end as u32).map(CpuId).map(|cpu| {
            let mut siblings = if cpus.contains(cpu) { siblings(cpu) } else { CpuSet::EMPTY };
            siblings.remove(cpu);
            CpuRecord { siblings, ..CpuRecord::default() }
        }));
        Ok(RunQueue {
            cpus,
            first,
            params,
            units: Vec::new(),
            vacant: Vec::new(),
            rows: Vec::new(),
            waiting: WaitTree::new(),
            records,
            idle: cpus,
            claimed: CpuSet::EMPTY,
            tickless: CpuSet::EMPTY,
            floor: 0,
            full: Weights::default().full(),
            wanting: 0,
            load: Average::default(),
            shift: 0,
            balanced: Nanos::ZERO,
            contended: Nanos::ZERO,
        })
    }

    // ---- storage ----

    /// Makes keys `0..keys` usable.
    pub fn reserve_keys(&mut self, keys: usize) -> Result<(), OutOfMemory> {
        let more = keys.saturating_sub(self.rows.len());
        self.rows.try_reserve_exact(more).map_err(|_| OutOfMemory)?;
        if more > 0 {
            self.rows.resize(keys, NOWHERE);
        }
        Ok(())
    }

    /// Makes room for so many vCPUs in all.
    pub fn reserve_units(&mut self, units: usize) -> Result<(), OutOfMemory> {
        let have = self.units.len();
        let more = units.saturating_sub(have);
        self.units.try_reserve_exact(more).map_err(|_| OutOfMemory)?;
        self.vacant.try_reserve_exact(units.saturating_sub(self.vacant.len())).map_err(|_| OutOfMemory)?;
        self.waiting.reserve(units)?;
        for row in (have..units).rev() {
            self.units.push(None);
            self.vacant.push(row as Row);
        }
        Ok(())
    }

    /// Makes room for one more, twice as much as there was if there was none.
    pub fn make_room(&mut self) -> Result<(), OutOfMemory> {
        if self.has_room() { Ok(()) } else { self.reserve_units(self.units.len().saturating_mul(2).max(4)) }
    }

    pub fn members(&self) -> usize {
        self.units.len().saturating_sub(self.vacant.len())
    }

    pub fn has_room(&self) -> bool {
        !self.vacant.is_empty()
    }

    /// Puts a vCPU in, which is in no other queue and is nowhere. There must be room.
    pub fn put_in(&mut self, mut unit: Unit, now: Nanos) {
        let Some(row) = self.vacant.pop() else {
            debug_assert!(false, "a run queue is full");
            return;
        };
        unit.place = Place::Off;
        if unit.resting.is_none() {
            self.want(now, true);
        }
        if let Some(place) = self.rows.get_mut(unit.key.index()) {
            *place = row;
        }
        if let Some(place) = self.units.get_mut(row as usize) {
            *place = Some(unit);
        }
    }

    /// Takes a vCPU out of the queue, and off whatever CPU it had.
    pub fn take_out(&mut self, row: Row, now: Nanos) -> Option<Unit> {
        self.lift(row, now);
        let unit = self.units.get_mut(row as usize)?.take()?;
        self.vacant.push(row);
        if let Some(place) = self.rows.get_mut(unit.key.index()) {
            *place = NOWHERE;
        }
        if unit.resting.is_none() {
            self.want(now, false);
        }
        Some(unit)
    }

    /// The row of a vCPU that is in this queue.
    pub fn row(&self, key: VcpuKey) -> Option<Row> {
        self.rows.get(key.index()).copied().filter(|&row| row != NOWHERE)
    }

    #[inline]
    pub fn unit(&self, row: Row) -> Option<&Unit> {
        self.units.get(row as usize)?.as_ref()
    }

    #[inline]
    pub fn unit_mut(&mut self, row: Row) -> Option<&mut Unit> {
        self.units.get_mut(row as usize)?.as_mut()
    }

    #[inline]
    pub fn record(&self, cpu: CpuId) -> Option<&CpuRecord> {
        self.records.get(cpu.0.wrapping_sub(self.first.0) as usize).filter(|_| self.cpus.contains(cpu))
    }

    #[inline]
    pub fn record_mut(&mut self, cpu: CpuId) -> Option<&mut CpuRecord> {
        self.records.get_mut(cpu.0.wrapping_sub(self.first.0) as usize).filter(|_| self.cpus.contains(cpu))
    }

    /// Returns the weight that it had.
    pub fn set_weight(&mut self, row: Row, weight: Weight, now: Nanos) -> Option<Weight> {
        self.charge(row, now);
        let unit = self.unit_mut(row)?;
        unit.fraction = 0;
        Some(core::mem::replace(&mut unit.weight, weight))
    }

    // ---- what members do ----

    /// One more or less of them wants to run.
    fn want(&mut self, now: Nanos, more: bool) {
        self.load.advance(now, self.wanting, self.params.load_window_shift);
        self.wanting = if more { self.wanting.saturating_add(1) } else { self.wanting.saturating_sub(1) };
    }

    /// The average of how many want to run.
    pub fn load(&mut self, now: Nanos) -> Load {
        self.load.advance(now, self.wanting, self.params.load_window_shift);
        self.load.load()
    }

    /// The vCPU wants to run. False if it did already, or has not yet left the CPU that it ran on and so just goes on.
    pub fn wake(&mut self, row: Row, now: Nanos) -> bool {
        let entry = self.floor.saturating_add(self.full);
        let Some(unit) = self.unit_mut(row) else { return false };
        if unit.resting.take().is_none() {
            return false;
        }
        if core::mem::take(&mut unit.is_new) {
            unit.level = entry;
        }
        let off = unit.place == Place::Off;
        self.want(now, true);
        off
    }

    /// The vCPU does not want to run. It keeps the CPU until that decides.
    pub fn rest(&mut self, row: Row, why: Rest, now: Nanos) -> CpuSet {
        let Some(unit) = self.unit_mut(row) else { return CpuSet::EMPTY };
        let was = unit.resting.replace(why);
        if was.is_some() {
            return CpuSet::EMPTY;
        }
        let place = unit.place;
        self.charge(row, now);
        self.want(now, false);
        match place {
            Place::Current(cpu) => CpuSet::of(cpu),
            _ => self.lift(row, now),
        }
    }

    /// Takes a vCPU from wherever it is, but for the queue itself. Returns the CPU that must decide, if it had one.
    pub fn lift(&mut self, row: Row, now: Nanos) -> CpuSet {
        self.charge(row, now);
        let Some(unit) = self.unit_mut(row) else { return CpuSet::EMPTY };
        let place = core::mem::replace(&mut unit.place, Place::Off);
        match place {
            Place::Waiting => {
                self.waiting.remove(row);
                CpuSet::EMPTY
            }
            Place::Handed(cpu) | Place::Current(cpu) => {
                self.forget(cpu, row);
                CpuSet::of(cpu)
            }
            Place::Off | Place::Parked => CpuSet::EMPTY,
        }
    }

    /// The CPU no longer has the vCPU, and is idle if it has no other.
    fn forget(&mut self, cpu: CpuId, row: Row) {
        let Some(record) = self.record_mut(cpu) else { return };
        record.current = record.current.filter(|&current| current != row);
        record.handed = record.handed.filter(|&handed| handed != row);
        if record.current.is_none() && record.handed.is_none() {
            self.set_idle(cpu);
        }
    }

    pub fn set_idle(&mut self, cpu: CpuId) {
        self.idle.insert(cpu);
        self.tickless.remove(cpu);
        self.claimed.remove(cpu);
    }

    // ---- credit ----

    /// Makes what runs pay for the time up to `now`. While nobody waits for its CPU it does not sink below the floor: what it had was nobody
    /// else's, and whoever comes later must not find it behind all others.
    pub fn charge(&mut self, row: Row, now: Nanos) {
        let floor = self.floor;
        let alone = self.is_alone(row);
        if let Some(unit) = self.unit_mut(row) {
            let before = unit.level;
            unit.charge(now);
            if alone {
                unit.level = unit.level.max(before.min(floor));
            }
        }
    }

    /// The level of a vCPU as it is now, though it has not paid yet.
    pub fn level_at(&self, row: Row, now: Nanos) -> Level {
        let Some(unit) = self.unit(row) else { return self.floor };
        let level = unit.level_at(now);
        if self.is_alone(row) { level.max(unit.level.min(self.floor)) } else { level }
    }

    fn is_alone(&self, row: Row) -> bool {
        self.unit(row).is_some_and(|unit| matches!(unit.place, Place::Current(cpu) if self.tickless.contains(cpu)))
    }

    /// A level at which one that comes from elsewhere, or from sleep, is neither starved by the vCPUs that it meets nor starves them.
    ///
    /// It is measured by the CPU, of those it may use, whose vCPUs have been served the most, for there it gets its turn.
    pub fn fitted(&self, row: Row, now: Nanos) -> Level {
        let Some(unit) = self.unit(row) else { return self.floor };
        let hard = unit.affinity.hard;
        let least = if self.cpus.is_subset(&hard) {
            self.floor
        } else {
            let met = (self.cpus & hard).iter().map(|cpu| self.met_on(cpu, now));
            met.min().unwrap_or(self.floor)
        };
        // Ahead or behind by no more than a full credit, or that much time of its own. A little more: who has just got a full credit is as
        // good, and was first.
        let most = self.full.max(credit::burn(FULL, unit.weight, 0).0);
        let most = most.saturating_add(most / 4);
        unit.level.clamp(least.saturating_sub(most), least.saturating_add(most))
    }

    /// The level of what one would compete with on a CPU: the first that waits for it, or else what runs there.
    fn met_on(&self, cpu: CpuId, now: Nanos) -> Level {
        let first = self.waiting.first_on(cpu).map(|(_, level)| level);
        let occupant = || {
            let record = self.record(cpu)?;
            Some(self.level_at(record.current.or(record.handed)?, now))
        };
        first.or_else(occupant).unwrap_or(self.floor)
    }

    /// No time slice is shorter: the rate limit, or half a millisecond if there is none.
    pub fn least_slice(&self) -> Nanos {
        self.params.ratelimit.max(Nanos::from_micros(500))
    }
}
