//! A PV domain that pciback has given a device, its driver, and a guest's disks on it.

use crate::{Config, FakeDevice};
use bulkhead_dma_testing::{Disk, Machine, stops};
use bulkhead_grant::TableOnDemand;
use bulkhead_images::{BlockDevice, Store};
use bulkhead_pci::{Frontend, FrontendOptions};
use bulkhead_virtio::{Devices, VirtioDriver, virtio_store};
use bulkhead_volumes::DiskStore;
use bulkhead_xen_sim::SimVcpu;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A machine with a PV domain of two vCPUs that was given a device.
pub struct World {
    machine: Machine,
    /// The device.
    pub fake: FakeDevice,
    /// The driver.
    pub devices: Rc<Devices<SimVcpu>>,
    /// Its store.
    pub store: Rc<DiskStore>,
}

impl Deref for World {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl World {
    /// A machine whose domain was given the device, and whose driver has had some time to start it.
    pub fn new(config: Config) -> World {
        let machine = Machine::new();
        let (handle, domain) = (machine.handle(), &machine.domain);
        let devices = Devices::new(handle.clone(), machine.vcpus(), machine.memory(), stops());
        let store = machine.xenstore();
        let grants = TableOnDemand::new(domain.hypervisor());
        let memory = Arc::new(domain.hypervisor());
        let options = FrontendOptions::default();
        let mut frontend = Frontend::new(handle.clone(), store, memory, grants, options);
        frontend.add_driver(Rc::new(VirtioDriver::new(devices.clone())));
        handle.spawn(async move {
            let Err(error) = frontend.follow().await;
            panic!("the frontend has ended: {error}");
        });
        let fake = FakeDevice::new(&machine.sim, config);
        let (stepping, sim) = (fake.clone(), machine.sim.clone());
        machine.run_device(move || sim.step_xenstored() | stepping.step());
        let functions = [fake.function()];
        machine.sim.attach_functions(&machine.domain, &functions);
        let world = World {
            store: Rc::new(virtio_store(devices.clone())),
            fake,
            devices,
            machine,
        };
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

    /// Returns what the operator is told of the device.
    pub fn lines(&self) -> String {
        self.store.lines().join("\n")
    }

    /// Begins to take the function away.
    pub fn detach(&self) {
        let function = self.fake.function();
        self.sim.detach_function(&self.machine.domain, function);
        self.wait(Duration::from_secs(1));
    }

    /// Takes the function away; nothing of it is left.
    ///
    /// # Panics
    /// If it is in use, does not stop, or has accessed what it may not.
    pub fn end(self) {
        self.detach();
        let function = self.fake.function();
        let gone = self.sim.finish_detach(&self.machine.domain, function);
        assert!(gone, "{}", self.lines());
        assert_eq!(self.lines(), "");
        // libxl has taken its registers away before: only pciback can stop it.
        assert!(!function.is_master(), "it was stopped");
        self.sim.assert_no_violations();
    }
}
