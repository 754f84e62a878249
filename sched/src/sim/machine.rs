//! CPUs, vCPUs and the events between them.

use super::rules::Rules;
use super::workload::{Pattern, Player, Then};
use crate::{
    Admission, Affinity, CpuId, CpuSet, Decision, DomainKey, Figures, Nanos, Rest, Scheduler, VcpuKey, Weight,
};
use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;

/// What a simulation starts from.
#[derive(Clone, Debug)]
pub struct Setup {
    pub cpus: usize,
    /// How long a tickled CPU takes to notice.
    pub interrupt: Nanos,
    /// What the scheduler promises not to interrupt: see [`Rules`].
    pub ratelimit: Nanos,
    pub seed: u64,
}

/// A vCPU to be simulated.
#[derive(Clone, Debug)]
pub struct Guest {
    pub pattern: Pattern,
    pub weight: u32,
    /// Guests of one domain share its cap.
    pub domain: u32,
    pub affinity: Affinity,
    /// When it first wants to run.
    pub start: Nanos,
}

impl Guest {
    /// Runs anywhere, from the beginning, in a domain without a cap.
    pub const fn new(pattern: Pattern, weight: u32) -> Guest {
        Guest { pattern, weight, domain: 0, affinity: Affinity::ANY, start: Nanos::ZERO }
    }
}

/// What a vCPU has been through.
#[derive(Clone, Debug)]
pub struct Vcpu {
    pub affinity: Affinity,
    player: Player,
    /// How much longer it runs, and then what.
    left: Nanos,
    then: Then,
    pub(super) domain: DomainKey,
    /// Since when it has wanted to run and has not.
    pub waits: Option<Nanos>,
    pub ran: Nanos,
    /// From each wake-up until it ran.
    pub latencies: Vec<Nanos>,
    woken: bool,
    /// Neither wakes nor waits, whatever its pattern says.
    pub(super) paused: bool,
    /// The longest that it has wanted to run and has not.
    pub longest_wait: Nanos,
    /// How often it was moved to another CPU.
    pub migrations: u64,
    last: Option<CpuId>,
}

#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Cpu {
    pub running: Option<VcpuKey>,
    /// When what runs began to, or went on at the last decision.
    pub began: Nanos,
    pub accounted: Nanos,
    /// Events of an earlier decision no longer count.
    decisions: u64,
    /// How many interrupts are on their way.
    pub pending: u32,
    pub idle_since: Option<Nanos>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The CPU notices that it was tickled.
    Interrupt(CpuId),
    /// The end of a time slice, or of what the vCPU had to do.
    Timer(CpuId, u64),
    Arrival(VcpuKey),
    Replenish,
}

/// The machine.
#[derive(Debug)]
pub struct Machine<S> {
    pub scheduler: S,
    pub now: Nanos,
    pub vcpus: Vec<Vcpu>,
    pub(super) cpus: Vec<Cpu>,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    sequence: u64,
    interrupt: Nanos,
    replenish: Option<Nanos>,
    pub(super) rules: Rules,
    pub decisions: u64,
    pub interrupts: u64,
}

impl<S: Scheduler> Machine<S> {
    /// A machine with nothing but these vCPUs, which have been inserted and wake as they are told.
    pub fn new(mut scheduler: S, setup: &Setup, guests: &[Guest]) -> Machine<S> {
        let domains = guests.iter().map(|guest| guest.domain + 1).max().unwrap_or(1);
        scheduler.reserve(guests.len(), domains as usize).expect("memory");
        let mut machine = Machine {
            scheduler,
            now: Nanos::ZERO,
            vcpus: Vec::new(),
            cpus: (0..setup.cpus).map(|_| Cpu { idle_since: Some(Nanos::ZERO), ..Cpu::default() }).collect(),
            events: BinaryHeap::new(),
            sequence: 0,
            interrupt: setup.interrupt,
            replenish: None,
            rules: Rules::new(setup.ratelimit),
            decisions: 0,
            interrupts: 0,
        };
        for (index, guest) in guests.iter().enumerate() {
            let key = VcpuKey(index as u32);
            let domain = DomainKey(guest.domain);
            let weight = Weight::new(guest.weight).expect("a weight");
            let admission = Admission { domain, weight, affinity: guest.affinity };
            machine.scheduler.insert(key, admission, Nanos::ZERO).expect("room");
            let mut player = Player::new(guest.pattern.clone(), setup.seed ^ (index as u64) << 32);
            let (left, then) = player.next();
            machine.vcpus.push(Vcpu {
                affinity: guest.affinity,
                player,
                left,
                then,
                domain,
                waits: None,
                ran: Nanos::ZERO,
                latencies: Vec::new(),
                woken: false,
                paused: false,
                longest_wait: Nanos::ZERO,
                migrations: 0,
                last: None,
            });
            machine.push(guest.start, Event::Arrival(key));
        }
        machine
    }

    pub fn set_cap(&mut self, domain: u32, cap: u32) {
        self.rules.set_capped(DomainKey(domain), cap > 0);
        let tickle = self.scheduler.set_cap(DomainKey(domain), cap, self.now);
        self.tickle(tickle);
    }

    pub fn set_weight(&mut self, vcpu: u32, weight: u32) {
        self.scheduler.set_weight(VcpuKey(vcpu), Weight::new(weight).expect("a weight"), self.now);
    }

    pub fn set_affinity(&mut self, vcpu: u32, affinity: Affinity) {
        let tickle = self.scheduler.set_affinity(VcpuKey(vcpu), affinity, self.now).expect("an affinity");
        self.vcpus[vcpu as usize].affinity = affinity;
        self.tickle(tickle);
    }

    /// Stops a vCPU, from another CPU.
    pub fn pause(&mut self, vcpu: u32) {
        self.hold(vcpu);
        let tickle = self.scheduler.rest(VcpuKey(vcpu), Rest::Paused, self.now);
        self.tickle(tickle);
    }

    fn hold(&mut self, vcpu: u32) {
        let vcpu = &mut self.vcpus[vcpu as usize];
        (vcpu.paused, vcpu.waits) = (true, None);
    }

    /// Lets it go on, or wakes it if it was not stopped but asleep.
    pub fn unpause(&mut self, vcpu: u32) {
        self.vcpus[vcpu as usize].paused = false;
        self.arrive(VcpuKey(vcpu));
    }

    /// Removes a vCPU and puts another in its place, which wakes at once.
    pub fn replace(&mut self, vcpu: u32, guest: &Guest) {
        let key = VcpuKey(vcpu);
        self.hold(vcpu);
        let tickle = self.scheduler.remove(key, self.now);
        // Before its key is used again the CPU that it was on has to decide.
        for cpu in tickle.iter() {
            self.decide(cpu);
        }
        let domain = self.vcpus[vcpu as usize].domain;
        let weight = Weight::new(guest.weight).expect("a weight");
        let admission = Admission { domain, weight, affinity: guest.affinity };
        self.scheduler.insert(key, admission, self.now).expect("room");
        self.vcpus[vcpu as usize].affinity = guest.affinity;
        self.unpause(vcpu);
    }

    pub fn figures(&self, vcpu: u32) -> Figures {
        self.scheduler.figures(VcpuKey(vcpu)).expect("a vCPU that was inserted")
    }

    /// Runs until `end`.
    pub fn run_until(&mut self, end: Nanos) {
        while let Some(&Reverse((at, _, event))) = self.events.peek() {
            if at > end {
                break;
            }
            self.events.pop();
            if at > self.now {
                self.check();
            }
            self.now = at;
            match event {
                Event::Interrupt(cpu) => {
                    self.cpus[cpu.index()].pending -= 1;
                    self.interrupts += 1;
                    self.decide(cpu);
                }
                Event::Timer(cpu, decision) if decision == self.cpus[cpu.index()].decisions => self.decide(cpu),
                Event::Timer(..) => {}
                Event::Arrival(vcpu) => self.arrive(vcpu),
                Event::Replenish if self.replenish == Some(at) => {
                    self.replenish = None;
                    let (tickle, next) = self.scheduler.replenish(self.now);
                    self.tickle(tickle);
                    self.replenish_at(next);
                }
                Event::Replenish => {}
            }
        }
        self.check();
        self.now = end;
        (0..self.cpus.len()).for_each(|cpu| self.account(CpuId(cpu as u32)));
        for vcpu in &mut self.vcpus {
            if let Some(since) = vcpu.waits {
                vcpu.longest_wait = vcpu.longest_wait.max(end - since);
            }
        }
    }

    /// The CPUs' worth of time that each vCPU had.
    pub fn shares(&self) -> Vec<f64> {
        self.vcpus.iter().map(|vcpu| vcpu.ran.0 as f64 / self.now.0 as f64).collect()
    }

    fn push(&mut self, at: Nanos, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn tickle(&mut self, cpus: CpuSet) {
        for cpu in cpus.iter() {
            self.cpus[cpu.index()].pending += 1;
            self.push(self.now + self.interrupt, Event::Interrupt(cpu));
        }
    }

    fn replenish_at(&mut self, at: Option<Nanos>) {
        if let Some(at) = at
            && self.replenish.is_none_or(|before| at < before)
        {
            self.replenish = Some(at);
            self.push(at.max(self.now), Event::Replenish);
            self.replenish = Some(at.max(self.now));
        }
    }

    fn arrive(&mut self, key: VcpuKey) {
        let runs = self.cpus.iter().any(|cpu| cpu.running == Some(key));
        let vcpu = &mut self.vcpus[key.index()];
        if vcpu.paused {
            return;
        }
        // A wake-up may come too late, or twice.
        if !runs && vcpu.waits.is_none() {
            vcpu.waits = Some(self.now);
            vcpu.woken = true;
        }
        let tickle = self.scheduler.wake(key, self.now);
        self.tickle(tickle);
    }

    /// Counts the time that the CPU has spent on what it runs.
    fn account(&mut self, cpu: CpuId) {
        let record = &mut self.cpus[cpu.index()];
        let span = self.now - record.accounted;
        record.accounted = self.now;
        if let Some(key) = record.running {
            let vcpu = &mut self.vcpus[key.index()];
            vcpu.ran += span;
            if vcpu.left != Nanos::MAX {
                vcpu.left = vcpu.left - span;
            }
        }
    }

    fn decide(&mut self, cpu: CpuId) {
        self.account(cpu);
        let before = self.cpus[cpu.index()].running;
        let (mut rests, mut yields) = (false, false);
        if let Some(key) = before
            && self.vcpus[key.index()].left == Nanos::ZERO
            && !self.vcpus[key.index()].paused
        {
            let vcpu = &mut self.vcpus[key.index()];
            let then = vcpu.then;
            (vcpu.left, vcpu.then) = vcpu.player.next();
            match then {
                Then::Sleep(sleep) => {
                    rests = true;
                    let tickle = self.scheduler.rest(key, Rest::Blocked, self.now);
                    assert_eq!(tickle, CpuSet::of(cpu), "what blocks must make its own CPU decide and no other");
                    self.push(self.now + sleep, Event::Arrival(key));
                }
                Then::Yield => {
                    yields = true;
                    self.scheduler.yield_now(cpu);
                }
            }
        }
        let decision = self.scheduler.decide(cpu, self.now);
        self.decisions += 1;
        assert!(!decision.tickle.contains(cpu), "a CPU has just decided and is told to");
        assert!(decision.until.is_none_or(|until| until > self.now), "{cpu} would decide for ever: {decision:?}");
        self.rules.check_switch(self, cpu, before, &decision, rests || yields);
        self.switch(cpu, before, &decision, rests);
        self.tickle(decision.tickle);
        self.replenish_at(decision.replenish);
    }

    fn switch(&mut self, cpu: CpuId, before: Option<VcpuKey>, decision: &Decision, rests: bool) {
        let now = self.now;
        if before != decision.next {
            if let Some(before) = before.filter(|before| !rests && !self.vcpus[before.index()].paused) {
                self.vcpus[before.index()].waits = Some(now);
            }
            self.cpus[cpu.index()].began = now;
        }
        let record = &mut self.cpus[cpu.index()];
        record.running = decision.next;
        record.decisions += 1;
        record.idle_since = if decision.next.is_none() { record.idle_since.or(Some(now)) } else { None };
        let number = record.decisions;
        if let Some(next) = decision.next {
            let vcpu = &mut self.vcpus[next.index()];
            if let Some(since) = vcpu.waits.take() {
                vcpu.longest_wait = vcpu.longest_wait.max(now - since);
                if core::mem::take(&mut vcpu.woken) {
                    vcpu.latencies.push(now - since);
                }
            }
            if vcpu.last.replace(cpu).is_some_and(|last| last != cpu) {
                vcpu.migrations += 1;
            }
            if vcpu.left != Nanos::MAX {
                let done = now + vcpu.left;
                self.push(done, Event::Timer(cpu, number));
            }
        }
        if let Some(until) = decision.until {
            self.push(until, Event::Timer(cpu, number));
        }
    }

    /// Everything that happened at one moment has happened.
    fn check(&self) {
        self.rules.check_rest(self);
    }
}
