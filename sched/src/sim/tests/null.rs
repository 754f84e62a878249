//! The Null scheduler on the same machine.

use super::*;
use crate::{Affinity, CpuId, Null};

#[test]
fn each_vcpu_has_its_cpu_to_itself_and_no_timer_ever_fires() {
    let sleeper = Pattern::Sleeper { run: Nanos::from_micros(200), sleep: Nanos::from_millis(1) };
    let mut guests = hogs(&[256, 1]);
    guests.push(Guest::new(sleeper, 256));
    guests.push(Guest { affinity: Affinity::pinned(CpuId(0)), ..Guest::new(Pattern::Hog, 256) });
    // The pinned one comes last and would find its CPU taken: it is inserted first.
    guests.rotate_right(1);
    let mut machine = Machine::new(Null::new(4).unwrap(), &setup(4), &guests);
    machine.run_until(Nanos::from_secs(1));
    let shares = machine.shares();
    assert!(shares[..3].iter().all(|&share| share > 0.999), "{shares:?}");
    assert!(machine.vcpus.iter().all(|vcpu| vcpu.migrations == 0));
    let wake_ups = machine.vcpus[3].latencies.len() as u64;
    assert!(wake_ups > 500 && machine.vcpus[3].latencies.iter().all(|&latency| latency == INTERRUPT));
    // Each of the others decided once; the sleeper's CPU when it woke and when it slept.
    assert!(machine.decisions <= 3 + 2 * wake_ups, "{} decisions", machine.decisions);
}
