//! What Credit2 promises, tried on a simulated machine, whose [rules](super::rules) are judged at every step besides.

mod caps;
mod chaos;
mod latency;
mod null;
mod shares;
mod starvation;

use super::*;
use crate::{Arrangement, CpuPlace, Credit2, Nanos, Params};

const RATELIMIT: Nanos = Nanos::from_millis(1);
/// From the tickle until the CPU decides.
const INTERRUPT: Nanos = Nanos::from_micros(2);

fn setup(cpus: usize) -> Setup {
    Setup { cpus, interrupt: INTERRUPT, ratelimit: RATELIMIT, seed: 1 }
}

/// A scheduler for CPUs of which `queue` share a run queue, and two a core.
fn credit2(cpus: usize, queue: usize) -> Credit2 {
    let place = |cpu: u32| CpuPlace { node: 0, socket: cpu / queue as u32, core: cpu / 2 };
    let places: Vec<CpuPlace> = (0..cpus as u32).map(place).collect();
    let params = Params { ratelimit: RATELIMIT, arrangement: Arrangement::Socket, ..Params::default() };
    Credit2::new(&places, params).unwrap()
}

fn machine(cpus: usize, queue: usize, guests: &[Guest]) -> Machine<Credit2> {
    Machine::new(credit2(cpus, queue), &setup(cpus), guests)
}

fn hogs(weights: &[u32]) -> Vec<Guest> {
    weights.iter().map(|&weight| Guest::new(Pattern::Hog, weight)).collect()
}
