//! Credit2: proportional shares, work-conserving, with caps, on run queues that a few CPUs share.
//!
//! Built from what Xen's documents say of its scheduler of that name, with its figures and its words; the structure is our own:
//!
//! - Who has most credit runs. Running burns credit, the more the less one weighs. When the next to run has none left everyone
//!   gets new credit (`credit.rs`: one addition).
//! - Those who wait are in a tree that knows affinities (`tree.rs`): all that is done to it is O(log n).
//! - Who wakes gets an idle CPU first, one that it prefers if it can, in whatever queue; else it takes the CPU of the one with the least
//!   credit, when the rate limit lets it (`tickle.rs`).
//! - A CPU for which nobody waits has no time slice and takes no timer interrupt.
//! - A domain with a cap has a budget for each period (`caps.rs`).
//! - Queues are balanced by their average load and by how well their vCPUs are served (`balance.rs`).
//!
//! # How a machine holds it
//!
//! [`Credit2`] is all of it in one value, for one lock: that is enough for the simulator and for a few CPUs. What is in it is cut so that a
//! machine with many can give each part its own lock, in this order:
//!
//! 1. a lock for each `RunQueue`, lower number first where two are needed (only when a vCPU moves between them);
//! 2. one lock for the budgets (`Caps`), taken inside a queue's and only for domains with a cap;
//! 3. the rest needs none: which queue a CPU has never changes, which queue a vCPU is in (`homes`) and which CPUs are idle (`idle`) are
//!    hints that are checked under the queue's lock.
//!
//! No lock is held while a CPU is tickled or a guest is entered:
//!
//! - *Wake-up*, on any CPU: take the lock, [`wake`](Scheduler::wake), drop the lock; then each CPU of the answer is told: the own one by its flag,
//!   the others by their flag and an interrupt. A vCPU that was handed to an idle CPU is nobody else's, so that two wake-ups never count on the same one.
//! - *Decision*, on the CPU itself: take the lock, [`decide`](Scheduler::decide), drop the lock; tell the others; set the timer to `until`, and the
//!   timer for budgets to `replenish` if there is one.
//! - *Moving*: a decision takes the vCPU's name only. What ran before may still have its registers in the CPU that it ran on last. That CPU
//!   stores them when it decides for somebody else or for nobody; whoever is to run the vCPU next waits for that, and takes its timers
//!   over from the old CPU's queue. So registers stay where they are as long as a vCPU only sleeps and wakes.

mod balance;
mod caps;
mod credit;
mod decide;
mod load;
mod params;
mod queue;
#[cfg(test)]
mod tests;
mod tickle;
mod tree;
mod unit;

use crate::{
    Admission, Affinity, CpuId, CpuPlace, CpuSet, Decision, DomainKey, Figures, Nanos, OutOfMemory, Refused, Rest,
    Scheduler, VcpuKey, Weight, arrange, siblings,
};
use alloc::vec::Vec;
use caps::Caps;
use credit::Weights;
pub use load::Load;
pub use params::Params;
use queue::RunQueue;
use tree::Row;
use unit::{Place, Unit};

/// No queue.
const NOWHERE: u32 = u32::MAX;

/// See the [module](self).
#[derive(Debug)]
pub struct Credit2 {
    params: Params,
    queues: Vec<RunQueue>,
    /// The queue of each CPU.
    queue_of: Vec<u32>,
    /// The queue of each vCPU.
    homes: Vec<u32>,
    caps: Caps,
    weights: Weights,
    /// CPUs that have nothing to do, in all queues.
    idle: CpuSet,
    cpus: CpuSet,
    /// Where the first of those stands who have to wait, in the queue that was looked at last: see [`balance`].
    front: credit::Level,
}

impl Credit2 {
    /// For CPUs `0..places.len()`, of which there is at least one.
    pub fn new(places: &[CpuPlace], params: Params) -> Result<Credit2, OutOfMemory> {
        let sets = arrange(places, params.arrangement, params.most_cpus)?;
        let mut queues = Vec::new();
        let mut queue_of = Vec::new();
        queues.try_reserve_exact(sets.len()).map_err(|_| OutOfMemory)?;
        queue_of.try_reserve_exact(places.len()).map_err(|_| OutOfMemory)?;
        queue_of.resize(places.len(), NOWHERE);
        for (index, &cpus) in sets.iter().enumerate() {
            for cpu in cpus.iter() {
                if let Some(queue) = queue_of.get_mut(cpu.index()) {
                    *queue = index as u32;
                }
            }
            queues.push(RunQueue::new(cpus, params, |cpu| siblings(places, cpu))?);
        }
        let cpus = CpuSet::first_of_all(places.len());
        let caps = Caps::new(params.cap_period);
        Ok(Credit2 {
            params,
            queues,
            queue_of,
            homes: Vec::new(),
            caps,
            weights: Weights::default(),
            idle: cpus,
            cpus,
            front: 0,
        })
    }

    pub const fn params(&self) -> &Params {
        &self.params
    }

    /// `xl sched-credit2 -s -r`: whatever begins to run from now on is protected for so long.
    pub fn set_ratelimit(&mut self, ratelimit: Nanos) {
        self.params.ratelimit = ratelimit;
        self.queues.iter_mut().for_each(|queue| queue.params.ratelimit = ratelimit);
    }

    /// The CPUs of each run queue and its average load, for those who look.
    pub fn loads(&mut self, now: Nanos) -> impl Iterator<Item = (CpuSet, Load)> + '_ {
        self.queues.iter_mut().map(move |queue| (queue.cpus, queue.load(now)))
    }

    fn queue(&self, index: u32) -> Option<&RunQueue> {
        self.queues.get(index as usize)
    }

    fn queue_mut(&mut self, index: u32) -> Option<&mut RunQueue> {
        self.queues.get_mut(index as usize)
    }

    fn queue_of(&self, cpu: CpuId) -> u32 {
        self.queue_of.get(cpu.index()).copied().unwrap_or(NOWHERE)
    }

    /// The queue that a vCPU is in, and its row there.
    fn home(&self, vcpu: VcpuKey) -> Option<(u32, Row)> {
        let &home = self.homes.get(vcpu.index())?;
        Some((home, self.queue(home)?.row(vcpu)?))
    }

    fn unit(&self, vcpu: VcpuKey) -> Option<&Unit> {
        let (home, row) = self.home(vcpu)?;
        self.queue(home)?.unit(row)
    }

    /// Tells the others which CPUs of a queue are idle.
    fn publish_idle(&mut self, queue: u32) {
        if let Some(queue) = self.queues.get(queue as usize) {
            self.idle = self.idle.without(queue.cpus) | queue.idle;
        }
    }

    /// Tells all queues what a full credit is.
    fn publish_full(&mut self) {
        let full = self.weights.full();
        self.queues.iter_mut().for_each(|queue| queue.full = full);
    }

    /// Finds a CPU for a vCPU that wants to run and is nowhere.
    fn place(&mut self, vcpu: VcpuKey, now: Nanos, just_came: bool) -> CpuSet {
        let Some((home, affinity)) = self.home(vcpu).and_then(|(home, _)| Some((home, self.unit(vcpu)?.affinity)))
        else {
            return CpuSet::EMPTY;
        };
        for wanted in [affinity.preferred(), affinity.hard] {
            let Some(target) = self.idle_queue(home, wanted) else { continue };
            self.transfer(vcpu, target, now);
            let Some((home, row)) = self.home(vcpu) else { break };
            let tickle = self.queue_mut(home).map_or(CpuSet::EMPTY, |queue| queue.hand(row, wanted));
            self.publish_idle(home);
            return tickle;
        }
        if self.queue(home).is_some_and(|queue| !queue.cpus.intersects(&affinity.hard)) {
            self.move_where_allowed(vcpu, affinity, now);
        }
        let Some((home, row)) = self.home(vcpu) else { return CpuSet::EMPTY };
        let Some(queue) = self.queue_mut(home) else { return CpuSet::EMPTY };
        if just_came {
            let level = queue.fitted(row, now);
            if let Some(unit) = queue.unit_mut(row) {
                unit.level = level;
            }
        }
        self.join_contended(home, row, now);
        self.queue_mut(home).map_or(CpuSet::EMPTY, |queue| queue.wait(row, now, just_came))
    }

    /// A queue with an idle CPU of those `wanted`: this one if it can be.
    fn idle_queue(&self, home: u32, wanted: CpuSet) -> Option<u32> {
        let idle = self.idle & wanted;
        if self.queue(home)?.cpus.intersects(&idle) {
            return Some(home);
        }
        let queues = idle.iter().map(|cpu| self.queue_of(cpu));
        queues.into_iter().find(|&index| self.queue(index).is_some_and(RunQueue::has_room))
    }

    /// Its affinity has been changed: the vCPU goes to the least busy queue that it may use.
    fn move_where_allowed(&mut self, vcpu: VcpuKey, affinity: Affinity, now: Nanos) {
        let Some(target) = self.least_busy(affinity, now) else { return };
        // Room was made when the affinity was set, but others may have come since.
        if self.queue_mut(target).is_some_and(|queue| queue.make_room().is_ok()) {
            self.transfer(vcpu, target, now);
        }
    }

    /// The queue with the least average load for each CPU, among those with CPUs that the vCPU prefers.
    fn least_busy(&mut self, affinity: Affinity, now: Nanos) -> Option<u32> {
        let preferred = affinity.preferred() & self.cpus;
        let wanted = if preferred.is_empty() { affinity.hard } else { preferred };
        let queues = self.queues.iter_mut().enumerate().filter(|(_, queue)| queue.cpus.intersects(&wanted));
        let loads = queues.map(|(index, queue)| {
            let cpus = queue.cpus.len();
            let each = |count: usize| count.checked_div(cpus).unwrap_or(0);
            (
                each(queue.wanting),
                queue.load(now).per_cpu(cpus),
                queue.members().saturating_mul(CpuSet::MAX).checked_div(cpus),
                index as u32,
            )
        });
        loads.min().map(|(.., index)| index)
    }
}

impl Scheduler for Credit2 {
    fn reserve(&mut self, vcpus: usize, domains: usize) -> Result<(), OutOfMemory> {
        self.caps.reserve(vcpus, domains)?;
        let more = vcpus.saturating_sub(self.homes.len());
        self.homes.try_reserve(more).map_err(|_| OutOfMemory)?;
        // Balanced queues hold about as many each; one that needs more room gets it when a vCPU is inserted or its affinity is set.
        let each = vcpus.saturating_mul(2).checked_div(self.queues.len()).unwrap_or(0).saturating_add(8).min(vcpus);
        for queue in &mut self.queues {
            queue.reserve_keys(vcpus)?;
            queue.reserve_units(each)?;
        }
        if more > 0 {
            self.homes.resize(vcpus, NOWHERE);
        }
        Ok(())
    }

    fn insert(&mut self, vcpu: VcpuKey, admission: Admission, now: Nanos) -> Result<(), Refused> {
        if self.homes.get(vcpu.index()) != Some(&NOWHERE) || !self.caps.knows(admission.domain) {
            return Err(Refused::BadKey);
        }
        let target = self.least_busy(admission.affinity, now).ok_or(Refused::NoCpu)?;
        let queue = self.queue_mut(target).ok_or(Refused::NoCpu)?;
        queue.make_room()?;
        queue.put_in(Unit::new(vcpu, admission, now), now);
        self.caps.enter(admission.domain);
        self.weights.add(admission.weight);
        self.publish_full();
        if let Some(home) = self.homes.get_mut(vcpu.index()) {
            *home = target;
        }
        Ok(())
    }

    fn remove(&mut self, vcpu: VcpuKey, now: Nanos) -> CpuSet {
        let Some((home, row)) = self.home(vcpu) else { return CpuSet::EMPTY };
        let Some(queue) = self.queue_mut(home) else { return CpuSet::EMPTY };
        let tickle = queue.lift(row, now);
        if let Some(unit) = queue.take_out(row, now) {
            self.caps.leave(unit.domain, vcpu);
            self.weights.remove(unit.weight);
        }
        self.publish_full();
        if let Some(home) = self.homes.get_mut(vcpu.index()) {
            *home = NOWHERE;
        }
        self.publish_idle(home);
        tickle
    }

    fn wake(&mut self, vcpu: VcpuKey, now: Nanos) -> CpuSet {
        let Some((home, row)) = self.home(vcpu) else { return CpuSet::EMPTY };
        let is_new = self.queue_mut(home).is_some_and(|queue| queue.wake(row, now));
        if is_new { self.place(vcpu, now, true) } else { CpuSet::EMPTY }
    }

    fn rest(&mut self, vcpu: VcpuKey, why: Rest, now: Nanos) -> CpuSet {
        let Some((home, row)) = self.home(vcpu) else { return CpuSet::EMPTY };
        let tickle = self.queue_mut(home).map_or(CpuSet::EMPTY, |queue| queue.rest(row, why, now));
        self.publish_idle(home);
        tickle
    }

    fn yield_now(&mut self, cpu: CpuId) {
        let Some(queue) = self.queue_mut(self.queue_of(cpu)) else { return };
        let current = queue.record(cpu).and_then(|record| record.current);
        if let Some(unit) = current.and_then(|row| queue.unit_mut(row)) {
            unit.yielded = true;
        }
    }

    fn decide(&mut self, cpu: CpuId, now: Nanos) -> Decision {
        let home = self.queue_of(cpu);
        let mut tickle = self.balance(home, cpu, now);
        let Some(queue) = self.queues.get_mut(home as usize) else { return Decision::default() };
        let mut choice = queue.decide(cpu, now, &mut self.caps);
        let left = choice.left.and_then(|row| queue.unit(row)).map(|unit| unit.key);
        // What is found elsewhere may turn out to be out of budget; then there is one less to find.
        while choice.next.is_none() && self.steal(cpu, now) {
            let Some(queue) = self.queues.get_mut(home as usize) else { break };
            let parked = choice.parked;
            choice = queue.decide(cpu, now, &mut self.caps);
            choice.parked |= parked;
        }
        if self.idle.contains(cpu) == choice.next.is_some() {
            self.publish_idle(home);
        }
        if let Some(left) = left {
            let displaced = self.unit(left).is_some_and(|unit| !unit.affinity.hard.contains(cpu));
            tickle |= self.place(left, now, displaced);
        }
        let replenish = if choice.parked { self.caps.next_due() } else { None };
        let Some(queue) = self.queues.get_mut(home as usize) else { return Decision::default() };
        tickle |= queue.share_out(cpu, now);
        tickle.remove(cpu);
        let next = choice.next.and_then(|row| queue.unit(row)).map(|unit| unit.key);
        Decision { next, until: choice.until, tickle, replenish }
    }

    fn replenish(&mut self, now: Nanos) -> (CpuSet, Option<Nanos>) {
        let mut tickle = CpuSet::EMPTY;
        while let Some(domain) = self.caps.pop_due(now) {
            tickle |= self.unpark(domain, now);
        }
        (tickle, self.caps.next_due())
    }

    fn set_weight(&mut self, vcpu: VcpuKey, weight: Weight, now: Nanos) {
        if let Some((home, row)) = self.home(vcpu)
            && let Some(queue) = self.queue_mut(home)
            && let Some(old) = queue.set_weight(row, weight, now)
        {
            self.weights.remove(old);
            self.weights.add(weight);
            self.publish_full();
        }
    }

    fn set_cap(&mut self, domain: DomainKey, cap: u32, now: Nanos) -> CpuSet {
        self.caps.set(domain, cap, now);
        let capped = |cpu: &CpuId| {
            let vcpu = self.running(*cpu);
            vcpu.and_then(|vcpu| self.unit(vcpu)).is_some_and(|unit| unit.domain == domain)
        };
        let running: CpuSet = self.cpus.iter().filter(capped).collect();
        running | self.unpark(domain, now)
    }

    fn set_affinity(&mut self, vcpu: VcpuKey, affinity: Affinity, now: Nanos) -> Result<CpuSet, Refused> {
        let (home, row) = self.home(vcpu).ok_or(Refused::BadKey)?;
        if !affinity.hard.intersects(&self.cpus) {
            return Err(Refused::NoCpu);
        }
        if self.queue(home).is_some_and(|queue| !queue.cpus.intersects(&affinity.hard)) {
            let target = self.least_busy(affinity, now).ok_or(Refused::NoCpu)?;
            self.queue_mut(target).ok_or(Refused::NoCpu)?.make_room()?;
        }
        let Some(queue) = self.queue_mut(home) else { return Err(Refused::BadKey) };
        let Some(unit) = queue.unit_mut(row) else { return Err(Refused::BadKey) };
        unit.affinity = affinity;
        let tickle = match unit.place {
            Place::Waiting | Place::Handed(_) => {
                let freed = queue.lift(row, now);
                self.publish_idle(home);
                freed | self.place(vcpu, now, true)
            }
            Place::Current(cpu) if !affinity.hard.contains(cpu) => CpuSet::of(cpu),
            Place::Current(_) | Place::Off | Place::Parked => CpuSet::EMPTY,
        };
        Ok(tickle)
    }

    fn figures(&self, vcpu: VcpuKey) -> Option<Figures> {
        let unit = self.unit(vcpu)?;
        let &Unit { last, ran, weight, affinity, .. } = unit;
        Some(Figures { state: unit.state(), cpu: last, ran, weight, affinity })
    }

    fn running(&self, cpu: CpuId) -> Option<VcpuKey> {
        let queue = self.queue(self.queue_of(cpu))?;
        queue.unit(queue.record(cpu)?.current?).map(|unit| unit.key)
    }
}

impl Credit2 {
    /// Those of the domain who wait for its budget go on.
    fn unpark(&mut self, domain: DomainKey, now: Nanos) -> CpuSet {
        let mut tickle = CpuSet::EMPTY;
        while let Some(vcpu) = self.caps.pop_parked(domain) {
            let Some((home, row)) = self.home(vcpu) else { continue };
            let unit = self.queue_mut(home).and_then(|queue| queue.unit_mut(row));
            // It may have been told to rest since.
            if let Some(unit) = unit.filter(|unit| unit.place == Place::Parked) {
                unit.place = Place::Off;
                tickle |= self.place(vcpu, now, true);
            }
        }
        tickle
    }
}
