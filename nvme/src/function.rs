//! What the driver needs of the PCI function that a controller is. The configuration space, the BAR and MSI-X belong
//! to whoever implements it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use bulkhead_xen::{Errno, Port, Registers};
use core::future::Future;
use core::pin::Pin;

/// The future of [`Function::set_bus_mastering`].
pub type BusMastering<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

/// A PCI function, as the control plane has it. Its memory is enabled, and its interrupts are set up.
pub trait Function<H> {
    /// Returns its name, as targets have it: `03:00.0`.
    fn name(&self) -> &str;

    /// Returns its registers: all of BAR 0 that is not a table of interrupts.
    fn registers(&self) -> Arc<dyn Registers>;

    /// Returns its interrupts.
    fn vectors(&self) -> Arc<dyn Vectors<H>>;

    /// Lets the function read and write memory, or forbids it. The error is a sentence for the operator.
    fn set_bus_mastering(&self, on: bool) -> BusMastering<'_>;
}

/// The interrupts of a PCI function. `hypervisor` is that of the vCPU that makes a call.
pub trait Vectors<H>: Send + Sync {
    /// Returns how many there are. Without any, the controller is polled.
    fn count(&self) -> usize;

    /// Binds an interrupt that is not bound to a new port of the vCPU that calls this. Closing the port unbinds it.
    fn bind(&self, vector: usize, hypervisor: &H) -> Result<Port, Errno>;

    /// Notes that an interrupt was handled: the controller does not assert it any more. Xen raises some kinds of
    /// interrupts again only when it was told.
    fn handled(&self, vector: usize, hypervisor: &H);
}
