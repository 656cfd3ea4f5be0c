//! The stores behind the contestants' disks.

use super::Plan;
use super::contestant::{Contestant, Family};
use super::network;
use crate::host::Host;
use crate::host::guest::Guest;
use crate::host::pci::{Medium, PciDevice};
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

/// The storage behind the disks of the driver domains. The disks of dom0's own backends are the same with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// Memory of the driver domain: a RAM image of Bulkhead's, a RAM disk of Linux's.
    #[default]
    Ram,
    /// Disks that the driver domain itself is given by dom0's xen-blkback, over RAM disks of dom0's: Bulkhead
    /// serves them as `vbd:`, Linux by its xen-blkback.
    Vbd,
    /// NVMe controllers that are passed through, and one that dom0's own backends have.
    Nvme,
    /// The export of an NBD server in dom0 or in a domain of its own, the same one for all: Bulkhead serves it as `nbd:`, Linux by its
    /// xen-blkback over the disk that its kernel's own client makes of it.
    Nbd,
}

/// The namespace of each NVMe controller of a bench.
const NAMESPACE: &[Medium] = &[Medium {
    mib: super::DATA as u64,
    block: 512,
    caches: false,
}];

/// The NVMe controllers, each with its user. All are alike, since a device has one user at a time, and a contestant
/// that waits for its turn keeps its device. `None` is dom0.
const CONTROLLERS: [(Option<Contestant>, PciDevice); 4] = [
    (None, PciDevice::nvme(0x10, NAMESPACE)),
    (
        Some(Contestant::Bulkhead(Family::Pv)),
        PciDevice::nvme(0x11, NAMESPACE),
    ),
    (
        Some(Contestant::Linux(Family::Pv)),
        PciDevice::nvme(0x12, NAMESPACE),
    ),
    (Some(Contestant::Bare), PciDevice::nvme(0x13, NAMESPACE)),
];

/// The controllers alone.
const DEVICES: &[PciDevice] = &[
    CONTROLLERS[0].1,
    CONTROLLERS[1].1,
    CONTROLLERS[2].1,
    CONTROLLERS[3].1,
];

/// The name of the namespace in a Linux that has one of these controllers.
pub const NAMESPACE_NAME: &str = "nvme0n1";

impl Store {
    /// Returns the devices that the host has to have.
    pub fn devices(self) -> &'static [PciDevice] {
        match self {
            Self::Nvme => DEVICES,
            Self::Ram | Self::Vbd | Self::Nbd => &[],
        }
    }

    /// Returns the device that is passed through to a domain.
    pub fn device(self, user: Contestant) -> Option<PciDevice> {
        let of_user = |(one, _): &&(Option<Contestant>, _)| *one == Some(user);
        match self {
            Self::Nvme => CONTROLLERS.iter().find(of_user).map(|(_, device)| *device),
            Self::Ram | Self::Vbd | Self::Nbd => None,
        }
    }

    /// Prepares the store that driver domains are to serve, and dom0's own part of it: gives the devices to dom0's
    /// pciback, or starts the server. Returns the domain of the server, if it has one of its own.
    pub fn prepare<'h>(self, host: &'h Host, plan: &Plan) -> Result<Option<Guest<'h>>> {
        match self {
            Self::Nvme => {
                for (user, device) in &CONTROLLERS {
                    if user.is_some() {
                        host.make_assignable(device)?;
                    }
                }
                // Afterwards, for dom0's driver takes every controller that it finds.
                let there = super::server::appeared(NAMESPACE_NAME, super::DATA);
                host.ok(&format!("modprobe nvme && {there}")).map(|_| None)
            }
            Self::Nbd => network::prepare(host, plan),
            Self::Ram | Self::Vbd => Ok(None),
        }
    }

    /// Returns the reason why there cannot be several guests, if there is one.
    pub fn one_guest(self) -> Option<&'static str> {
        match self {
            Self::Ram | Self::Vbd => None,
            Self::Nvme => Some("each controller has one namespace"),
            Self::Nbd => Some("the server has one export"),
        }
    }

    /// Returns the memory in MiB that Bulkhead is given for each disk that it serves.
    pub fn disk_memory(self, size: u32) -> u32 {
        match self {
            Self::Ram => size,
            Self::Vbd | Self::Nvme => 2,
            Self::Nbd => 4,
        }
    }
}

/// The last letters of `xvda` to `xvdd`: the disks of a driver domain, one for each guest.
const LETTERS: [char; 4] = ['a', 'b', 'c', 'd'];

/// Returns the name of a driver domain's own disk in it.
///
/// # Panics
/// If a bench does not have that many guests.
pub fn own_disk(guest: u32) -> String {
    format!("xvd{}", LETTERS[guest as usize])
}

impl Plan {
    /// Returns the driver domains that take part, each once.
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
            Store::Ram | Store::Nvme | Store::Nbd => 0,
        }
    }

    /// Returns the disks that a driver domain is given, as its configuration names them.
    pub fn own_disks(&self, server: Contestant) -> Vec<String> {
        if self.store != Store::Vbd {
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
        matches!(self.store, Store::Vbd | Store::Nbd)
            && matches!(contestant, Contestant::Bulkhead(_) | Contestant::Linux(_))
    }

    /// Returns the contestant with which one of Bulkhead's is compared wherever the former takes part. If there is
    /// none, the comparison is with the best of its peers.
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
    fn no_two_domains_are_given_the_same_controller() {
        let mut plan = plan(Store::Nvme, 1);
        plan.contestants
            .retain(|contestant| contestant.cannot(Store::Nvme).is_none());
        let mut users: Vec<Contestant> = plan.servers();
        users.push(Contestant::Bare);
        let devices: Vec<PciDevice> = users
            .iter()
            .map(|&user| Store::Nvme.device(user).expect("it has a controller"))
            .collect();
        let addresses: BTreeSet<String> = devices.iter().map(PciDevice::to_string).collect();
        assert_eq!(addresses.len(), devices.len());
        assert!(devices.iter().all(|device| DEVICES.contains(device)));
        assert!(!devices.contains(&CONTROLLERS[0].1), "dom0's own");
        assert_eq!(plan.ram_disks(), 0);
        assert!(plan.own_disks(LINUX).is_empty());
        assert_eq!(Store::Vbd.device(Contestant::Bare), None);
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
