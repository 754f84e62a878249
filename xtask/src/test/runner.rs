//! Runs cases on engines, a few at a time.

use super::case::{Case, Context};
use super::report::{Outcome, Report, Row};
use crate::engine::Engine;
use crate::image::Hypervisor;
use crate::paths;
use anyhow::Result;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

pub fn run_all(
    cases: &[Case],
    engines: &[Engine],
    hypervisor: &Hypervisor,
    workers: usize,
    report: &mut Report,
) -> Result<()> {
    // Long ones first, so that no worker is left alone with one at the end.
    let mut jobs: Vec<(&Case, &Engine)> = Vec::new();
    for (index, engine) in engines.iter().enumerate() {
        let is_bochs = |engine: &Engine| matches!(engine, Engine::Bochs(_));
        let again = is_bochs(engine) && engines.iter().take(index).any(is_bochs);
        let wanted = |case: &&Case| (case.engines)(engine) && !(again && case.in_one_version);
        jobs.extend(cases.iter().rev().filter(wanted).map(|case| (case, engine)));
    }
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(Vec::new());
    let logs = paths::target_dir("tests")?;
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some((case, engine)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let logs = logs.join(&case.name).join(engine.name().replace(' ', "-"));
                    let _ = std::fs::remove_dir_all(&logs);
                    let started = Instant::now();
                    let outcome = Outcome::from((case.run)(&Context { engine, hypervisor, logs }));
                    let row = Row { case: case.name.clone(), engine: engine.name(), outcome, took: started.elapsed() };
                    row.print();
                    if let Ok(mut rows) = rows.lock() {
                        rows.push(row);
                    }
                }
            });
        }
    });
    report.rows.extend(rows.into_inner().unwrap_or_default());
    Ok(())
}
