//! What the tests came to: a table of engine × test, the failures, and the closing line.

use std::time::Duration;

pub enum Outcome {
    Passed,
    Failed(String),
}

/// One case on one engine.
pub struct Row {
    pub case: String,
    pub engine: String,
    pub outcome: Outcome,
    pub took: Duration,
}

impl Row {
    pub fn print(&self) {
        let (word, reason) = match &self.outcome {
            Outcome::Passed => ("ok", String::new()),
            Outcome::Failed(reason) => ("FAILED", format!("\n    {reason}")),
        };
        println!("{:10} {:28} {word} ({:.1} s){reason}", self.engine, self.case, self.took.as_secs_f32());
    }
}

#[derive(Default)]
pub struct Report {
    pub rows: Vec<Row>,
    /// Host tests, which cargo has already listed.
    pub host_passed: usize,
    pub host_failed: usize,
}

impl Report {
    pub fn failed(&self) -> usize {
        self.host_failed + self.rows.iter().filter(|row| matches!(row.outcome, Outcome::Failed(_))).count()
    }

    pub fn passed(&self) -> usize {
        self.host_passed + self.rows.iter().filter(|row| matches!(row.outcome, Outcome::Passed)).count()
    }

    pub fn print(&self) {
        print!("{}", self.text());
    }

    fn text(&self) -> String {
        let mut engines: Vec<&str> = Vec::new();
        let mut cases: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !engines.contains(&row.engine.as_str()) {
                engines.push(&row.engine);
            }
            if !cases.contains(&row.case.as_str()) {
                cases.push(&row.case);
            }
        }
        cases.sort_unstable();
        let mut text = String::new();
        if !cases.is_empty() {
            text.push_str(&format!("\n{:28}", ""));
            engines.iter().for_each(|engine| text.push_str(&format!(" {engine:>10}")));
            text.push('\n');
        }
        for case in cases {
            text.push_str(&format!("{case:28}"));
            for engine in &engines {
                let row = self.rows.iter().find(|row| row.case == case && row.engine == *engine);
                let word = match row.map(|row| &row.outcome) {
                    Some(Outcome::Passed) => "ok",
                    Some(Outcome::Failed(_)) => "FAILED",
                    None => "-",
                };
                text.push_str(&format!(" {word:>10}"));
            }
            text.push('\n');
        }
        for row in &self.rows {
            if let Outcome::Failed(reason) = &row.outcome {
                text.push_str(&format!("\nFAILED {} on {}:\n    {reason}\n", row.case, row.engine));
            }
        }
        text.push_str(&format!("\n{} passed, {} failed\n", self.passed(), self.failed()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, engine: &str, outcome: Outcome) -> Row {
        Row { case: case.into(), engine: engine.into(), outcome, took: Duration::ZERO }
    }

    #[test]
    fn the_closing_line_counts_host_tests_and_runs() {
        let rows = vec![row("a", "bochs", Outcome::Passed), row("a", "qemu", Outcome::Failed("why".into()))];
        let report = Report { rows, host_passed: 40, host_failed: 0 };
        assert!(report.text().ends_with("\n41 passed, 1 failed\n"));
        assert_eq!(report.failed(), 1);
    }

    #[test]
    fn the_table_has_a_row_for_a_test_and_a_column_for_an_engine() {
        let rows = vec![row("a", "bochs", Outcome::Passed), row("b", "qemu", Outcome::Passed)];
        let text = Report { rows, ..Report::default() }.text();
        let line = text.lines().find(|line| line.starts_with("a ")).expect("a row");
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["a", "ok", "-"]);
    }
}
