//! Which CPUs share what, and which of them share a run queue.

use crate::{CpuId, CpuSet, OutOfMemory};
use alloc::vec::Vec;

/// Where a CPU is. Cores are numbered within their socket.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuPlace {
    pub node: u32,
    pub socket: u32,
    pub core: u32,
}

impl CpuPlace {
    const fn same_socket(self, other: CpuPlace) -> bool {
        self.socket == other.socket
    }

    const fn same_core(self, other: CpuPlace) -> bool {
        self.same_socket(other) && self.core == other.core
    }
}

/// How CPUs are gathered into run queues: `credit2_runqueue=` of Xen's command line.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Arrangement {
    Cpu,
    Core,
    #[default]
    Socket,
    Node,
    All,
}

impl Arrangement {
    /// The word as Xen's command line spells it.
    pub fn parse(word: &str) -> Option<Arrangement> {
        match word {
            "cpu" => Some(Arrangement::Cpu),
            "core" => Some(Arrangement::Core),
            "socket" => Some(Arrangement::Socket),
            "node" => Some(Arrangement::Node),
            "all" => Some(Arrangement::All),
            _ => None,
        }
    }

    const fn together(self, a: CpuPlace, b: CpuPlace) -> bool {
        match self {
            Arrangement::Cpu => false,
            Arrangement::Core => a.same_core(b),
            Arrangement::Socket => a.same_socket(b),
            Arrangement::Node => a.node == b.node,
            Arrangement::All => true,
        }
    }
}

/// The CPUs of each run queue; `places` has one row for each CPU, in the order of their numbers. A queue has at most
/// `most` CPUs (at least one): what would be larger becomes several, which keep the threads of a core together if they can.
pub fn arrange(places: &[CpuPlace], by: Arrangement, most: usize) -> Result<Vec<CpuSet>, OutOfMemory> {
    let most = most.max(1);
    let mut queues = Vec::new();
    let mut left = CpuSet::first_of_all(places.len());
    while let Some(first) = left.first() {
        let mut queue = CpuSet::EMPTY;
        for cpu in left.iter() {
            let together = both(places, first, cpu).is_some_and(|(a, b)| by.together(a, b));
            if queue.contains(cpu) || !(together || cpu == first) {
                continue;
            }
            let threads = if by == Arrangement::Cpu { CpuSet::of(cpu) } else { siblings(places, cpu) & left };
            if queue.len().saturating_add(threads.len()) <= most {
                queue |= threads;
            } else if queue.is_empty() {
                // A core that is larger than a whole queue is split all the same.
                queue = threads.iter().take(most).collect();
            }
        }
        queues.try_reserve(1).map_err(|_| OutOfMemory)?;
        queues.push(queue);
        left = left.without(queue);
    }
    Ok(queues)
}

/// The CPUs that share a core with this one, itself included.
pub fn siblings(places: &[CpuPlace], cpu: CpuId) -> CpuSet {
    let all = (0..places.len().min(CpuSet::MAX)).map(|other| CpuId(other as u32));
    all.filter(|&other| both(places, cpu, other).is_some_and(|(a, b)| a.same_core(b))).collect()
}

fn both(places: &[CpuPlace], a: CpuId, b: CpuId) -> Option<(CpuPlace, CpuPlace)> {
    Some((*places.get(a.index())?, *places.get(b.index())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two sockets each, four cores a socket, two threads a core, numbered as firmware does: first threads first.
    fn places() -> Vec<CpuPlace> {
        (0..32).map(|cpu| cpu % 16).map(|at| CpuPlace { node: at / 8, socket: at / 4, core: at % 4 }).collect()
    }

    fn text(queues: Vec<CpuSet>) -> Vec<String> {
        queues.iter().map(CpuSet::to_string).collect()
    }

    #[test]
    fn each_arrangement_gathers_what_its_name_says() {
        let by = |by| text(arrange(&places(), by, 64).unwrap());
        assert_eq!(by(Arrangement::All), ["0-31"]);
        assert_eq!(by(Arrangement::Node), ["0-7,16-23", "8-15,24-31"]);
        assert_eq!(by(Arrangement::Socket), ["0-3,16-19", "4-7,20-23", "8-11,24-27", "12-15,28-31"]);
        assert_eq!(by(Arrangement::Core)[..2], ["0,16", "1,17"]);
        assert_eq!(by(Arrangement::Core).len(), 16);
        assert_eq!(by(Arrangement::Cpu).len(), 32);
        assert_eq!(by(Arrangement::Cpu)[1], "1");
    }

    #[test]
    fn a_queue_too_large_is_split_between_cores() {
        assert_eq!(text(arrange(&places(), Arrangement::Socket, 5).unwrap())[..2], ["0-1,16-17", "2-3,18-19"]);
        assert_eq!(text(arrange(&places(), Arrangement::All, 16).unwrap()), ["0-7,16-23", "8-15,24-31"]);
        assert_eq!(arrange(&places(), Arrangement::All, 0).unwrap().len(), 32);
    }

    #[test]
    fn every_cpu_is_in_one_queue_whatever_the_limit() {
        for by in [Arrangement::Cpu, Arrangement::Core, Arrangement::Socket, Arrangement::Node, Arrangement::All] {
            for most in 0..20 {
                let queues = arrange(&places(), by, most).unwrap();
                assert!(queues.iter().all(|queue| !queue.is_empty() && queue.len() <= most.max(1)), "{by:?} {most}");
                let together = queues.iter().fold(CpuSet::EMPTY, |all, &queue| all | queue);
                assert_eq!((together, queues.iter().map(CpuSet::len).sum()), (CpuSet::first_of_all(32), 32));
            }
        }
    }

    #[test]
    fn threads_of_a_core_are_siblings() {
        assert_eq!(siblings(&places(), CpuId(17)).to_string(), "1,17");
    }

    #[test]
    fn words_are_those_of_the_command_line() {
        assert_eq!(Arrangement::parse("node"), Some(Arrangement::Node));
        assert_eq!(Arrangement::parse("numa"), None);
    }
}
