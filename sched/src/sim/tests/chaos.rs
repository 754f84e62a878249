//! Everything changes while the machine runs; the rules hold all the same.

use super::*;
use crate::{Affinity, CpuId, CpuSet};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Change {
    Weight(u32, u32),
    Cap(u32, u32),
    Affinity(u32, Affinity),
    Pause(u32),
    Wake(u32),
    Replace(u32),
}

const VCPUS: u32 = 10;

fn cpus(cpus: usize) -> impl Strategy<Value = CpuSet> {
    (1..1u32 << cpus).prop_map(|bits| (0..16).filter(|cpu| bits >> cpu & 1 != 0).map(CpuId).collect())
}

fn affinity() -> impl Strategy<Value = Affinity> {
    prop_oneof![
        (cpus(4), cpus(4)).prop_map(|(hard, soft)| Affinity { hard, soft }),
        (0..4u32).prop_map(|cpu| Affinity::pinned(CpuId(cpu))),
        cpus(4).prop_map(|soft| Affinity { hard: CpuSet::ALL, soft }),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => (0..VCPUS, 1..65_536u32).prop_map(|(vcpu, weight)| Change::Weight(vcpu, weight)),
        1 => (0..3u32, prop_oneof![Just(0u32), 5..250u32]).prop_map(|(domain, cap)| Change::Cap(domain, cap)),
        3 => (0..VCPUS, affinity()).prop_map(|(vcpu, affinity)| Change::Affinity(vcpu, affinity)),
        1 => (0..VCPUS).prop_map(Change::Pause),
        2 => (0..VCPUS).prop_map(Change::Wake),
        1 => (0..VCPUS).prop_map(Change::Replace),
    ]
}

fn guest() -> impl Strategy<Value = Guest> {
    let span = || (1_000..8_000_000u64).prop_map(Nanos);
    let pattern = prop_oneof![
        Just(Pattern::Hog),
        span().prop_map(Pattern::Yielder),
        (span(), span()).prop_map(|(run, sleep)| Pattern::Sleeper { run, sleep }),
    ];
    (pattern, 1..2000u32, 0..3u32, affinity()).prop_map(|(pattern, weight, domain, affinity)| Guest {
        domain,
        affinity,
        ..Guest::new(pattern, weight)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_rules_hold_whatever_is_changed(
        guests in prop::collection::vec(guest(), VCPUS as usize),
        changes in prop::collection::vec((1..5_000_000u64, change()), 1..150),
        queue in 1..5usize,
        interrupt in prop_oneof![Just(Nanos::ZERO), Just(INTERRUPT), Just(Nanos::from_micros(300))],
    ) {
        let mut machine = Machine::new(credit2(4, queue), &Setup { interrupt, ..setup(4) }, &guests);
        for (later, change) in changes {
            machine.run_until(machine.now + Nanos(later));
            match change {
                Change::Weight(vcpu, weight) => machine.set_weight(vcpu, weight),
                Change::Cap(domain, cap) => machine.set_cap(domain, cap),
                Change::Affinity(vcpu, affinity) => machine.set_affinity(vcpu, affinity),
                Change::Pause(vcpu) => machine.pause(vcpu),
                Change::Wake(vcpu) => machine.unpause(vcpu),
                Change::Replace(vcpu) => machine.replace(vcpu, &guests[vcpu as usize]),
            }
        }
        machine.run_until(machine.now + Nanos::from_millis(50));
        let ran: u64 = machine.vcpus.iter().map(|vcpu| vcpu.ran.0).sum();
        prop_assert!(ran > 0);
        for (index, vcpu) in machine.vcpus.iter().enumerate() {
            let figures = machine.figures(index as u32);
            prop_assert!(figures.ran <= vcpu.ran, "{index}: {} is more than {}", figures.ran, vcpu.ran);
        }
    }
}

#[test]
fn pinned_vcpus_run_nowhere_else_though_it_were_fairer() {
    let pinned = |cpu| Guest { affinity: Affinity::pinned(CpuId(cpu)), ..Guest::new(Pattern::Hog, 256) };
    let mut machine = machine(4, 2, &[pinned(3), pinned(3), pinned(3), pinned(0)]);
    machine.run_until(Nanos::from_secs(3));
    let shares = machine.shares();
    assert!(worst_error(&shares, &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0]) < 0.01, "{shares:?}");
}

#[test]
fn who_prefers_a_cpu_runs_there_while_it_can_and_elsewhere_while_it_must() {
    let prefers = Affinity { hard: CpuSet::ALL, soft: CpuSet::of(CpuId(2)) };
    let sleeper = Pattern::Sleeper { run: Nanos::from_micros(300), sleep: Nanos::from_millis(2) };
    let mut guests = vec![Guest { affinity: prefers, ..Guest::new(sleeper, 256) }];
    let mut alone = machine(4, 2, &guests);
    alone.run_until(Nanos::from_secs(1));
    assert_eq!(alone.vcpus[0].migrations, 0);
    assert_eq!(alone.figures(0).cpu, Some(CpuId(2)));

    // Its CPU is taken, others are idle: it does not wait for it.
    guests.push(Guest { affinity: Affinity::pinned(CpuId(2)), ..Guest::new(Pattern::Hog, 256) });
    let mut beside = machine(4, 2, &guests);
    beside.run_until(Nanos::from_secs(1));
    assert!(beside.vcpus[0].longest_wait <= INTERRUPT);
    assert!(beside.shares()[1] > 0.999);
}
