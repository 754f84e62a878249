//! The Null scheduler: each vCPU has a CPU of its own. No timer, no credits, no queue: the least latency there is.

use crate::{
    Admission, Affinity, CpuId, CpuSet, Decision, DomainKey, Figures, Nanos, OutOfMemory, Refused, Rest, Scheduler,
    VcpuKey, VcpuState, Weight,
};
use alloc::vec::Vec;

#[derive(Copy, Clone, Debug)]
struct Unit {
    admission: Admission,
    /// The CPU that it owns. Without one it waits for somebody to leave.
    home: Option<CpuId>,
    /// Where it was last decided to run, until that CPU decides otherwise. It is not always its home: it may just have moved.
    on: Option<CpuId>,
    /// Nothing while it wants to run.
    resting: Option<Rest>,
    ran: Nanos,
    since: Nanos,
}

#[derive(Copy, Clone, Debug, Default)]
struct Cpu {
    owner: Option<VcpuKey>,
    /// What the last decision was.
    current: Option<VcpuKey>,
}

/// One vCPU a CPU. More vCPUs than CPUs can be inserted: those left over do not run until a CPU is given up.
///
/// All of it is guarded by one lock; a decision is O(1), and only inserting, removing and moving search.
#[derive(Debug)]
pub struct Null {
    units: Vec<Option<Unit>>,
    cpus: Vec<Cpu>,
    /// CPUs that nobody owns.
    free: CpuSet,
}

impl Null {
    pub fn new(cpus: usize) -> Result<Null, OutOfMemory> {
        let mut all = Vec::new();
        all.try_reserve_exact(cpus).map_err(|_| OutOfMemory)?;
        all.resize(cpus, Cpu::default());
        Ok(Null { units: Vec::new(), cpus: all, free: CpuSet::first_of_all(cpus) })
    }

    fn unit(&self, vcpu: VcpuKey) -> Option<&Unit> {
        self.units.get(vcpu.index())?.as_ref()
    }

    fn unit_mut(&mut self, vcpu: VcpuKey) -> Option<&mut Unit> {
        self.units.get_mut(vcpu.index())?.as_mut()
    }

    /// Gives the vCPU a CPU that is free, one that it prefers if it can. The CPU must decide.
    fn settle(&mut self, vcpu: VcpuKey) -> CpuSet {
        let Some(unit) = self.unit(vcpu) else { return CpuSet::EMPTY };
        let affinity = unit.admission.affinity;
        let home = (self.free & affinity.preferred()).first().or_else(|| (self.free & affinity.hard).first());
        let Some((home, cpu)) = home.and_then(|home| Some((home, self.cpus.get_mut(home.index())?))) else {
            return CpuSet::EMPTY;
        };
        cpu.owner = Some(vcpu);
        self.free.remove(home);
        if let Some(unit) = self.unit_mut(vcpu) {
            unit.home = Some(home);
        }
        CpuSet::of(home)
    }

    /// Takes the vCPU's CPU away and gives it to one that waits for it.
    fn unsettle(&mut self, vcpu: VcpuKey) -> CpuSet {
        let Some(home) = self.unit_mut(vcpu).and_then(|unit| unit.home.take()) else { return CpuSet::EMPTY };
        if let Some(cpu) = self.cpus.get_mut(home.index()) {
            cpu.owner = None;
        }
        self.free.insert(home);
        let waits = |unit: &Unit| unit.home.is_none() && unit.admission.affinity.hard.contains(home);
        let mut others = self.units.iter().enumerate().map(|(index, unit)| (VcpuKey(index as u32), unit));
        let heir = others.find(|&(other, unit)| other != vcpu && unit.as_ref().is_some_and(waits));
        match heir.map(|(heir, _)| heir) {
            Some(heir) => self.settle(heir) | CpuSet::of(home),
            None => CpuSet::of(home),
        }
    }

    fn allowed(&self, affinity: Affinity) -> bool {
        affinity.hard.intersects(&CpuSet::first_of_all(self.cpus.len()))
    }
}

impl Scheduler for Null {
    fn reserve(&mut self, vcpus: usize, _domains: usize) -> Result<(), OutOfMemory> {
        let more = vcpus.saturating_sub(self.units.len());
        self.units.try_reserve(more).map_err(|_| OutOfMemory)?;
        if more > 0 {
            self.units.resize(vcpus, None);
        }
        Ok(())
    }

    fn insert(&mut self, vcpu: VcpuKey, admission: Admission, _now: Nanos) -> Result<(), Refused> {
        if !self.allowed(admission.affinity) {
            return Err(Refused::NoCpu);
        }
        let place = self.units.get_mut(vcpu.index()).filter(|place| place.is_none()).ok_or(Refused::BadKey)?;
        let resting = Some(Rest::Offline);
        *place = Some(Unit { admission, home: None, on: None, resting, ran: Nanos::ZERO, since: Nanos::ZERO });
        // It rests, so that its CPU has nothing new to decide.
        self.settle(vcpu);
        Ok(())
    }

    fn remove(&mut self, vcpu: VcpuKey, _now: Nanos) -> CpuSet {
        let tickle = self.unsettle(vcpu);
        let on = self.unit(vcpu).and_then(|unit| unit.on);
        if let Some(cpu) = on.and_then(|on| self.cpus.get_mut(on.index())) {
            cpu.current = None;
        }
        if let Some(place) = self.units.get_mut(vcpu.index()) {
            *place = None;
        }
        tickle
    }

    fn wake(&mut self, vcpu: VcpuKey, _now: Nanos) -> CpuSet {
        let Some(unit) = self.unit_mut(vcpu) else { return CpuSet::EMPTY };
        match unit.resting.take() {
            Some(_) => unit.home.map_or(CpuSet::EMPTY, CpuSet::of),
            None => CpuSet::EMPTY,
        }
    }

    fn rest(&mut self, vcpu: VcpuKey, why: Rest, _now: Nanos) -> CpuSet {
        let Some(unit) = self.unit_mut(vcpu) else { return CpuSet::EMPTY };
        match unit.resting.replace(why) {
            None => unit.home.map_or(CpuSet::EMPTY, CpuSet::of),
            Some(_) => CpuSet::EMPTY,
        }
    }

    fn yield_now(&mut self, _cpu: CpuId) {}

    fn decide(&mut self, cpu: CpuId, now: Nanos) -> Decision {
        let Some(&Cpu { owner, current }) = self.cpus.get(cpu.index()) else { return Decision::default() };
        let mut tickle = CpuSet::EMPTY;
        if let Some(unit) = current.and_then(|current| self.unit_mut(current)) {
            unit.ran = unit.ran.saturating_add(now.since(unit.since));
            unit.on = None;
            // One that has moved could not run at its new home until now.
            if let Some(home) = unit.home.filter(|&home| home != cpu && unit.resting.is_none()) {
                tickle.insert(home);
            }
        }
        let next =
            owner.filter(|&owner| self.unit(owner).is_some_and(|unit| unit.resting.is_none() && unit.on.is_none()));
        if let Some(unit) = next.and_then(|next| self.unit_mut(next)) {
            unit.since = now;
            unit.on = Some(cpu);
        }
        if let Some(cpu) = self.cpus.get_mut(cpu.index()) {
            cpu.current = next;
        }
        Decision { next, tickle, ..Decision::default() }
    }

    fn replenish(&mut self, _now: Nanos) -> (CpuSet, Option<Nanos>) {
        (CpuSet::EMPTY, None)
    }

    /// Nobody shares a CPU, so that a weight is only remembered.
    fn set_weight(&mut self, vcpu: VcpuKey, weight: Weight, _now: Nanos) {
        if let Some(unit) = self.unit_mut(vcpu) {
            unit.admission.weight = weight;
        }
    }

    /// This scheduler has no caps, as in Xen.
    fn set_cap(&mut self, _domain: DomainKey, _cap: u32, _now: Nanos) -> CpuSet {
        CpuSet::EMPTY
    }

    fn set_affinity(&mut self, vcpu: VcpuKey, affinity: Affinity, _now: Nanos) -> Result<CpuSet, Refused> {
        if !self.allowed(affinity) {
            return Err(Refused::NoCpu);
        }
        let unit = self.unit_mut(vcpu).ok_or(Refused::BadKey)?;
        unit.admission.affinity = affinity;
        let stays = unit.home.is_some_and(|home| affinity.hard.contains(home));
        Ok(if stays { CpuSet::EMPTY } else { self.unsettle(vcpu) | self.settle(vcpu) })
    }

    fn figures(&self, vcpu: VcpuKey) -> Option<Figures> {
        let unit = self.unit(vcpu)?;
        let state = match unit.resting {
            Some(rest) => rest.into(),
            None => unit.on.map_or(VcpuState::Runnable, VcpuState::Running),
        };
        let Admission { weight, affinity, .. } = unit.admission;
        Some(Figures { state, cpu: unit.on.or(unit.home), ran: unit.ran, weight, affinity })
    }

    fn running(&self, cpu: CpuId) -> Option<VcpuKey> {
        self.cpus.get(cpu.index())?.current.filter(|&current| self.unit(current).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: VcpuKey = VcpuKey(0);
    const B: VcpuKey = VcpuKey(1);
    const C: VcpuKey = VcpuKey(2);
    const NOW: Nanos = Nanos(7);

    fn admission(affinity: Affinity) -> Admission {
        Admission { domain: DomainKey(0), weight: Weight::DEFAULT, affinity }
    }

    fn null(cpus: usize, vcpus: u32) -> Null {
        let mut null = Null::new(cpus).unwrap();
        null.reserve(4, 1).unwrap();
        (0..vcpus).for_each(|vcpu| null.insert(VcpuKey(vcpu), admission(Affinity::ANY), NOW).unwrap());
        null
    }

    #[test]
    fn each_vcpu_has_a_cpu_of_its_own_and_no_timer() {
        let mut null = null(2, 2);
        assert_eq!(null.wake(A, NOW), CpuSet::of(CpuId(0)));
        assert_eq!(null.wake(B, NOW), CpuSet::of(CpuId(1)));
        assert_eq!(null.wake(B, NOW), CpuSet::EMPTY);
        assert_eq!(null.decide(CpuId(0), NOW), Decision { next: Some(A), ..Decision::default() });
        assert_eq!(null.decide(CpuId(1), NOW), Decision { next: Some(B), ..Decision::default() });
        assert_eq!(null.rest(A, Rest::Blocked, NOW), CpuSet::of(CpuId(0)));
        assert_eq!(null.decide(CpuId(0), Nanos(17)).next, None);
        assert_eq!(null.figures(A).map(|figures| (figures.ran, figures.state)), Some((Nanos(10), VcpuState::Blocked)));
    }

    #[test]
    fn one_vcpu_too_many_waits_until_another_leaves() {
        let mut null = null(2, 3);
        [A, B, C].into_iter().for_each(|vcpu| _ = null.wake(vcpu, NOW));
        assert_eq!(null.figures(C).map(|figures| (figures.state, figures.cpu)), Some((VcpuState::Runnable, None)));
        assert_eq!(null.remove(A, NOW), CpuSet::of(CpuId(0)));
        assert_eq!(null.decide(CpuId(0), NOW).next, Some(C));
        assert_eq!(null.insert(A, admission(Affinity::ANY), NOW), Ok(()));
        assert_eq!(null.figures(A).and_then(|figures| figures.cpu), None);
    }

    #[test]
    fn a_vcpu_moves_only_where_its_affinity_wants_it() {
        let mut null = null(3, 2);
        [A, B].into_iter().for_each(|vcpu| _ = null.wake(vcpu, NOW));
        null.decide(CpuId(0), NOW);
        assert_eq!(null.set_affinity(A, Affinity::pinned(CpuId(0)), NOW), Ok(CpuSet::EMPTY));
        let both = [CpuId(0), CpuId(2)].into_iter().collect();
        assert_eq!(null.set_affinity(A, Affinity::pinned(CpuId(2)), NOW), Ok(both));
        // It is still on its old CPU, which has to let go of it first.
        assert_eq!(null.decide(CpuId(2), NOW).next, None);
        assert_eq!(null.decide(CpuId(0), NOW), Decision { tickle: CpuSet::of(CpuId(2)), ..Decision::default() });
        assert_eq!(null.decide(CpuId(2), NOW).next, Some(A));
        assert_eq!(null.set_affinity(A, Affinity::pinned(CpuId(3)), NOW), Err(Refused::NoCpu));
    }

    #[test]
    fn a_bad_key_is_refused_or_ignored() {
        let mut null = null(1, 1);
        assert_eq!(null.insert(A, admission(Affinity::ANY), NOW), Err(Refused::BadKey));
        assert_eq!(null.insert(VcpuKey(4), admission(Affinity::ANY), NOW), Err(Refused::BadKey));
        assert_eq!(null.wake(C, NOW), CpuSet::EMPTY);
        assert_eq!(null.remove(C, NOW), CpuSet::EMPTY);
        assert_eq!(null.set_affinity(C, Affinity::ANY, NOW), Err(Refused::BadKey));
        assert_eq!(null.decide(CpuId(9), NOW), Decision::default());
    }
}
