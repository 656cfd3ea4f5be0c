//! Scenarios that bring a host of their own instead of using the shared one.

use super::report::Outcome;
use crate::host::xenstored::Xenstored;
use crate::image::HostImage;
use crate::workspace;
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A test on its own host.
#[derive(Clone, Copy)]
pub struct OwnHostScenario {
    /// Its name, by which it is filtered and its logs are found.
    pub name: &'static str,
    /// The statement that it proves, in a line.
    pub about: &'static str,
    /// The test itself.
    pub run: fn(&Parts) -> Result<()>,
}

/// The parts of which such a scenario makes its host.
pub struct Parts<'a> {
    /// The files that a host boots.
    pub image: &'a HostImage,
    /// The implementation of xenstored that is to run in its dom0.
    pub xenstored: Xenstored,
    /// The bootable ELF.
    pub unikernel: &'a Path,
    /// An empty folder for its host and its logs.
    pub dir: PathBuf,
    /// Shows each step.
    pub say: &'a dyn Fn(&str),
}

impl OwnHostScenario {
    /// Runs the scenario.
    pub fn run(
        &self,
        image: &HostImage,
        xenstored: Xenstored,
        unikernel: &Path,
        say: &dyn Fn(&str),
    ) -> Outcome {
        let name = xenstored.title(self.name);
        let start = Instant::now();
        let parts = Parts {
            image,
            xenstored,
            unikernel,
            dir: workspace::lab().join(&name),
            say,
        };
        let result = parts.clear().and_then(|()| (self.run)(&parts));
        let error = result
            .err()
            .map(|error| format!("{error:#}\nlogs: {}", parts.dir.display()));
        Outcome {
            name,
            seconds: start.elapsed().as_secs_f32(),
            error,
            emulator_faults: Vec::new(),
            reruns: 0,
            figures: Vec::new(),
        }
    }
}

impl Parts<'_> {
    fn clear(&self) -> Result<()> {
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        Ok(fs::create_dir_all(&self.dir)?)
    }
}
