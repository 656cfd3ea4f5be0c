//! A driver domain that crashes and starts again in place.

use super::allocator::leave_driver_domain;
use super::executors::Executors;
use super::functions::kept_port;
use super::stepping::{Busy, Crash};
use super::{Nvme, Virtio, World, nbd, own_disks, resources::Resources};
use bulkhead_blkback::Backend;
use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback::recovery::KeptMemory;
use bulkhead_blkfront::vbd_store;
use bulkhead_executor::Handle;
use bulkhead_grant::{Region, TableOnDemand};
use bulkhead_images::testing::Layer;
use bulkhead_images::{Catalog, ImageMemory, Stores};
use bulkhead_nbd::{nbd_store, without_tls};
use bulkhead_net::Traces;
use bulkhead_nvme::nvme_store;
use bulkhead_virtio::virtio_store;
use bulkhead_xen::{KeptPorts, Port};
use bulkhead_xen_sim::SimVcpu;
use bulkhead_xenstore_client::{Client, Positions, Resumable, Ring};
use std::alloc::{Layout, alloc_zeroed};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// What survives a crash, zero at first.
pub struct Surviving {
    positions: &'static Positions,
    ports: &'static [AtomicU32; 32],
    memory: NonNull<KeptMemory>,
    restarts: Cell<u32>,
    /// That of the last restart.
    backend: RefCell<Weak<Backend<SimVcpu>>>,
    options: QueueOptions,
    layer: Option<Layer>,
    vcpus: u32,
}

impl Surviving {
    pub(super) fn new(options: QueueOptions, layer: Option<Layer>, vcpus: u32) -> Surviving {
        // SAFETY: the layout of a type that is not empty.
        let memory = unsafe { alloc_zeroed(Layout::new::<KeptMemory>()) };
        Surviving {
            positions: Box::leak(Box::default()),
            ports: Box::leak(Box::default()),
            memory: NonNull::new(memory.cast()).expect("memory"),
            restarts: Cell::new(0),
            backend: RefCell::default(),
            options,
            layer,
            vcpus,
        }
    }

    /// Connects to xenstored, as the first boot or a later one.
    pub(super) fn client(
        &self,
        handle: &Handle<SimVcpu>,
        ring: Ring<SimVcpu>,
        port: Port,
    ) -> Client {
        let ring = Resumable::new(ring, self.positions).expect("between two requests");
        Client::resume(handle, ring, port, self.restarts.get())
    }

    /// Returns the ports of own disks that a crash leaves open.
    pub fn ports(&self) -> KeptPorts {
        KeptPorts::new(self.ports)
    }

    /// Keeps what is served, and goes on with what is there.
    pub(super) fn keep(&self, backend: &Backend<SimVcpu>) {
        // SAFETY: numbers, for all of which any value is valid. The boot before, which had a reference too, never goes on.
        let places = unsafe { &mut (*self.memory.as_ptr()).places };
        backend.services.kept_queues.start(places);
    }

    /// Returns what survives of connections.
    pub(super) fn traces(&self) -> Traces {
        // SAFETY: as above, and nothing else refers to this part of it but other traces.
        Traces::new(unsafe { &(*self.memory.as_ptr()).connections })
    }

    /// Damages the memory between a crash and the restart.
    pub fn damage(&self, with: impl FnOnce(&mut [u8])) {
        // SAFETY: as long as the memory, and any value is valid; nobody who has a reference goes on.
        with(unsafe {
            core::slice::from_raw_parts_mut(self.memory.as_ptr().cast(), size_of::<KeptMemory>())
        });
    }
}

impl World {
    /// Runs the driver domain, and its server and network if it has these, until it sleeps or, after that many calls into
    /// Xen, has executed that many instructions: then it never goes on.
    pub fn crash_after(&self, calls: u64, instructions: u64) -> Crash {
        let executors = self.executors();
        let crash = Crash::after(
            (calls, instructions),
            &|| self.storage.is_xen_idle() && self.are_devices_idle(),
            &mut || {
                while executors.step() | self.step_server() | self.step_devices() {}
            },
        );
        leave_driver_domain();
        crash
    }

    /// Has the NBD server and the network to it do what there is to do, if there are any.
    fn step_server(&self) -> bool {
        let _busy = Busy::new();
        self.nbd.as_ref().is_some_and(|nbd| nbd.step(&self.sim))
    }

    /// Has the driver domain's devices do what there is to do, if there are any.
    pub fn step_devices(&self) -> bool {
        let _busy = Busy::new();
        let nvme = self.nvme.as_ref().is_some_and(|nvme| nvme.fake.step());
        nvme | self.virtio.as_ref().is_some_and(|one| one.fake.step())
    }

    fn are_devices_idle(&self) -> bool {
        self.nvme.as_ref().is_none_or(Nvme::is_idle)
            && self.virtio.as_ref().is_none_or(Virtio::is_idle)
    }

    /// Stops the driver domain's devices as a crash does. Returns the number of those that do not stop: the domain ends then.
    pub fn stop_devices(&self) -> usize {
        let nvme = self.nvme.as_ref().map(Nvme::stop_devices);
        let virtio = self.virtio.as_ref().map(Virtio::stop_devices);
        nvme.into_iter().chain(virtio).map(|one| one.running).sum()
    }

    /// Stops the devices, forgets whatever runs in the driver domain, gives back what a crash gives back, and boots it again.
    ///
    /// # Panics
    /// If a device does not stop.
    pub fn restart(&self) {
        assert_eq!(self.stop_devices(), 0, "the domain ends");
        let surviving = self.surviving.as_ref().expect("a domain that recovers");
        surviving.restarts.set(surviving.restarts.get() + 1);
        // The tasks are never dropped.
        std::mem::forget(self.executors());
        let kept: Vec<Port> = kept_port()
            .into_iter()
            .chain(surviving.ports().iter())
            .collect();
        self.storage.restart(&kept);

        let executors = Executors::new(&self.storage, surviving.vcpus);
        let handle = executors.handle();
        let store_ring = self.storage.store_ring();
        // SAFETY: the domain's xenstore ring; whoever has used it never goes on.
        let ring = unsafe { Ring::resumed(self.storage.hypervisor(), store_ring) };
        let store = surviving.client(&handle, ring, store_ring.port);
        self.executors.replace(Rc::new(executors));
        let (done, client) = (Rc::new(Cell::new(false)), store.clone());
        let told = done.clone();
        handle.spawn(async move {
            client.reset_watches().await.expect("xenstored forgets");
            told.set(true);
        });
        self.run();
        assert!(done.get(), "xenstored has answered");

        let region = Region::new(self.storage.hypervisor()).expect("nobody else has the region");
        self.region.replace(region.clone());
        let (start, length) = self.ramdisk;
        // SAFETY: as when it was loaded; the boot before never goes on.
        let module = unsafe { ImageMemory::new(start, length) };
        let catalog = Catalog::from_module(module).with_discard(surviving.options.discard);
        let mut stores = Stores::new(catalog);
        let pages = Arc::new(self.storage.hypervisor());
        let grants = TableOnDemand::left(self.storage.hypervisor(), pages);
        let (storage, executors) = (&self.storage, self.executors());
        if let Some(before) = &self.frontends {
            // Nor are these.
            std::mem::forget(before.clone());
            let disks = own_disks(
                storage,
                &executors,
                &store,
                (grants.clone(), surviving.ports()),
            );
            stores.register(Box::new(vbd_store(disks)));
        }
        if let Some(nvme) = &self.nvme {
            let controllers = nvme.restart(storage, &executors, &store, grants.clone());
            stores.register(Box::new(nvme_store(controllers)));
        }
        if let Some(virtio) = &self.virtio {
            let devices = virtio.restart(storage, &executors, &store, grants.clone());
            stores.register(Box::new(virtio_store(devices)));
        }
        if let Some(before) = &self.nbd {
            // Nor is this.
            std::mem::forget(before.exports.clone());
            let (server, network) = (&before.server, before.network.is_some());
            let own = (grants, surviving.traces());
            let exports = nbd::client(storage, &executors, &store, own, server, network);
            stores.register(Box::new(nbd_store(exports)));
            stores.register(Box::new(without_tls("the domain has no files".into())));
        }
        if let Some(layer) = &surviving.layer {
            stores = stores.behind(layer.clone());
        }
        let backend = Rc::new(Backend::with(
            self.executors().spawners(),
            handle.clone(),
            store,
            region,
            stores,
            surviving.options,
        ));
        surviving.keep(&backend);
        surviving.backend.replace(Rc::downgrade(&backend));
        let ended = self.ended.clone();
        handle.spawn(async move {
            let Err(_) = backend.serve(|| ()).await;
            ended.set(true);
        });
    }

    /// Returns the backend of the last restart.
    ///
    /// # Panics
    /// If there was none, or it has ended.
    pub fn restarted(&self) -> Rc<Backend<SimVcpu>> {
        let surviving = self.surviving.as_ref().expect("a domain that recovers");
        surviving.backend.borrow().upgrade().expect("it serves")
    }

    /// Checks that the driver domain holds in Xen what it held before it had disks.
    pub fn nothing_left_in_xen(&self) {
        self.run();
        let (now, before): (Resources, &Resources) = (self.resources(), &self.before);
        assert!(
            now.is_like_in_xen(before),
            "{now:?} where it was {before:?}"
        );
        self.no_mistakes();
    }
}
