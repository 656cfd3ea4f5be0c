//! The PCI frontend: gives drivers the PCI functions that the driver domain was given (`pci=` in its configuration, `xl
//! pci-attach`): their configuration space, registers and interrupts.
//!
//! ```text
//!   device/pci/0 ──► Frontend, a task of the first vCPU: decides, connects, adds and removes
//!                       │  └─ Channel: a page shared with pciback in dom0, one operation at a time
//!                       │
//!                       ├─► Function ──► Driver, the first that takes it
//!                       │      ├─ ConfigSpace      registers 0 to 255, by the channel
//!                       │      ├─ open_registers   part of a memory BAR, mapped uncached
//!                       │      └─ enable_interrupts ──► Vectors: each is bound on the vCPU that is to have it
//!                       └─◄ every part of it was dropped: pciback gets it back
//! ```
//!
//! A function is its driver's until the driver has dropped it with its registers and interrupts. When the toolstack
//! detaches it ([`Function::departure`]), the frontend reports it as released only then: a driver whose function is in
//! use refuses by keeping it. (libxl resets a PV domain's function and takes it out of the domain's IOMMU tables before
//! it asks, so that the function is of no use by then. xl 4.17 reports success whether or not it was released.)
//!
//! dom0's pciback is trusted, because dom0 owns the machine. Its nodes and answers are nevertheless checked, and
//! bounded in time and number, so that a fault of pciback's ends in a line of the log.
//!
//! ```
//! # use bulkhead_pci::{Driver, Function, PciHost};
//! struct Unimpressed;
//!
//! impl<H: PciHost> Driver<H> for Unimpressed {
//!     fn name(&self) -> &'static str {
//!         "unimpressed"
//!     }
//!
//!     fn take(&self, function: Function<H>) -> Result<(), Function<H>> {
//!         match function.identity().class.0 {
//!             // It would start a task here, and move the function into it.
//!             0x01_08_02 => Ok(()),
//!             _ => Err(function),
//!         }
//!     }
//! }
//! ```
//!
//! Read next: [`decide`], the state machine; [`Function`], the device as its driver sees it.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod address;
mod bars;
mod capabilities;
mod channel;
mod config_space;
mod devices;
mod error;
mod frontend;
mod function;
mod holders;
mod identity;
mod interrupts;
mod state_machine;
mod window;

pub use address::{FunctionName, Slot};
pub use bars::{BadBar, Bar};
pub use capabilities::{Capability, MSI, MSIX, MsixTable, VENDOR_SPECIFIC};
pub use config_space::{COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace};
pub use error::{OperationError, PciError};
pub use frontend::{Driver, Frontend, FrontendOptions};
pub use function::{Departure, Function};
pub use identity::{Class, Identity};
pub use interrupts::{Delivery, Interrupt, Vector, Vectors};
pub use state_machine::{Observed, Phase, Step, decide, phase_left};

use bulkhead_xen::{Hypervisor, Interrupts, Mmio};

/// A hypervisor that gives its domain PCI devices: maps their registers, and delivers their interrupts.
pub trait PciHost: Hypervisor + Mmio + Interrupts {}

impl<H: Hypervisor + Mmio + Interrupts> PciHost for H {}
