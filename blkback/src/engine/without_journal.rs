//! Nothing of a queue's requests is kept: a crash ends this driver domain. See `journal.rs`.

use bulkhead_ring::blkif::Blkif;
use bulkhead_ring::{BackRing, Overrun, SharedPages};

/// What a queue keeps of its requests: nothing.
#[derive(Debug, Default)]
pub struct Journal;

impl Journal {
    pub(super) fn begin(
        &mut self,
        _: &mut BackRing<SharedPages, Blkif>,
    ) -> Result<Option<u32>, Overrun> {
        Ok(None)
    }

    #[inline]
    pub(super) fn is_sealed(&self) -> bool {
        false
    }

    pub(super) fn break_seal(&mut self) {}

    #[inline]
    pub(super) fn waiting(&self) -> u32 {
        0
    }
}
