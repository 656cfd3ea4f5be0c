//! The tables and the counts at the end of a run.

use super::Figure;
use super::progress::Progress;
use crate::commands::checks::Counts;
use crate::workspace;
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use std::fs;
use std::time::Duration;

/// The outcome of a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its name, with the implementation of xenstored behind it if it is not the usual one.
    pub name: String,
    /// The time that it took, reruns included.
    pub seconds: f32,
    /// The reason why it failed.
    pub error: Option<String>,
    /// The faults of the emulation seen in it.
    pub emulator_faults: Vec<String>,
    /// The number of times it was run again because of them.
    pub reruns: u32,
    /// The figures that it measured.
    pub figures: Vec<Figure>,
}

impl Outcome {
    /// Prints the outcome.
    pub fn announce(&self, progress: &Progress) {
        for line in &self.emulator_faults {
            progress.line(&format!("EMULATOR FAULT in {}: {line}", self.name));
        }
        let verb = if self.error.is_some() {
            "FAILED"
        } else {
            "passed"
        };
        progress.line(&format!("{verb} {} ({:.1} s)", self.name, self.seconds));
        if let Some(error) = &self.error {
            for line in error.lines() {
                progress.line(&format!("    {line}"));
            }
        }
    }
}

/// The results of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The outcomes of the scenarios, in order.
    pub outcomes: Vec<Outcome>,
    /// The number of hosts booted.
    pub boots: u32,
}

impl Summary {
    /// Adds the results of another run.
    pub fn extend(&mut self, other: Self) {
        self.outcomes.extend(other.outcomes);
        self.boots += other.boots;
    }

    /// Saves the results as a file, for programs.
    pub fn save(&self) -> Result<()> {
        let path = workspace::lab().join("summary.json");
        fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns the numbers of scenarios that passed and failed.
    pub fn counts(&self) -> Counts {
        let failed = self.outcomes.iter().filter(|it| it.error.is_some());
        let failures: Vec<_> = failed.map(|outcome| outcome.name.clone()).collect();
        Counts {
            passed: self.outcomes.len() - failures.len(),
            failed: failures.len(),
            failures,
        }
    }

    /// Returns the number of times that any scenario was run again because of a fault of the emulation.
    pub fn reruns(&self) -> u32 {
        self.outcomes.iter().map(|outcome| outcome.reruns).sum()
    }

    /// Returns a table with a line for each scenario.
    pub fn scenario_table(&self) -> String {
        let mut table = plain_table();
        table.set_header(["scenario", "result", "time"]);
        for outcome in &self.outcomes {
            let result = match (&outcome.error, outcome.reruns > 0) {
                (Some(_), _) => "FAILED",
                (None, true) => "passed (rerun)",
                (None, false) => "passed",
            };
            let time = format!("{:.1} s", outcome.seconds);
            table.add_row([outcome.name.as_str(), result, &time]);
        }
        table.to_string()
    }

    /// Returns tables of all figures: one for the scenarios that have columns in common.
    pub fn figure_tables(&self) -> Vec<String> {
        let mut groups: Vec<Vec<&Figure>> = Vec::new();
        for outcome in &self.outcomes {
            let figures = &outcome.figures;
            let has = |column| figures.iter().any(|figure| figure.column == column);
            let shared = |group: &&mut Vec<&Figure>| group.iter().any(|figure| has(figure.column));
            match groups.iter_mut().find(shared) {
                Some(group) => group.extend(figures),
                None if figures.is_empty() => (),
                None => groups.push(figures.iter().collect()),
            }
        }
        let table = |group: Vec<&Figure>| Self::figure_table(&group);
        groups.into_iter().map(table).collect()
    }

    /// Returns a table with a line for each row name, in the order of their first appearance.
    fn figure_table(figures: &[&Figure]) -> String {
        let (mut rows, mut columns) = (Vec::new(), Vec::new());
        for figure in figures {
            push_new(&mut rows, figure.row.as_str());
            push_new(&mut columns, figure.column);
        }
        let mut table = plain_table();
        table.set_header(std::iter::once("").chain(columns.iter().copied()));
        for row in rows {
            // No figure is lost where two have the same place.
            let values = |column: &&str| {
                let here = figures
                    .iter()
                    .filter(|figure| figure.row == row && figure.column == *column);
                let values: Vec<&str> = here.map(|figure| figure.value.as_str()).collect();
                values.join(", ")
            };
            table.add_row(std::iter::once(row.to_owned()).chain(columns.iter().map(values)));
        }
        table.to_string()
    }

    /// Returns the warnings that the user must see: faults of the emulation.
    pub fn warnings(&self) -> Vec<String> {
        let faults = self.outcomes.iter().flat_map(|outcome| {
            outcome
                .emulator_faults
                .iter()
                .map(|line| format!("EMULATOR FAULT in {}: {line}", outcome.name))
        });
        let reruns = self.reruns();
        let count = (reruns > 0).then(|| {
            format!("scenarios were run again {reruns} time(s) because of a fault of the emulation")
        });
        faults.chain(count).collect()
    }
}

/// Returns a duration in milliseconds, in the form of the tables.
pub fn milliseconds(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    if milliseconds < 10.0 {
        format!("{milliseconds:.2} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table
}

fn push_new<'a>(list: &mut Vec<&'a str>, item: &'a str) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, error: Option<&str>, reruns: u32) -> Outcome {
        let figure = |column, value: &str| Figure {
            row: name.to_owned(),
            column,
            value: value.to_owned(),
        };
        Outcome {
            name: name.to_owned(),
            seconds: 1.0,
            error: error.map(str::to_owned),
            emulator_faults: vec!["Triple fault".to_owned(); reruns as usize],
            reruns,
            figures: vec![figure("boot", "90 ms"), figure("memory", "80 MiB")],
        }
    }

    #[test]
    fn counts_and_tables_hold_every_outcome() {
        let outcomes = vec![outcome("a", None, 2), outcome("b", Some("broken"), 0)];
        let summary = Summary { outcomes, boots: 1 };
        assert_eq!(
            summary.counts(),
            Counts {
                passed: 1,
                failed: 1,
                failures: vec!["b".to_owned()],
            }
        );
        assert_eq!(summary.reruns(), 2);
        assert!(summary.scenario_table().contains("FAILED"));
        assert!(summary.scenario_table().contains("passed (rerun)"));
        let [figures] = &summary.figure_tables()[..] else {
            panic!("the columns are the same");
        };
        assert_eq!(figures.matches("90 ms").count(), 2);
        assert_eq!(figures.matches("boot").count(), 1);
        assert_eq!(summary.warnings().len(), 3);
    }

    #[test]
    fn figures_with_the_same_place_are_all_shown() {
        let mut outcomes = vec![outcome("one", None, 0), outcome("two", None, 0)];
        for (outcome, value) in outcomes.iter_mut().zip(["210 ms", "2489 ms"]) {
            outcome.figures = vec![Figure {
                row: "pvh".to_owned(),
                column: "pause",
                value: value.to_owned(),
            }];
        }
        let summary = Summary { outcomes, boots: 1 };
        let [table] = &summary.figure_tables()[..] else {
            panic!("one table");
        };
        assert!(table.contains("210 ms, 2489 ms"), "{table}");
    }

    #[test]
    fn scenarios_without_a_column_in_common_have_tables_of_their_own() {
        let mut outcomes: Vec<Outcome> = ["a", "b", "c"].map(|name| outcome(name, None, 0)).into();
        outcomes[1].figures = vec![Figure {
            row: "b".to_owned(),
            column: "round trips",
            value: "1000".to_owned(),
        }];
        let summary = Summary { outcomes, boots: 1 };
        let tables = summary.figure_tables();
        assert_eq!(tables.len(), 2);
        assert!(tables[0].contains("90 ms") && !tables[0].contains("1000"));
        assert!(tables[1].contains("1000") && !tables[1].contains("90 ms"));
    }
}
