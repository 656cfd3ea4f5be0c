//! The typed world of a scenario: a host, the unikernel, and a place for its figures.

pub mod boot_disk;
pub mod fio;
pub mod guest_queue;
pub mod host_state;
pub mod images;
pub mod leak_check;
pub mod network;
pub mod own_host;
pub mod pauses;
pub mod progress;
pub mod records;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod side_by_side;
pub mod storage;
pub mod tls_servers;
pub mod write_verify;

use crate::host::Host;
use crate::image::HostImage;
use progress::Progress;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The time limit on an emulated host for an action that usually takes seconds.
pub const MINUTE: Duration = Duration::from_secs(60);

/// The runs of which a scenario is a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The demo and the suite. It also measures, and nothing else may run beside it.
    Demo,
    /// The suite.
    Suite,
    /// It runs by name, or with `--long`: it does what others of the suite do more often, with more guests or disks, or in
    /// another way (the other kind of driver domain, another store); it needs a further build; or it meets most faults of
    /// the emulation.
    ByName,
}

/// A test on a booted host. It is one short function that reads like a story.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name, by which it is filtered and its logs are found.
    pub name: &'static str,
    /// The statement that it proves, in a line.
    pub about: &'static str,
    /// The runs of which it is a part.
    pub part: Part,
    /// The test itself.
    pub run: fn(&Testbed) -> anyhow::Result<()>,
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

/// A booted host, for one scenario.
pub struct Testbed<'h> {
    /// The host it runs on.
    pub host: &'h Host,
    image: &'h HostImage,
    /// The scenario's name.
    pub scenario: &'static str,
    progress: &'h Progress,
    figures: RefCell<Vec<Figure>>,
    last_step: RefCell<String>,
}

impl<'h> Testbed<'h> {
    /// Returns the testbed of a scenario, or of other work that has a name.
    pub fn new(
        host: &'h Host,
        image: &'h HostImage,
        scenario: &'static str,
        progress: &'h Progress,
    ) -> Self {
        Self {
            host,
            image,
            scenario,
            progress,
            figures: RefCell::default(),
            last_step: RefCell::default(),
        }
    }

    /// Shows the step that begins now.
    pub fn step(&self, text: impl Into<String>) {
        let text = text.into();
        self.progress.step(self.scenario, &text);
        *self.last_step.borrow_mut() = text;
    }

    /// Sets the time that a scenario may take from now on, if it is longer than the others.
    pub fn may_take(&self, limit: Duration) {
        self.host.watch_until(Instant::now() + limit);
    }

    /// Returns the folder that dom0 sees as `/guest`.
    pub fn guest_files(&self) -> PathBuf {
        self.image.guest.clone()
    }

    /// Notes a figure for the table at the end. Scenarios whose figures share a column need rows of their own.
    pub fn record(&self, row: impl ToString, column: &'static str, value: String) {
        let row = row.to_string();
        self.figures
            .borrow_mut()
            .push(Figure { row, column, value });
    }
}
