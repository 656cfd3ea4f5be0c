//! What the contestants' disks are made of.

use super::Plan;
use super::contestant::Contestant;
use clap::ValueEnum;
use serde::Serialize;

/// The storage behind the disks of the driver domains. Those of dom0's own backends are the same with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// Memory of the driver domain: a RAM image of Bulkhead's, a RAM disk of Linux's.
    #[default]
    Ram,
    /// Disks that the driver domain itself is given by dom0's xen-blkback, over RAM disks of dom0's: Bulkhead
    /// serves them as `vbd:`, Linux by its xen-blkback.
    Vbd,
}

/// The last letters of `xvda` to `xvdd`: the disks of a driver domain, one for each guest.
const LETTERS: [char; 4] = ['a', 'b', 'c', 'd'];

/// The name of a driver domain's own disk in it.
///
/// # Panics
/// If a bench does not have so many guests.
pub fn own_disk(guest: u32) -> String {
    format!("xvd{}", LETTERS[guest as usize])
}

impl Plan {
    /// The driver domains that take part, each once.
    fn servers(&self) -> Vec<Contestant> {
        let mut servers = Vec::new();
        for server in self.contestants.iter().filter_map(|one| one.server()) {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }

    /// Returns the RAM disk of dom0's behind a guest's disk, if it is one. dom0's own backend has the first ones,
    /// and no two driver domains have the same: libxl attaches a disk to one writer.
    fn ram_disk(&self, server: Option<Contestant>, guest: u32) -> Option<u32> {
        let turn = match server {
            None => 0,
            Some(server) => 1 + self.servers().iter().position(|one| *one == server)? as u32,
        };
        Some(turn * self.guests + guest)
    }

    /// Returns the number of RAM disks that dom0 has to have.
    pub fn ram_disks(&self) -> u32 {
        match self.store {
            Store::Vbd => self.guests * (1 + self.servers().len() as u32),
            Store::Ram if self.contestants.contains(&Contestant::Dom0Blkback) => self.guests,
            Store::Ram => 0,
        }
    }

    /// Returns the disks that a driver domain is given, as its configuration names them.
    pub fn own_disks(&self, server: Contestant) -> Vec<String> {
        if self.store == Store::Ram {
            return Vec::new();
        }
        let disk = |guest| {
            let (name, number) = (own_disk(guest), self.ram_disk(Some(server), guest)?);
            Some(format!(
                "vdev={name},format=raw,access=rw,backendtype=phy,target=/dev/ram{number}"
            ))
        };
        (0..self.guests).filter_map(disk).collect()
    }

    /// Returns whether dom0 has a part in every request that a contestant serves, beside the server.
    pub fn dom0_is_beneath(&self, contestant: Contestant) -> bool {
        self.store == Store::Vbd
            && matches!(contestant, Contestant::Bulkhead(_) | Contestant::Linux(_))
    }

    /// Returns the contestant with which one of Bulkhead's is compared wherever it takes part. Without one, that is
    /// the best of its peers.
    pub fn counterpart(&self, contestant: Contestant) -> Option<Contestant> {
        match (self.store, contestant.server()) {
            (Store::Vbd, Some(Contestant::Bulkhead(family))) => Some(Contestant::Linux(family)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{BULKHEAD, LINUX, example};
    use super::*;
    use std::collections::BTreeSet;

    fn plan(store: Store, guests: u32) -> Plan {
        Plan {
            contestants: Contestant::ALL.to_vec(),
            guests,
            store,
            ..example().plan
        }
    }

    #[test]
    fn no_two_domains_are_given_the_same_disk() {
        for guests in 1..=4 {
            let plan = plan(Store::Vbd, guests);
            let mut disks: Vec<String> = (0..guests)
                .filter_map(|guest| Contestant::Dom0Blkback.disk(Store::Vbd, guest, 64))
                .collect();
            let servers = plan.servers();
            assert_eq!(servers.len(), 4, "the null store's is one of these");
            for server in servers {
                let own = plan.own_disks(server);
                assert_eq!(own.len(), guests as usize);
                let served = (0..guests).filter_map(|guest| server.disk(Store::Vbd, guest, 64));
                for (guest, (own, served)) in (0..).zip(own.iter().zip(served)) {
                    let name = own_disk(guest);
                    assert!(own.starts_with(&format!("vdev={name},")), "{own}");
                    assert!(served.ends_with(&name), "{served}");
                }
                disks.extend(own);
            }
            let target =
                |disk: &String| disk.rsplit_once("target=/dev/ram").map(|(_, n)| n.parse());
            let targets: BTreeSet<u32> = disks
                .iter()
                .map(|disk| target(disk).unwrap().unwrap())
                .collect();
            assert_eq!(targets.len(), disks.len(), "{disks:?}");
            assert_eq!(targets.len() as u32, plan.ram_disks());
            assert_eq!(targets.last(), Some(&(plan.ram_disks() - 1)));
        }
    }

    #[test]
    fn with_data_in_its_memory_a_driver_domain_has_no_disk() {
        let mut plan = plan(Store::Ram, 2);
        assert!(plan.own_disks(BULKHEAD).is_empty() && !plan.dom0_is_beneath(BULKHEAD));
        assert_eq!(plan.ram_disks(), 2);
        plan.contestants = vec![BULKHEAD, LINUX];
        assert_eq!(plan.ram_disks(), 0);
        assert_eq!(plan.counterpart(BULKHEAD), None);
    }
}
