//! All devices that the driver domain has, and the driver that crate `pci` offers functions.

use crate::device::Device;
use crate::life::live;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, VcpuSpawner, Waiters};
use bulkhead_pci::{Departure, Driver, Function, PciHost};
use bulkhead_xen::{DeviceStops, DmaMemory};
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::Poll;
use spin::Mutex;

/// The vendor of virtio devices, and the numbers of a disk: of one that is modern, and of one that can be legacy, too.
const VENDOR: u16 = 0x1af4;
const MODERN_DISK: u16 = 0x1042;
const TRANSITIONAL_DISK: u16 = 0x1001;

/// The devices that were given to this domain.
pub struct Devices<H: PciHost> {
    handle: Handle<H>,
    vcpus: Vec<VcpuSpawner<H>>,
    memory: Arc<dyn DmaMemory>,
    stops: &'static DeviceStops,
    all: RefCell<Vec<Arc<Device>>>,
    waiting: Arc<Mutex<Waiters>>,
}

impl<H: PciHost> Devices<H> {
    /// Returns an empty list. `handle` is of the vCPU that this is called on, requests are served on `vcpus`, devices
    /// find this domain's memory as `memory` says, and those in `stops` are stopped when the domain ends.
    pub fn new(
        handle: Handle<H>,
        vcpus: Vec<VcpuSpawner<H>>,
        memory: Arc<dyn DmaMemory>,
        stops: &'static DeviceStops,
    ) -> Rc<Self> {
        Rc::new(Devices {
            handle,
            vcpus,
            memory,
            stops,
            all: RefCell::default(),
            waiting: Arc::default(),
        })
    }

    /// Adds a device, and starts it. It stays until its function is taken away.
    fn add(self: &Rc<Self>, function: Function<H>) {
        let name = function.name().to_string();
        let device = Arc::new(Device::new(name, self.memory.clone(), self.waiting.clone()));
        self.all.borrow_mut().push(device.clone());
        device.watch().changed();
        let function = Rc::new(function);
        self.handle
            .spawn(follow(self.clone(), device.clone(), function.clone()));
        let all = self.clone();
        self.handle.spawn(async move {
            live(&all, device.clone(), function).await;
            all.all
                .borrow_mut()
                .retain(|other| !Arc::ptr_eq(other, &device));
            device.set_left();
        });
    }

    /// Stops all devices, because the domain ends.
    pub async fn close(&self) {
        for device in self.list() {
            device.leave();
            self.until(|| device.has_left().then_some(())).await;
        }
    }

    /// Returns the device of that name, with or without the PCI segment 0000.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Device>> {
        let name = name.strip_prefix("0000:").unwrap_or(name);
        let all = self.all.borrow();
        all.iter().find(|device| device.name() == name).cloned()
    }

    /// Returns all devices.
    pub(crate) fn list(&self) -> Vec<Arc<Device>> {
        self.all.borrow().clone()
    }

    /// Returns lines about all devices, for the operator.
    pub fn lines(&self) -> Vec<String> {
        let all = self.list();
        all.iter().flat_map(|device| device.lines()).collect()
    }

    /// Waits until `look` returns a value; calls it again whenever a device has changed.
    pub(crate) async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        let wait = Wait {
            number: self.waiting.lock().number(),
            waiting: &self.waiting,
        };
        poll_fn(|context| {
            wait.waiting.lock().wait(wait.number, context.waker());
            match look() {
                Some(found) => Poll::Ready(found),
                None => Poll::Pending,
            }
        })
        .await
    }

    pub(crate) fn handle(&self) -> &Handle<H> {
        &self.handle
    }

    pub(crate) fn vcpus(&self) -> &[VcpuSpawner<H>] {
        &self.vcpus
    }

    pub(crate) fn stops(&self) -> &'static DeviceStops {
        self.stops
    }
}

/// One task's wait, which leaves nothing behind if it is given up.
struct Wait<'d> {
    waiting: &'d Mutex<Waiters>,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.lock().forget(self.number);
    }
}

/// Waits until a device's function is taken away, and until no disk of a guest lies on it; then has it let go of.
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
    // Nothing of it is held any more when it is stopped.
    drop(function);
    device.leave();
}

/// The driver of disks among the PCI functions of this domain.
pub struct VirtioDriver<H: PciHost>(Rc<Devices<H>>);

impl<H: PciHost> VirtioDriver<H> {
    /// Returns the driver that adds what it takes to these devices.
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

/// Returns why there is no device of that name.
pub(crate) fn missing(all: &[Arc<Device>], name: &str) -> String {
    let names: Vec<&str> = all.iter().map(|device| device.name()).collect();
    let short = name.strip_prefix("0000:").unwrap_or(name);
    if names.contains(&short) {
        return format!("the device {name} is not ready");
    }
    match names.is_empty() {
        true => format!(
            "no virtio device {name}: the driver domain has none (pci= in its configuration)"
        ),
        false => format!("no virtio device {name}, there are: {}", names.join(", ")),
    }
}
