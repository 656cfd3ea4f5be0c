//! The resources of others that a driver domain holds, as Xen itself and xenstored count them.

use crate::host::Host;
use crate::host::xen_state::{bound_ports, grants_in_use, pages};
use anyhow::{Result, ensure};
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// The resources of others that a driver domain holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Event channels that are bound to anything, its own ones to Xen included.
    pub ports: usize,
    /// Pages of other domains that it has mapped.
    pub grants: usize,
    /// The nodes of the disks that it serves, with their values.
    pub nodes: Vec<String>,
}

impl Holdings {
    /// Counts the resources that the driver domain with this number holds now.
    pub fn by(host: &Host, storage: u32) -> Result<Self> {
        let tree = format!("xenstore-ls -f /local/domain/{storage}/backend 2>/dev/null; true");
        let nodes = host.ok(&tree)?;
        Ok(Self {
            ports: bound_ports(host, storage)?,
            grants: grants_in_use(host, storage)?,
            // The empty folders above a disk belong to dom0.
            nodes: nodes
                .lines()
                .filter(|line| line.matches('/').count() > 6)
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Checks that the driver domain holds no more and no less than `self`.
    pub fn expect(&self, host: &Host, storage: u32, when: &str) -> Result<()> {
        self.expect_within(host, storage, when, Duration::ZERO)
    }

    /// Checks that the driver domain comes to hold no more and no less than `self`: where guests end by themselves, the
    /// toolstack removes their traces a little later.
    pub fn expect_within(
        &self,
        host: &Host,
        storage: u32,
        when: &str,
        limit: Duration,
    ) -> Result<()> {
        expect_within(self, when, limit, || Self::by(host, storage))
    }
}

/// All that a driver domain holds, its own pages with it. Those that other domains have mapped are another count
/// ([`mapped_by_others`]), as they change with what these domains keep mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Everything {
    /// The resources of others.
    pub holdings: Holdings,
    /// Pages of its memory.
    pub memory: u64,
    /// Pages that Xen has for it.
    pub of_xen: u64,
}

impl Everything {
    /// Counts all that the driver domain with this number holds now.
    pub fn of(host: &Host, storage: u32) -> Result<Self> {
        let pages = pages(host, storage)?;
        Ok(Self {
            holdings: Holdings::by(host, storage)?,
            memory: pages.memory,
            of_xen: pages.of_xen,
        })
    }
}

/// Counts the pages of a driver domain that other domains have mapped.
pub fn mapped_by_others(host: &Host, storage: u32) -> Result<usize> {
    Ok(pages(host, storage)?.mapped_by_others)
}

/// Checks that what `count` finds a driver domain to hold comes to be what is expected.
pub fn expect_within<T: PartialEq + Debug>(
    expected: &T,
    when: &str,
    limit: Duration,
    count: impl Fn() -> Result<T>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let now = count()?;
        if now == *expected {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{when}, the driver domain holds {now:?}, expected {expected:?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
