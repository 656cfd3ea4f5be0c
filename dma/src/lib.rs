//! What the drivers of devices that were passed through have in common, whatever the device's commands are.
//!
//! - [`DmaPages`]: pages that the device reads and writes by bus address: its queues, its lists of pages.
//! - [`Client`]: one of the queues of guests' rings that share a queue of the device: its share of the device's
//!   commands, and its completions.
//! - [`Devices`]: the devices of one kind, by name.
//! - [`Watch`]: how the vCPUs that serve call the device's task on the first vCPU.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod client;
mod devices;
mod given_up;
mod pages;
mod watch;

pub use client::{Client, Drained};
pub use devices::{Devices, PassedThrough, short_name};
pub use given_up::{Refusal, leaves_before_trial};
pub use pages::{DmaPages, NoPages, WORDS};
pub use watch::Watch;
