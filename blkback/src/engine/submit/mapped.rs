//! Hands requests to the device whose pages are all mapped already.

use super::super::data_path::PageAccess;
use super::super::dispatch::{PlainTransfer, ServePlain, Served};
use super::Submitter;
use bulkhead_images::{Io, Tag};
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> ServePlain<H> for Submitter<H> {
    /// Hands a request to the device and returns the device's answer. Returns `None` if that is not enough for the
    /// request: its pages are not all mapped, it may not fit the device, or the device completes requests later.
    #[inline(always)]
    fn serve(
        &mut self,
        tag: Tag,
        plain: PlainTransfer<'_>,
        page_access: &mut PageAccess<H>,
    ) -> Option<Served> {
        if self.pieces.is_some() || self.store.completes_later() {
            return None;
        }
        let bytes = page_access.find_mapped(plain.segments, plain.access(), &mut self.segments)?;
        let (op, segments) = (plain.op(), &self.segments);
        Some(Served {
            bytes,
            submitted: self.store.submit(tag, Io { op, segments }),
        })
    }
}
