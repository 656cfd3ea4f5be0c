//! The devices of one kind that the driver domain has.

use crate::PassedThrough;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, VcpuSpawner, Waiters};
use bulkhead_xen::{DeviceStops, DmaMemory, Hypervisor};
use core::cell::RefCell;
use core::ops::Deref;
use spin::Mutex;

/// The devices of one kind, and what all of them need.
pub struct Devices<H: Hypervisor, D> {
    handle: Handle<H>,
    vcpus: Vec<VcpuSpawner<H>>,
    memory: Arc<dyn DmaMemory>,
    stops: &'static DeviceStops,
    all: RefCell<Vec<Arc<D>>>,
    waiting: Arc<Mutex<Waiters>>,
}

impl<H: Hypervisor, D: Deref<Target = PassedThrough>> Devices<H, D> {
    /// Returns an empty list. `handle` is of the vCPU that this is called on, requests are served on `vcpus`, `memory`
    /// has the bus addresses of this domain's memory, and the devices in `stops` are stopped when the domain ends.
    pub fn new(
        handle: Handle<H>,
        vcpus: Vec<VcpuSpawner<H>>,
        memory: Arc<dyn DmaMemory>,
        stops: &'static DeviceStops,
    ) -> Self {
        Devices {
            handle,
            vcpus,
            memory,
            stops,
            all: RefCell::default(),
            waiting: Arc::default(),
        }
    }

    /// Adds a device.
    pub fn insert(&self, device: &Arc<D>) {
        self.all.borrow_mut().push(device.clone());
        device.watch().changed();
    }

    /// Removes a device.
    pub fn forget(&self, device: &Arc<D>) {
        let is_other = |other: &Arc<D>| !Arc::ptr_eq(other, device);
        self.all.borrow_mut().retain(is_other);
    }

    /// Stops all devices, one after another, and waits for each: the domain ends.
    pub async fn close(&self) {
        for device in self.list() {
            self.let_go(&device).await;
        }
    }

    /// Has a device stopped for good by its task, and waits until it is.
    pub async fn let_go(&self, device: &D) {
        device.leave();
        self.until(|| device.has_left().then_some(())).await;
    }

    /// Returns the device of that name, with or without the PCI segment 0000.
    pub fn find(&self, name: &str) -> Option<Arc<D>> {
        let all = self.all.borrow();
        let name = short_name(name);
        all.iter().find(|device| device.name() == name).cloned()
    }

    /// Returns all devices.
    pub fn list(&self) -> Vec<Arc<D>> {
        self.all.borrow().clone()
    }

    /// Waits until `look` returns a value; calls it again whenever a device has changed.
    pub async fn until<T>(&self, look: impl FnMut() -> Option<T>) -> T {
        Waiters::until(&self.waiting, look).await
    }

    /// Returns the tasks that wait for a change of any device.
    pub fn waiting(&self) -> &Arc<Mutex<Waiters>> {
        &self.waiting
    }

    /// Returns the handle of the first vCPU.
    pub fn handle(&self) -> &Handle<H> {
        &self.handle
    }

    /// Returns the vCPUs that serve.
    pub fn vcpus(&self) -> &[VcpuSpawner<H>] {
        &self.vcpus
    }

    /// Returns what knows the bus addresses of this domain's memory.
    pub fn memory(&self) -> &Arc<dyn DmaMemory> {
        &self.memory
    }

    /// Returns the devices that are stopped when the domain ends, in order or by a crash.
    pub fn stops(&self) -> &'static DeviceStops {
        self.stops
    }
}

/// Returns the name of a function without the PCI segment, if that is 0000.
pub fn short_name(name: &str) -> &str {
    name.strip_prefix("0000:").unwrap_or(name)
}
