//! A host's domains and xenstore nodes: a scenario that is over must not have left any.

use crate::host::Host;
use anyhow::Result;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The state of a host between scenarios.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    domains: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

impl HostState {
    /// Reads the present state of a host.
    pub fn of(host: &Host) -> Result<Self> {
        let list = host.ok("xl list")?;
        let tree = host.ok("xenstore-ls -f")?;
        Ok(Self {
            domains: domain_names(&list),
            nodes: nodes(&tree),
        })
    }

    /// Returns the entries of `later` that `self` does not have, a line each.
    pub fn new_in(&self, later: &Self) -> Vec<String> {
        let domains = later.domains.difference(&self.domains);
        let nodes = later.nodes.difference(&self.nodes);
        domains
            .map(|name| format!("domain {name}"))
            .chain(nodes.map(|node| format!("xenstore node {node}")))
            .collect()
    }
}

/// Compares a host with an earlier state, giving the toolstack a while to finish its removals.
pub fn check(host: &Host, before: &HostState, limit: Duration) -> Result<Vec<String>> {
    let deadline = Instant::now() + limit;
    loop {
        let left = before.new_in(&HostState::of(host)?);
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Returns the names in the output of `xl list`. A domain that is dying has none, shown as `(null)`.
pub fn domain_names(list: &str) -> BTreeSet<String> {
    list.lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Returns the paths in the output of `xenstore-ls -f` that a domain's creation must not leave behind. The toolstack
/// keeps a few nodes of dom0's own for good once it has made its first domain.
fn nodes(tree: &str) -> BTreeSet<String> {
    const KEPT: &[&str] = &[
        "/local/domain/0/libxl",
        "/local/domain/0/backend",
        "/local/domain/0/device-model",
        "/libxl",
        "/vm",
    ];
    tree.lines()
        .filter_map(|line| line.split_once(" = ").map(|(path, _)| path.trim()))
        .filter(|path| !KEPT.contains(path))
        .filter(|path| !path.starts_with("/local/domain/0/libxl/"))
        .filter(|path| !is_of_a_device(path))
        .map(str::to_owned)
        .collect()
}

/// Returns whether libxl leaves the path behind after a device was passed through: an empty directory, which is not
/// that of the domain that had the device; and pciback's directory of that domain, unless the frontend was connected to
/// its end.
fn is_of_a_device(path: &str) -> bool {
    let device = path.strip_prefix("/libxl/pci/");
    device.is_some_and(|rest| !rest.contains('/'))
        || path.starts_with("/local/domain/0/backend/pci")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n\
                        Domain-0                                     0  1024     2     r-----       9.7\n\
                        (null)                                       4     0     1     --p--d       0.2\n";

    #[test]
    fn a_device_has_nodes_of_its_own_but_no_owner() {
        let kept = nodes(
            "/libxl/pci/0000-00-10-0 = \"\"\n/local/domain/0/backend/pci/3/0/state = \"6\"\n\
             /libxl/pci/0000-00-10-0/domid = \"3\"\n",
        );
        let owner = "/libxl/pci/0000-00-10-0/domid".to_owned();
        assert_eq!(kept, BTreeSet::from([owner]));
    }

    #[test]
    fn stray_domains_and_nodes_are_named() {
        let before = HostState {
            domains: domain_names("Name ID\nDomain-0 0\n"),
            nodes: nodes("/tool = \"\"\n/local/domain/0/name = \"Domain-0\"\n"),
        };
        let after = HostState {
            domains: domain_names(LIST),
            nodes: nodes(
                "/tool = \"\"\n/local/domain/0/name = \"Domain-0\"\n/libxl = \"\"\n\
                 /local/domain/3/backend/vbd/4/51712 = \"\"\n",
            ),
        };
        assert_eq!(
            before.new_in(&after),
            [
                "domain (null)",
                "xenstore node /local/domain/3/backend/vbd/4/51712"
            ]
        );
        assert!(before.new_in(&before).is_empty());
    }
}
