//! What a queue gets at the pages of its frontend with.

use bulkhead_grant::{CopyBatch, MapPool, PersistentCache};
use bulkhead_xen::Hypervisor;

/// Which one it is, is settled when the queue connects.
pub(super) enum Mappings<H: Hypervisor> {
    /// The frontend keeps its pages granted, and we keep them mapped.
    Persistent(PersistentCache<H>),
    /// Each request has pages of its own.
    PerRequest {
        map_pool: MapPool<H>,
        copies: CopyBatch<H>,
        descriptors: CopyBatch<H>,
    },
}
