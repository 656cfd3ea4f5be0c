//! The journal of a build without `recover`: it keeps nothing, and a crash ends this driver domain. See `journal.rs`.

use bulkhead_images::Tag;
use bulkhead_ring::blkif::{Blkif, Response, SLOT_SIZE};
use bulkhead_ring::{BackRing, Overrun, SharedPages, Unasked};

/// The journal of a queue, which keeps nothing.
#[derive(Debug, Default)]
pub struct Journal;

impl Journal {
    pub(super) fn begin(
        &mut self,
        _: &mut BackRing<SharedPages, Blkif>,
        _at_once: bool,
    ) -> Result<Option<u32>, Overrun> {
        Ok(None)
    }

    #[inline]
    pub(super) fn is_sealed_in_order(&self) -> bool {
        false
    }

    #[inline]
    pub(super) fn answer(&mut self, _: Tag, _response: u32) {}

    #[inline]
    pub(super) fn put(
        &mut self,
        ring: &mut BackRing<SharedPages, Blkif>,
        response: &Response,
    ) -> Result<(), Unasked> {
        ring.respond(response)
    }

    #[inline]
    pub(super) fn begin_later(&mut self, _: Tag, _index: u32) {}

    #[inline]
    pub(super) fn leave_order(&mut self) {}

    #[inline]
    pub(super) fn is_in_order(&self) -> bool {
        true
    }

    #[inline]
    pub(super) fn published(&mut self, _from: u32, _count: u32, _at_rest: bool) {}

    #[inline]
    pub(super) fn take_again(&mut self, _taken: u32) -> Option<[u8; SLOT_SIZE]> {
        None
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
