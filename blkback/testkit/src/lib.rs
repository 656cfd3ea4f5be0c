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
//! Nothing happens by itself: [`World::run`] runs the driver domain and xenstored until neither has anything
//! to do, and [`World::wait`] lets time pass.
//!
//! ```
//! use bulkhead_blkback_testkit::{Guest, World};
//!
//! let world = World::new();
//! let guest = Guest::new(&world);
//! let mut disk = guest.attach("xvda", "ram:disk0").connected();
//! disk.write(8, &[1; 512]);
//! assert_eq!(disk.read(8, 1), [1; 512]);
//! disk.detach();
//! world.nothing_left();
//! ```
//!
//! Read next: [`World`], [`Guest`] and [`Frontend`].

mod allocator;
mod bystander;
mod device_hook;
mod dma_disks;
mod executors;
mod frontend;
mod functions;
mod guest;
mod io;
mod journal;
mod late_disks;
mod link;
mod lower;
mod nbd;
mod network;
mod nvme;
mod ramdisk;
mod random;
#[cfg(feature = "recover")]
mod reordering;
mod resources;
#[cfg(feature = "recover")]
mod restart;
mod script;
mod setup;
mod several;
#[cfg(feature = "recover")]
mod stepping;
mod virtio;
mod watchdog;

pub use allocator::{allocations, bytes_in_use, forget_most_bytes, in_driver_domain, refusing};
pub use bystander::Bystander;
pub use device_hook::DeviceHook;
pub use frontend::Frontend;
pub use guest::{Guest, on_every_path};
pub use io::{Answer, POISON, Page};
pub use journal::install as start_journal;
pub use late_disks::LateDisks;
pub use link::{Link, Style};
pub use lower::Lower;
pub use nbd::Nbd;
pub use network::Network;
pub use nvme::Nvme;
pub use ramdisk::{archive_of, content};
pub use random::Random;
#[cfg(feature = "recover")]
pub use reordering::reordering;
#[cfg(feature = "recover")]
pub use restart::Surviving;
pub use script::{Script, play};
pub use setup::{IMAGE_SIZE, PATHS, SECTORS, Setup};
#[cfg(feature = "recover")]
pub use stepping::Crash;
pub use virtio::Virtio;

use bulkhead_blkback::Backend;
use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback::memory_target::follow_memory_target;
use bulkhead_blkback::operator::{OperatorCommand, answer_requests};
use bulkhead_blkfront::{Frontends, vbd_store};
use bulkhead_grant::{Region, TableOnDemand};
use bulkhead_images::{Catalog, ImageMemory, Stores};
use bulkhead_nbd::nbd_store;
#[cfg(not(feature = "recover"))]
use bulkhead_net::Traces;
use bulkhead_nvme::nvme_store;
use bulkhead_virtio::virtio_store;
use bulkhead_xen::abi::xs_wire::ERROR_RING_INDEX;
use bulkhead_xen::{DomId, Hypervisor, Instant, KeptPorts};
use bulkhead_xen_sim::xenstore::toolstack::{self, Vbd};
use bulkhead_xen_sim::{DomainConfig, Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::{Client, Ring};
use executors::Executors;
use resources::Resources;
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use watchdog::Watched;

/// The machine.
pub struct World {
    /// The simulated Xen.
    pub sim: Sim,
    /// The driver domain.
    pub storage: SimDomain,
    /// The backend in it.
    pub backend: Rc<Backend<SimVcpu>>,
    region: RefCell<Region<SimVcpu>>,
    /// True if the backend has given up.
    ended: Rc<Cell<bool>>,
    /// True if the test expects the backend to give up.
    may_end: Cell<bool>,
    before: Resources,
    /// The disks whose stores answer when the test lets them.
    pub late: LateDisks,
    executors: RefCell<Rc<Executors>>,
    /// Other driver domains, whose disks this one serves.
    lower: RefCell<Vec<Rc<Executors>>>,
    /// The driver domain's own disks, if it serves any.
    pub frontends: Option<Rc<Frontends<SimVcpu>>>,
    /// The driver domain's NVMe controller, if it has one.
    pub nvme: Option<Nvme>,
    /// The NBD server, if there is one.
    pub nbd: Option<Nbd>,
    /// The driver domain's virtio-blk device, if it has one.
    pub virtio: Option<Virtio>,
    /// The ramdisk's address and length.
    ramdisk: (NonNull<u8>, usize),
    /// The memory that survives a crash, if the driver domain starts again in place after one.
    #[cfg(feature = "recover")]
    pub surviving: Option<Surviving>,
}

/// Follows the driver domain's own disks.
fn own_disks(
    storage: &SimDomain,
    executors: &Executors,
    store: &Client,
    (grants, kept): (TableOnDemand<SimVcpu>, KeptPorts),
) -> Rc<Frontends<SimVcpu>> {
    let (vcpus, memory) = (executors.spawners(), Arc::new(storage.hypervisor()));
    let handle = executors.handle();
    let all = Frontends::new(handle.clone(), store.clone(), vcpus, memory, grants, kept);
    let following = all.clone();
    handle.spawn(async move {
        let Err(error) = following.follow().await;
        log::error!("own disks cannot be followed any more: {error}");
    });
    all
}

impl Default for World {
    fn default() -> Self {
        World::new()
    }
}

impl World {
    /// Makes a machine whose driver domain has six images and no disks yet.
    pub fn new() -> World {
        World::with(Setup::default())
    }

    /// Makes a machine that reaches guests' pages in one way alone.
    pub fn on_path(data_path: DataPath) -> World {
        World::with(Setup::on_path(data_path))
    }

    /// Makes a machine as `setup` describes it.
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
            memory_pages: archive.len().div_ceil(4096)
                + 64
                + usize::from(setup.own_disks || setup.network) * 2048,
            memory_later: setup.memory_later,
            region_pages: setup.region_pages,
            grant_entries: setup.grant_entries,
            ..DomainConfig::default()
        });
        let ramdisk = ramdisk::load(&storage, &archive);
        // SAFETY: as `load` promises, and that handle looks at it while no domain runs.
        let module = unsafe { ImageMemory::new(ramdisk, archive.len()) };
        let mut catalog = Catalog::from_module(module);
        catalog = catalog.with_discard(setup.options.discard);
        if setup.reservation {
            catalog = catalog.with_reservation(Arc::new(storage.hypervisor()));
        }
        let executors = Executors::new(&storage, setup.vcpus);
        let handle = executors.handle();
        #[cfg(feature = "recover")]
        let surviving = setup
            .recover
            .then(|| Surviving::new(setup.options, setup.layer.clone(), setup.vcpus));
        let store_ring = storage.store_ring();
        // SAFETY: the domain's xenstore ring, used here alone.
        let ring = unsafe { Ring::new(storage.hypervisor(), store_ring) };
        #[cfg(feature = "recover")]
        let store = match &surviving {
            Some(surviving) => surviving.client(&handle, ring, store_ring.port),
            None => Client::start(&handle, ring),
        };
        #[cfg(not(feature = "recover"))]
        let store = Client::start(&handle, ring);
        let region = Region::new(storage.hypervisor()).expect("nobody else has the region");
        let mut stores = Stores::new(catalog);
        for store in setup.stores {
            stores.register(store);
        }
        let grants = TableOnDemand::new(storage.hypervisor());
        #[cfg(feature = "recover")]
        let kept = surviving.as_ref().map_or(KeptPorts::NONE, Surviving::ports);
        #[cfg(not(feature = "recover"))]
        let kept = KeptPorts::NONE;
        let frontends = setup
            .own_disks
            .then(|| own_disks(&storage, &executors, &store, (grants.clone(), kept)));
        if let Some(frontends) = &frontends {
            stores.register(Box::new(vbd_store(frontends.clone())));
        }
        let nvme = setup
            .controller
            .map(|given| Nvme::new(&sim, &storage, &executors, &store, grants.clone(), given));
        if let Some(nvme) = &nvme {
            stores.register(Box::new(nvme_store(nvme.controllers.clone())));
        }
        let nbd = setup.server.map(|config| {
            let given = (config, setup.network);
            #[cfg(feature = "recover")]
            let traces = surviving
                .as_ref()
                .map(Surviving::traces)
                .unwrap_or_default();
            #[cfg(not(feature = "recover"))]
            let traces = Traces::default();
            let own = (grants.clone(), traces);
            Nbd::new(&sim, &storage, &executors, &store, own, given)
        });
        if let Some(nbd) = &nbd {
            stores.register(Box::new(nbd_store(nbd.exports.clone())));
        }
        let virtio = setup
            .virtio
            .map(|config| Virtio::new(&sim, &storage, &executors, &store, grants, config));
        if let Some(virtio) = &virtio {
            stores.register(Box::new(virtio_store(virtio.devices.clone())));
        }
        if let Some(layer) = setup.layer {
            stores = stores.behind(layer);
        }
        let backend = Backend::with(
            executors.spawners(),
            handle.clone(),
            store,
            region.clone(),
            stores,
            setup.options,
        );
        #[cfg(feature = "recover")]
        if let Some(surviving) = &surviving {
            surviving.keep(&backend);
        }
        let (sizing, nodes, memory) = (
            handle.clone(),
            backend.services.store.clone(),
            storage.hypervisor(),
        );
        handle.spawn(async move {
            let Err(error) = follow_memory_target(&sizing, &nodes, &memory).await;
            log::error!("memory/target cannot be followed any more: {error}");
        });
        for command in OperatorCommand::ALL {
            let answering = backend.clone();
            handle.spawn(async move {
                let Err(error) = answer_requests(&answering.services, command).await;
                log::error!("{command:?} requests are not answered any more: {error}");
            });
        }
        let (serving, ended) = (backend.clone(), Rc::new(Cell::new(false)));
        let end = ended.clone();
        handle.spawn(async move {
            let Err(_) = serving.serve(|| ()).await;
            end.set(true);
        });
        let mut world = World {
            sim,
            storage,
            backend,
            region: RefCell::new(region),
            ended,
            may_end: Cell::new(false),
            before: Resources::default(),
            late: LateDisks::default(),
            executors: RefCell::new(Rc::new(executors)),
            lower: RefCell::default(),
            frontends,
            nvme,
            nbd,
            virtio,
            ramdisk: (ramdisk, archive.len()),
            #[cfg(feature = "recover")]
            surviving,
        };
        match world.nvme.is_some() || world.virtio.is_some() {
            // It starts when the driver has looked at it a few times.
            true => world.wait(Duration::from_millis(50)),
            false => _ = world.run(),
        }
        world.before = world.resources();
        world
    }

    /// Makes a machine whose images give memory back to Xen when a guest discards.
    pub fn with_discards() -> World {
        World::with(Setup::giving_back())
    }

    /// Runs the driver domain and xenstored until neither has anything to do. Returns whether either had.
    pub fn run(&self) -> bool {
        let _watched = Watched::new();
        let mut moved = false;
        for _ in 0..100_000 {
            let stepped = self.sim.step_xenstored();
            if !self.step_driver_domains() && !stepped {
                let ended = self.ended.get() && !self.may_end.get();
                assert!(!ended, "the backend has given up");
                return moved;
            }
            moved = true;
        }
        panic!("the machine does not come to rest");
    }

    /// Returns the driver domain's executors.
    fn executors(&self) -> Rc<Executors> {
        self.executors.borrow().clone()
    }

    /// Runs each driver domain until it sleeps. Returns whether any did something.
    fn step_driver_domains(&self) -> bool {
        let mut moved = self.executors().step();
        moved |= self.nvme.as_ref().is_some_and(|nvme| nvme.fake.step());
        moved |= self.nbd.as_ref().is_some_and(|nbd| nbd.step(&self.sim));
        moved |= self.virtio.as_ref().is_some_and(|one| one.fake.step());
        for lower in &*self.lower.borrow() {
            moved |= lower.step();
        }
        moved
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lower = self.lower.borrow();
        let lower = lower.iter().map(|lower| lower.next_deadline());
        let network = self.nbd.as_ref().and_then(|nbd| nbd.network.as_ref());
        let network = network.and_then(|network| network.next_deadline(&self.sim));
        lower
            .chain([self.executors().next_deadline(), network])
            .flatten()
            .min()
    }

    /// As [`run`](Self::run), where xenstored has nothing to do.
    pub fn run_without_xenstored(&self) {
        let _watched = Watched::new();
        let mut steps = 0..100_000;
        while self.executors().step() {
            assert!(steps.next().is_some(), "the machine does not come to rest");
        }
        assert!(!self.ended.get(), "the backend has given up");
    }

    /// Has xenstored give up on the driver domain, for which there is no xenstore any more.
    pub fn end_xenstore(&self) {
        self.may_end.set(true);
        let (id, ring) = (self.storage.id(), self.storage.store_ring());
        self.sim.store().give_up(id, ERROR_RING_INDEX);
        // xenstored looks at the ring, and says there that it has given up.
        let told = self.storage.hypervisor().notify(ring.port);
        told.expect("the port of the ring");
        self.run();
        assert!(self.ended.get(), "nobody can be attached any more");
    }

    /// Gives the driver domain its turn, but for going to sleep: [`step`](Self::step) does that
    /// afterwards.
    pub fn turn(&self) {
        self.executors().turn();
    }

    /// Runs the driver domain's first vCPU until `done` returns true, which is called whenever its tasks have had their
    /// turn, and whenever it would sleep. Neither xenstored nor anyone else runs but for what `done` does.
    pub fn run_until(&self, done: impl Fn() -> bool) {
        self.executors().run_until(done);
    }

    /// Does one small thing: the driver domain has its turn, or xenstored.
    pub fn step(&self, storage: bool) {
        if storage {
            self.executors().step();
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

    /// Lets time pass, and runs the driver domain and xenstored meanwhile.
    pub fn wait(&self, span: Duration) {
        let run = || {
            self.run();
        };
        self.sim.pass(span, run, || self.next_deadline());
    }

    /// Waits as libxl does for a closed disk's directory to be removed, though less than its ten
    /// seconds.
    pub fn wait_for_removal(&self) {
        self.wait(Duration::from_secs(3));
    }

    /// Spawns a task in the driver domain.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.backend.services.handle.spawn(task);
    }

    /// Reads a node as dom0.
    pub fn read(&self, path: &str) -> Option<String> {
        self.sim.store().read(path)
    }

    /// Writes a node as an operator in dom0 does, and runs the machine.
    pub fn write(&self, path: &str, value: &str) {
        self.sim.store().write(path, value);
        self.run();
    }

    /// Returns the path of a node of the driver domain's own directory.
    pub fn own_path(&self, node: &str) -> String {
        format!("/local/domain/{}/{node}", self.storage.id())
    }

    /// Returns the driver domain's error node for a disk.
    pub fn error(&self, vbd: &Vbd) -> Option<String> {
        let (kind, guest, device) = (vbd.kind, vbd.frontend, vbd.device_number());
        self.read(&self.own_path(&format!("error/backend/{kind}/{guest}/{device}/error")))
    }

    /// Returns the lines that the driver domain logged in this test so far.
    pub fn journal(&self) -> Vec<String> {
        journal::lines()
    }

    /// Forgets these lines.
    pub fn forget_journal(&self) {
        journal::install();
    }

    /// Returns the content of the ramdisk, no page of which may have been given back to Xen.
    pub fn ramdisk(&self) -> Vec<u8> {
        // SAFETY: domain memory stays mapped as long as the machine, and no domain runs.
        unsafe { NonNull::slice_from_raw_parts(self.ramdisk.0, self.ramdisk.1).as_ref() }.to_vec()
    }

    /// Returns whether the ramdisk holds those bytes at that offset. None of these pages may have been given back.
    pub fn ramdisk_holds(&self, at: usize, bytes: &[u8]) -> bool {
        assert!(at + bytes.len() <= self.ramdisk.1);
        // SAFETY: within the ramdisk, as just checked; the rest as for `ramdisk`.
        let held = unsafe {
            let first = self.ramdisk.0.add(at);
            NonNull::slice_from_raw_parts(first, bytes.len()).as_ref()
        };
        held == bytes
    }

    /// Ends a guest as `xl destroy` does.
    pub fn destroy(&self, guest: DomId, vbds: &[&Vbd]) {
        self.sim.destroy_domain(guest);
        for vbd in vbds {
            self.late.forget(vbd);
            toolstack::force_detach(&mut self.sim.store(), vbd);
        }
        self.wait_for_removal();
        for vbd in vbds {
            let gone = vbd.backend_gone(&self.sim.store());
            assert!(gone, "the toolstack waits for the directory of {vbd:?}");
            toolstack::finish_detach(&mut self.sim.store(), vbd);
        }
        toolstack::remove_domain(&mut self.sim.store(), guest);
        self.run();
    }
}
