//! A virtio-blk device that was given to the driver domain, as a PCI function.

use super::executors::Executors;
use super::functions::{follow, no_stops, stop};
use bulkhead_grant::TableOnDemand;
use bulkhead_virtio::{Devices, VirtioDriver};
use bulkhead_virtio_testing::{Config, FakeDevice};
use bulkhead_xen::{DeviceStops, Stopped};
use bulkhead_xen_sim::{Sim, SimDomain, SimVcpu};
use bulkhead_xenstore_client::Client;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// The device and its driver.
pub struct Virtio {
    /// The device.
    pub fake: FakeDevice,
    /// The driver of the first boot.
    pub devices: Rc<Devices<SimVcpu>>,
    /// The devices that are stopped at the end of the present boot.
    stops: Cell<&'static DeviceStops>,
    sim: Sim,
}

impl Virtio {
    /// Gives the domain a device, whose driver finds it as in the unikernel.
    pub(crate) fn new(
        sim: &Sim,
        domain: &SimDomain,
        executors: &Executors,
        store: &Client,
        grants: TableOnDemand<SimVcpu>,
        config: Config,
    ) -> Virtio {
        let fake = FakeDevice::new(sim, config);
        let stops = no_stops();
        let devices = drive(domain, executors, store, grants, stops);
        sim.attach_functions(domain, &[fake.function()]);
        Virtio {
            fake,
            devices,
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
    ) -> Rc<Devices<SimVcpu>> {
        // The boot before never goes on.
        std::mem::forget(self.devices.clone());
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
        self.fake.function().is_idle() && self.fake.is_idle()
    }
}

fn drive(
    domain: &SimDomain,
    executors: &Executors,
    store: &Client,
    grants: TableOnDemand<SimVcpu>,
    stops: &'static DeviceStops,
) -> Rc<Devices<SimVcpu>> {
    let (handle, memory) = (executors.handle(), Arc::new(domain.hypervisor()));
    let devices = Devices::new(handle, executors.spawners(), memory, stops);
    let driver = Rc::new(VirtioDriver::new(devices.clone()));
    follow(domain, executors, store, grants, driver);
    devices
}
