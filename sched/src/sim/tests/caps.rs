//! A cap holds, whether there is anything else to run or not, and is reached.

use super::*;

/// The domain's vCPUs, together, and how much of a CPU they had.
fn share(machine: &Machine<Credit2>, vcpus: core::ops::Range<usize>) -> f64 {
    machine.shares()[vcpus].iter().sum()
}

fn in_domain(domain: u32, guests: Vec<Guest>) -> Vec<Guest> {
    guests.into_iter().map(|guest| Guest { domain, ..guest }).collect()
}

#[test]
fn a_capped_domain_gets_its_cap_on_an_idle_machine() {
    for (cap, vcpus) in [(1, 1), (10, 1), (50, 1), (99, 1), (150, 2), (50, 8), (333, 5), (20, 3)] {
        let mut machine = machine(8, 4, &in_domain(0, hogs(&vec![256; vcpus])));
        machine.set_cap(0, cap);
        machine.run_until(Nanos::from_secs(10));
        let (got, due) = (share(&machine, 0..vcpus), f64::from(cap) / 100.0);
        assert!((got - due).abs() < due * 0.01, "cap {cap} with {vcpus} vCPUs: {got}");
    }
}

#[test]
fn a_capped_domain_gets_its_cap_beside_others_who_share_the_rest() {
    let mut guests = in_domain(0, hogs(&[512, 512]));
    guests.extend(in_domain(1, hogs(&[256; 6])));
    let mut machine = machine(4, 4, &guests);
    machine.set_cap(0, 60);
    machine.run_until(Nanos::from_secs(10));
    let (capped, rest) = (share(&machine, 0..2), share(&machine, 2..8));
    assert!((capped - 0.6).abs() < 0.006, "{capped}");
    assert!((rest - 3.4).abs() < 0.01, "{rest}");
    let worst = worst_error(&machine.shares()[2..], &[3.4 / 6.0; 6]);
    assert!(worst < 0.01, "{worst}");
}

#[test]
fn a_cap_above_the_fair_share_changes_nothing() {
    let mut guests = in_domain(0, hogs(&[256]));
    guests.extend(in_domain(1, hogs(&[256; 3])));
    let mut machine = machine(2, 2, &guests);
    machine.set_cap(0, 80);
    machine.run_until(Nanos::from_secs(10));
    assert!(worst_error(&machine.shares(), &[0.5; 4]) < 0.01, "{:?}", machine.shares());
}

#[test]
fn a_cap_that_is_lifted_no_longer_holds() {
    let mut machine = machine(2, 2, &in_domain(0, hogs(&[256, 256])));
    machine.set_cap(0, 10);
    machine.run_until(Nanos::from_secs(1));
    let before = share(&machine, 0..2);
    assert!((before - 0.1).abs() < 0.001, "{before}");
    machine.set_cap(0, 0);
    machine.run_until(Nanos::from_secs(2));
    let after = share(&machine, 0..2) * 2.0 - before;
    assert!(after > 1.99, "{after}");
}

#[test]
fn sleepers_in_a_capped_domain_get_no_more_than_the_cap() {
    let pattern = Pattern::Sleeper { run: Nanos::from_micros(700), sleep: Nanos::from_micros(300) };
    let guests = vec![Guest::new(pattern, 256); 4];
    let mut machine = machine(4, 4, &guests);
    machine.set_cap(0, 100);
    machine.run_until(Nanos::from_secs(10));
    let got = share(&machine, 0..4);
    assert!((got - 1.0).abs() < 0.01, "{got}");
}
