//! `cargo xtask bench sched`: the figures of `sched/benches/figures.rs` as a table and a plot.

use super::plot::{Line, svg};
use crate::{paths, progress};
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// What a decision costs with so many vCPUs and CPUs, in nanoseconds of this machine.
#[derive(Debug, PartialEq)]
struct Cost {
    vcpus: u32,
    cpus: u32,
    decide: f64,
    wake: f64,
}

#[derive(Debug, Default, PartialEq)]
struct Figures {
    costs: Vec<Cost>,
    /// CPUs that share a run queue, and the worst deviation in percent.
    shares: Vec<(u32, f64)>,
    /// A cap, and what was got.
    caps: Vec<(f64, f64)>,
    /// Hogs beside the sleeper, and its latency in microseconds: half, 99 % and all of the times.
    latencies: Vec<(u32, [f64; 3])>,
}

pub fn command() -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(paths::root());
    let output = progress::step("the scheduler", |_| {
        Ok(cmd!(sh, "cargo bench --quiet --package sched --features sim --bench figures").quiet().read()?)
    })?;
    let figures = read(&output)?;
    print!("{}", table(&figures));
    let file = paths::target_dir("bench")?.join("sched.svg");
    std::fs::write(&file, plot(&figures))?;
    println!("\nplot: {}", file.display());
    let beyond = beyond(&figures);
    beyond.iter().for_each(|line| println!("BEYOND ITS BOUND: {line}"));
    Ok(if beyond.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// In percent: of each one's due share, and of a cap.
const MOST_OFF: f64 = 1.0;
/// The rate limit and the time that an interrupt takes, in microseconds: 99 % of the wake-ups lead to running within it.
const MOST_LATE: f64 = 1_002.0;
/// With a thousand times as many vCPUs that wait, a decision costs no more than so many times as much. Its logarithm grows by 4 to 6 times;
/// the rest is for what else the machine does.
const MOST_GROWTH: f64 = 24.0;

/// What is not as it has to be. That nobody is preempted within the rate limit is among the simulator's own rules, which end the run.
fn beyond(figures: &Figures) -> Vec<String> {
    let mut lines = Vec::new();
    for (queue, error) in figures.shares.iter().filter(|(_, error)| *error > MOST_OFF) {
        lines.push(format!("shares, {queue} CPUs a run queue: {error:.3} % off, {MOST_OFF} % at most"));
    }
    for (cap, got) in figures.caps.iter().filter(|(cap, got)| (got / cap - 1.0).abs() * 100.0 > MOST_OFF) {
        lines.push(format!("cap of {cap} %: {got:.3} %, {MOST_OFF} % of it off at most"));
    }
    for (hogs, [_, most, _]) in figures.latencies.iter().filter(|(_, [_, most, _])| *most > MOST_LATE) {
        lines.push(format!("wake-up beside {hogs} hogs: 99 % within {most:.1} us, {MOST_LATE} us at most"));
    }
    for cpus in each(figures, |cost| cost.cpus) {
        // Where nobody waits there is nothing to decide.
        let contended: Vec<&Cost> =
            figures.costs.iter().filter(|cost| cost.cpus == cpus && cost.vcpus > cost.cpus).collect();
        if let [first, .., last] = contended.as_slice()
            && last.decide > first.decide * MOST_GROWTH
        {
            lines.push(format!(
                "a decision on {cpus} CPUs: {:.0} ns with {} vCPUs, {:.0} ns with {}",
                first.decide, first.vcpus, last.decide, last.vcpus
            ));
        }
    }
    lines
}

fn read(text: &str) -> Result<Figures> {
    let mut figures = Figures::default();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        // A latency has a name first.
        let words = words.skip(usize::from(kind == "latency"));
        let numbers: Result<Vec<f64>, _> = words.map(str::parse::<f64>).collect();
        let numbers = numbers.with_context(|| format!("not a figure: {line}"))?;
        match (kind, numbers.as_slice()) {
            ("cost", &[vcpus, cpus, decide, wake]) => {
                figures.costs.push(Cost { vcpus: vcpus as u32, cpus: cpus as u32, decide, wake });
            }
            ("shares", &[queue, error]) => figures.shares.push((queue as u32, error)),
            ("cap", &[cap, got]) => figures.caps.push((cap, got)),
            ("latency", &[hogs, half, most, all]) => figures.latencies.push((hogs as u32, [half, most, all])),
            _ => anyhow::bail!("not a figure: {line}"),
        }
    }
    ensure!(!figures.costs.is_empty(), "the benchmark printed no figures");
    Ok(figures)
}

/// The numbers of a column or row, each once.
fn each(figures: &Figures, of: impl Fn(&Cost) -> u32) -> Vec<u32> {
    let mut all: Vec<u32> = figures.costs.iter().map(of).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn table(figures: &Figures) -> String {
    let mut text = String::new();
    let cpus = each(figures, |cost| cost.cpus);
    for (title, of) in [
        ("a decision (ns)", (|cost| cost.decide) as fn(&Cost) -> f64),
        ("sleep, wake-up and the decisions after them (ns)", |cost| cost.wake),
    ] {
        _ = writeln!(text, "{title}");
        let heads: String = cpus.iter().map(|cpus| format!("{:>10}", format!("{cpus} CPUs"))).collect();
        _ = writeln!(text, "{:>10}{heads}", "vCPUs");
        for vcpus in each(figures, |cost| cost.vcpus) {
            let cell = |cpus: &u32| {
                let cost = figures.costs.iter().find(|cost| (cost.vcpus, cost.cpus) == (vcpus, *cpus));
                format!("{:>10}", cost.map_or("-".into(), |cost| format!("{:.0}", of(cost))))
            };
            _ = writeln!(text, "{vcpus:>10}{}", cpus.iter().map(cell).collect::<String>());
        }
        text.push('\n');
    }
    _ = writeln!(text, "64 vCPUs of mixed weights on 8 CPUs, 10 s: the share that is furthest from its due");
    for (queue, error) in &figures.shares {
        _ = writeln!(text, "{queue:>10} CPUs a run queue {error:>9.3} %");
    }
    _ = writeln!(text, "\n4 vCPUs with a cap on 8 CPUs, 10 s");
    for (cap, got) in &figures.caps {
        _ = writeln!(text, "{cap:>10} % of a CPU {got:>14.3} %");
    }
    _ = writeln!(text, "\nwake-up to running on 8 CPUs (us): half, 99 % and all of the times");
    for (hogs, [half, most, all]) in &figures.latencies {
        _ = writeln!(text, "{hogs:>10} hogs {half:>20.1} {most:>9.1} {all:>9.1}");
    }
    text
}

fn plot(figures: &Figures) -> String {
    let line = |cpus: u32| {
        let costs = figures.costs.iter().filter(|cost| cost.cpus == cpus);
        Line { name: format!("{cpus} CPUs"), points: costs.map(|c| (f64::from(c.vcpus), c.decide)).collect() }
    };
    let lines: Vec<Line> = each(figures, |cost| cost.cpus).into_iter().map(line).collect();
    svg("Credit2: what a decision costs", "vCPUs that want to run", "ns", &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "cost 1 1 67 246\ncost 4096 1 780 807\ncost 1 4 47 75\nshares 8 0.052\ncap 150 149.900\n\
                        latency full 8 2.0 2.5 4.0\n";

    #[test]
    fn figures_are_read_and_shown() {
        let figures = read(TEXT).expect("figures");
        assert_eq!(figures.costs[1], Cost { vcpus: 4096, cpus: 1, decide: 780.0, wake: 807.0 });
        assert_eq!((figures.shares[0], figures.caps[0]), ((8, 0.052), (150.0, 149.9)));
        assert_eq!(figures.latencies, [(8, [2.0, 2.5, 4.0])]);
        let table = table(&figures);
        assert!(table.contains("      4096       780         -\n"), "{table}");
        assert!(table.contains("0.052 %") && table.contains("149.900 %"), "{table}");
        assert_eq!(plot(&figures).matches("<polyline").count(), 2);
    }

    #[test]
    fn each_figure_beyond_its_bound_is_named() {
        assert_eq!(beyond(&read(TEXT).expect("figures")), [""; 0]);
        let bad = "cost 4 1 50 1\ncost 4096 1 50000 1\nshares 8 1.2\ncap 50 50.9\nlatency full 8 2.0 1500.0 1500.0\n";
        let lines = beyond(&read(bad).expect("figures"));
        assert_eq!(lines.len(), 4, "{lines:?}");
    }

    #[test]
    fn what_is_not_a_figure_is_an_error() {
        assert!(read("cost 1 1 67\n").is_err());
        assert!(read("shares many 1\n").is_err());
        assert!(read("\n").is_err());
    }
}
