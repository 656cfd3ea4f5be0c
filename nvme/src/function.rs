//! The parts of a controller's PCI function that the driver needs. The configuration space, the BAR and MSI-X are the
//! business of the implementation.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use bulkhead_xen::{Errno, Port, Registers};
use core::future::Future;
use core::pin::Pin;

/// The future of [`ControllerFunction::set_bus_mastering`].
pub type BusMastering<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

/// The PCI function of a controller. It answers at its memory BARs, and its interrupts are enabled.
pub trait ControllerFunction<H> {
    /// Returns its name, as targets have it: `03:00.0`.
    fn name(&self) -> &str;

    /// Returns its registers: the part of BAR 0 that precedes the MSI-X table and pending bits, if these are in it.
    fn registers(&self) -> Arc<dyn Registers>;

    /// Returns its interrupts.
    fn vectors(&self) -> Arc<dyn ControllerVectors<H>>;

    /// Lets the function read and write memory, or forbids it. The error is a sentence for the operator.
    fn set_bus_mastering(&self, on: bool) -> BusMastering<'_>;
}

/// The interrupts of a PCI function. `hypervisor` is that of the vCPU that makes a call.
pub trait ControllerVectors<H>: Send + Sync {
    /// Returns their number. If there are none, the controller is polled.
    fn count(&self) -> usize;

    /// Binds an interrupt that is not bound to a new port of the vCPU that calls this. Closing the port unbinds it.
    fn bind(&self, vector: usize, hypervisor: &H) -> Result<Port, Errno>;

    /// Tells Xen that an interrupt was handled, if Xen asks for that (`PHYSDEVOP_eoi`): the controller does not assert
    /// it any more.
    fn handled(&self, vector: usize, hypervisor: &H);
}
