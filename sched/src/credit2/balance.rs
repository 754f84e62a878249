//! Moving vCPUs between run queues.
//!
//! Three things move one: it wakes, or is left without a CPU, while a CPU of another queue is idle ([`Credit2::place`]); a CPU has nothing to
//! do and finds it waiting elsewhere ([`Credit2::steal`]); or its queue, where it waits, has been a worse place to be than another
//! ([`Credit2::balance`]). How good a place a queue is, is told by two figures: its average load, where nobody has to wait; and
//! where some have to, how far down the scale of service they have come. If the vCPUs of one queue sink faster than those of another, they have a
//! greater part of the CPUs than their weights entitle them to. So the shares are right for the whole machine and not only within a queue.

use super::credit::{self, Level};
use super::queue::RunQueue;
use super::tree::{Row, Which};
use super::{Credit2, load::Load};
use crate::{CpuId, CpuSet, Nanos, VcpuKey, Weight};

/// How often a queue in which someone waits is compared with the others.
const PERIOD: Nanos = Nanos::from_millis(1);

/// A queue in which nobody has had to wait for so long is not compared by what it was like before.
const FORGET: Nanos = Nanos::from_millis(100);

/// A vCPU moves to where others stand so much running of its own further down.
const WORTH_A_MOVE: Nanos = Nanos::from_millis(1);

/// Of those who wait nobody is owed more than so much running of its own by other queues.
const FORGIVEN: Nanos = Nanos::from_millis(50);

/// How much less loaded, for each CPU, a queue must be to be worth a move.
const MARGIN: Load = Load(Load::ONE.0 / 16);

impl RunQueue {
    /// Where the first of those who wait stands, on a scale common to all queues.
    fn front(&self) -> Option<Level> {
        self.waiting.first(Which::Hard, &CpuSet::ALL).map(|(_, level)| level.saturating_sub(self.shift))
    }
}

impl Credit2 {
    /// Moves a vCPU, which is nowhere, to another queue. What it has been served goes with it. There must be room.
    pub(super) fn transfer(&mut self, vcpu: VcpuKey, target: u32, now: Nanos) {
        let Some((home, row)) = self.home(vcpu).filter(|&(home, _)| home != target) else { return };
        if !self.queue(target).is_some_and(RunQueue::has_room) {
            return;
        }
        let Some(source) = self.queue_mut(home) else { return };
        let shift = source.shift;
        let Some(mut unit) = source.take_out(row, now) else { return };
        let Some(queue) = self.queue_mut(target) else { return };
        unit.level = unit.level.saturating_sub(shift).saturating_add(queue.shift);
        queue.put_in(unit, now);
        if let Some(row) = queue.row(vcpu) {
            let level = queue.fitted(row, now);
            if let Some(unit) = queue.unit_mut(row) {
                unit.level = level;
            }
        }
        if let Some(home) = self.homes.get_mut(vcpu.index()) {
            *home = target;
        }
    }

    /// Finds something to do for a CPU whose own queue has nothing. True if it has been given something.
    pub(super) fn steal(&mut self, cpu: CpuId, now: Nanos) -> bool {
        let here = CpuSet::of(cpu);
        let target = self.queue_of(cpu);
        if !self.queue(target).is_some_and(RunQueue::has_room) {
            return false;
        }
        let others = self.queues.iter().enumerate().filter(|&(index, queue)| {
            index != target as usize && !queue.waiting.is_empty() && queue.waiting.reach().contains(cpu)
        });
        let Some((source, queue)) = others.max_by_key(|(_, queue)| queue.waiting.len()) else { return false };
        let found = queue.waiting.first(Which::Preferred, &here).or_else(|| queue.waiting.first(Which::Hard, &here));
        let Some(vcpu) = found.and_then(|(row, _)| queue.unit(row)).map(|unit| unit.key) else { return false };
        self.take_waiting(source as u32, vcpu, now);
        self.transfer(vcpu, target, now);
        let Some((home, row)) = self.home(vcpu) else { return false };
        self.queue_mut(home).is_some_and(|queue| !queue.hand(row, here).is_empty())
    }

    /// A vCPU begins to wait in a queue. If nobody has for long, the queue is now taken to be as good a place as those where some do.
    pub(super) fn join_contended(&mut self, home: u32, row: Row, now: Nanos) {
        let front = self.front;
        if let Some(queue) = self.queue_mut(home)
            && queue.waiting.is_empty()
            && now.since(queue.contended) > FORGET
            && let Some(level) = queue.unit(row).map(|unit| unit.level)
        {
            queue.shift = level.saturating_sub(front);
            queue.contended = now;
        }
    }

    /// Now and then, a queue in which someone waits is compared with the others before one of its CPUs decides. Returns who else must.
    ///
    /// One vCPU at most is moved. What is pulled here is so far behind that it runs at once, which keeps it from being pulled on.
    #[inline]
    pub(super) fn balance(&mut self, home: u32, cpu: CpuId, now: Nanos) -> CpuSet {
        let Some(queue) = self.queues.get_mut(home as usize) else { return CpuSet::EMPTY };
        if queue.waiting.is_empty() {
            return CpuSet::EMPTY;
        }
        let Some(front) = queue.front() else { return CpuSet::EMPTY };
        queue.contended = now;
        if now.since(queue.balanced) < PERIOD || queue.is_bound(cpu, now) {
            return CpuSet::EMPTY;
        }
        queue.balanced = now;
        self.front = front;
        let found = self.push(home, now).or_else(|| self.pull(home, cpu, front));
        let Some((vcpu, source, target)) = found else { return CpuSet::EMPTY };
        self.take_waiting(source, vcpu, now);
        self.transfer(vcpu, target, now);
        self.place(vcpu, now, false)
    }

    /// One of those who wait here, for the least loaded of the queues in which nobody has to wait.
    fn push(&mut self, home: u32, now: Nanos) -> Option<(VcpuKey, u32, u32)> {
        let queue = self.queues.get_mut(home as usize)?;
        let (load, reach) = (queue.load(now).per_cpu(queue.cpus.len()), queue.waiting.reach());
        let others = self
            .queues
            .iter_mut()
            .enumerate()
            .filter(|(_, other)| other.waiting.is_empty() && other.cpus.intersects(&reach) && other.has_room());
        let loads = others.map(|(index, other)| (other.load(now).per_cpu(other.cpus.len()), index as u32));
        let (_, target) = loads.min().filter(|(there, _)| there.saturating_add(MARGIN) < load)?;
        let there = self.queue(target)?.cpus;
        let (vcpu, ..) = self.candidate(home, &there)?;
        Some((vcpu, home, target))
    }

    /// The one who has been served the least of those who wait in other queues, if it is behind those who wait here.
    fn pull(&mut self, home: u32, cpu: CpuId, front: Level) -> Option<(VcpuKey, u32, u32)> {
        let queue = self.queue(home)?;
        let here = CpuSet::of(cpu);
        if !queue.has_room() {
            return None;
        }
        let others = self
            .queues
            .iter()
            .enumerate()
            .filter(|&(index, other)| index != home as usize && other.waiting.reach().contains(cpu));
        let candidates = others.filter_map(|(index, _)| Some((self.candidate(index as u32, &here)?, index as u32)));
        let ((vcpu, position, weight), source) = candidates.max_by_key(|((_, position, _), _)| *position)?;
        let behind = position.saturating_sub(front);
        // What cannot be made good, because those who wait may go nowhere else, is not kept on the books for ever.
        let forgiven = behind.saturating_sub(credit::burn(FORGIVEN, weight, 0).0).max(0);
        let other = self.queue_mut(source)?;
        other.shift = other.shift.saturating_add(forgiven);
        (behind > credit::burn(WORTH_A_MOVE, weight, 0).0).then_some((vcpu, source, home))
    }

    /// Who would move from a queue to one of these CPUs, where it stands, and its weight.
    fn candidate(&self, source: u32, there: &CpuSet) -> Option<(VcpuKey, Level, Weight)> {
        let queue = self.queue(source)?;
        let found = queue.waiting.first(Which::Preferred, there).or_else(|| queue.waiting.first(Which::Hard, there));
        let (row, level) = found?;
        let unit = queue.unit(row)?;
        Some((unit.key, level.saturating_sub(queue.shift), unit.weight))
    }

    /// Takes one out of the tree of those who wait.
    fn take_waiting(&mut self, home: u32, vcpu: VcpuKey, now: Nanos) {
        if let Some(queue) = self.queue_mut(home)
            && let Some(row) = queue.row(vcpu)
        {
            queue.lift(row, now);
        }
    }
}
