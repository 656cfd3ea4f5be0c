//! Bulkhead's own counters, from the node `statistics` of a disk's backend directory.

use crate::host::Host;
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;

/// A disk's counters by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads lines of `name value`. Words whose value is no number are left out.
    pub fn parse(text: &str) -> Self {
        let words: Vec<&str> = text
            .split(|c: char| c.is_whitespace() || matches!(c, '=' | ':' | ','))
            .filter(|word| !word.is_empty())
            .collect();
        let pairs = words.windows(2).filter_map(|pair| {
            let is_name = pair[0].starts_with(|c: char| c.is_ascii_alphabetic());
            let value = pair[1].parse().ok()?;
            is_name.then(|| (pair[0].replace('-', "_"), value))
        });
        Self(pairs.collect())
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds another disk's.
    pub fn add(&mut self, other: &Counters) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }

    fn since(&self, earlier: &Counters) -> Counters {
        let difference = |(name, value): (&String, &u64)| {
            (name.clone(), value.saturating_sub(earlier.get(name)))
        };
        Counters(self.0.iter().map(difference).collect())
    }
}

/// What one request cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerRequest {
    /// Hypercalls that mapped, unmapped or copied.
    pub grant_calls: f64,
    /// Notifications to the frontend.
    pub sent: f64,
    /// Notifications from the frontend.
    pub received: f64,
    /// Pages mapped.
    pub maps: f64,
    /// Bytes copied by the hypervisor.
    pub bytes_copied: f64,
    /// Requests found by one look at the ring.
    pub per_sweep: f64,
}

/// What the requests between two looks at the counters cost each; `None` if there were none.
pub fn per_request(before: &Counters, after: &Counters) -> Option<PerRequest> {
    let change = after.since(before);
    let sum = |names: &[&str]| names.iter().map(|name| change.get(name)).sum::<u64>() as f64;
    let requests = sum(&["reads", "writes", "barriers", "flushes", "discards"]);
    if requests == 0.0 {
        return None;
    }
    let per = |names: &[&str]| sum(names) / requests;
    let sweeps = sum(&["sweeps"]);
    Some(PerRequest {
        grant_calls: per(&["map_calls", "unmap_calls", "copy_calls"]),
        sent: per(&["notifications_sent"]),
        received: per(&["notifications_received"]),
        maps: per(&["maps"]),
        bytes_copied: per(&["bytes_copied"]),
        per_sweep: if sweeps > 0.0 { requests / sweeps } else { 0.0 },
    })
}

/// Has a disk's counters written anew and reads them; `None` if its backend keeps none.
pub fn read(host: &Host, backend: u32, guest: u32, device: u32) -> Result<Option<Counters>> {
    let node = format!("/local/domain/{backend}/backend/vbd/{guest}/{device}/statistics");
    let script = format!(
        "xenstore-exists {node} || exit 3\n\
         xenstore-write {node} refresh\n\
         for i in 1 2 3 4 5 6 7 8 9 10; do\n\
             text=$(xenstore-read {node})\n\
             [ \"$text\" = refresh ] || {{ echo \"$text\"; exit 0; }}\n\
             sleep 0.1\n\
         done\n\
         exit 4"
    );
    let output = host.exec(&script, crate::host::domain::TOOLSTACK)?;
    match output.status {
        0 => Ok(Some(Counters::parse(&output.out))),
        3 => Ok(None),
        4 => bail!("{node} is not refreshed"),
        status => bail!("{node} cannot be read: status {status}: {}", output.err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_in_lines_or_in_one() {
        let lines = Counters::parse("reads 12\nwrites 3\nmap_calls 5\nbad x\n");
        assert_eq!((lines.get("reads"), lines.get("map_calls")), (12, 5));
        assert_eq!(lines.get("bad"), 0);
        assert_eq!(Counters::parse("reads=12, writes=3 map-calls: 5"), lines);
    }

    #[test]
    fn costs_are_of_the_requests_in_between() {
        let before = Counters::parse("reads 100 writes 0 map_calls 100 notifications_sent 7");
        let after = Counters::parse(
            "reads 130 writes 10 map_calls 110 unmap_calls 10 maps 40 sweeps 10 \
             notifications_sent 17 bytes_copied 163840",
        );
        let cost = per_request(&before, &after).unwrap();
        assert!((cost.grant_calls - 0.5).abs() < 1e-9);
        assert!((cost.sent - 0.25).abs() < 1e-9);
        assert!((cost.maps - 1.0).abs() < 1e-9);
        assert!((cost.bytes_copied - 4096.0).abs() < 1e-9);
        assert!((cost.per_sweep - 4.0).abs() < 1e-9);
        assert_eq!(per_request(&after, &after), None);
    }
}
