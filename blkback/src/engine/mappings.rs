//! What a queue gets at the pages of its frontend with.

use bulkhead_grant::{CopyBatch, DevicePool, MapPool, PersistentCache};
use bulkhead_xen::Hypervisor;

/// Which one it is, is settled when the queue connects.
// A tag of its own: found in a niche of the fields, telling three apart takes five instructions more for each page.
#[repr(u8)]
pub(super) enum Mappings<H: Hypervisor> {
    /// The frontend keeps its pages granted, and we keep them mapped.
    Persistent(PersistentCache<H>),
    /// Each request has pages of its own.
    PerRequest {
        map_pool: MapPool<H>,
        copies: CopyBatch<H>,
        descriptors: CopyBatch<H>,
    },
    /// The same, where only a device accesses the pages: they have no address here.
    ForDevice {
        pool: DevicePool<H>,
        descriptors: CopyBatch<H>,
    },
}
