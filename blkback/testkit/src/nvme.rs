//! An NVMe controller that was given to the driver domain, as a PCI function.

use super::executors::Executors;
use bulkhead_grant::TableOnDemand;
use bulkhead_nvme::{Controllers, NvmeDriver};
use bulkhead_nvme_testing::world::stops;
use bulkhead_nvme_testing::{Config, FakeController};
use bulkhead_pci::{Frontend, Options};
use bulkhead_xen::Stopped;
use bulkhead_xen_sim::pci::{FunctionConfig, SimFunction};
use bulkhead_xen_sim::{Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::Client;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The controller and its driver.
pub struct Nvme {
    /// The controller.
    pub fake: FakeController,
    /// Its function, in dom0.
    pub function: SimFunction,
    /// The driver.
    pub controllers: Rc<Controllers<SimVcpu>>,
    sim: Sim,
}

impl Nvme {
    /// Gives the domain a controller, whose driver finds it as in the unikernel.
    pub(crate) fn new(
        sim: &Sim,
        domain: &SimDomain,
        executors: &Executors,
        store: &Client,
        (function, config): (FunctionConfig, Config),
    ) -> Nvme {
        let (fake, function) = FakeController::passed_through(sim, &function, config);
        let (handle, memory) = (executors.handle(), Arc::new(domain.hypervisor()));
        let (vcpus, grants) = (
            executors.spawners(),
            TableOnDemand::new(domain.hypervisor()),
        );
        let controllers = Controllers::new(handle.clone(), vcpus, memory.clone(), stops(), None);
        let options = Options::default();
        let mut functions = Frontend::new(handle.clone(), store.clone(), memory, grants, options);
        functions.add_driver(Rc::new(NvmeDriver::new(controllers.clone())));
        handle.spawn(async move {
            let Err(error) = functions.follow().await;
            log::error!("functions cannot be followed any more: {error}");
        });
        sim.attach_functions(domain, &[&function]);
        Nvme {
            fake,
            function,
            controllers,
            sim: sim.clone(),
        }
    }

    /// Stops it as the end of the domain does, whatever its driver is at.
    pub fn stop_devices(&self) -> Stopped {
        let looks = Cell::new(0);
        let now = || {
            looks.set(looks.get() + 1);
            self.fake.step();
            self.sim.now() + Duration::from_millis(looks.get())
        };
        stops().stop_all(now, Duration::from_secs(2))
    }
}
