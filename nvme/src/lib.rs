//! The NVMe driver: serves guests' disks from namespaces of controllers that were passed through to the driver domain
//! (`pci=` in its configuration). A guest's disk names one as its target: `target=nvme:03:00.0`.
//!
//! ```text
//!   Function ───────► ControllerTask, a task of the first vCPU: starts, listens, resets, stops
//!   (of crate pci)      │  └─ Admin, the admin queue
//!                     Controller ── QueuePair, one for each vCPU
//!                       │             └─ QueueClient, one for each NamespaceQueue: its requests until they complete
//!                     Namespace
//!                       │
//!   target=nvme:… ──► NamespaceDevice ──► NamespaceQueue, one for each ring of a guest's
//! ```
//!
//! The controller reads and writes guests' pages itself: a command names them by their bus addresses, as physical
//! region pages (PRP). A request that these cannot express is served by several commands. Nothing is copied, and a
//! page's virtual address is never used.
//!
//! The controller is trusted with the data of its namespaces and with what the IOMMU lets it reach, and with nothing
//! else: its structures, completions and status are checked. If it completes a command that it does not have, it is
//! reset, and the commands that it had are sent again. A command that takes too long is aborted, and if that does not
//! help, the controller is reset, too. A guest's page is not given back before the controller has completed the
//! command, has stopped, or may access no memory. A domain that ends stops its controllers first, unless Xen or the
//! toolstack ends it.
//!
//! "NVMe" in comments is NVM Express Base Specification 2.0 with its NVM Command Set and PCIe Transport specifications;
//! abbreviations such as CAP.MQES are theirs.
//!
//! Read next: [`command`], which knows nothing of PCI; [`ControllerFunction`], the parts of a PCI function that the driver needs;
//! `pair.rs`, where requests become commands; `lifecycle.rs`, the controller's task.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod admin;
pub mod command;
mod controller;
mod controllers;
mod function;
mod lifecycle;
mod listener;
mod moderation;
mod namespace;
mod pair;
mod pci;
mod prp;
mod queue;
mod registers;
mod rings;
mod slots;
mod splits;
mod stop;
mod store;

pub use controller::Controller;
pub use controllers::{Controllers, InUse};
pub use function::{BusMastering, ControllerFunction, ControllerVectors};
pub use pci::NvmeDriver;
pub use store::nvme_store;
