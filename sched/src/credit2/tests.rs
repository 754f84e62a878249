//! Single steps. What comes of many is tried in the simulator.

use super::*;
use crate::VcpuState;

const A: VcpuKey = VcpuKey(0);
const B: VcpuKey = VcpuKey(1);
const C: VcpuKey = VcpuKey(2);
const T0: Nanos = Nanos::from_millis(100);
const MS: Nanos = Nanos::from_millis(1);

fn cpus(list: &[u32]) -> CpuSet {
    list.iter().map(|&cpu| CpuId(cpu)).collect()
}

/// CPUs 0 to 3 share a queue and 4 to 7 another; 0 and 1 are threads of a core, and so on.
fn scheduler(vcpus: u32) -> Credit2 {
    let place = |cpu: u32| CpuPlace { node: 0, socket: cpu / 4, core: cpu / 2 };
    let places: Vec<CpuPlace> = (0..8).map(place).collect();
    let mut credit2 = Credit2::new(&places, Params::default()).unwrap();
    credit2.reserve(16, 2).unwrap();
    (0..vcpus).for_each(|vcpu| insert(&mut credit2, VcpuKey(vcpu), Affinity::ANY).unwrap());
    credit2
}

fn insert(credit2: &mut Credit2, vcpu: VcpuKey, affinity: Affinity) -> Result<(), Refused> {
    credit2.insert(vcpu, Admission { domain: DomainKey(0), weight: Weight::DEFAULT, affinity }, T0)
}

fn state(credit2: &Credit2, vcpu: VcpuKey) -> VcpuState {
    credit2.figures(vcpu).unwrap().state
}

/// Wakes the vCPU, and the CPUs that it tickles decide.
fn start(credit2: &mut Credit2, vcpu: VcpuKey, now: Nanos) -> CpuSet {
    let tickle = credit2.wake(vcpu, now);
    tickle.iter().for_each(|cpu| _ = credit2.decide(cpu, now));
    tickle
}

#[test]
fn a_vcpu_goes_through_all_its_states() {
    let mut credit2 = scheduler(1);
    assert_eq!(state(&credit2, A), VcpuState::Offline);
    let cpu = credit2.wake(A, T0).first().unwrap();
    assert_eq!(state(&credit2, A), VcpuState::Runnable);
    assert_eq!(credit2.decide(cpu, T0), Decision { next: Some(A), ..Decision::default() });
    assert_eq!((state(&credit2, A), credit2.running(cpu)), (VcpuState::Running(cpu), Some(A)));
    assert_eq!(credit2.rest(A, Rest::Blocked, T0 + MS), CpuSet::of(cpu));
    assert_eq!(state(&credit2, A), VcpuState::Blocked);
    assert_eq!(credit2.decide(cpu, T0 + MS), Decision::default());
    assert_eq!(credit2.rest(A, Rest::Paused, T0 + MS), CpuSet::EMPTY);
    assert_eq!(state(&credit2, A), VcpuState::Paused);
    assert_eq!(credit2.figures(A).map(|figures| (figures.ran, figures.cpu)), Some((MS, Some(cpu))));
}

#[test]
fn a_wake_up_before_the_cpu_has_decided_undoes_the_rest() {
    let mut credit2 = scheduler(1);
    let cpu = start(&mut credit2, A, T0).first().unwrap();
    assert_eq!(credit2.rest(A, Rest::Blocked, T0 + MS), CpuSet::of(cpu));
    assert_eq!(credit2.wake(A, T0 + MS), CpuSet::EMPTY);
    assert_eq!(credit2.decide(cpu, T0 + MS).next, Some(A));
}

#[test]
fn idle_cores_come_before_idle_threads_and_both_before_busy_cpus() {
    let mut credit2 = scheduler(9);
    let all: Vec<CpuSet> = (0..9).map(|vcpu| start(&mut credit2, VcpuKey(vcpu), T0)).collect();
    let taken = all.iter().fold(CpuSet::EMPTY, |taken, &tickle| taken | tickle);
    assert_eq!(taken, cpus(&[0, 1, 2, 3, 4, 5, 6, 7]));
    let cores: Vec<u32> = all[..4].iter().map(|tickle| tickle.first().unwrap().0 / 2).collect();
    assert_eq!(cores.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{cores:?}");
    // The ninth makes one of them begin to count time; none has less credit than it yet.
    assert_eq!(all[8].len(), 1);
    assert_eq!(state(&credit2, VcpuKey(8)), VcpuState::Runnable);
}

#[test]
fn who_wakes_goes_where_it_ran_last() {
    let mut credit2 = scheduler(2);
    let first = start(&mut credit2, A, T0);
    let second = start(&mut credit2, B, T0);
    for vcpu in [A, B] {
        let cpu = credit2.rest(vcpu, Rest::Blocked, T0).first().unwrap();
        credit2.decide(cpu, T0);
    }
    assert_eq!((credit2.wake(B, T0), credit2.wake(A, T0)), (second, first));
}

#[test]
fn who_wakes_preempts_when_the_rate_limit_lets_it() {
    let here = Affinity::pinned(CpuId(0));
    let mut credit2 = scheduler(0);
    [A, B, C].into_iter().for_each(|vcpu| insert(&mut credit2, vcpu, here).unwrap());
    start(&mut credit2, A, T0);
    // A has just begun: the CPU must know, but keeps A until its time is up.
    assert_eq!(credit2.wake(B, T0 + Nanos(1000)), cpus(&[0]));
    let decision = credit2.decide(CpuId(0), T0 + Nanos(1000));
    assert_eq!((decision.next, decision.until), (Some(A), Some(T0 + MS)));
    assert_eq!(credit2.decide(CpuId(0), T0 + MS).next, Some(B));
    // B is past its rate limit, and has burnt more than C.
    assert_eq!(credit2.wake(C, T0 + MS + MS), cpus(&[0]));
    assert_eq!(credit2.decide(CpuId(0), T0 + MS + MS).next, Some(C));
}

#[test]
fn a_cpu_that_was_claimed_is_not_claimed_twice() {
    let either = Affinity { hard: cpus(&[0, 1]), soft: CpuSet::ALL };
    let mut credit2 = scheduler(0);
    (0..4).for_each(|vcpu| insert(&mut credit2, VcpuKey(vcpu), either).unwrap());
    start(&mut credit2, A, T0);
    start(&mut credit2, B, T0);
    let later = T0 + MS + MS;
    let (first, second) = (credit2.wake(C, later), credit2.wake(VcpuKey(3), later));
    assert_eq!((first.len(), second.len(), first | second), (1, 1, cpus(&[0, 1])));
}

#[test]
fn who_yields_goes_behind_one_with_less_credit() {
    let here = Affinity::pinned(CpuId(0));
    let mut credit2 = scheduler(0);
    [A, B].into_iter().for_each(|vcpu| insert(&mut credit2, vcpu, here).unwrap());
    credit2.set_weight(B, Weight::new(1).unwrap(), T0);
    start(&mut credit2, A, T0);
    start(&mut credit2, B, T0);
    credit2.decide(CpuId(0), T0 + MS);
    // A millisecond costs B dearly.
    assert_eq!(credit2.decide(CpuId(0), T0 + MS + MS).next, Some(A));
    credit2.yield_now(CpuId(0));
    assert_eq!(credit2.decide(CpuId(0), T0 + MS + MS).next, Some(B));
}

#[test]
fn an_affinity_that_changes_moves_who_waits_at_once_and_who_runs_when_its_cpu_decides() {
    let mut credit2 = scheduler(1);
    let cpu = start(&mut credit2, A, T0).first().unwrap();
    let elsewhere = Affinity::pinned(CpuId(if cpu == CpuId(6) { 7 } else { 6 }));
    assert_eq!(credit2.set_affinity(A, elsewhere, T0), Ok(CpuSet::of(cpu)));
    assert_eq!(credit2.decide(cpu, T0), Decision { tickle: elsewhere.hard, ..Decision::default() });
    let other = elsewhere.hard.first().unwrap();
    assert_eq!(credit2.decide(other, T0).next, Some(A));

    insert(&mut credit2, B, elsewhere).unwrap();
    assert!(credit2.wake(B, T0).is_subset(&elsewhere.hard));
    assert_eq!(credit2.set_affinity(B, Affinity::pinned(CpuId(1)), T0), Ok(cpus(&[1])));
    assert_eq!(credit2.set_affinity(B, Affinity::pinned(CpuId(99)), T0), Err(Refused::NoCpu));
}

#[test]
fn a_key_can_be_used_again_once_its_vcpu_is_gone() {
    let mut credit2 = scheduler(1);
    assert_eq!(insert(&mut credit2, A, Affinity::ANY), Err(Refused::BadKey));
    let cpu = start(&mut credit2, A, T0);
    assert_eq!(credit2.remove(A, T0), cpu);
    assert_eq!((credit2.figures(A), credit2.running(cpu.first().unwrap())), (None, None));
    assert_eq!(credit2.decide(cpu.first().unwrap(), T0).next, None);
    assert_eq!(insert(&mut credit2, A, Affinity::ANY), Ok(()));
}

#[test]
fn keys_that_are_not_known_are_refused_or_ignored() {
    let mut credit2 = scheduler(0);
    assert_eq!(insert(&mut credit2, VcpuKey(16), Affinity::ANY), Err(Refused::BadKey));
    let stranger = Admission { domain: DomainKey(2), weight: Weight::DEFAULT, affinity: Affinity::ANY };
    assert_eq!(credit2.insert(A, stranger, T0), Err(Refused::BadKey));
    assert_eq!(insert(&mut credit2, A, Affinity::pinned(CpuId(8))), Err(Refused::NoCpu));
    assert_eq!(credit2.wake(A, T0) | credit2.rest(A, Rest::Paused, T0) | credit2.remove(A, T0), CpuSet::EMPTY);
    assert_eq!(credit2.set_affinity(A, Affinity::ANY, T0), Err(Refused::BadKey));
    credit2.set_weight(A, Weight::DEFAULT, T0);
    credit2.yield_now(CpuId(8));
    assert_eq!(credit2.decide(CpuId(8), T0), Decision::default());
}

#[test]
fn a_wake_up_to_the_same_moment_finds_each_its_own_idle_cpu() {
    let mut credit2 = scheduler(8);
    let tickled: Vec<CpuSet> = (0..8).map(|vcpu| credit2.wake(VcpuKey(vcpu), T0)).collect();
    assert!(tickled.iter().all(|tickle| tickle.len() == 1));
    assert_eq!(tickled.iter().fold(CpuSet::EMPTY, |all, &tickle| all | tickle).len(), 8);
}

#[test]
fn the_load_of_a_queue_is_that_of_its_vcpus() {
    let mut credit2 = scheduler(0);
    let here = Affinity { hard: cpus(&[0, 1, 2, 3]), soft: CpuSet::ALL };
    (0..6).for_each(|vcpu| insert(&mut credit2, VcpuKey(vcpu), here).unwrap());
    (0..6).for_each(|vcpu| _ = start(&mut credit2, VcpuKey(vcpu), T0));
    let loads: Vec<(CpuSet, Load)> = credit2.loads(T0 + Nanos::from_secs(2)).collect();
    assert_eq!(loads, [(cpus(&[0, 1, 2, 3]), Load(6 * Load::ONE.0)), (cpus(&[4, 5, 6, 7]), Load(0))]);
}
