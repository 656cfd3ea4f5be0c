//! All controllers that the driver domain has.

use crate::controller::Controller;
use crate::function::Function;
use crate::lifecycle::live;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, VcpuSpawner, Waiters};
use bulkhead_xen::{DeviceStops, DmaMemory, Hypervisor};
use core::cell::RefCell;
use core::fmt;
use core::future::poll_fn;
use core::task::Poll;
use spin::Mutex;

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
    handle: Handle<H>,
    vcpus: Vec<VcpuSpawner<H>>,
    memory: Arc<dyn DmaMemory>,
    stops: &'static DeviceStops,
    all: RefCell<Vec<Arc<Controller>>>,
    waiting: Arc<Mutex<Waiters>>,
}

impl<H: Hypervisor> Controllers<H> {
    /// Returns an empty list. `handle` is of the vCPU that this is called on, requests are served on `vcpus`,
    /// devices find this domain's memory as `memory` says, and `stops` are those that the domain's end stops.
    pub fn new(
        handle: Handle<H>,
        vcpus: Vec<VcpuSpawner<H>>,
        memory: Arc<dyn DmaMemory>,
        stops: &'static DeviceStops,
    ) -> Rc<Self> {
        Rc::new(Controllers {
            handle,
            vcpus,
            memory,
            stops,
            all: RefCell::default(),
            waiting: Arc::default(),
        })
    }

    /// Adds a controller, and starts it. It stays until it is [removed](Self::remove).
    pub fn add(self: &Rc<Self>, function: Rc<dyn Function<H>>) {
        let name = short(function.name()).to_string();
        let (registers, memory) = (function.registers(), self.memory.clone());
        let controller = Controller::new(name, registers, memory, self.waiting.clone());
        let controller = Arc::new(controller);
        self.all.borrow_mut().push(controller.clone());
        controller.watch().changed();
        let (all, handle) = (self.clone(), self.handle.clone());
        self.handle.spawn(async move {
            live(handle, &all.vcpus, all.stops, controller.clone(), function).await;
            all.all
                .borrow_mut()
                .retain(|other| !Arc::ptr_eq(other, &controller));
            controller.watch().changed();
        });
    }

    /// Stops a controller in order and lets go of it, unless disks are attached that lie on it. Returns when its
    /// function is not used any more.
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

    /// Lets go of a controller whose function is gone, or is taken away whether it is used or not. All requests to it
    /// fail from now on.
    pub async fn give_up(&self, name: &str) {
        if let Some(controller) = self.find(name) {
            controller.fail("it was taken away".to_string());
            self.let_go(&controller).await;
        }
    }

    /// Stops all controllers in order, because the domain ends.
    pub async fn close(&self) {
        for controller in self.list() {
            self.let_go(&controller).await;
        }
    }

    async fn let_go(&self, controller: &Controller) {
        controller.leave();
        self.until(|| controller.has_left().then_some(())).await;
    }

    /// Returns the controller of that name, with or without the PCI segment 0000.
    pub fn find(&self, name: &str) -> Option<Arc<Controller>> {
        let all = self.all.borrow();
        let found = all
            .iter()
            .find(|controller| controller.name() == short(name));
        found.cloned()
    }

    /// Returns all controllers.
    pub fn list(&self) -> Vec<Arc<Controller>> {
        self.all.borrow().clone()
    }

    /// Waits until `look` returns a value; calls it again whenever a controller has changed.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
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

    /// Waits until no disk lies on a controller, or there is none of that name.
    pub(crate) async fn until_unused(&self, name: &str) {
        let unused = || match self.find(name) {
            Some(controller) => controller.used().is_empty().then_some(()),
            None => Some(()),
        };
        self.until(unused).await;
    }

    /// Returns the number of vCPUs that serve.
    pub(crate) fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    pub(crate) fn handle(&self) -> &Handle<H> {
        &self.handle
    }
}

/// One task's wait, which leaves nothing behind if it is given up.
struct Wait<'c> {
    waiting: &'c Mutex<Waiters>,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.lock().forget(self.number);
    }
}

/// Returns the name of a function without the PCI segment, if that is 0000.
pub(crate) fn short(name: &str) -> &str {
    name.strip_prefix("0000:").unwrap_or(name)
}
