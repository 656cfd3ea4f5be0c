//! The contestants: every block backend that a user of Xen could choose.

use super::network;
use super::store::{NAMESPACE_NAME, Store, own_disk};
use crate::config::Kind;
use serde::{Serialize, Serializer};
use std::fmt;

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Contestant {
    /// Bulkhead, serving a RAM image or its own disk.
    Bulkhead(Family),
    /// Bulkhead, completing requests without touching data: what the protocol alone costs.
    Null,
    /// A Linux driver domain: xen-blkback over a RAM disk or its own disk.
    Linux(Family),
    /// dom0's xen-blkback over a RAM disk, or over dom0's own disk of the store.
    Dom0Blkback,
    /// dom0's QEMU over a raw file on tmpfs, or over dom0's own disk of the store.
    Dom0Qdisk,
    /// No backend: the guest's own null_blk. No backend can give the guest more, as only its kernel and fio work.
    GuestAlone,
    /// No backend: Linux in a driver domain of its own on the device itself.
    Bare,
    /// A backend whose guests do not keep pages granted (persistent grants), but grant those of each request anew.
    Anew(Backend),
}

/// The backends that are also measured without persistent grants, over devices that are passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// A PV Bulkhead.
    Bulkhead,
    /// A PV Linux driver domain.
    Linux,
    /// dom0's xen-blkback.
    Dom0Blkback,
}

/// [`Kind`], as a type with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// PVH.
    Pvh,
    /// PV.
    Pv,
}

impl From<Family> for Kind {
    fn from(family: Family) -> Kind {
        match family {
            Family::Pvh => Kind::Pvh,
            Family::Pv => Kind::Pv,
        }
    }
}

impl Contestant {
    /// All contestants.
    pub const ALL: [Self; 12] = [
        Self::Bulkhead(Family::Pvh),
        Self::Linux(Family::Pvh),
        Self::Bulkhead(Family::Pv),
        Self::Linux(Family::Pv),
        Self::Null,
        Self::Dom0Blkback,
        Self::Dom0Qdisk,
        Self::GuestAlone,
        Self::Bare,
        Self::Anew(Backend::Bulkhead),
        Self::Anew(Backend::Linux),
        Self::Anew(Backend::Dom0Blkback),
    ];

    /// Returns its name, which is also that of its domain.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bulkhead(Family::Pvh) => "bulkhead-pvh",
            Self::Bulkhead(Family::Pv) => "bulkhead-pv",
            Self::Null => "bulkhead-null",
            Self::Linux(Family::Pvh) => "linux-pvh",
            Self::Linux(Family::Pv) => "linux-pv",
            Self::Dom0Blkback => "dom0-blkback",
            Self::Dom0Qdisk => "dom0-qdisk",
            Self::GuestAlone => "guest-alone",
            Self::Bare => "linux-bare",
            Self::Anew(Backend::Bulkhead) => "bulkhead-pv-anew",
            Self::Anew(Backend::Linux) => "linux-pv-anew",
            Self::Anew(Backend::Dom0Blkback) => "dom0-blkback-anew",
        }
    }

    /// Returns the contestant with the same backend and disks, with persistent grants.
    fn with_persistent_grants(self) -> Contestant {
        match self {
            Self::Anew(Backend::Bulkhead) => Self::Bulkhead(Family::Pv),
            Self::Anew(Backend::Linux) => Self::Linux(Family::Pv),
            Self::Anew(Backend::Dom0Blkback) => Self::Dom0Blkback,
            other => other,
        }
    }

    /// Returns whether its guests may keep pages granted.
    pub fn keeps_grants(self) -> bool {
        !matches!(self, Self::Anew(_))
    }

    /// Returns the driver domain that serves its disks; `None` is dom0.
    pub fn server(self) -> Option<Contestant> {
        match self {
            Self::Bulkhead(_) | Self::Linux(_) => Some(self),
            Self::Null => Some(Self::Bulkhead(Family::Pvh)),
            Self::Dom0Blkback | Self::Dom0Qdisk | Self::GuestAlone | Self::Bare => None,
            Self::Anew(_) => self.with_persistent_grants().server(),
        }
    }

    /// Returns whether it is one of the backends with which Bulkhead is compared.
    pub fn is_peer(self) -> bool {
        !self.is_bulkhead() && !matches!(self, Self::GuestAlone | Self::Bare)
    }

    /// Returns whether it is Bulkhead.
    pub fn is_bulkhead(self) -> bool {
        matches!(
            self.with_persistent_grants(),
            Self::Bulkhead(_) | Self::Null
        )
    }

    /// Returns the reason why it cannot serve such a store, if there is one.
    pub fn cannot(self, store: Store) -> Option<&'static str> {
        match (self, store) {
            (Self::Bare, Store::Ram | Store::Vbd | Store::Nbd) => {
                Some("linux-bare is the device of `--store nvme` itself")
            }
            (Self::Bulkhead(Family::Pvh) | Self::Linux(Family::Pvh), Store::Nvme) => {
                Some("Xen passes PCI devices through to no PVH domain")
            }
            (Self::Null, Store::Nvme) => Some("the null store has no device"),
            (Self::Anew(_), Store::Ram | Store::Vbd | Store::Nbd) => Some(
                "without `--store nvme`, all are measured without persistent grants by `--persistent off`",
            ),
            _ => None,
        }
    }

    /// Returns the name of its disks in the guests.
    pub fn device(self) -> &'static str {
        match self {
            Self::GuestAlone => "nullb0",
            Self::Bare => NAMESPACE_NAME,
            _ => "xvda",
        }
    }

    /// Returns the disk of a guest, in the form that `xl block-attach` takes, if the contestant has a backend. `size`
    /// is the disk's, in MiB.
    pub fn disk(self, store: Store, guest: u32, size: u32) -> Option<String> {
        if !self.keeps_grants() {
            return self.with_persistent_grants().disk(store, guest, size);
        }
        let common = "vdev=xvda,format=raw,access=rw";
        let own = own_disk(guest);
        let target = match (self, store) {
            (Self::Bulkhead(_), Store::Ram) => format!("ram:disk{guest}"),
            (Self::Bulkhead(_), Store::Vbd) => format!("vbd:{own}"),
            (Self::Bulkhead(_), Store::Nvme) => format!("nvme:{}", store.device(self)?),
            (Self::Linux(_), Store::Vbd) => format!("/dev/{own}"),
            (Self::Bulkhead(_), Store::Nbd) => network::target(),
            (_, Store::Nvme) => format!("/dev/{NAMESPACE_NAME}"),
            (_, Store::Nbd) => format!("/dev/{}", network::CLIENT_DISK),
            _ => format!("/dev/ram{guest}"),
        };
        Some(match self {
            Self::Bulkhead(_) | Self::Linux(_) => {
                format!("backend={},{common},target={target}", self.name())
            }
            Self::Null => {
                let server = Self::Bulkhead(Family::Pvh).name();
                format!("backend={server},{common},target=null:{size}M")
            }
            Self::Dom0Blkback => format!("{common},backendtype=phy,target={target}"),
            Self::Dom0Qdisk => {
                let target = match store {
                    Store::Nvme | Store::Nbd => target,
                    Store::Ram | Store::Vbd => format!("/tmp/qdisk{guest}.img"),
                };
                format!("{common},backendtype=qdisk,target={target}")
            }
            Self::GuestAlone | Self::Bare | Self::Anew(_) => return None,
        })
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Contestant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Returns the contestants whose names contain one of these words and that can serve the store; without any word, all.
/// If instructions are counted, that is all that serve data from the kernel of a domain: the others are not chosen to
/// save processor time. The same holds if the driver domains serve disks of dom0's, which the others do not.
pub fn choose(words: &[String], counts: bool, store: Store) -> Result<Vec<Contestant>, String> {
    let mut chosen = super::job::choose_by(words, &Contestant::ALL, |contestant| {
        contestant.name().to_owned()
    })?;
    let why = chosen
        .iter()
        .find_map(|contestant| contestant.cannot(store));
    chosen.retain(|contestant| contestant.cannot(store).is_none());
    if let (true, Some(why)) = (chosen.is_empty(), why) {
        return Err(why.to_owned());
    }
    if (counts || store != Store::Ram) && words.is_empty() {
        let mut others = vec![Contestant::Null, Contestant::GuestAlone];
        if counts || store == Store::Vbd {
            others.push(Contestant::Dom0Qdisk);
        }
        chosen.retain(|contestant| !others.contains(contestant));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contestants_are_chosen_by_parts_of_their_names() {
        let choose = |word: &str| choose(&[word.to_owned()], true, Store::Ram);
        assert_eq!(choose("dom0").unwrap().len(), 2);
        assert_eq!(choose("pvh").unwrap().len(), 2);
        assert_eq!(choose("linux").unwrap().len(), 2);
        let one = [Contestant::Linux(Family::Pv)];
        assert_eq!(choose("linux-pv").unwrap(), one);
        assert!(choose("windows").unwrap_err().contains("dom0-qdisk"));
        let all = |counts, store| super::choose(&[], counts, store).unwrap();
        assert_eq!(all(false, Store::Ram), Contestant::ALL[..8]);
        assert_eq!(all(true, Store::Ram).len(), 5);
        assert_eq!(all(false, Store::Vbd), all(true, Store::Ram));
    }

    #[test]
    fn who_cannot_serve_a_store_is_left_out_or_says_why() {
        let choose = |word: &str, store| super::choose(&[word.to_owned()], false, store);
        let linux = [
            Contestant::Linux(Family::Pv),
            Contestant::Bare,
            Contestant::Anew(Backend::Linux),
        ];
        assert_eq!(choose("linux", Store::Nvme).unwrap(), linux);
        let why = choose("pvh", Store::Nvme).unwrap_err();
        assert!(why.contains("no PVH domain"), "{why}");
        let why = choose("linux-bare", Store::Ram).unwrap_err();
        assert!(why.contains("--store nvme"), "{why}");
        let all = super::choose(&[], false, Store::Nvme).unwrap();
        let last = [
            Contestant::Dom0Blkback,
            Contestant::Dom0Qdisk,
            Contestant::Bare,
            Contestant::Anew(Backend::Bulkhead),
            Contestant::Anew(Backend::Linux),
            Contestant::Anew(Backend::Dom0Blkback),
        ];
        assert!(all.ends_with(&last), "{all:?}");
        assert!(all.iter().all(|one| one.cannot(Store::Nvme).is_none()));
    }

    #[test]
    fn every_disk_names_its_backend() {
        let stores = [Store::Ram, Store::Vbd, Store::Nvme, Store::Nbd];
        for (contestant, store) in Contestant::ALL
            .iter()
            .flat_map(|&one| stores.map(|store| (one, store)))
        {
            let Some(disk) = contestant.disk(store, 2, 16) else {
                let alone = contestant.server().is_none() && !contestant.is_peer();
                assert!(alone || contestant.cannot(store).is_some());
                continue;
            };
            match contestant.server() {
                Some(server) => assert!(disk.starts_with(&format!("backend={server},")), "{disk}"),
                None => assert!(disk.contains("backendtype="), "{disk}"),
            }
        }
    }

    #[test]
    fn all_serve_one_export_of_a_server() {
        let all = super::choose(&[], false, Store::Nbd).unwrap();
        assert_eq!(all.len(), 6, "{all:?}");
        for contestant in all {
            let disk = contestant.disk(Store::Nbd, 0, 64).unwrap();
            let target = match contestant.is_bulkhead() {
                true => ",target=nbd:10.0.0.3:10809/",
                false => ",target=/dev/nbd0",
            };
            assert!(disk.ends_with(target), "{disk}");
        }
    }

    #[test]
    fn a_store_changes_what_driver_domains_serve_and_nothing_else() {
        for contestant in Contestant::ALL {
            let disk = |store| contestant.disk(store, 1, 16);
            let target = match contestant {
                Contestant::Anew(_) => {
                    let other = contestant.with_persistent_grants();
                    assert_eq!(disk(Store::Nvme), other.disk(Store::Nvme, 1, 16));
                    continue;
                }
                Contestant::Bulkhead(_) => ",target=vbd:xvdb",
                Contestant::Linux(_) => ",target=/dev/xvdb",
                _ => {
                    assert_eq!(disk(Store::Ram), disk(Store::Vbd));
                    continue;
                }
            };
            let (ram, vbd) = (disk(Store::Ram).unwrap(), disk(Store::Vbd).unwrap());
            assert!(vbd.ends_with(target), "{vbd}");
            assert!(
                ram.contains("ram:disk1") || ram.ends_with("/dev/ram1"),
                "{ram}"
            );
        }
    }
}
