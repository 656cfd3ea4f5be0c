//! The disks that are served: the block-device trait, and the stores behind it.
//!
//! ```text
//!   target=ram:NAME          target=null:64M
//!        |                        |
//!      Target ------- Stores::open ------> Arc<dyn BlockDevice>
//!                       |                         | one queue per ring
//!          a Store for each kind of        Box<dyn IoQueue>: submit, poll_complete
//!          target; Catalog: images in
//!          the ramdisk's own memory,
//!          who has them open
//! ```
//!
//! A driver domain's ramdisk is a tar archive whose files are images, or one image by itself.
//! Either is served in place: nothing is unpacked or copied.
//!
//! Data that a guest discards is cleared. With a [`Reservation`](bulkhead_xen::Reservation)
//! ([`Catalog::with_reservation`]) images can grow while they are attached ([`Catalog::grow`]). On request
//! ([`DiscardMode::Release`]), discarded memory goes back to Xen page by page, and is populated again when the
//! guest writes to it.
//!
//! ```
//! use bulkhead_images::{Access, Catalog, ImageMemory, Sector, Stores};
//! use std::ptr::NonNull;
//!
//! let ramdisk = Box::leak(vec![0_u8; 64 * 1024].into_boxed_slice());
//! let len = ramdisk.len();
//! // SAFETY: leaked, so it stays; no other code uses it.
//! let memory = unsafe { ImageMemory::new(NonNull::from(ramdisk).cast(), len) };
//! let stores = Stores::new(Catalog::from_module(memory));
//!
//! let disk = stores.open_now("ram:disk0", Access::ReadWrite, "domain 5, xvda")?;
//! assert_eq!(disk.geometry().sectors, Sector(128));
//!
//! let second = stores.open_now("ram:disk0", Access::ReadWrite, "domain 6, xvda");
//! assert_eq!(
//!     second.err().expect("refused").to_string(),
//!     "image disk0 is open for writing by domain 5, xvda; two that write, or write and read, \
//!      need shared=yes in the target of each"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Read next: [`BlockDevice`] and [`IoQueue`], which a store implements; [`Stores`], where it is registered;
//! [`Catalog`], the images; [`RamImage`], which discards data; [`archive`], which reads the ramdisk.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod archive;
#[allow(unsafe_code, reason = "keeps segments of requests that are pending")]
mod async_queue;
mod catalog;
mod claim;
mod device;
mod discard;
mod discard_map;
mod extent;
mod flushes;
#[allow(unsafe_code, reason = "the one place that touches guests' memory")]
pub mod guest_memory;
mod identity;
mod io;
mod layers;
#[allow(unsafe_code, reason = "owns raw memory")]
mod memory;
#[allow(unsafe_code, reason = "gives memory back and keeps everyone off it")]
mod memory_image;
mod queue;
mod queue_state;
#[allow(unsafe_code, reason = "owns the memory that it reads into")]
mod reader;
mod resize;
#[allow(unsafe_code, reason = "names memory that its maker promises")]
mod segment;
mod store;
mod stores;
mod sync;
pub mod target;
#[cfg(feature = "test-support")]
#[allow(unsafe_code, reason = "keeps segments of requests that are held back")]
pub mod testing;

pub use async_queue::{AsyncIo, AsyncQueue};
pub use catalog::{Catalog, NotFound, OpenError, RamdiskKind};
pub use claim::{Access, Claim, Claims, InUse};
pub use device::{BlockDevice, DiscardLimits, Geometry, MOST_FORGOTTEN, SectorSize};
pub use discard::DiscardMode;
pub use flushes::Flushes;
pub use identity::identity_of;
pub use io::{Io, IoError, Op, Sector, Submitted, Tag};
pub use layers::mapping::{
    ExtentError, ExtentMap, Leg, MappedDevice, MappingError, WeakMappedDevice,
};
pub use layers::shared::{Held, SharedDevice, WeakSharedDevice};
pub use memory::{File, ImageMemory};
pub use resize::{GrowError, GrowRequest, GrowRequestError, Resize};

pub use queue::{
    Caps, DataAccess, IoQueue, OpenQueue, OpenQueueError, QueueContext, Staging, StagingPhase,
    not_opened, opened,
};
pub use queue_state::QueueState;
pub use reader::{DeviceReader, ReadError};
pub use segment::IoSegment;
pub use store::{OpenDevice, Owner, RescanFuture, Store, Stores, open_with};
pub use stores::null::NullDevice;
pub use stores::ram::RamImage;
pub use target::{Target, TargetError};
