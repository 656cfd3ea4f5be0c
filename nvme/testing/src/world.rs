//! A PV domain with a controller, its executors, and a guest's disks on it.

pub use bulkhead_dma_testing::{Buffer, Disk, Wakes, discard, pattern, read, stops, write};

use crate::{Config, FakeController};
use bulkhead_dma_testing::Machine;
use bulkhead_images::{BlockDevice, Store};
use bulkhead_nvme::{Controllers, nvme_store};
use bulkhead_volumes::DiskStore;
use bulkhead_xen_sim::SimVcpu;
use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The name of the controller's PCI function.
pub const NAME: &str = "0000:03:00.0";

/// A machine with a PV domain of two vCPUs that was given a controller.
pub struct World {
    machine: Machine,
    /// The controller.
    pub fake: FakeController,
    /// The driver.
    pub controllers: Rc<Controllers<SimVcpu>>,
    /// Its store.
    pub store: Rc<DiskStore>,
    fakes: Rc<RefCell<Vec<FakeController>>>,
}

impl Deref for World {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl World {
    /// A machine whose driver does not know of the controller yet.
    pub fn new(config: Config) -> World {
        let machine = Machine::new();
        let (vcpus, memory) = (machine.vcpus(), machine.memory());
        let controllers = Controllers::new(machine.handle(), vcpus, memory, stops(), None);
        let fake = FakeController::new(&machine.sim, &machine.domain, config);
        let fakes = Rc::new(RefCell::new(vec![fake.clone()]));
        let stepping = fakes.clone();
        machine.run_device(move || {
            let fakes = stepping.borrow().clone();
            // Each has its turn.
            fakes.iter().filter(|fake| fake.step()).count() > 0
        });
        World {
            store: Rc::new(nvme_store(controllers.clone())),
            fake,
            controllers,
            machine,
            fakes,
        }
    }

    /// Gives the domain another controller, of which the driver does not know yet.
    pub fn add(&self, config: Config) -> FakeController {
        let fake = FakeController::new(&self.machine.sim, &self.machine.domain, config);
        self.fakes.borrow_mut().push(fake.clone());
        fake
    }

    /// A machine whose controller has started.
    pub fn started(config: Config) -> World {
        let world = World::new(config);
        world.controllers.add(world.fake.function(NAME));
        world.wait(Duration::from_millis(100));
        world
    }

    /// Opens a target, to be written to.
    pub fn try_open(&self, target: &str) -> Result<Arc<dyn BlockDevice>, String> {
        self.machine.try_open(&self.store, target)
    }

    /// Opens a target, with a queue on the first vCPU.
    ///
    /// # Panics
    /// If it is refused.
    pub fn open(&self, target: &str) -> Disk<'_> {
        self.machine.open(&self.store, target)
    }

    /// Returns what the operator is told of the controller.
    pub fn lines(&self) -> String {
        self.store.lines().join("\n")
    }

    /// Removes all controllers; nothing of them is left.
    ///
    /// # Panics
    /// If it is in use, does not stop, or has accessed what it may not.
    pub fn end(self) {
        for controller in self.controllers.list() {
            let (name, controllers) = (controller.name().to_string(), self.controllers.clone());
            let removed = self.within(Duration::from_secs(60), async move {
                controllers.remove(&name).await
            });
            assert_eq!(removed, Some(Ok(())), "{}", self.lines());
        }
        assert!(self.controllers.list().is_empty());
        assert_eq!(self.fake.state(), (false, false), "it was stopped");
        self.sim.assert_no_violations();
    }
}
