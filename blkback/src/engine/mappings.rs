//! The means by which a queue reaches the pages of its frontend.

use bulkhead_grant::{CopyBatch, DevicePool, MapPool, PersistentCache};
use bulkhead_xen::Hypervisor;

/// The means by which a queue reaches its pages. They are chosen when the queue connects.
// A tag of its own: found in a niche of the fields, telling three apart takes five instructions more for each page.
#[repr(u8)]
pub(super) enum Mappings<H: Hypervisor> {
    /// The frontend keeps its pages granted, and this end keeps them mapped.
    Persistent(PersistentCache<H>),
    /// Each request has pages of its own.
    PerRequest {
        map_pool: MapPool<H>,
        copies: CopyBatch<H>,
        descriptors: CopyBatch<H>,
    },
    /// Each request has pages of its own, which only a device accesses: they have no address in this domain.
    ForDevice {
        pool: DevicePool<H>,
        descriptors: CopyBatch<H>,
    },
}
