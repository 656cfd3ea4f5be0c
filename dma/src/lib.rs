//! The parts that the drivers of passed-through devices (NVMe, virtio-blk) share, whatever the device's commands are.
//!
//! - [`DmaPages`]: pages that the device reads and writes by bus address: its queues, its lists of pages.
//! - [`QueueClient`]: one of the queues of guests' rings that share a queue of the device: the device's commands that it
//!   uses, and its completions.
//! - [`QueueClients`]: all of these, and how they share the device's commands.
//! - [`PassedThrough`]: a device's state, which all vCPUs share.
//! - [`HardwareQueue`]: a queue of the device, as its task starts and stops it.
//! - [`DriverTask`]: the device's task: starts it, resets it when it fails, and stops it.
//! - [`Devices`]: the devices of one kind, by name.
//! - [`Ticks`]: when the task checks whether commands take too long.
//! - [`Watch`]: the signals by which the vCPUs that serve wake the device's task on the first vCPU.
//! - [`Refusal`]: the reason why a device was given up, and whether it is tried again.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod client;
mod clients;
mod devices;
mod given_up;
mod hardware_queue;
mod lifecycle;
mod pages;
mod passed_through;
mod ticks;
mod watch;

pub use client::{Drained, QueueClient};
pub use clients::QueueClients;
pub use devices::{Devices, short_name};
pub use given_up::{Refusal, leaves_before_trial};
pub use hardware_queue::{DeviceQueueState, HardwareQueue};
pub use lifecycle::{DriverTask, StartFailure};
pub use pages::{DmaPages, NoPages, WORDS};
pub use passed_through::PassedThrough;
pub use ticks::{Ticks, seconds};
pub use watch::Watch;
