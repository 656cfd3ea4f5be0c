//! An NVMe controller that was given to the driver domain.

use super::executors::Executors;
use bulkhead_nvme::Controllers;
use bulkhead_nvme_testing::{Config, FakeController};
use bulkhead_xen_sim::{Sim, SimDomain, SimVcpu};
use std::rc::Rc;
use std::sync::Arc;

/// The controller and its driver.
pub struct Nvme {
    /// The controller.
    pub fake: FakeController,
    /// The driver.
    pub controllers: Rc<Controllers<SimVcpu>>,
}

impl Nvme {
    pub(crate) fn new(
        sim: &Sim,
        domain: &SimDomain,
        executors: &Executors,
        config: Config,
    ) -> Nvme {
        let fake = FakeController::new(sim, domain, config);
        let memory = Arc::new(domain.hypervisor());
        let controllers = Controllers::new(executors.handle(), executors.spawners(), memory);
        controllers.add(fake.function("0000:03:00.0"));
        Nvme { fake, controllers }
    }
}
