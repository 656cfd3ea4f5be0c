//! A guest: a domain with a grant table, whose disks the toolstack attaches.

use super::{Frontend, PATHS, Style, World};
use bulkhead_grant::GrantTable;
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk, Vbd};
use bulkhead_xen_sim::{DomainConfig, SimDomain, SimVcpu};

/// A guest domain.
pub struct Guest<'w> {
    /// The machine.
    pub world: &'w World,
    /// The domain.
    pub domain: SimDomain,
    /// Its grant table.
    pub grants: GrantTable<SimVcpu>,
}

impl<'w> Guest<'w> {
    /// Makes a guest with 4 MiB of memory.
    pub fn new(world: &'w World) -> Guest<'w> {
        Guest::with_memory(world, 1024)
    }

    /// Makes a guest with that much memory.
    pub fn with_memory(world: &'w World, memory_pages: usize) -> Guest<'w> {
        let domain = world.sim.add_domain_with(DomainConfig {
            memory_pages,
            grant_entries: 8192,
            ..DomainConfig::default()
        });
        let grants = GrantTable::new(domain.hypervisor()).expect("nobody else has the table");
        Guest {
            world,
            domain,
            grants,
        }
    }

    /// Attaches a writable disk, and lets the driver domain see it.
    pub fn attach(&self, name: &str, target: &str) -> Frontend<'w> {
        self.attach_as(name, &Disk::new(target))
    }

    /// Attaches a disk with `access=ro`.
    pub fn attach_read_only(&self, name: &str, target: &str) -> Frontend<'w> {
        self.attach_as(name, &Disk::read_only(target))
    }

    /// Attaches a disk that the toolstack describes so.
    pub fn attach_as(&self, name: &str, disk: &Disk) -> Frontend<'w> {
        let frontend = self.attach_unseen(name, disk);
        self.world.run();
        frontend
    }

    /// Attaches a disk, which the driver domain has not seen yet.
    pub fn attach_unseen(&self, name: &str, disk: &Disk) -> Frontend<'w> {
        let vbd = Vbd::new(self.world.storage.id(), self.domain.id(), name);
        toolstack::attach(&mut self.world.sim.store(), &vbd, disk);
        Frontend::new(self, vbd)
    }

    /// Attaches a disk to a backend of another kind, and lets the driver domain see it.
    pub fn attach_to(&self, kind: &'static str, name: &str, disk: &Disk) -> Frontend<'w> {
        let vbd = Vbd::new(self.world.storage.id(), self.domain.id(), name).of_kind(kind);
        toolstack::attach(&mut self.world.sim.store(), &vbd, disk);
        self.world.run();
        Frontend::new(self, vbd)
    }

    /// Ends the guest as `xl destroy` does, with these disks.
    pub fn destroy(self, frontends: Vec<Frontend<'w>>) {
        let vbds: Vec<&Vbd> = frontends.iter().map(|frontend| &frontend.vbd).collect();
        self.world.destroy(self.domain.id(), &vbds);
    }
}

/// Connects a frontend to `disk0`, has it do `scene` and detach, and checks that nothing is left: on every way to a
/// guest's pages.
pub fn on_every_path(style: Style, scene: impl Fn(&mut Frontend<'_>)) {
    for (path, persistent) in PATHS {
        let world = World::on_path(path);
        let guest = Guest::with_memory(&world, 8192);
        let style = Style {
            persistent,
            ..style
        };
        let disk = guest.attach("xvda", "ram:disk0");
        let mut disk = disk.styled(style).connected();
        scene(&mut disk);
        disk.detach();
        world.nothing_left();
    }
}
