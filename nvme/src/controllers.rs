//! All controllers that the driver domain has.

use crate::controller::Controller;
use crate::function::ControllerFunction;
use crate::lifecycle::live;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_dma::{Devices, short_name};
use bulkhead_executor::{Handle, VcpuSpawner};
use bulkhead_xen::{DeviceStops, DmaMemory, Hypervisor};
use core::cell::RefCell;
use core::fmt;
use core::ops::Deref;
use core::task::Waker;
use core::time::Duration;

/// A controller cannot be let go of, because disks of guests are on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The controller.
    pub controller: String,
    /// The numbers of the namespaces that are open.
    pub namespaces: Vec<u32>,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nvme:{} is in use: disks are attached that lie on ",
            self.controller
        )?;
        for (index, number) in self.namespaces.iter().enumerate() {
            write!(f, "{}n{number}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl core::error::Error for InUse {}

/// The controllers that were given to this domain.
pub struct Controllers<H: Hypervisor> {
    devices: Devices<H, Controller>,
    hold: Option<Duration>,
    /// The functions whose registers or interrupts cannot be used, and why.
    unusable: RefCell<Vec<(String, String)>>,
}

impl<H: Hypervisor> Deref for Controllers<H> {
    type Target = Devices<H, Controller>;

    fn deref(&self) -> &Self::Target {
        &self.devices
    }
}

impl<H: Hypervisor> Controllers<H> {
    /// Returns an empty list. `handle` is of the vCPU that this is called on, requests are served on `vcpus`, `memory`
    /// has the bus addresses of this domain's memory, and the devices in `stops` are stopped when the domain ends.
    /// Interrupts are not held back for longer than `hold`, if that is given.
    pub fn new(
        handle: Handle<H>,
        vcpus: Vec<VcpuSpawner<H>>,
        memory: Arc<dyn DmaMemory>,
        stops: &'static DeviceStops,
        hold: Option<Duration>,
    ) -> Rc<Self> {
        let devices = Devices::new(handle, vcpus, memory, stops);
        Rc::new(Controllers {
            devices,
            hold,
            unusable: RefCell::default(),
        })
    }

    /// Adds a controller, and starts it. It stays until it is [removed](Self::remove).
    pub fn add(self: &Rc<Self>, function: Rc<dyn ControllerFunction<H>>) {
        let name = short_name(function.name()).to_string();
        let (registers, memory) = (function.registers(), self.memory().clone());
        let waiting = self.waiting().clone();
        let controller = Controller::new(name, registers, memory, waiting, self.hold);
        let controller = Arc::new(controller);
        self.insert(&controller);
        let (all, handle) = (self.clone(), self.handle().clone());
        self.handle().spawn(async move {
            live(
                handle,
                all.vcpus(),
                all.stops(),
                controller.clone(),
                function,
            )
            .await;
            all.forget(&controller);
            controller.watch().changed();
        });
    }

    /// Stops a controller in order and removes it, unless disks are attached that lie on it. Returns once its function
    /// is not used any more, at once if there is no such controller.
    pub async fn remove(&self, name: &str) -> Result<(), InUse> {
        let Some(controller) = self.find(name) else {
            return Ok(());
        };
        let used = controller.used();
        if !used.is_empty() {
            return Err(InUse {
                controller: controller.name().to_string(),
                namespaces: used.iter().map(|id| id.0).collect(),
            });
        }
        self.let_go(&controller).await;
        Ok(())
    }

    /// Removes a controller whose function is gone, whether or not disks lie on it. All requests to it fail from now
    /// on.
    pub async fn give_up(&self, name: &str) {
        if let Some(controller) = self.find(name) {
            controller.fail("it was taken away".to_string());
            self.let_go(&controller).await;
        }
    }

    /// Notes why a function cannot be used, until that is [forgotten](Self::forget_unusable). A guest's disk that names
    /// it fails with this reason.
    pub(crate) fn set_unusable(&self, name: &str, reason: String) {
        self.forget_unusable(name);
        let name = short_name(name).to_string();
        self.unusable.borrow_mut().push((name, reason));
        let waiting = self.waiting().lock().take();
        waiting.for_each(Waker::wake);
    }

    /// Forgets that a function cannot be used.
    pub(crate) fn forget_unusable(&self, name: &str) {
        let mut unusable = self.unusable.borrow_mut();
        unusable.retain(|(other, _)| other != short_name(name));
    }

    /// Returns the reason why the function of that name cannot be used, if it is there.
    pub(crate) fn unusable(&self, name: &str) -> Option<String> {
        let unusable = self.unusable.borrow();
        let mut unusable = unusable.iter();
        let found = unusable.find(|(other, _)| other == short_name(name));
        found.map(|(_, reason)| reason.clone())
    }

    /// Returns lines about all controllers, for the operator.
    pub(crate) fn lines(&self) -> Vec<String> {
        let all = self.list();
        let now = self.handle().now();
        let mut lines: Vec<String> = all.iter().flat_map(|one| one.lines(now)).collect();
        for (name, reason) in self.unusable.borrow().iter() {
            lines.push(format!("nvme:{name}: cannot be used: {reason}"));
        }
        lines
    }

    /// Waits until no disk lies on a controller, or there is no controller of that name.
    pub(crate) async fn until_unused(&self, name: &str) {
        let unused = || match self.find(name) {
            Some(controller) => controller.used().is_empty().then_some(()),
            None => Some(()),
        };
        self.until(unused).await;
    }
}
