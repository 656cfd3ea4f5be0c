//! The resources of Xen and xenstored that the driver domain holds, to find what it does not give back.

use super::World;

/// The number of each that it holds.
#[derive(Debug, Default, PartialEq)]
pub struct Resources {
    ports: usize,
    watches: usize,
    nodes: usize,
    region: usize,
    mappings: usize,
}

#[cfg(feature = "recover")]
impl Resources {
    /// Returns whether Xen has given out the same.
    pub fn is_like_in_xen(&self, other: &Resources) -> bool {
        let in_xen = |one: &Resources| (one.ports, one.region, one.mappings);
        in_xen(self) == in_xen(other)
    }
}

impl World {
    /// Counts what it holds now.
    pub fn resources(&self) -> Resources {
        let id = self.storage.id();
        let store = self.sim.store();
        Resources {
            ports: self.storage.open_ports(),
            watches: store.watch_count(id),
            // Nodes for the operator stay.
            nodes: store
                .dump()
                .lines()
                .filter(|line| line.starts_with(&format!("/local/domain/{id}/")))
                .filter(|line| !line.starts_with(&format!("/local/domain/{id}/error")))
                .count(),
            region: self.region.borrow().free_pages(),
            mappings: self.storage.live_mappings(),
        }
    }

    /// Checks that the driver domain holds nothing that it did not hold when it had no disks, and
    /// that it never asked Xen for something that makes no sense.
    pub fn nothing_left(&self) {
        self.run();
        assert_eq!(self.backend.disks(), 0, "disks that still have a task");
        assert_eq!(
            self.backend.unserved(),
            0,
            "devices that are followed still"
        );
        assert_eq!(
            self.resources(),
            self.before,
            "what the driver domain holds"
        );
        assert_eq!(self.sim.store().transaction_count(self.storage.id()), 0);
        for (name, _, open) in self.backend.services.catalog().images() {
            assert_eq!(open, 0, "image {name} is still open");
        }
        self.no_mistakes();
    }

    /// Checks that the driver domain never asked Xen for something that makes no sense.
    pub fn no_mistakes(&self) {
        assert_eq!(self.storage.violations(), []);
    }

    /// Returns the number of free pages in the driver domain's address space.
    pub fn free_region(&self) -> usize {
        self.region.borrow().free_pages()
    }
}
