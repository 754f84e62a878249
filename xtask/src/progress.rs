//! Progress of long steps: a spinner on a terminal, plain lines where nobody watches one.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Runs one long step under its name. The spinner shows the seconds that it has taken so far.
pub fn step<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let step = Step::start(name);
    let result = work(&step);
    step.finish(name, result.is_ok());
    result
}

pub struct Step {
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Step {
    fn start(name: &str) -> Step {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.set_message(name.to_string());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("     ... {name}");
        }
        Step { bar, started: Instant::now() }
    }

    /// Says what the step is at.
    pub fn at(&self, what: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(what);
        }
    }

    fn finish(&self, name: &str, ok: bool) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f32();
        eprintln!("{} {name} ({seconds:.1} s)", if ok { "    done" } else { "  failed" });
    }
}
