//! The bench: the same guest and the same fio jobs against every backend, in one boot of one host.
//!
//! ```text
//!   processor 0                                  processor 1
//!   dom0, quiet: commands and consoles           the guest(s): fio on /dev/xvda
//!   the contestant whose turn it is              (all other contestants are paused)
//! ```
//!
//! [`contest`] is the order of events, [`field`] the domains and disks, [`at_once`] one job in the guests,
//! [`meter`] and [`instructions`] what is read while fio runs, [`results`] what comes of it, and [`table`], [`chart`] and
//! [`markdown`] show that.

pub mod at_once;
pub mod chart;
pub mod contest;
pub mod contestant;
pub mod field;
pub mod fio;
pub mod guest_counts;
pub mod instructions;
pub mod job;
pub mod markdown;
pub mod meter;
pub mod results;
pub mod spread;
pub mod statistics;
pub mod table;

use crate::config::Kind;
use contestant::Contestant;
use job::Job;
use serde::Serialize;
use std::time::Duration;

/// What is to be measured, and how.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Who takes part.
    pub contestants: Vec<Contestant>,
    /// What each of them has to do.
    pub jobs: Vec<Job>,
    /// How often everything is done.
    pub rounds: u32,
    /// How many guests do it at a time.
    pub guests: u32,
    /// How they are virtualized.
    #[serde(serialize_with = "as_text")]
    pub guest_kind: Kind,
    /// Whether their frontends keep their pages granted, if the backend does.
    pub persistent: bool,
    /// How many queues they may use: their processors, and the backend's.
    pub queues: u32,
    /// How long each job runs, after [`job::RAMP`].
    #[serde(serialize_with = "as_seconds")]
    pub runtime: Duration,
    /// No turn, and no job, begins later than this.
    #[serde(serialize_with = "as_seconds")]
    pub limit: Duration,
    /// More for Bulkhead's command line.
    pub bulkhead_options: String,
    /// Whether instructions are counted.
    pub counts: bool,
}

fn as_text<S: serde::Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_seconds<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.as_secs_f64())
}
