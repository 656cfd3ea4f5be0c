//! Serves requests whose pages the device cannot have: by copies, one request after another.

use super::super::data_path::PageAccess;
use super::super::dispatch::Dispatcher;
use super::{Submitter, refuse};
use bulkhead_images::{Io, Op, Submitted, Tag};
use bulkhead_xen::Hypervisor;

impl<H: Hypervisor> Submitter<H> {
    /// Serves a request by copies, after the requests that are already served by copies. The device cannot have its
    /// pages: Xen has no map slots for them, or they are too small.
    #[cold]
    pub(super) fn bounce(
        &mut self,
        tag: Tag,
        op: Op,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) -> bool {
        let entry = dispatcher.inflight.get(tag);
        // The operation stays to be done until all its pieces are.
        entry.op = Some(op);
        if !page_access.bounce.is_free() {
            dispatcher.inflight.wait(tag);
            return true;
        }
        page_access.bounce.begin(tag, op, entry.bytes as usize);
        self.submit_bounced(tag, dispatcher, page_access)
    }

    /// Goes on with a request that is served by copies, after the device has completed a piece of it.
    #[cold]
    pub(super) fn next_bounced(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) {
        let entry = dispatcher.inflight.get(tag);
        if let Err(status) = page_access
            .bounce
            .piece_done(&dispatcher.pool, &entry.pages)
        {
            return refuse(tag, format_args!("copied: {status}"), dispatcher);
        }
        if page_access.bounce.is_done() {
            entry.op = None;
            self.end_bounce(dispatcher, page_access);
        }
        self.hand_over(tag, dispatcher, page_access);
    }

    #[cold]
    pub(super) fn submit_bounced(
        &mut self,
        tag: Tag,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) -> bool {
        let pages = &dispatcher.inflight.get(tag).pages;
        let most = self.store.caps().bytes;
        let (op, segment) = match page_access.bounce.next_piece(&dispatcher.pool, pages, most) {
            Ok(piece) => piece,
            Err(status) => {
                refuse(tag, format_args!("copied: {status}"), dispatcher);
                return true;
            }
        };
        let segments = &[segment];
        match self.store.submit(tag, Io { op, segments }) {
            Submitted::Done(outcome) => dispatcher.inflight.done(tag, outcome),
            Submitted::Pending => {}
            Submitted::Busy => return false,
        }
        true
    }

    /// Frees the bounce page for the next request that waits for it.
    #[cold]
    pub(super) fn end_bounce(
        &mut self,
        dispatcher: &mut Dispatcher<H>,
        page_access: &mut PageAccess<H>,
    ) {
        page_access.bounce.end();
        if let Some(tag) = dispatcher.inflight.take_waiting() {
            self.hand_over(tag, dispatcher, page_access);
        }
    }
}
