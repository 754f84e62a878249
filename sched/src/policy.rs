//! Which scheduler a machine runs: a closed set, chosen at boot.

use crate::{
    Admission, Affinity, CpuId, CpuPlace, CpuSet, Credit2, Decision, DomainKey, Figures, Nanos, Null, OutOfMemory,
    Params, Refused, Rest, Scheduler, VcpuKey, Weight,
};

/// The schedulers by the words of `sched=`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Credit2,
    Null,
}

impl Kind {
    pub fn parse(word: &str) -> Option<Kind> {
        match word {
            "credit2" => Some(Kind::Credit2),
            "null" => Some(Kind::Null),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Kind::Credit2 => "credit2",
            Kind::Null => "null",
        }
    }
}

/// What the command line asks for.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub kind: Kind,
    /// Credit2's.
    pub params: Params,
}

/// The scheduler in use.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a machine")]
pub enum Policy {
    Credit2(Credit2),
    Null(Null),
}

impl Policy {
    /// For CPUs `0..places.len()`.
    pub fn new(wanted: Wanted, places: &[CpuPlace]) -> Result<Policy, OutOfMemory> {
        Ok(match wanted.kind {
            Kind::Credit2 => Policy::Credit2(Credit2::new(places, wanted.params)?),
            Kind::Null => Policy::Null(Null::new(places.len())?),
        })
    }

    /// How long what runs is protected; a scheduler that never preempts has no such limit.
    pub const fn ratelimit(&self) -> Option<Nanos> {
        match self {
            Policy::Credit2(scheduler) => Some(scheduler.params().ratelimit),
            Policy::Null(_) => None,
        }
    }

    pub fn set_ratelimit(&mut self, limit: Nanos) {
        if let Policy::Credit2(scheduler) = self {
            scheduler.set_ratelimit(limit);
        }
    }

    pub const fn kind(&self) -> Kind {
        match self {
            Policy::Credit2(_) => Kind::Credit2,
            Policy::Null(_) => Kind::Null,
        }
    }
}

macro_rules! to_the_one_in_use {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        $(
            #[inline]
            fn $name(&mut self, $($argument: $kind),*) $(-> $result)? {
                match self {
                    Policy::Credit2(scheduler) => scheduler.$name($($argument),*),
                    Policy::Null(scheduler) => scheduler.$name($($argument),*),
                }
            }
        )*
    };
}

impl Scheduler for Policy {
    to_the_one_in_use! {
        reserve(vcpus: usize, domains: usize) -> Result<(), OutOfMemory>;
        insert(vcpu: VcpuKey, admission: Admission, now: Nanos) -> Result<(), Refused>;
        remove(vcpu: VcpuKey, now: Nanos) -> CpuSet;
        wake(vcpu: VcpuKey, now: Nanos) -> CpuSet;
        rest(vcpu: VcpuKey, why: Rest, now: Nanos) -> CpuSet;
        yield_now(cpu: CpuId);
        decide(cpu: CpuId, now: Nanos) -> Decision;
        replenish(now: Nanos) -> (CpuSet, Option<Nanos>);
        set_weight(vcpu: VcpuKey, weight: Weight, now: Nanos);
        set_cap(domain: DomainKey, cap: u32, now: Nanos) -> CpuSet;
        set_affinity(vcpu: VcpuKey, affinity: Affinity, now: Nanos) -> Result<CpuSet, Refused>;
    }

    fn figures(&self, vcpu: VcpuKey) -> Option<Figures> {
        match self {
            Policy::Credit2(scheduler) => scheduler.figures(vcpu),
            Policy::Null(scheduler) => scheduler.figures(vcpu),
        }
    }

    fn running(&self, cpu: CpuId) -> Option<VcpuKey> {
        match self {
            Policy::Credit2(scheduler) => scheduler.running(cpu),
            Policy::Null(scheduler) => scheduler.running(cpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheduler_is_known_by_its_name() {
        for kind in [Kind::Credit2, Kind::Null] {
            assert_eq!(Kind::parse(kind.name()), Some(kind));
            let wanted = Wanted { kind, ..Wanted::default() };
            assert_eq!(Policy::new(wanted, &[CpuPlace::default()]).map(|policy| policy.kind()), Ok(kind));
        }
        assert_eq!(Kind::parse("credit"), None);
    }
}
