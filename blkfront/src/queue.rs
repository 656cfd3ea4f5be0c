//! The queue that serves one ring of a guest's: its data goes through memory that is granted to the backend for as long
//! as the connection lasts.

use crate::assignment::Location;
use crate::device::OpenedVbd;
use crate::free_pages::FreePages;
use crate::link::Link;
use crate::wire::BlkifViolation;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::OutOfMemory;
use bulkhead_grant::memory::room_for;
use bulkhead_images::{
    Access, Caps, DataAccess, Io, IoError, IoQueue, Op, Sector, Staging, StagingPhase, Submitted,
    Tag,
};
use bulkhead_ring::blkif::MAX_SEGMENTS;
use bulkhead_xen::{Hypervisor, PAGE_SIZE};
use core::ptr::NonNull;
use core::task::{Context, Poll};
use core::time::Duration;
use spin::MutexGuard;

/// The most pages of a request, as many as Linux's frontend uses by default (`max_indirect_segments` of xen-blkfront).
pub const REQUEST_PAGES: usize = 32;

/// The most pages of a queue's memory.
pub const MOST_PAGES: usize = FreePages::MOST;

/// Requests without data that may be pending beside those with data.
const WITHOUT_DATA: usize = 32;

/// The time after which requests that were not sent to a backend fail. Requests that a connected backend has and does
/// not answer are waited for without a limit: it may still read and write their data.
pub const UNSENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Pages of the queue's memory that a request uses.
#[derive(Clone, Copy)]
struct Staged {
    tag: Tag,
    page: u16,
    pages: u16,
    /// A backend that is gone may still write to these pages: the request fails.
    spoiled: bool,
}

/// A queue of a disk.
pub struct VbdQueue<H: Hypervisor> {
    opened: Arc<OpenedVbd<H>>,
    location: Arc<Location>,
    base: NonNull<u8>,
    /// The pages of the memory that no request uses.
    free: FreePages,
    /// Requests were cancelled while a backend that is gone could still use their memory.
    gave_up: bool,
    /// The number of requests whose memory is spoiled.
    spoiled: usize,
    pages: usize,
    staged: Vec<Staged>,
    depth: usize,
    closed: bool,
}

/// Returns the number of requests that a queue with `pages` pages takes at a time, if it is asked to take
/// `depth` of them.
pub fn depth_of(depth: usize, pages: usize) -> usize {
    depth.min(pages + WITHOUT_DATA).max(1)
}

impl<H: Hypervisor> VbdQueue<H> {
    /// Returns the queue of the client at `location`, whose memory is the `pages` pages from `base` on. The client is closed
    /// if there is no memory for the queue. The client's link must not be locked.
    pub fn new(
        opened: Arc<OpenedVbd<H>>,
        location: Arc<Location>,
        (base, pages): (NonNull<u8>, usize),
        depth: usize,
    ) -> Result<Self, OutOfMemory> {
        debug_assert!(pages <= MOST_PAGES);
        // Dropping it closes the client.
        let mut queue = VbdQueue {
            opened,
            location,
            base,
            free: FreePages::new(pages),
            gave_up: false,
            spoiled: 0,
            pages,
            staged: Vec::new(),
            depth,
            closed: false,
        };
        queue.staged = room_for(pages)?;
        Ok(queue)
    }

    /// Locks the link. Returns it, and the queue's number there.
    #[inline]
    fn link(&self) -> (MutexGuard<'_, Link<H>>, usize) {
        self.location.lock(self.opened.disk().links())
    }

    /// Returns the number of pages that a request of `len` bytes needs: one more for the list of segments, if there are
    /// more of them than fit into the request itself.
    fn pages_for(len: usize) -> usize {
        let pages = len.div_ceil(PAGE_SIZE).max(1);
        pages + usize::from(pages > MAX_SEGMENTS)
    }

    /// Checks that a request of `len` bytes from `sector` on is allowed, within the disk and aligned.
    fn check(&self, sector: Sector, len: u64, writes: bool) -> Result<(), IoError> {
        let disk = self.opened.disk();
        if writes && self.opened.access() == Access::ReadOnly {
            return Err(IoError::ReadOnly);
        }
        let unit = self.opened.sector_size().bytes() as u64;
        let start = sector.bytes().ok_or(IoError::OutOfRange)?;
        let end = start.checked_add(len).ok_or(IoError::OutOfRange)?;
        if end > disk.sectors().bytes().unwrap_or(0) {
            return Err(IoError::OutOfRange);
        }
        match start.is_multiple_of(unit) && len.is_multiple_of(unit) {
            true => Ok(()),
            false => Err(IoError::Misaligned),
        }
    }

    /// Returns the first page and the bytes of a request's data, which lies in the queue's own memory.
    fn place(&self, io: &Io<'_>) -> Result<(u16, u32), IoError> {
        let first = io.segments.first().ok_or(IoError::OutOfRange)?;
        let address = first.address().ok_or(IoError::Medium)?;
        let start = address.addr().get().checked_sub(self.base.addr().get());
        let len: usize = io.segments.iter().map(|segment| segment.len()).sum();
        match start {
            Some(start)
                if start.is_multiple_of(PAGE_SIZE) && start + len <= self.pages * PAGE_SIZE =>
            {
                Ok(((start / PAGE_SIZE) as u16, len as u32))
            }
            _ => Err(IoError::Medium),
        }
    }

    fn checked(&self, io: &Io<'_>) -> Result<(u16, u32), IoError> {
        match io.op {
            Op::Read { sector } | Op::Write { sector, .. } => {
                let (page, len) = self.place(io)?;
                let writes = matches!(io.op, Op::Write { .. });
                self.check(sector, len.into(), writes)?;
                Ok((page, len))
            }
            Op::Flush if !self.opened.flushes() => Err(IoError::NotSupported),
            Op::Flush => Ok((0, 0)),
            Op::Discard { secure, .. } if !self.opened.discards(secure) => {
                Err(IoError::NotSupported)
            }
            Op::Discard { sector, count, .. } => {
                let len = count.bytes().ok_or(IoError::OutOfRange)?;
                self.check(sector, len, true)?;
                Ok((0, 0))
            }
        }
    }

    /// Gives the disk up.
    #[cold]
    fn note_violation(&self, link: &mut Link<H>, violation: BlkifViolation) {
        link.fail();
        self.opened.disk().note_violation(violation);
    }

    /// Notes that requests are cancelled and that later ones get their memory. If a backend that is gone may still
    /// write to it, the data of later requests would not be safe there: they fail at once until that backend has
    /// unmapped it.
    fn note_given_up(&mut self) {
        self.gave_up |= self.opened.disk().is_held();
    }

    #[cold]
    fn is_spoiled(&self, tag: Tag) -> bool {
        let mut staged = self.staged.iter();
        staged.any(|staged| staged.tag == tag && staged.spoiled)
    }

    fn close(&mut self) {
        if !core::mem::replace(&mut self.closed, true) {
            let (mut link, client) = self.link();
            link.close(client);
        }
    }
}

impl<H: Hypervisor> IoQueue for VbdQueue<H> {
    fn caps(&self) -> Caps {
        Caps {
            depth: self.depth,
            segments: REQUEST_PAGES,
            bytes: REQUEST_PAGES.min(self.pages - 1) * PAGE_SIZE,
            alignment: 1,
            access: DataAccess::Staged,
            // A barrier has room for eleven segments only.
            fua: false,
            timeout: Some(UNSENT_TIMEOUT),
            at_once: false,
        }
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        if self.spoiled > 0 && self.is_spoiled(tag) {
            return Submitted::Done(Err(IoError::Medium));
        }
        match self.checked(&io) {
            Ok((page, len)) => {
                let (mut link, client) = self.link();
                link.submit(client, tag, io.op, page, len)
            }
            Err(error) => Submitted::Done(Err(error)),
        }
    }

    fn flush_submissions(&mut self) {
        self.link().0.publish();
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        let (mut link, number) = self.link();
        let link = &mut *link;
        loop {
            if let Err(violation) = link.collect() {
                self.note_violation(link, violation);
            }
            let client = link.client(number);
            if client.drain(sink) {
                return Poll::Ready(());
            }
            client.wake_with(context.waker());
            match link.final_check() {
                Ok(false) => return Poll::Pending,
                Ok(true) => {}
                Err(violation) => self.note_violation(link, violation),
            }
        }
    }

    fn cancel(&mut self, tag: Tag) {
        self.note_given_up();
        let (mut link, client) = self.link();
        link.cancel(client, Some(tag));
    }

    fn cancel_all(&mut self) {
        self.note_given_up();
        let (mut link, client) = self.link();
        link.cancel(client, None);
    }

    /// Waits for the backend even though it has no guest's page: it might execute a write of this queue after a write
    /// of the sectors' next owner.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.close();
        let (mut link, client) = self.link();
        link.poll_close(client, context)
    }

    fn stage(&mut self, tag: Tag, op: Op, len: usize) -> Option<Staging> {
        self.gave_up = self.gave_up && self.opened.disk().is_held();
        let pages = Self::pages_for(len);
        let page = self.free.take(pages)?;
        self.spoiled += usize::from(self.gave_up);
        self.staged.push(Staged {
            tag,
            page: page as u16,
            pages: pages as u16,
            spoiled: self.gave_up,
        });
        Some(Staging {
            // SAFETY: within the memory, as the map of free pages has a bit for each of its pages.
            memory: unsafe { self.base.add(page * PAGE_SIZE) },
            phase: match op {
                Op::Read { .. } => StagingPhase::AfterComplete,
                _ => StagingPhase::BeforeSubmit,
            },
        })
    }

    fn unstage(&mut self, tag: Tag) {
        if let Some(at) = self.staged.iter().position(|staged| staged.tag == tag) {
            let staged = self.staged.swap_remove(at);
            self.spoiled -= usize::from(staged.spoiled);
            self.free.give_back(staged.page.into(), staged.pages.into());
        }
    }
}

impl<H: Hypervisor> Drop for VbdQueue<H> {
    fn drop(&mut self) {
        self.close();
    }
}
