//! Whom one that wants to run gets its CPU from: an idle CPU first, then the one that runs what has the least credit.

use super::queue::RunQueue;
use super::tree::Row;
use super::unit::Place;
use crate::{CpuId, CpuSet, Nanos};

impl RunQueue {
    /// Gives the vCPU, which is nowhere, to an idle CPU of `among`: where it ran last if that is as good as any. The CPU must decide.
    ///
    /// It belongs to that CPU from now on. So two that wake at the same time never count on the same CPU, and the CPU need not search.
    pub fn hand(&mut self, row: Row, among: CpuSet) -> CpuSet {
        let among = self.idle & among;
        let last = self.unit(row).and_then(|unit| unit.last).filter(|&last| among.contains(last));
        // Two threads of a core are slower than two cores.
        let has_core = |&cpu: &CpuId| self.record(cpu).is_some_and(|record| record.siblings.is_subset(&self.idle));
        let best = last.filter(has_core).or_else(|| among.iter().find(has_core)).or(last).or_else(|| among.first());
        let Some(cpu) = best else { return CpuSet::EMPTY };
        let Some(record) = self.record_mut(cpu) else { return CpuSet::EMPTY };
        record.handed = Some(row);
        self.idle.remove(cpu);
        if let Some(unit) = self.unit_mut(row) {
            unit.place = Place::Handed(cpu);
        }
        CpuSet::of(cpu)
    }

    /// The vCPU, which is nowhere, waits. One that has `just` come may take a CPU from what runs there; what has just lost one
    /// does not make others lose theirs.
    pub fn wait(&mut self, row: Row, now: Nanos, just_came: bool) -> CpuSet {
        let Some(&unit) = self.unit(row) else { return CpuSet::EMPTY };
        self.waiting.insert(row, unit.level, unit.sets());
        if let Some(unit) = self.unit_mut(row) {
            unit.place = Place::Waiting;
        }
        let mine = self.cpus & unit.affinity.hard;
        let victim = if just_came {
            let preferred = self.victim(row, mine & unit.affinity.preferred(), now);
            preferred.or_else(|| self.victim(row, mine, now))
        } else {
            self.victim(row, mine & self.tickless, now)
        };
        let Some((cpu, free_at)) = victim else { return self.start_slices(mine, now) };
        self.claimed.insert(cpu);
        // If it decides by then anyhow, it need not be told.
        let until = self.record(cpu).and_then(|record| record.until);
        if free_at > now && until.is_some_and(|until| until <= free_at) { CpuSet::EMPTY } else { CpuSet::of(cpu) }
    }

    /// Makes a CPU decide that has no time slice, and runs what has less credit than the first of those who wait for `cpu`.
    pub fn share_out(&mut self, cpu: CpuId, now: Nanos) -> CpuSet {
        let Some((row, _)) = self.waiting.first_on(cpu) else { return CpuSet::EMPTY };
        let mine = self.unit(row).map_or(CpuSet::EMPTY, |unit| unit.affinity.hard);
        let Some((cpu, _)) = self.victim(row, mine & self.tickless, now) else { return CpuSet::EMPTY };
        self.claimed.insert(cpu);
        CpuSet::of(cpu)
    }

    /// The CPU of `among` to take from what runs there, and from when on the rate limit lets it: the earliest, and of those the one with the
    /// least credit, if that is less than the vCPU's own.
    fn victim(&self, row: Row, among: CpuSet, now: Nanos) -> Option<(CpuId, Nanos)> {
        let level = self.unit(row)?.level;
        let open = (self.cpus & among).without(self.claimed).without(self.idle);
        let candidates = open.iter().filter_map(|cpu| {
            let record = self.record(cpu)?;
            let occupant = record.current.or(record.handed)?;
            let (unit, there) = (self.unit(occupant)?, self.level_at(occupant, now));
            let free_at = match unit.resting {
                // It is about to leave.
                Some(_) => now,
                None if there >= level => return None,
                // What was handed over will have just begun.
                None if record.current.is_none() => now.saturating_add(self.params.ratelimit),
                None => now.max(unit.since.saturating_add(self.params.ratelimit)),
            };
            Some((free_at, there, cpu))
        });
        candidates.min().map(|(free_at, _, cpu)| (cpu, free_at))
    }

    /// Where someone waits, at least one of the CPUs that it waits for must decide in time.
    fn start_slices(&mut self, mine: CpuSet, now: Nanos) -> CpuSet {
        let busy = mine.without(self.idle);
        if !busy.is_subset(&self.tickless) || busy.intersects(&self.claimed) {
            return CpuSet::EMPTY;
        }
        let level = |cpu: &CpuId| {
            let row = self.record(*cpu).and_then(|record| record.current);
            row.map(|row| self.level_at(row, now))
        };
        let Some(cpu) = busy.iter().min_by_key(level) else { return CpuSet::EMPTY };
        self.claimed.insert(cpu);
        CpuSet::of(cpu)
    }
}
