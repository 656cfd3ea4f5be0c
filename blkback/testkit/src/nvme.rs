//! An NVMe controller that was given to the driver domain, as a PCI function.

use super::executors::Executors;
use super::functions::{follow, no_stops, stop};
use bulkhead_grant::TableOnDemand;
use bulkhead_nvme::{Controllers, NvmeDriver};
use bulkhead_nvme_testing::{Config, FakeController};
use bulkhead_xen::{DeviceStops, Stopped};
use bulkhead_xen_sim::pci::{FunctionConfig, SimFunction};
use bulkhead_xen_sim::{Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::Client;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// The controller and its driver.
pub struct Nvme {
    /// The controller.
    pub fake: FakeController,
    /// Its function, in dom0.
    pub function: SimFunction,
    /// The driver of the first boot.
    pub controllers: Rc<Controllers<SimVcpu>>,
    /// The devices that are stopped at the end of the present boot.
    stops: Cell<&'static DeviceStops>,
    sim: Sim,
}

impl Nvme {
    /// Gives the domain a controller, whose driver finds it as in the unikernel.
    pub(crate) fn new(
        sim: &Sim,
        domain: &SimDomain,
        executors: &Executors,
        store: &Client,
        grants: TableOnDemand<SimVcpu>,
        (function, config): (FunctionConfig, Config),
    ) -> Nvme {
        let (fake, function) = FakeController::passed_through(sim, &function, config);
        let stops = no_stops();
        let controllers = drive(domain, executors, store, grants, stops);
        sim.attach_functions(domain, &[&function]);
        Nvme {
            fake,
            function,
            controllers,
            stops: Cell::new(stops),
            sim: sim.clone(),
        }
    }

    /// Starts the driver of the next boot.
    #[cfg(feature = "recover")]
    pub(crate) fn restart(
        &self,
        domain: &SimDomain,
        executors: &Executors,
        store: &Client,
        grants: TableOnDemand<SimVcpu>,
    ) -> Rc<Controllers<SimVcpu>> {
        // The boot before never goes on.
        std::mem::forget(self.controllers.clone());
        self.stops.set(no_stops());
        drive(domain, executors, store, grants, self.stops.get())
    }

    /// Stops the device as the end of the domain does, whatever its driver is at.
    pub fn stop_devices(&self) -> Stopped {
        stop(self.stops.get(), || _ = self.fake.step(), self.sim.now())
    }

    /// Returns whether the device is in no access to its registers.
    #[cfg(feature = "recover")]
    pub(crate) fn is_idle(&self) -> bool {
        self.function.is_idle() && self.fake.is_idle()
    }
}

fn drive(
    domain: &SimDomain,
    executors: &Executors,
    store: &Client,
    grants: TableOnDemand<SimVcpu>,
    stops: &'static DeviceStops,
) -> Rc<Controllers<SimVcpu>> {
    let (handle, memory) = (executors.handle(), Arc::new(domain.hypervisor()));
    let controllers = Controllers::new(handle, executors.spawners(), memory, stops, None);
    let driver = Rc::new(NvmeDriver::new(controllers.clone()));
    follow(domain, executors, store, grants, driver);
    controllers
}
