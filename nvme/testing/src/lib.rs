//! An NVMe controller in memory, passed through to a domain of the simulated Xen.
//!
//! It reads and writes memory by bus address, as far as the simulated IOMMU lets it, and does nothing by itself: each
//! [`step`](FakeController::step) has it look at its registers and its queues. What it does with a command can be
//! changed: it may complete it late, out of order, twice, with an error, or never, or complete another one.
//!
//! Read next: [`FakeController`], a test's handle; [`Treatment`], what becomes of a command; [`world`], a machine with a
//! driver.

#![forbid(unsafe_code)]

mod admin;
mod bus;
mod data;
mod device;
mod function;
mod identify;
mod io;
mod queues;
pub mod world;

pub use device::{Config, FakeNamespace, Forge, Treatment};
pub use function::FakeFunction;

use bulkhead_nvme::command::{Command, Completion, Status};
use bulkhead_xen::Registers;
use bulkhead_xen_sim::pci::{FunctionConfig, SimFunction};
use bulkhead_xen_sim::{Sim, SimDomain};
use bus::{Bus, Direct};
use device::Device;
use function::PassedRegisters;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// A test's handle on a controller. Clones are of the same one.
#[derive(Clone)]
pub struct FakeController(Arc<Mutex<Device>>);

impl FakeController {
    /// Gives a domain a controller, whose driver is handed [`function`](Self::function).
    pub fn new(sim: &Sim, domain: &SimDomain, config: Config) -> FakeController {
        let bus = Bus::Direct(Direct::new(sim.dom0(), domain));
        FakeController(Arc::new(Mutex::new(Device::new(bus, config))))
    }

    /// Adds a controller to the machine, as a PCI function that can be given to a domain.
    pub fn passed_through(
        sim: &Sim,
        function: &FunctionConfig,
        config: Config,
    ) -> (FakeController, SimFunction) {
        let mut made = None;
        let function = sim.add_function(function, |function| {
            let device = Device::new(Bus::Function(function.clone()), config);
            let controller = FakeController(Arc::new(Mutex::new(device)));
            made = Some(controller.clone());
            PassedRegisters(Arc::downgrade(&controller.0))
        });
        (made.expect("it was made just now"), function)
    }

    /// Has its last user have left it at work.
    pub fn leave_at_work(&self) {
        let mut device = self.device();
        (device.configuration, device.ready) = (1, true);
        device.left_at_work = true;
    }

    /// Returns the PCI function, for a driver that has the controller without one.
    pub fn function(&self, name: &str) -> Rc<FakeFunction> {
        Rc::new(FakeFunction::new(name, self.0.clone()))
    }

    /// Returns the registers.
    pub fn registers(&self) -> Arc<dyn Registers> {
        Arc::new(function::FakeRegisters(self.0.clone()))
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether nothing is in the middle of something with it.
    pub fn is_idle(&self) -> bool {
        !matches!(self.0.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Has the controller do what there is to do. Returns whether there was anything.
    pub fn step(&self) -> bool {
        self.device().step()
    }

    /// Decides what becomes of I/O commands from now on.
    pub fn decide(&self, treatment: impl FnMut(&Command) -> Treatment + Send + 'static) {
        self.device().treatment = Box::new(treatment);
    }

    /// Decides what becomes of admin commands from now on.
    pub fn decide_admin(&self, treatment: impl FnMut(&Command) -> Treatment + Send + 'static) {
        self.device().admin_treatment = Box::new(treatment);
    }

    /// Returns the I/O commands that it has and that were held back, each with its queue.
    pub fn held(&self) -> Vec<(u16, Command)> {
        let device = self.device();
        device
            .held
            .iter()
            .map(|held| (held.queue, held.command))
            .collect()
    }

    /// Does one of the commands that were held back, and completes it.
    pub fn finish(&self, index: usize) {
        let mut device = self.device();
        let held = device.held.remove(index);
        device.finish(held.queue, &held.command);
    }

    /// Returns the start and the number of the blocks in each range that a command is to deallocate.
    ///
    /// # Panics
    /// If the controller cannot read them.
    pub fn ranges(&self, command: &Command) -> Vec<(u64, u32)> {
        let ranges = self.device().ranges(command).expect("ranges");
        let plain = ranges.iter().map(|range| (range.start.0, range.blocks));
        plain.collect()
    }

    /// Does all commands that were held back, the last one first.
    pub fn finish_reversed(&self) {
        while let Some(last) = self.held().len().checked_sub(1) {
            self.finish(last);
        }
    }

    /// Does a command whose time is over, without completing it: as far as it is let.
    pub fn do_late(&self, command: &Command) {
        let _ = self.device().execute(command);
    }

    /// Completes a command of a queue, whether it has it or not, without doing anything.
    pub fn complete(&self, queue: u16, command: &Command, status: Status) {
        let mut device = self.device();
        device.violates = true;
        device.complete(queue, command.id(), 0, status);
    }

    /// Writes a completion to a queue as it is, but for its phase.
    pub fn write_completion(&self, queue: u16, completion: Completion) {
        let mut device = self.device();
        device.violates = true;
        device.write_completion(queue, completion);
    }

    /// Reports an event: dword 0 of its completion. Returns false if the driver wants to hear of none.
    pub fn report(&self, event: u32) -> bool {
        self.device().report(event)
    }

    /// Changes a namespace, or what it says of it.
    pub fn change(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.device().config);
    }

    /// Returns the bytes of a namespace.
    ///
    /// # Panics
    /// If there is no such namespace.
    pub fn bytes(&self, namespace: u32) -> Vec<u8> {
        let device = self.device();
        let found = device.config.namespace(namespace);
        found.expect("a namespace").bytes.clone()
    }

    /// Has its media lose what is in the cache alone, as they do when the power fails.
    pub fn lose_cache(&self) {
        let mut device = self.device();
        let namespaces = device.config.namespaces.iter_mut();
        namespaces.for_each(FakeNamespace::lose_cache);
    }

    /// Lets it vanish: all of its registers read as ones, and it does nothing any more.
    pub fn vanish(&self) {
        self.device().vanished = true;
    }

    /// Lets it fail: it says so, and does nothing until it is reset.
    pub fn fail(&self) {
        self.device().fatal = true;
    }

    /// Has it ignore that it is to stop.
    pub fn never_stop(&self, never: bool) {
        self.device().never_stops = never;
    }

    /// Has it do so many things, the next time that it is to stop, before it has stopped: commands that it has held back, the
    /// last one first, or nothing.
    pub fn stop_late(&self, things: usize) {
        self.device().stops_late = things;
    }

    /// Has pciback leave it its access to memory.
    pub fn stay_master(&self, stays: bool) {
        self.device().stays_master = stays;
    }

    /// Has it not become ready.
    pub fn never_start(&self, never: bool) {
        self.device().never_starts = never;
    }

    /// Returns whether it is enabled, and whether it may access memory.
    pub fn state(&self) -> (bool, bool) {
        let device = self.device();
        (device.ready, device.bus.is_master())
    }

    /// Returns whether it was told to shut down before it was stopped last.
    pub fn was_shut_down(&self) -> bool {
        self.device().shut_down
    }

    /// Returns all I/O commands that it was ever given, in their order.
    pub fn seen(&self) -> Vec<Command> {
        self.device().seen.clone()
    }

    /// Returns all admin commands that it was ever given, in their order.
    pub fn admin_seen(&self) -> Vec<Command> {
        self.device().admin_seen.clone()
    }

    /// Returns the number of writes to doorbells of I/O queues, and of interrupts.
    pub fn signals(&self) -> (u64, u64) {
        let device = self.device();
        (device.doorbells, device.interrupts)
    }
}
