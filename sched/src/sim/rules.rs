//! What holds at every step, whatever is simulated.

use super::machine::Machine;
use crate::{CpuId, CpuSet, Decision, DomainKey, Nanos, Scheduler, VcpuKey, VcpuState};
use alloc::vec::Vec;

/// The rules, and what must be known to judge by them.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    ratelimit: Nanos,
    /// Domains whose vCPUs may have to wait beside an idle CPU.
    capped: Vec<DomainKey>,
}

impl Rules {
    pub const fn new(ratelimit: Nanos) -> Rules {
        Rules { ratelimit, capped: Vec::new() }
    }

    pub fn set_capped(&mut self, domain: DomainKey, capped: bool) {
        self.capped.retain(|&other| other != domain);
        if capped {
            self.capped.push(domain);
        }
    }

    /// Judges a decision before it takes effect. `by_itself`: what ran has just blocked or yielded.
    pub fn check_switch<S: Scheduler>(
        &self,
        machine: &Machine<S>,
        cpu: CpuId,
        before: Option<VcpuKey>,
        decision: &Decision,
        by_itself: bool,
    ) {
        let now = machine.now;
        if let Some(next) = decision.next {
            let vcpu = &machine.vcpus[next.index()];
            assert!(vcpu.affinity.hard.contains(cpu), "{next:?} may not run on {cpu} at {now}");
            let elsewhere = machine
                .cpus
                .iter()
                .enumerate()
                .find(|(other, record)| *other != cpu.index() && record.running == Some(next));
            assert!(elsewhere.is_none(), "{next:?} runs on two CPUs at {now}: {cpu} and {elsewhere:?}");
        }
        if let Some(before) = before.filter(|_| before != decision.next && !by_itself) {
            let vcpu = &machine.vcpus[before.index()];
            let must_leave = vcpu.paused || !vcpu.affinity.hard.contains(cpu) || self.capped.contains(&vcpu.domain);
            let ran = now - machine.cpus[cpu.index()].began;
            assert!(must_leave || ran >= self.ratelimit, "{before:?} is preempted on {cpu} at {now}, after {ran}");
        }
    }

    /// Judges what there is between two moments.
    pub fn check_rest<S: Scheduler>(&self, machine: &Machine<S>) {
        let due = |(index, cpu): (usize, &super::machine::Cpu)| (cpu.pending > 0).then_some(CpuId(index as u32));
        // A CPU that has been tickled is about to see to whatever it was tickled for.
        let due: CpuSet = machine.cpus.iter().enumerate().filter_map(due).collect();
        let idle = |(index, cpu): (usize, &super::machine::Cpu)| {
            (cpu.running.is_none() && cpu.pending == 0).then_some(CpuId(index as u32))
        };
        let idle: CpuSet = machine.cpus.iter().enumerate().filter_map(idle).collect();
        for (index, vcpu) in machine.vcpus.iter().enumerate() {
            let key = VcpuKey(index as u32);
            let state = machine.scheduler.figures(key).expect("a vCPU that was inserted").state;
            let runs = machine.cpus.iter().position(|cpu| cpu.running == Some(key)).map(|cpu| CpuId(cpu as u32));
            match state {
                VcpuState::Running(cpu) => assert_eq!(runs, Some(cpu), "{key:?} at {}", machine.now),
                VcpuState::Runnable => {
                    let held_back = self.capped.contains(&vcpu.domain) || due.intersects(&vcpu.affinity.hard);
                    let free = idle & vcpu.affinity.hard;
                    assert!(held_back || free.is_empty(), "{key:?} waits while {free:?} idle at {}", machine.now);
                }
                VcpuState::Blocked | VcpuState::Paused | VcpuState::Offline => {
                    let stays = runs.is_some_and(|cpu| !due.contains(cpu));
                    assert!(!stays, "{key:?} rests, and is on {runs:?} at {}", machine.now);
                }
            }
        }
    }
}
