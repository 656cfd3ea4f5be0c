//! The NVMe driver: namespaces of controllers that were passed through to the driver domain (`pci=` in its
//! configuration), as a store of guests' disks: `target=nvme:03:00.0`.
//!
//! ```text
//!   Function ───────► Life, a task of the first vCPU: starts, listens, resets, stops
//!   (of crate pci)      │  └─ Admin, the admin queue
//!                     Controller ── Pair, one for each vCPU: a queue pair
//!                       │             └─ Client, one for each Queue: its requests until they complete
//!                     Namespace
//!                       │
//!   target=nvme:… ──► Device ──► Queue, one for each ring of a guest's
//! ```
//!
//! The controller reads and writes guests' pages itself: a command names them by their bus addresses, in as many
//! physical region pages as it takes. What these cannot express is served by several commands. Nothing is copied, and
//! a page's virtual address is never used.
//!
//! The controller is trusted with the data of its namespaces and with what the IOMMU lets it reach, and with nothing
//! else: what it says is checked. If it completes a command that it does not have, it is reset. The commands that it
//! had are sent again; those that take too long are aborted, and if that does not help, it is reset, too. A guest's
//! page is not given back before the controller has completed the command, has stopped, or may access no memory. A
//! domain that ends stops its controllers first, whatever ends it but Xen or the tool stack.
//!
//! Read next: [`command`], which knows nothing of PCI; [`Function`], what the driver needs of the PCI function;
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
pub use function::{BusMastering, Function, Vectors};
pub use pci::NvmeDriver;
pub use store::nvme_store;
