//! The virtio-blk driver: serves guests' disks from virtio disks that were passed through to the driver domain as PCI
//! functions (`pci=` in its configuration). A guest's disk names one as its target: `target=virtio:03:00.0`. Clouds and
//! nested hosts have such disks.
//!
//! ```text
//!   Function ───────► DeviceTask, a task of the first vCPU: starts, listens, resets, stops
//!   (of crate pci)      │  └─ Transport, the registers
//!                     Device ── DeviceQueue, one for each vCPU: a split queue
//!                       │         └─ QueueClient, one for each VirtioDiskQueue: its requests until they complete
//!   target=virtio:… ──► VirtioDisk ──► VirtioDiskQueue, one for each ring of a guest's
//! ```
//!
//! The device reads and writes guests' pages itself: an indirect table of descriptors names them by their bus
//! addresses. Nothing is copied, and a page's virtual address is never used. A device whose accesses would bypass the
//! IOMMU (without `VIRTIO_F_ACCESS_PLATFORM`) is refused.
//!
//! The device is trusted with its data and with what the IOMMU lets it reach, and with nothing else: its configuration
//! and its part of the queues are read once and checked. If it uses a request that it does not have, or takes too long
//! for one, it is reset, and the requests that it had are asked again. A guest's page is not given back before the
//! device has used the request, has been reset, or may access no memory.
//!
//! # Why not the crate virtio-drivers
//! This driver takes the specification's definitions from crate `virtio-spec`, as virtio-drivers does. Its code does
//! not fit:
//!
//! - `PciTransport` reads configuration space by calls that return the value. Here each is an operation of pciback's
//!   in dom0, for which a task waits while its vCPU serves other disks.
//! - It selects the queue in a register for each notification, so that all vCPUs would share a lock; it leaves
//!   interrupts as they are; and it panics where a device names a register that it does not have, or waits without end
//!   for one that does not reset itself.
//! - `VirtQueue` takes buffers as Rust slices, which guests' pages cannot be, and allocates for each request.
//! - `VirtIOBlk` has one queue of 16 entries, one buffer a request, and neither discards nor
//!   `VIRTIO_F_ACCESS_PLATFORM`.
//!
//! Read next: `lifecycle.rs`, the device's task; `device_queue.rs`, where requests become descriptors; `ring.rs`, the queue
//! as the device sees it.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod device;
mod device_queue;
mod devices;
mod disk;
mod disk_config;
mod error;
mod lifecycle;
mod ring;
mod slots;
mod store;
mod structures;
mod transport;

pub use devices::{Devices, VirtioDriver};
pub use store::virtio_store;
