//! What a scheduler knows of a vCPU.

use crate::{CpuId, CpuSet, Nanos};

/// A vCPU as a scheduler knows it: a dense number that the caller gives out and takes back.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VcpuKey(pub u32);

impl VcpuKey {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A domain as a scheduler knows it: a dense number that the caller gives out and takes back.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DomainKey(pub u32);

impl DomainKey {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a vCPU is doing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum VcpuState {
    Running(CpuId),
    /// Would run if a CPU were free for it, or if its domain's cap let it.
    Runnable,
    Blocked,
    Paused,
    Offline,
}

impl VcpuState {
    /// Whether it runs or wants to.
    pub const fn wants_cpu(self) -> bool {
        matches!(self, VcpuState::Running(_) | VcpuState::Runnable)
    }
}

/// Why a vCPU does not run.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It has nothing to do until an event comes.
    Blocked,
    /// Someone stopped it.
    Paused,
    /// It is not up: its guest has not started it, or has shut it down.
    Offline,
}

impl From<Rest> for VcpuState {
    fn from(rest: Rest) -> VcpuState {
        match rest {
            Rest::Blocked => VcpuState::Blocked,
            Rest::Paused => VcpuState::Paused,
            Rest::Offline => VcpuState::Offline,
        }
    }
}

/// Where a vCPU may run, and where of that it prefers to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// It runs nowhere else.
    pub hard: CpuSet,
    /// It runs here if it can; counts only where `hard` allows it.
    pub soft: CpuSet,
}

impl Affinity {
    pub const ANY: Affinity = Affinity { hard: CpuSet::ALL, soft: CpuSet::ALL };

    pub fn pinned(cpu: CpuId) -> Affinity {
        Affinity { hard: CpuSet::of(cpu), soft: CpuSet::ALL }
    }

    /// The CPUs that it prefers and may use; all that it may use if it can have none that it prefers.
    pub fn preferred(&self) -> CpuSet {
        let both = self.hard & self.soft;
        if both.is_empty() { self.hard } else { both }
    }
}

/// A vCPU's share of what there is, against the weights of the others: 1 to 65535.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u16);

impl Weight {
    pub const DEFAULT: Weight = Weight(256);

    /// Nothing for 0 and for what is beyond 65535: the caller's `-EINVAL`.
    pub const fn new(weight: u32) -> Option<Weight> {
        match weight {
            1..=65535 => Some(Weight(weight as u16)),
            _ => None,
        }
    }

    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Weight {
        Weight::DEFAULT
    }
}

/// What a vCPU starts with.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    pub domain: DomainKey,
    pub weight: Weight,
    pub affinity: Affinity,
}

/// How much of the CPUs a domain gets, each of its vCPUs alike.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub weight: Weight,
    /// What they may use together, in percent of one CPU; 0 is no limit.
    pub cap: u32,
    pub affinity: Affinity,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms { weight: Weight::DEFAULT, cap: 0, affinity: Affinity::ANY }
    }
}

/// What is shown of a vCPU: `xl vcpu-list`, `xl sched-credit2`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    pub state: VcpuState,
    /// Where it runs, or ran last.
    pub cpu: Option<CpuId>,
    /// How long it has run, up to the last time that anyone looked.
    pub ran: Nanos,
    pub weight: Weight,
    pub affinity: Affinity,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_out_of_range_is_refused() {
        assert_eq!(Weight::new(0), None);
        assert_eq!(Weight::new(65536), None);
        assert_eq!(Weight::new(65535).map(Weight::get), Some(65535));
    }

    #[test]
    fn soft_affinity_outside_the_hard_one_means_nothing() {
        let affinity = Affinity { hard: CpuSet::of(CpuId(1)), soft: CpuSet::of(CpuId(2)) };
        assert_eq!(affinity.preferred(), CpuSet::of(CpuId(1)));
        let affinity = Affinity { hard: CpuSet::ALL, soft: CpuSet::of(CpuId(2)) };
        assert_eq!(affinity.preferred(), CpuSet::of(CpuId(2)));
    }
}
