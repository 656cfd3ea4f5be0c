//! The bench: the same guest and the same fio jobs against every backend, in one boot of one host.
//!
//! ```text
//!   processor 0                                  processor 1
//!   dom0, quiet: commands and consoles           the guest(s): fio on /dev/xvda
//!   the contestant whose turn it is              (all other contestants are paused)
//! ```
//!
//! [`contest`] is the order of events, [`field`] and [`server`] the domains, [`store`] and [`network`] their disks,
//! [`at_once`] one job in the guests, [`meter`] and [`instructions`] the measurements while fio runs, [`results`] the
//! figures. [`table`], [`ratios`], [`chart`] and [`markdown`] show these.

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
pub mod memory;
pub mod meter;
pub mod network;
pub mod ratios;
pub mod results;
pub mod server;
pub mod spread;
pub mod statistics;
pub mod store;
pub mod table;

use crate::config::Kind;
use contestant::Contestant;
use job::Job;
use network::ServerDomain;
use serde::Serialize;
use std::time::Duration;
use store::Store;

/// The plan of a bench: the measurements and their settings.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The contestants.
    pub contestants: Vec<Contestant>,
    /// The jobs of each contestant.
    pub jobs: Vec<Job>,
    /// The store behind the disks of driver domains.
    pub store: Store,
    /// The domain of the server that has their data, if it is on the network.
    pub server: ServerDomain,
    /// Number of rounds.
    pub rounds: u32,
    /// Number of guests at a time.
    pub guests: u32,
    /// The kind of the guests' virtualization.
    #[serde(serialize_with = "as_text")]
    pub guest_kind: Kind,
    /// True if their frontends use persistent grants with backends that offer them.
    pub persistent: bool,
    /// Number of queues that they may use, and of vCPUs of guest and backend.
    pub queues: u32,
    /// The time for which each job runs, after [`job::RAMP`].
    #[serde(serialize_with = "as_seconds")]
    pub runtime: Duration,
    /// The time after which no turn, and no job, begins.
    #[serde(serialize_with = "as_seconds")]
    pub limit: Duration,
    /// Further options for Bulkhead's command line.
    pub bulkhead_options: String,
    /// True if instructions are counted.
    pub counts: bool,
}

/// The size of all of a contestant's disks together, in MiB.
pub const DATA: u32 = 64;

impl Plan {
    /// Returns the size of a disk in MiB.
    pub fn disk_size(&self) -> u32 {
        DATA / self.guests
    }

    /// Returns the options of Linux's RAM disk driver for this number of disks.
    pub fn brd_options(&self, prefix: &str, disks: u32) -> String {
        let kib = self.disk_size() * 1024;
        format!("{prefix}rd_nr={disks} {prefix}rd_size={kib}")
    }
}

fn as_text<S: serde::Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_seconds<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.as_secs_f64())
}
