//! Grant references: mapping, unmapping, copying, caching; and granting our own pages.
//!
//! A frontend grants pages by number; a backend maps them, uses them, and unmaps them before it
//! answers. All mappings of the domain lie in one stretch of address space that holds no memory
//! of its own:
//!
//! ```text
//!   Hypervisor::foreign_region
//!   └─ Region ─ ranges of pages, given out when a disk connects, returned when it goes
//!      ├─ MappedPages   a ring's pages, contiguous, mapped as long as the value lives
//!      ├─ MapPool       a queue's data pages, mapped and unmapped in batches, a sweep at a time
//!      └─ PersistentCache  a queue's data pages that stay mapped; the one goes that became idle first
//! ```
//!
//! Pages that only a device accesses need no address: [`DevicePool`] has their bus addresses alone.
//!
//! Every mapping is owned by a value: a page cannot be forgotten, and dropping the owner unmaps.
//! Where copying is cheaper than mapping, [`CopyBatch`] lets the hypervisor copy. The frontend's half is
//! [`GrantTable`]: it grants own pages ([`Grant`]; [`SharedMemory`] for the pages of a connection), and accepts
//! frames that other domains give away ([`AcceptedTransfer`]).
//!
//! ```
//! # fn example<H: bulkhead_xen::Hypervisor>(hypervisor: H) -> Result<(), Box<dyn core::error::Error>> {
//! use bulkhead_grant::{GrantAccess, Region};
//! use bulkhead_xen::{DomId, GrantRef};
//!
//! let region = Region::new(hypervisor).ok_or("the foreign region has an owner already")?;
//! let mut pool = region.map_pool(DomId(5), 32)?;
//! let mapping = pool.queue_map(GrantRef(17), GrantAccess::ReadOnly)?;
//! pool.map_queued();
//! let page = pool.address(&mapping)?;
//! // … read the page …
//! pool.queue_unmap(mapping);
//! pool.unmap_queued();
//! # Ok(()) }
//! ```
//!
//! Read next: [`MapPool`], which is the data path.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

#[allow(unsafe_code, reason = "the one place that copies")]
mod copy;
#[allow(unsafe_code, reason = "the one place that maps for devices and unmaps")]
mod device_pool;
mod left;
#[allow(unsafe_code, reason = "the one place that maps and unmaps")]
mod map_pool;
pub mod memory;
mod page_states;
mod pages;
mod persistent;
mod region;
#[allow(unsafe_code, reason = "owns memory that is shared with a backend")]
mod shared_memory;
mod sync;
#[allow(unsafe_code, reason = "lends own memory out: callers vouch for it")]
mod table;
mod transfer;
mod transfer_entry;

pub use copy::{Copied, CopyBatch, CopyRefused, Direction, GrantedBytes};
pub use device_pool::{DeviceMapping, DevicePool};
pub use map_pool::{Calls, MapPool, MapPoolFull, Mapping};
pub use memory::OutOfMemory;
pub use pages::MappedPages;
pub use persistent::{CacheFull, CachedMapping, PersistentCache};
pub use region::{NoRoom, OutOfSpace, Region};
pub use shared_memory::{NotShared, PagePool, SharedMemory};
pub use table::{Entry, Grant, GrantTable, InUse, TableFull, TableOnDemand};
pub use transfer::{AcceptedTransfer, TransferEnd};
pub use transfer_entry::TransferProgress;

use bulkhead_xen::abi::grant_table::MapFlags;

/// The access that a mapping or a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantAccess {
    /// Reading: the granting domain's page cannot be changed through it.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

impl GrantAccess {
    fn flags(self) -> MapFlags {
        match self {
            GrantAccess::ReadOnly => MapFlags::HOST_MAP | MapFlags::READONLY,
            GrantAccess::ReadWrite => MapFlags::HOST_MAP,
        }
    }

    fn device_flags(self) -> MapFlags {
        match self {
            GrantAccess::ReadOnly => MapFlags::DEVICE_MAP | MapFlags::READONLY,
            GrantAccess::ReadWrite => MapFlags::DEVICE_MAP,
        }
    }
}

/// Number of attempts within one call to map a page that Xen is still fetching (`GNTST_eagain`). That only
/// happens to guests under memory paging.
const EAGAIN_TRIES: usize = 1000;
