//! Volumes: partitions of a disk and logical volumes on disks, each a device of its own.
//!
//! ```text
//!   DISK                 all of it
//!   DISK/LABEL           a partition, by its label or its GUID       gpt
//!   DISK/GROUP/VOLUME    a logical volume                            lvm
//!        |
//!   Volumes::open ---> Content (what the tables say) ---> ExtentMap ---> MappedDevice
//!        |                                                               of crate images
//!      claims: who has which sectors open
//! ```
//!
//! Nothing is ever written to a table. What a table says is checked before anything is made of it, since whoever
//! can write to the disk can write there what they like; where it is damaged, that is said in a sentence.
//!
//! ```
//! use bulkhead_images::{Access, NullDevice, Sector, SectorSize};
//! use bulkhead_volumes::{Opening, Volumes};
//! use bulkhead_xen::VcpuId;
//! use std::sync::Arc;
//! # use core::task::{Context, Poll, Waker};
//! # fn now<T>(future: impl Future<Output = T>) -> T {
//! #     let mut future = Box::pin(future);
//! #     match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
//! #         Poll::Ready(output) => output,
//! #         Poll::Pending => panic!("it waits"),
//! #     }
//! # }
//!
//! let volumes = Volumes::default();
//! let disk = NullDevice::new(Sector(2048), SectorSize::B512, Access::ReadWrite);
//! volumes.add("xvda", move || Ok(Arc::new(disk)));
//! let open = |name: &str, owner: &'static str| {
//!     let name = name.parse().expect("a name");
//!     let opening = Opening { access: Access::ReadWrite, shared: false, owner, administrator: false };
//!     now(volumes.open(VcpuId(0), &name, opening))
//! };
//! assert_eq!(
//!     open("xvda/root", "domain 6, xvdb").err().expect("refused").to_string(),
//!     "there is no xvda/root: its disk has no GUID partition table"
//! );
//! let whole = open("xvda", "domain 5, xvda").expect("the disk is there");
//! assert_eq!(
//!     open("xvda", "domain 6, xvdb").err().expect("refused").to_string(),
//!     "xvda is open for writing by domain 5, xvda; two that write, or write and read, need shared=yes in the \
//!      target of each"
//! );
//! ```
//!
//! Read next: [`Volumes`], [`Content`], [`gpt`], [`lvm`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod checksum;
mod claims;
mod content;
mod error;
pub mod gpt;
pub mod lvm;
mod memory;
mod name;
mod open;
mod order;
mod rescan;
mod resolve;
mod state;
mod store;
#[cfg(feature = "test-support")]
pub mod testing;
mod turns;
mod volumes;

pub use claims::Overlap;
pub use content::{Content, ContentError};
pub use error::{Unsearched, VolumeError};
pub use gpt_disk_types::Guid;
pub use name::{NameError, VolumeName, VolumePart};
pub use rescan::{Outcome, Rescan, VolumeChange};
pub use state::{DiskState, Source};
pub use store::{ANSWERS, DiskStore, Disks, KnownDisk, Waiting};
pub use volumes::{Opening, Pause, Spawn, Volumes};
