//! Who wants all that there is gets what its weight entitles it to.

use super::*;

/// 64 vCPUs of a few weights.
fn mixed() -> Vec<u32> {
    [256, 512, 128, 1024, 256, 384, 768, 200].into_iter().cycle().take(64).collect()
}

fn error(cpus: usize, queue: usize, weights: &[u32]) -> f64 {
    let mut machine = machine(cpus, queue, &hogs(weights));
    machine.run_until(Nanos::from_secs(10));
    worst_error(&machine.shares(), &entitlements(weights, cpus as f64))
}

#[test]
fn shares_of_64_mixed_vcpus_on_8_cpus_are_within_one_percent() {
    assert!(error(8, 8, &mixed()) < 0.01);
}

#[test]
fn shares_are_within_one_percent_across_run_queues_of_any_size() {
    for queue in [4, 2, 1] {
        let error = error(8, queue, &mixed());
        assert!(error < 0.01, "queues of {queue}: {error}");
    }
}

#[test]
fn what_a_heavy_vcpu_cannot_use_is_shared_out_again() {
    let mut weights = mixed();
    (weights[0], weights[1]) = (65_535, 20_000);
    assert!(error(8, 8, &weights) < 0.01);
    assert!(error(8, 4, &weights) < 0.02);
}

#[test]
fn one_vcpu_more_than_cpus_takes_turns_with_all_of_them() {
    assert!(error(8, 8, &[256; 9]) < 0.01);
}

#[test]
fn twice_the_weight_is_twice_the_time() {
    assert!(error(1, 1, &[256, 512]) < 0.01);
    assert!(error(1, 1, &[1, 2, 3]) < 0.01);
    assert!(error(1, 1, &[65_535, 32_767]) < 0.01);
}

#[test]
fn while_there_are_cpus_enough_each_has_one_to_itself_and_takes_no_interrupt() {
    let mut machine = machine(8, 4, &hogs(&[256, 1, 65_535, 256, 9, 256]));
    machine.run_until(Nanos::from_secs(1));
    assert!(machine.shares().iter().all(|&share| share > 0.999));
    assert!(machine.vcpus.iter().all(|vcpu| vcpu.migrations == 0));
    assert_eq!(machine.decisions, 6);
}

#[test]
fn a_new_weight_counts_from_then_on() {
    let mut machine = machine(1, 1, &hogs(&[256, 256]));
    machine.run_until(Nanos::from_secs(5));
    machine.set_weight(0, 768);
    let before: Vec<Nanos> = machine.vcpus.iter().map(|vcpu| vcpu.ran).collect();
    machine.run_until(Nanos::from_secs(15));
    let share = (machine.vcpus[0].ran - before[0]).0 as f64 / 10e9;
    assert!((share - 0.75).abs() < 0.0075, "{share}");
}

#[test]
fn who_yields_all_the_time_leaves_the_cpu_to_the_others_but_is_not_forgotten() {
    let mut guests = hogs(&[256, 256]);
    guests.push(Guest::new(Pattern::Yielder(Nanos::from_micros(50)), 256));
    let mut machine = machine(1, 1, &guests);
    machine.run_until(Nanos::from_secs(2));
    let shares = machine.shares();
    assert!(shares[2] > 0.01 && shares[2] < 0.1, "{shares:?}");
    assert!((shares[0] - shares[1]).abs() < 0.01, "{shares:?}");
}

#[test]
fn a_sleeper_does_not_gain_by_sleeping() {
    // It sleeps just before each slice ends, and wakes at once.
    let dodger = Pattern::Script(vec![(Nanos::from_micros(950), Nanos::from_micros(1))]);
    let mut guests = hogs(&[256; 3]);
    guests.push(Guest::new(dodger, 256));
    let mut machine = machine(1, 1, &guests);
    machine.run_until(Nanos::from_secs(5));
    assert!(machine.shares()[3] < 0.26, "{:?}", machine.shares());
}
