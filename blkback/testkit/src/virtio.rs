//! A virtio-blk device that was given to the driver domain, as a PCI function.

use super::executors::Executors;
use bulkhead_dma_testing::stops;
use bulkhead_grant::TableOnDemand;
use bulkhead_pci::{Frontend, Options};
use bulkhead_virtio::{Devices, VirtioDriver};
use bulkhead_virtio_testing::{Config, FakeDevice};
use bulkhead_xen_sim::{Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::Client;
use std::rc::Rc;
use std::sync::Arc;

/// The device and its driver.
pub struct Virtio {
    /// The device.
    pub fake: FakeDevice,
    /// The driver.
    pub devices: Rc<Devices<SimVcpu>>,
}

impl Virtio {
    /// Gives the domain a device, whose driver finds it as in the unikernel.
    pub(crate) fn new(
        sim: &Sim,
        domain: &SimDomain,
        executors: &Executors,
        store: &Client,
        config: Config,
    ) -> Virtio {
        let fake = FakeDevice::new(sim, config);
        let (handle, memory) = (executors.handle(), Arc::new(domain.hypervisor()));
        let grants = TableOnDemand::new(domain.hypervisor());
        let vcpus = executors.spawners();
        let devices = Devices::new(handle.clone(), vcpus, memory.clone(), stops());
        let options = Options::default();
        let mut functions = Frontend::new(handle.clone(), store.clone(), memory, grants, options);
        functions.add_driver(Rc::new(VirtioDriver::new(devices.clone())));
        handle.spawn(async move {
            let Err(error) = functions.follow().await;
            log::error!("functions cannot be followed any more: {error}");
        });
        sim.attach_functions(domain, &[fake.function()]);
        Virtio { fake, devices }
    }
}
