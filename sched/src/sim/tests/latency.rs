//! Who sleeps most of the time is run soon after it wakes.

use super::*;

const LIGHT: Pattern = Pattern::Sleeper { run: Nanos::from_micros(100), sleep: Nanos::from_millis(10) };

/// The latency that one wake-up in a hundred exceeds.
fn p99(machine: &Machine<Credit2>, vcpus: core::ops::Range<usize>) -> Nanos {
    let mut all: Vec<Nanos> = machine.vcpus[vcpus].iter().flat_map(|vcpu| vcpu.latencies.clone()).collect();
    all.sort_unstable();
    assert!(all.len() > 500, "only {} wake-ups", all.len());
    all[all.len() * 99 / 100]
}

fn sleepers_among_hogs(cpus: usize, queue: usize, sleepers: usize, hogs_: &[u32]) -> Nanos {
    let mut guests = vec![Guest::new(LIGHT, 256); sleepers];
    guests.extend(hogs(hogs_));
    let mut machine = machine(cpus, queue, &guests);
    machine.run_until(Nanos::from_secs(10));
    p99(&machine, 0..sleepers)
}

#[test]
fn a_sleeper_among_busy_vcpus_is_run_within_the_rate_limit() {
    let limit = RATELIMIT + INTERRUPT;
    assert!(sleepers_among_hogs(1, 1, 1, &[256; 4]) <= limit);
    assert!(sleepers_among_hogs(8, 8, 4, &[256; 32]) <= limit);
    assert!(sleepers_among_hogs(8, 4, 8, &[1024; 32]) <= limit);
}

#[test]
fn a_sleeper_among_busy_vcpus_does_not_wait_for_timers_that_nobody_needed() {
    // Each hog has a CPU to itself, and no time slice, until the sleeper comes.
    assert!(sleepers_among_hogs(4, 4, 1, &[256; 4]) <= INTERRUPT + RATELIMIT);
}

#[test]
fn an_idle_cpu_takes_who_wakes_at_once() {
    assert_eq!(sleepers_among_hogs(8, 4, 2, &[256; 6]), INTERRUPT);
}

#[test]
fn a_light_sleeper_is_run_soon_among_heavy_hogs() {
    let mut guests = vec![Guest::new(LIGHT, 64)];
    guests.extend(hogs(&[1024; 6]));
    let mut machine = machine(2, 2, &guests);
    machine.run_until(Nanos::from_secs(10));
    assert!(p99(&machine, 0..1) <= RATELIMIT + INTERRUPT);
}

#[test]
#[should_panic(expected = "is preempted")]
fn the_simulator_sees_a_preemption_before_the_rate_limit() {
    let guests = [hogs(&[256; 4]), vec![Guest::new(LIGHT, 256)]].concat();
    let promised = Setup { ratelimit: RATELIMIT + RATELIMIT, ..setup(1) };
    Machine::new(credit2(1, 1), &promised, &guests).run_until(Nanos::from_secs(1));
}
