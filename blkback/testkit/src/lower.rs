//! A driver domain below another one: it serves images to the driver domain under test, as that one's own disks.

use super::executors::Executors;
use super::{World, ramdisk};
use bulkhead_blkback::Backend;
use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback::operator::{OperatorCommand, answer_requests};
use bulkhead_grant::Region;
use bulkhead_images::{Catalog, ImageMemory, Stores};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk, Vbd};
use bulkhead_xen_sim::{DomainConfig, SimDomain, SimVcpu};
use bulkhead_xenbus::XenbusState;
use bulkhead_xenstore_client::{Client, Ring};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

/// Another driver domain of the machine.
pub struct Lower<'w> {
    world: &'w World,
    /// The domain.
    pub domain: SimDomain,
    /// The backend in it.
    pub backend: Rc<Backend<SimVcpu>>,
    executors: Rc<Executors>,
    ramdisk: (NonNull<u8>, usize),
}

impl<'w> Lower<'w> {
    /// Makes a driver domain with one vCPU that has these images.
    pub fn new(world: &'w World, images: &[(String, Vec<u8>)]) -> Lower<'w> {
        let archive = ramdisk::archive(images);
        let domain = world.sim.add_domain_with(DomainConfig {
            driver_domain: true,
            memory_pages: archive.len().div_ceil(4096) + 1024,
            region_pages: 32 * 1024,
            ..DomainConfig::default()
        });
        let base = ramdisk::load(&domain, &archive);
        // SAFETY: as `load` promises, and that handle looks at it while no domain runs.
        let module = unsafe { ImageMemory::new(base, archive.len()) };
        let catalog = Catalog::from_module(module).with_reservation(Arc::new(domain.hypervisor()));
        let executors = Executors::new(&domain, 1);
        let handle = executors.handle();
        // SAFETY: the domain's xenstore ring, used here alone.
        let ring = unsafe { Ring::new(domain.hypervisor(), domain.store_ring()) };
        let store = Client::start(&handle, ring);
        let region = Region::new(domain.hypervisor()).expect("nobody else has the region");
        let (vcpus, stores) = (executors.spawners(), Stores::new(catalog));
        let options = QueueOptions::default();
        let backend = Backend::with(vcpus, handle.clone(), store, region, stores, options);
        let (serving, growing) = (backend.clone(), backend.clone());
        handle.spawn(async move {
            let Err(error) = serving.serve(|| ()).await;
            log::error!("below: {error}");
        });
        handle.spawn(async move {
            let Err(error) = answer_requests(&growing.services, OperatorCommand::Grow).await;
            log::error!("below: {error}");
        });
        let executors = Rc::new(executors);
        world.lower.borrow_mut().push(executors.clone());
        world.run();
        Lower {
            world,
            domain,
            backend,
            executors,
            ramdisk: (base, archive.len()),
        }
    }

    /// Attaches an image of its own to the driver domain above.
    pub fn attach(&self, name: &str, disk: &Disk) -> Vbd {
        let vbd = Vbd::new(self.domain.id(), self.world.storage.id(), name);
        toolstack::attach(&mut self.world.sim.store(), &vbd, disk);
        self.world.run();
        vbd
    }

    /// Returns the state of its end of a disk.
    pub fn state(&self, vbd: &Vbd) -> Option<XenbusState> {
        let state = vbd.backend_state(&mut self.world.sim.store());
        state.map(|state| XenbusState::parse(Some(&state)))
    }

    /// Pauses the domain, or lets it go on, as `xl pause` and `xl unpause` do.
    pub fn pause(&self, paused: bool) {
        let mut all = self.world.lower.borrow_mut();
        all.retain(|one| !Rc::ptr_eq(one, &self.executors));
        if !paused {
            all.push(self.executors.clone());
        }
    }

    /// Gives the domain a turn.
    pub fn step(&self) {
        self.executors.step();
    }

    /// Returns whether its images hold those bytes anywhere.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        // SAFETY: domain memory stays mapped as long as the machine, and no domain runs.
        let all = unsafe { NonNull::slice_from_raw_parts(self.ramdisk.0, self.ramdisk.1).as_ref() };
        all.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Ends the domain as `xl destroy` does: at once, and its directories are gone. Returns the content of its memory.
    pub fn destroy(self) {
        self.pause(true);
        let id = self.domain.id();
        self.world.sim.destroy_domain(id);
        toolstack::remove_domain(&mut self.world.sim.store(), id);
        self.world.run();
    }
}
