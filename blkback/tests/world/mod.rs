//! A simulated machine with a running driver domain, guests whose frontends behave or do not, and
//! the toolstack between them.
//!
//! ```text
//!   World ── Sim: dom0, xenstored, domains
//!     │        toolstack: attach, detach, destroy
//!     ├─ driver domain: executor, Backend, RAM images
//!     └─ Guest ── Frontend: its directory, ring, pages; well behaved by default, hostile at will
//! ```
//!
//! Nothing moves by itself: [`World::run`] lets everyone do what there is to do, and
//! [`World::wait`] lets time pass.
#![allow(dead_code, unused_imports, reason = "each test program uses its part")]

mod allocator;
mod bystander;
mod executors;
mod frontend;
mod guest;
mod io;
mod journal;
mod late_disks;
mod link;
mod ramdisk;
mod random;
mod script;
mod several;
mod spy;
mod watchdog;

pub use allocator::{allocations, bytes_in_use};
pub use bystander::Bystander;
pub use frontend::Frontend;
pub use guest::{Guest, on_every_path};
pub use io::{Answer, POISON, Page};
pub use late_disks::LateDisks;
pub use link::{Link, Style};
pub use ramdisk::{archive_of, content};
pub use random::Random;
pub use script::play;
pub use spy::Meanwhile;

use bulkhead_blkback::Backend;
use bulkhead_blkback::engine::{DataPath, Options};
use bulkhead_blkback::operator::grow_on_request;
use bulkhead_grant::Region;
use bulkhead_images::Catalog;
use bulkhead_images::testing::{Delayed, Layer};
use bulkhead_xen::DomId;
use bulkhead_xen::sim::xenstore::toolstack::{self, Vbd};
use bulkhead_xen::sim::{DomainConfig, DomainKind, Sim, SimDomain, SimDoor};
use bulkhead_xenstore_client::{Client, Ring};
use executors::Executors;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use watchdog::Watched;

/// The machine.
pub struct World {
    pub sim: Sim,
    /// The driver domain.
    pub storage: SimDomain,
    pub backend: Rc<Backend<SimDoor>>,
    region: Region<SimDoor>,
    /// Whether the backend has given up.
    ended: Rc<Cell<bool>>,
    before: Before,
    pub late: LateDisks,
    executors: Executors,
}

/// What the driver domain held when it had no disks.
#[derive(Debug, PartialEq)]
struct Before {
    ports: usize,
    watches: usize,
    nodes: usize,
    region: usize,
    mappings: usize,
}

/// What a machine is made with.
pub struct Setup {
    /// Names and contents of the images.
    pub images: Vec<(String, Vec<u8>)>,
    /// Goes before every device that is opened.
    pub layer: Option<Layer>,
    /// How Xen runs the driver domain.
    pub kind: DomainKind,
    /// Its vCPUs.
    pub vcpus: u32,
    /// The driver domain's address space for foreign pages.
    pub region_pages: usize,
    /// How its engine is to serve.
    pub options: Options,
    /// Whether images give memory back to Xen when a guest discards.
    pub gives_back: bool,
    /// Where the ramdisk is damaged: bytes from here on are overwritten.
    pub damage: Option<usize>,
}

/// Bytes of the images `disk0`, `disk1`, … of [`Setup::default`].
pub const IMAGE_SIZE: usize = 128 * 1024;
/// Their sectors.
pub const SECTORS: u64 = (IMAGE_SIZE / 512) as u64;

impl Default for Setup {
    fn default() -> Self {
        Setup {
            images: (0..6)
                .map(|number| (format!("disk{number}"), content(number, IMAGE_SIZE)))
                .collect(),
            layer: None,
            kind: DomainKind::Pvh,
            vcpus: 1,
            region_pages: 32 * 1024,
            options: Options::default(),
            gives_back: false,
            damage: None,
        }
    }
}

impl Setup {
    /// The default, with one way to guests' pages.
    pub fn on_path(data_path: DataPath) -> Setup {
        Setup {
            options: Options {
                data_path,
                ..Options::default()
            },
            ..Setup::default()
        }
    }
}

/// Every way to a guest's pages, and whether the guest keeps them granted.
pub const PATHS: [(DataPath, bool); 3] = [
    (DataPath::Auto, true),
    (DataPath::Map, false),
    (DataPath::Copy, false),
];

impl World {
    /// A machine whose driver domain has six images and no disks yet.
    pub fn new() -> World {
        World::with(Setup::default())
    }

    /// The same, with one way to guests' pages.
    pub fn on_path(data_path: DataPath) -> World {
        World::with(Setup::on_path(data_path))
    }

    /// As said in `setup`.
    pub fn with(setup: Setup) -> World {
        journal::install();
        let mut archive = ramdisk::archive(&setup.images);
        if let Some(bytes) = setup.damage.and_then(|from| archive.get_mut(from..)) {
            bytes.fill(0xff);
        }
        let sim = Sim::new();
        let storage = sim.add_domain_with(DomainConfig {
            name: Some("storage".into()),
            driver_domain: true,
            kind: setup.kind,
            vcpus: setup.vcpus,
            memory_pages: archive.len().div_ceil(4096) + 64,
            region_pages: setup.region_pages,
            ..DomainConfig::default()
        });
        let mut catalog = Catalog::from_module(ramdisk::load(&storage, &archive));
        if setup.gives_back {
            catalog = catalog.with_supply(Arc::new(storage.door()));
        }
        if let Some(layer) = setup.layer {
            catalog = catalog.behind(layer);
        }
        let executors = Executors::new(&storage, setup.vcpus);
        let handle = executors.handle();
        // SAFETY: the domain's xenstore ring, used here alone.
        let ring = unsafe { Ring::new(storage.door(), storage.store_ring()) };
        let store = Client::start(&handle, ring);
        let region = Region::new(storage.door()).expect("nobody else has the region");
        let backend = Backend::with(
            executors.remotes(),
            handle.clone(),
            store,
            region.clone(),
            catalog,
            setup.options,
        );
        let growing = backend.clone();
        handle.spawn(async move {
            let Err(error) = grow_on_request(&growing).await;
            log::error!("images cannot be grown any more: {error}");
        });
        let (serving, ended) = (backend.clone(), Rc::new(Cell::new(false)));
        let end = ended.clone();
        handle.spawn(async move {
            let Err(error) = serving.serve(|| ()).await;
            log::error!("the backend has ended: {error}");
            end.set(true);
        });
        let mut world = World {
            sim,
            storage,
            backend,
            region,
            ended,
            before: Before {
                ports: 0,
                watches: 0,
                nodes: 0,
                region: 0,
                mappings: 0,
            },
            late: LateDisks::default(),
            executors,
        };
        world.run();
        world.before = world.held();
        world
    }

    /// A machine whose images give memory back to Xen when a guest discards.
    pub fn with_discards() -> World {
        World::with(Setup {
            gives_back: true,
            ..Setup::default()
        })
    }

    /// A machine where what is asked of every disk named `xvdd` is held back until the test lets
    /// it through.
    pub fn with_late_disks() -> (World, LateDisks) {
        World::with_late_disks_on(DataPath::Auto)
    }

    /// The same, with one way to guests' pages.
    pub fn with_late_disks_on(data_path: DataPath) -> (World, LateDisks) {
        World::with_late_disks_and(Setup::on_path(data_path))
    }

    /// The same, as said in `setup`.
    pub fn with_late_disks_and(setup: Setup) -> (World, LateDisks) {
        let late = LateDisks::default();
        let seen = late.clone();
        let layer = Layer::new(move |device, owner| {
            if !owner.contains("xvdd") {
                return device;
            }
            let delayed = Delayed::new(device);
            seen.add(owner, delayed.clone());
            Arc::new(delayed)
        });
        let setup = Setup {
            layer: Some(layer),
            gives_back: true,
            ..setup
        };
        let mut world = World::with(setup);
        world.late = late.clone();
        (world, late)
    }

    /// Lets everyone do what there is to do, until nothing moves any more. Answers whether
    /// anything moved.
    pub fn run(&self) -> bool {
        let _watched = Watched::new();
        let mut moved = false;
        for _ in 0..100_000 {
            let stepped = self.sim.step_xenstored();
            if !self.executors.step() && !stepped {
                assert!(!self.ended.get(), "the backend has given up");
                return moved;
            }
            moved = true;
        }
        panic!("the machine does not come to rest");
    }

    /// What the driver domain does when it has its turn, but that it does not go to sleep: that is
    /// to follow by [`step`](Self::step).
    pub fn turn(&self) {
        self.executors.turn();
    }

    /// Does one small thing: the driver domain has its turn, or xenstored.
    pub fn step(&self, storage: bool) {
        if storage {
            self.executors.step();
        } else {
            self.sim.step_xenstored();
        }
    }

    /// Lets xenstored answer one request at a time, `turns` times.
    pub fn slowly(&self, turns: usize) {
        let usual = self.sim.store().faults.requests_per_step.replace(1);
        for _ in 0..turns {
            self.step(true);
            self.step(false);
        }
        self.sim.store().faults.requests_per_step = usual;
    }

    /// Lets time pass, and everyone do what there is to do meanwhile.
    pub fn wait(&self, span: Duration) {
        let end = self.sim.now() + span;
        self.run();
        loop {
            let next = self.executors.next_deadline();
            match next.filter(|next| *next <= end) {
                Some(next) => self.sim.advance_to(next.max(self.sim.now())),
                None => break,
            }
            self.run();
        }
        self.sim.advance_to(end);
        self.run();
    }

    /// Starts something of the driver domain's own.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.backend.handle.spawn(task);
    }

    /// A node, as dom0 reads it.
    pub fn read(&self, path: &str) -> Option<String> {
        self.sim.store().read(path)
    }

    /// Writes a node as an operator in dom0 does, and lets everyone see it.
    pub fn write(&self, path: &str, value: &str) {
        self.sim.store().write(path, value);
        self.run();
    }

    /// A node of the driver domain's own directory.
    pub fn own_path(&self, node: &str) -> String {
        format!("/local/domain/{}/{node}", self.storage.id())
    }

    /// What the operator finds about a disk in the driver domain's error node.
    pub fn error(&self, vbd: &Vbd) -> Option<String> {
        let (storage, guest, device) = (vbd.backend, vbd.frontend, vbd.device_number());
        let path = format!("/local/domain/{storage}/error/backend/vbd/{guest}/{device}/error");
        self.read(&path)
    }

    /// The lines that the driver domain logged in this test so far.
    pub fn journal(&self) -> Vec<String> {
        journal::lines()
    }

    /// Ends a guest as `xl destroy` does.
    pub fn destroy(&self, guest: DomId, vbds: &[&Vbd]) {
        self.sim.destroy_domain(guest);
        for vbd in vbds {
            self.late.forget(vbd);
            toolstack::force_detach(&mut self.sim.store(), vbd);
        }
        self.wait(Duration::from_secs(2));
        for vbd in vbds {
            let gone = vbd.backend_gone(&self.sim.store());
            assert!(gone, "the toolstack waits for the directory of {vbd:?}");
            toolstack::finish_detach(&mut self.sim.store(), vbd);
        }
        toolstack::remove_domain(&mut self.sim.store(), guest);
        self.run();
    }

    fn held(&self) -> Before {
        let id = self.storage.id();
        let store = self.sim.store();
        Before {
            ports: self.storage.open_ports(),
            watches: store.watch_count(id),
            // What is told to the operator stays.
            nodes: store
                .dump()
                .lines()
                .filter(|line| line.starts_with(&format!("/local/domain/{id}/")))
                .filter(|line| !line.starts_with(&format!("/local/domain/{id}/error")))
                .count(),
            region: self.region.free_pages(),
            mappings: self.storage.live_mappings(),
        }
    }

    /// Checks that the driver domain holds nothing that it did not hold when it had no disks, and
    /// that it never asked Xen for something that makes no sense.
    pub fn nothing_left(&self) {
        self.run();
        assert_eq!(self.backend.disks(), 0, "disks that still have a task");
        assert_eq!(self.held(), self.before, "what the driver domain holds");
        assert_eq!(self.sim.store().transaction_count(self.storage.id()), 0);
        for (name, _, open) in self.backend.catalog.images() {
            assert_eq!(open, 0, "image {name} is still open");
        }
        self.no_mistakes();
    }

    /// Checks that the driver domain never asked Xen for something that makes no sense.
    pub fn no_mistakes(&self) {
        assert_eq!(self.storage.violations(), []);
    }

    /// Pages of the driver domain's address space that nobody uses.
    pub fn free_region(&self) -> usize {
        self.region.free_pages()
    }
}
