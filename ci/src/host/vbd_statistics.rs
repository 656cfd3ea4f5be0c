//! Bulkhead's statistics of a disk, as an operator requests them: `refresh` is written to the node
//! `statistics` of its backend directory.

use super::Host;
use super::domain::TOOLSTACK;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// A disk's counters since it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VbdStatistics(pub BTreeMap<String, u64>);

impl VbdStatistics {
    /// Returns one of the counters.
    pub fn get(&self, name: &str) -> Result<u64> {
        let value = self.0.get(name).copied();
        value.with_context(|| format!("no counter is called {name}: {self:?}"))
    }

    /// Reads lines of `name value`.
    fn parse(text: &str) -> Result<Self> {
        let line = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let counters: Option<BTreeMap<_, _>> = text.lines().map(line).collect();
        match counters {
            Some(counters) if !counters.is_empty() => Ok(Self(counters)),
            _ => bail!("the statistics node holds {text:?}"),
        }
    }
}

impl Host {
    /// Returns the counters of the disk `device` (its number) that domain `backend` serves to `guest`.
    pub fn vbd_statistics(&self, backend: u32, guest: u32, device: u32) -> Result<VbdStatistics> {
        const LATE: i32 = 4;
        let node = format!("/local/domain/{backend}/backend/vbd/{guest}/{device}/statistics");
        let script = format!(
            "xenstore-write {node} refresh || exit\n\
             for i in $(seq 500); do\n\
                 [ \"$(xenstore-read {node})\" = refresh ] || exec xenstore-read -R {node}\n\
                 sleep 0.02\n\
             done\n\
             exit {LATE}"
        );
        let output = self.exec(&script, TOOLSTACK)?;
        match output.status {
            0 => VbdStatistics::parse(&output.out),
            LATE => bail!("{node} is not refreshed"),
            status => bail!("{node} cannot be read: status {status}: {}", output.err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_lines_is_read_and_nothing_else() {
        let statistics = VbdStatistics::parse("reads 12\nqueue_0_vcpu 1\n").unwrap();
        assert_eq!(statistics.get("reads").unwrap(), 12);
        assert_eq!(statistics.get("queue_0_vcpu").unwrap(), 1);
        let missing = statistics.get("writes").unwrap_err().to_string();
        assert!(
            missing.starts_with("no counter is called writes: "),
            "{missing}"
        );
        for text in ["", "reads", "reads many", "reads 12\n\nwrites 3"] {
            assert!(VbdStatistics::parse(text).is_err(), "{text:?}");
        }
    }
}
