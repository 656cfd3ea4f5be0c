//! A virtio-blk device in memory, as a PCI function of the simulated Xen that a domain was given by dom0's pciback.
//!
//! It reads and writes memory by bus address, as far as the simulated IOMMU lets it. Its registers answer at once;
//! what is in its queues is done when [`step`](FakeDevice::step) is called, and only in queues that it was notified
//! of. What becomes of a request can be changed: it may be done late, out of order, twice, with an error, or never,
//! and the device may tell of it what is not true.
//!
//! Read next: [`FakeDevice`], a test's handle; [`Treatment`], what becomes of a request; [`World`], a machine with a driver.

#![forbid(unsafe_code)]

mod device;
mod function;
mod queue;
mod world;

pub use device::{Config, Seen, Treatment};
pub use function::{NAME, function};
pub use world::World;

/// The features that a device may offer.
pub use virtio_spec::blk::F;
/// The types of requests.
pub use virtio_spec::blk::T;

use bulkhead_xen_sim::Sim;
use bulkhead_xen_sim::pci::SimFunction;
use device::Device;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use virtio_spec::DeviceStatus;

/// A test's handle on a device. Clones are of the same one.
#[derive(Clone)]
pub struct FakeDevice {
    device: Arc<Mutex<Device>>,
    function: SimFunction,
}

impl FakeDevice {
    /// Adds a device to the machine, which no domain has yet.
    pub fn new(sim: &Sim, config: Config) -> FakeDevice {
        let (device, function) = function::add(sim, config);
        FakeDevice { device, function }
    }

    /// Returns its PCI function.
    pub fn function(&self) -> &SimFunction {
        &self.function
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether nothing is in the middle of something with it.
    pub fn is_idle(&self) -> bool {
        !matches!(self.device.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Has the device do what there is to do. Returns whether there was anything.
    pub fn step(&self) -> bool {
        self.device().step()
    }

    /// Decides what becomes of requests from now on.
    pub fn decide(&self, treatment: impl FnMut(&Seen) -> Treatment + Send + 'static) {
        self.device().treatment = Box::new(treatment);
    }

    /// Returns the requests that were held back.
    pub fn held(&self) -> Vec<Seen> {
        self.device().held.clone()
    }

    /// Does one of the requests that were held back.
    pub fn finish(&self, index: usize) {
        let mut device = self.device();
        let held = device.held.remove(index);
        device.finish(&held);
    }

    /// Answers one of the requests that were held back with a status, without doing it.
    pub fn answer(&self, index: usize, status: u8) {
        let mut device = self.device();
        let held = device.held.remove(index);
        device.answer(&held, status);
    }

    /// Returns the first sector and the number of sectors of what a request has the device forget.
    ///
    /// # Panics
    /// If the device cannot read that.
    pub fn range(&self, request: &Seen) -> (u64, u32) {
        let (sector, count, _) = self.device().forgotten(request).expect("a range");
        (sector, count)
    }

    /// Does all requests that were held back, the last one first.
    pub fn finish_reversed(&self) {
        while let Some(last) = self.held().len().checked_sub(1) {
            self.finish(last);
        }
    }

    /// Does a request whose time is over, without telling of it: as far as it is let.
    pub fn do_late(&self, request: &Seen) {
        let _ = self.device().execute(request);
    }

    /// Tells that it has used the chain that begins with that descriptor, whether it has it or not.
    pub fn violate(&self, queue: u16, head: u32, written: u32) {
        self.device().push_used(queue, head, written);
    }

    /// Moves a queue's index on.
    pub fn jump(&self, queue: u16, by: u16) {
        self.device().jump(queue, by);
    }

    /// Changes what it is, and tells of that.
    pub fn change(&self, change: impl FnOnce(&mut Config)) {
        let mut device = self.device();
        change(&mut device.config);
        device.tell_of_change();
    }

    /// Returns its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.device().config.bytes.clone()
    }

    /// Lets it vanish: all of its registers read as ones, and it does nothing any more.
    pub fn vanish(&self) {
        self.device().vanished = true;
    }

    /// Lets it fail: it says so, and does nothing until it is reset.
    pub fn fail(&self) {
        self.device().fail();
    }

    /// Has it ignore that it is to reset itself.
    pub fn never_reset(&self, never: bool) {
        self.device().never_resets = never;
    }

    /// Has it refuse features.
    pub fn refuse_features(&self, refuse: bool) {
        self.device().refuses = refuse;
    }

    /// Returns its state.
    pub fn state(&self) -> DeviceStatus {
        self.device().state
    }

    /// Returns the features that the driver has accepted.
    pub fn accepted(&self) -> u64 {
        self.device().accepted
    }

    /// Returns all requests that it was ever given, in their order.
    pub fn seen(&self) -> Vec<Seen> {
        self.device().seen.clone()
    }

    /// Returns the number of notifications and of interrupts.
    pub fn signals(&self) -> (u64, u64) {
        let device = self.device();
        (device.notifications, device.interrupts)
    }

    /// Returns the number of times that it was reset while it worked.
    pub fn resets(&self) -> u64 {
        self.device().resets
    }
}
