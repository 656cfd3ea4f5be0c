//! A disk that has two names, as a drive of NVMe that is reached by both of its ports.

mod support;

use bulkhead_images::{Access, BlockDevice, SectorSize, Store};
use bulkhead_images::{Owner, target::Target};
use bulkhead_volumes::testing::{Disk, now, write_physical};
use bulkhead_volumes::{DiskStore, Disks, KnownDisk, Waiting};
use bulkhead_xen::DomId;
use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use support::{MIB, PV0, VG0, physical};

/// A port's name, and its identity.
type Port = (&'static str, Arc<dyn Any + Send + Sync>);

/// A disk, and the ports that it is reached by.
struct Ports {
    disk: Disk,
    there: RefCell<Vec<Port>>,
}

impl Ports {
    fn plug(&self, name: &'static str) {
        self.there.borrow_mut().push((name, Arc::new(name)));
    }

    fn unplug(&self, name: &str) {
        self.there.borrow_mut().retain(|(other, _)| *other != name);
    }
}

impl Disks for Ports {
    fn scheme(&self) -> &'static str {
        "port"
    }

    fn example(&self) -> &'static str {
        "a"
    }

    fn expected(&self) -> &'static str {
        "port:NAME"
    }

    fn ready<'a>(&'a self, name: &'a str) -> Waiting<'a, Result<String, String>> {
        Box::pin(async { Ok(name.to_string()) })
    }

    fn missing(&self, name: &str) -> String {
        name.to_string()
    }

    fn pause(&self, _: Duration) -> Waiting<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn spawn(&self, _: Waiting<'static, ()>) {
        panic!("a reader was given up");
    }

    fn list(&self) -> Vec<KnownDisk> {
        let there = self.there.borrow();
        let known = there.iter().map(|(name, identity)| KnownDisk {
            name: name.to_string(),
            identity: identity.clone(),
        });
        known.collect()
    }

    fn are_same(&self, _: &dyn Any, _: &dyn Any) -> bool {
        true
    }

    fn lines(&self) -> Vec<String> {
        Vec::new()
    }

    fn open(&self, _: &str) -> Result<Arc<dyn BlockDevice>, String> {
        Ok(Arc::new(self.disk.clone()))
    }
}

/// Opens something for a guest.
fn try_open(store: &DiskStore, target: &str) -> Result<Arc<dyn BlockDevice>, String> {
    let target = Target::parse(target).expect("a target");
    let owner = Owner {
        name: "domain 5, xvda",
        domain: DomId(5),
    };
    let opened = now(store.open(target, Access::ReadWrite, owner));
    opened.map_err(|error| error.to_string())
}

/// Has a guest write what looks like a volume group to the disk that it has for itself.
fn forge(ports: &Ports, store: &DiskStore, target: &str) {
    let guest = try_open(store, target).expect("nobody has it");
    write_physical(&ports.disk, &physical(PV0, VG0));
    drop(guest);
}

fn with(names: &[&'static str]) -> (Rc<Ports>, DiskStore) {
    let ports = Rc::new(Ports {
        disk: Disk::new(66 * MIB, SectorSize::B512),
        there: RefCell::default(),
    });
    names.iter().for_each(|name| ports.plug(name));
    let store = DiskStore::new(ports.clone());
    (ports, store)
}

fn is_not_searched(store: &DiskStore, target: &str) {
    let refused = try_open(store, target).err().expect("refused");
    let why = "not searched, as guests could write to it since data/rescan named its disk";
    assert!(refused.contains(why), "{refused}");
}

#[test]
fn what_a_guest_writes_by_one_name_of_a_disk_is_a_guests_by_the_other_one() {
    let (ports, store) = with(&["a", "b"]);
    forge(&ports, &store, "port:a");
    is_not_searched(&store, "port:a/vg0/alice");
    is_not_searched(&store, "port:b/vg0/alice");
    // The operator's word counts by both, too.
    now(store.rescan("a")).expect("it is read");
    for target in ["port:b/vg0/alice", "port:a/vg0/alice"] {
        let refused = try_open(&store, target).err().unwrap_or_default();
        assert!(!refused.contains("not searched"), "{refused}");
    }
}

#[test]
fn what_a_guest_has_written_stays_a_guests_when_that_name_is_gone() {
    let (ports, store) = with(&["a", "b"]);
    forge(&ports, &store, "port:a");
    ports.unplug("a");
    is_not_searched(&store, "port:b/vg0/alice");
}

#[test]
fn what_a_guest_has_written_is_a_guests_by_a_name_that_comes_later() {
    let (ports, store) = with(&["a"]);
    forge(&ports, &store, "port:a");
    ports.plug("b");
    is_not_searched(&store, "port:b/vg0/alice");
    ports.unplug("a");
    is_not_searched(&store, "port:b/vg0/alice");
}
