//! What a scenario has in its hands: a host, the unikernel, and a place for what it measures.

pub mod fio;
pub mod held;
pub mod images;
pub mod leftover;
pub mod noise;
pub mod progress;
pub mod report;
pub mod runner;
pub mod storage;

use crate::host::Host;
use progress::Progress;
use std::cell::RefCell;

/// A test on a booted host. It is one short function that reads like a story.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name, by which it is filtered and its logs are found.
    pub name: &'static str,
    /// What it proves, in a line.
    pub about: &'static str,
    /// Whether the demo shows it.
    pub demo: bool,
    /// The test itself.
    pub run: fn(&Lab) -> anyhow::Result<()>,
}

/// A figure for the table at the end.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Figure {
    /// The row, such as `pvh`.
    pub row: String,
    /// The column, such as `boot`.
    pub column: &'static str,
    /// The value with its unit.
    pub value: String,
}

/// The lab as one scenario sees it.
pub struct Lab<'h> {
    /// The host it runs on.
    pub host: &'h Host,
    scenario: &'static str,
    progress: &'h Progress,
    figures: RefCell<Vec<Figure>>,
    last_step: RefCell<String>,
}

impl<'h> Lab<'h> {
    /// The lab for a scenario, or for something else that has a name.
    pub fn new(host: &'h Host, scenario: &'static str, progress: &'h Progress) -> Self {
        Self {
            host,
            scenario,
            progress,
            figures: RefCell::default(),
            last_step: RefCell::default(),
        }
    }

    /// Says what is being done now.
    pub fn step(&self, text: impl Into<String>) {
        let text = text.into();
        self.progress.step(self.scenario, &text);
        *self.last_step.borrow_mut() = text;
    }

    /// Notes a figure for the table at the end.
    pub fn record(&self, row: impl ToString, column: &'static str, value: String) {
        let row = row.to_string();
        self.figures
            .borrow_mut()
            .push(Figure { row, column, value });
    }
}
