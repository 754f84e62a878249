//! The scheduler's figures, one a line, for `cargo xtask bench sched`: what a decision costs, and how fair it all is.

use sched::sim::{Guest, Machine, Pattern, Setup, entitlements, worst_error};
use sched::{
    Admission, Affinity, Arrangement, CpuId, CpuPlace, Credit2, DomainKey, Nanos, Params, Rest, Scheduler, VcpuKey,
    Weight,
};
use std::hint::black_box;
use std::time::Instant;

const VCPUS: &[u32] = &[1, 4, 16, 64, 256, 1024, 4096];
const CPUS: &[u32] = &[1, 4, 16, 64, 256];
const WEIGHTS: &[u32] = &[256, 512, 128, 1024, 256, 384, 768, 200];
const RATELIMIT: Nanos = Nanos::from_millis(1);

fn main() {
    // `cargo test` runs benchmarks, too, only to see whether they run.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    for &cpus in CPUS {
        for &vcpus in VCPUS {
            let (decide, wake) = costs(vcpus, cpus);
            println!("cost {vcpus} {cpus} {decide:.0} {wake:.0}");
        }
    }
    for queue in [8, 4, 2, 1] {
        println!("shares {queue} {:.3}", 100.0 * shares(queue));
    }
    for cap in [1, 10, 50, 150, 333] {
        println!("cap {cap} {:.3}", capped(cap));
    }
    for (name, vcpus) in [("idle", 4), ("full", 8), ("double", 16), ("crowded", 64)] {
        let all = latencies(vcpus);
        let at = |percent: usize| all[(all.len() - 1) * percent / 100].0 as f64 / 1e3;
        println!("latency {name} {vcpus} {:.1} {:.1} {:.1}", at(50), at(99), at(100));
    }
}

/// CPUs in sockets of 16, two threads a core.
fn scheduler(cpus: u32, queue: u32) -> Credit2 {
    let place = |cpu: u32| CpuPlace { node: 0, socket: cpu / queue, core: cpu / 2 };
    let places: Vec<CpuPlace> = (0..cpus).map(place).collect();
    let params = Params { ratelimit: RATELIMIT, arrangement: Arrangement::Socket, ..Params::default() };
    Credit2::new(&places, params).expect("memory")
}

/// What a decision costs, and what going to sleep and waking up again costs (with the decisions that follow), in nanoseconds, where all vCPUs
/// want to run.
fn costs(vcpus: u32, cpus: u32) -> (f64, f64) {
    let mut credit2 = scheduler(cpus, 16);
    credit2.reserve(vcpus as usize, 1).expect("memory");
    let mut now = Nanos::from_secs(1);
    for vcpu in 0..vcpus {
        let weight = Weight::new(WEIGHTS[vcpu as usize % WEIGHTS.len()]).expect("a weight");
        let admission = Admission { domain: DomainKey(0), weight, affinity: Affinity::ANY };
        credit2.insert(VcpuKey(vcpu), admission, now).expect("room");
        let tickle = credit2.wake(VcpuKey(vcpu), now);
        tickle.iter().for_each(|cpu| _ = credit2.decide(cpu, now));
    }
    // A whole round in a little more than the rate limit, so that each decision may change who runs.
    let step = Nanos(1_100_000 / u64::from(cpus));
    let mut round = |credit2: &mut Credit2, sleeps: bool, steps: u32| {
        let start = Instant::now();
        for step_number in 0..steps {
            now += step;
            let cpu = CpuId(step_number % cpus);
            if sleeps && let Some(vcpu) = credit2.running(cpu) {
                credit2.rest(vcpu, Rest::Blocked, now);
                black_box(credit2.decide(cpu, now));
                let tickle = credit2.wake(vcpu, now);
                tickle.iter().for_each(|cpu| _ = black_box(credit2.decide(cpu, now)));
            } else {
                let decision = black_box(credit2.decide(cpu, now));
                decision.tickle.iter().for_each(|cpu| _ = black_box(credit2.decide(cpu, now)));
            }
        }
        start.elapsed().as_nanos() as f64 / f64::from(steps)
    };
    let steps = 40_000;
    round(&mut credit2, false, steps / 4);
    let decide = round(&mut credit2, false, steps);
    (decide, round(&mut credit2, true, steps))
}

fn machine(queue: u32, guests: &[Guest]) -> Machine<Credit2> {
    let setup = Setup { cpus: 8, interrupt: Nanos::from_micros(2), ratelimit: RATELIMIT, seed: 1 };
    Machine::new(scheduler(8, queue), &setup, guests)
}

/// The worst deviation of 64 hogs on 8 CPUs from what they are entitled to, in ten seconds.
fn shares(queue: u32) -> f64 {
    let weights: Vec<u32> = WEIGHTS.iter().copied().cycle().take(64).collect();
    let guests: Vec<Guest> = weights.iter().map(|&weight| Guest::new(Pattern::Hog, weight)).collect();
    let mut machine = machine(queue, &guests);
    machine.run_until(Nanos::from_secs(10));
    worst_error(&machine.shares(), &entitlements(&weights, 8.0))
}

/// The percentage of a CPU that four hogs with this cap have together.
fn capped(cap: u32) -> f64 {
    let mut machine = machine(8, &vec![Guest::new(Pattern::Hog, 256); 4]);
    machine.set_cap(0, cap);
    machine.run_until(Nanos::from_secs(10));
    100.0 * machine.shares().iter().sum::<f64>()
}

/// From wake-up to running, of one that sleeps 99 % of the time beside so many hogs.
fn latencies(hogs: usize) -> Vec<Nanos> {
    let light = Pattern::Sleeper { run: Nanos::from_micros(100), sleep: Nanos::from_millis(10) };
    let mut guests = vec![Guest::new(light, 256)];
    guests.extend(vec![Guest::new(Pattern::Hog, 256); hogs]);
    let mut machine = machine(8, &guests);
    machine.run_until(Nanos::from_secs(10));
    let mut all = machine.vcpus[0].latencies.clone();
    all.sort_unstable();
    all
}
