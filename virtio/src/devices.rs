//! All devices that the driver domain has, and the driver that crate `pci` offers functions.

use crate::device::Device;
use crate::lifecycle::live;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::short_name;
use bulkhead_executor::{Handle, VcpuSpawner};
use bulkhead_pci::{Departure, Driver, Function, PciHost};
use bulkhead_xen::{DeviceStops, DmaMemory};
use core::ops::Deref;

/// The vendor of virtio devices, and the device numbers of a disk: of a modern one, and of a transitional one, which
/// also has the legacy interface (virtio 1.2, section 4.1.2).
const VENDOR: u16 = 0x1af4;
const MODERN_DISK: u16 = 0x1042;
const TRANSITIONAL_DISK: u16 = 0x1001;

/// The devices that were given to this domain.
pub struct Devices<H: PciHost>(bulkhead_dma::Devices<H, Device>);

impl<H: PciHost> Deref for Devices<H> {
    type Target = bulkhead_dma::Devices<H, Device>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<H: PciHost> Devices<H> {
    /// Returns an empty list. `handle` is of the vCPU that this is called on, requests are served on `vcpus`, `memory`
    /// has the bus addresses of this domain's memory, and the devices in `stops` are stopped when the domain ends.
    pub fn new(
        handle: Handle<H>,
        vcpus: Vec<VcpuSpawner<H>>,
        memory: Arc<dyn DmaMemory>,
        stops: &'static DeviceStops,
    ) -> Rc<Self> {
        let all = bulkhead_dma::Devices::new(handle, vcpus, memory, stops);
        Rc::new(Devices(all))
    }

    /// Adds a device, and starts it. It stays until its function is gone, or is detached and no disk lies on it.
    fn add(self: &Rc<Self>, function: Function<H>) {
        let name = function.name().to_string();
        let device = Device::new(name, self.memory().clone(), self.waiting().clone());
        let device = Arc::new(device);
        self.insert(&device);
        let function = Rc::new(function);
        self.handle()
            .spawn(follow(self.clone(), device.clone(), function.clone()));
        let all = self.clone();
        self.handle().spawn(async move {
            live(&all, device.clone(), function).await;
            all.forget(&device);
            device.set_left();
        });
    }

    /// Returns lines about all devices, for the operator.
    pub fn lines(&self) -> Vec<String> {
        let all = self.list();
        all.iter().flat_map(|device| device.lines()).collect()
    }
}

/// Waits until a device's function is gone, or is to be detached and no guest's disk lies on the device; then has the
/// device stopped for good.
async fn follow<H: PciHost>(
    devices: Rc<Devices<H>>,
    device: Arc<Device>,
    function: Rc<Function<H>>,
) {
    match function.departure().await {
        Departure::Gone => device.fail("it was taken away".to_string()),
        Departure::Detached => {
            if device.users() > 0 {
                log::error!(
                    "virtio:{} is in use: it is kept until the disks that lie on it are detached",
                    device.name()
                );
                devices
                    .until(|| (device.users() == 0 || device.has_left()).then_some(()))
                    .await;
            }
        }
    }
    // The device's task is then the last one to hold the function, and gives it back once the device is stopped.
    drop(function);
    device.leave();
}

/// The driver of the PCI functions of this domain that are virtio disks.
pub struct VirtioDriver<H: PciHost>(Rc<Devices<H>>);

impl<H: PciHost> VirtioDriver<H> {
    /// Returns the driver that adds the disks which it is offered to these devices.
    pub fn new(devices: Rc<Devices<H>>) -> Self {
        VirtioDriver(devices)
    }
}

impl<H: PciHost> Driver<H> for VirtioDriver<H> {
    fn name(&self) -> &'static str {
        "virtio"
    }

    fn take(&self, function: Function<H>) -> Result<(), Function<H>> {
        let identity = function.identity();
        let is_disk = matches!(identity.device, MODERN_DISK | TRANSITIONAL_DISK);
        if identity.vendor != VENDOR || !is_disk {
            return Err(function);
        }
        self.0.add(function);
        Ok(())
    }
}

/// Returns the reason why there is no device of that name, or why it cannot be used yet.
pub(crate) fn missing(all: &[Arc<Device>], name: &str) -> String {
    let names: Vec<&str> = all.iter().map(|device| device.name()).collect();
    if names.contains(&short_name(name)) {
        return format!("the device {name} is not ready");
    }
    match names.is_empty() {
        true => format!(
            "no virtio device {name}: the driver domain has none (pci= in its configuration)"
        ),
        false => format!("no virtio device {name}, there are: {}", names.join(", ")),
    }
}
