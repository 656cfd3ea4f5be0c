//! The requests of one queue, from their submission to their completion, and the memory that their data is in.

use crate::assignment::Location;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::memory::{filled, room_for};
use bulkhead_grant::{OutOfMemory, SharedMemory};
use bulkhead_images::{Flushes, IoError, Op, Tag};
use bulkhead_xen::{Hypervisor, PAGE_SIZE};
use core::task::{Context, Poll, Waker};

/// A request of a queue, or room for one.
#[derive(Clone, Copy)]
pub struct Entry {
    tag: Tag,
    /// The operation.
    pub op: Op,
    /// The first page of its data in the queue's memory, and the number of bytes.
    pub page: u16,
    pub len: u32,
    /// The number of its steps (pages of data, or one) that were sent to the backend.
    pub next: u16,
    /// The number of parts that the backend has yet to answer.
    pub parts: u16,
    failed: Option<IoError>,
    used: bool,
    /// It is in the list of requests that wait for the ring.
    waits: bool,
    /// Its place in the order of submission.
    order: u64,
    /// The number that [`Flushes`] gave it, if it is a flush.
    flush: u64,
}

impl Entry {
    const UNUSED: Entry = Entry {
        tag: Tag(0),
        op: Op::Flush,
        page: 0,
        len: 0,
        next: 0,
        parts: 0,
        failed: None,
        used: false,
        waits: false,
        order: 0,
        flush: 0,
    };

    /// Returns the number of its steps: pages of data, or one.
    #[inline]
    pub fn steps(&self) -> u16 {
        match self.op {
            Op::Read { .. } | Op::Write { .. } => (self.len as usize).div_ceil(PAGE_SIZE) as u16,
            _ => 1,
        }
    }
}

/// One queue on a link. All of its memory is taken when it is opened.
pub struct RingClient<H: Hypervisor> {
    memory: SharedMemory<H>,
    entries: Vec<Entry>,
    free: Vec<u16>,
    waiting: VecDeque<u16>,
    done: Vec<(Tag, Result<(), IoError>)>,
    waker: Option<Waker>,
    open: bool,
    submitted: u64,
    flushes: Arc<Flushes>,
    /// The ring that it uses, and the vCPU on which it is served, by which the ring is chosen.
    location: Arc<Location>,
    vcpu: usize,
    /// The last flush that had begun when a write or discard of this queue was last acknowledged.
    written: Option<u64>,
}

impl<H: Hypervisor> RingClient<H> {
    /// Returns a queue of a vCPU for up to `depth` requests at a time, with data in `memory`.
    pub fn new(
        memory: SharedMemory<H>,
        depth: usize,
        flushes: Arc<Flushes>,
        (location, vcpu): (Arc<Location>, usize),
    ) -> Result<Self, OutOfMemory> {
        let mut waiting = VecDeque::new();
        let bytes = depth * size_of::<u16>();
        let reserved = waiting.try_reserve_exact(depth);
        reserved.map_err(|_| OutOfMemory { bytes })?;
        Ok(RingClient {
            memory,
            entries: filled(depth, |_| Entry::UNUSED)?,
            free: filled(depth, |entry| (depth - 1 - entry) as u16)?,
            waiting,
            done: room_for(depth)?,
            waker: None,
            open: true,
            submitted: 0,
            flushes,
            location,
            vcpu,
            written: None,
        })
    }

    /// Opens a queue again that [is unused](Self::is_unused), for a vCPU and up to `depth` requests at a time.
    /// Nothing of its last user's data is left.
    pub fn reopen(&mut self, vcpu: usize, depth: usize) -> Result<(), OutOfMemory> {
        let known = self.entries.len();
        let more = depth.saturating_sub(known);
        let room = self.entries.try_reserve_exact(more);
        let room = room.and_then(|()| self.free.try_reserve_exact(more));
        let room = room.and_then(|()| self.done.try_reserve_exact(depth));
        let room = room.and_then(|()| self.waiting.try_reserve_exact(depth));
        let bytes = depth * size_of::<Entry>();
        room.map_err(|_| OutOfMemory { bytes })?;
        self.entries.resize(known + more, Entry::UNUSED);
        self.free
            .extend((known..known + more).map(|entry| entry as u16));
        self.memory.clear();
        self.open = true;
        self.vcpu = vcpu;
        self.written = None;
        Ok(())
    }

    /// Closes the queue. If a backend is connected, requests that were sent to it stay until it has answered them:
    /// [`poll_close`](Self::poll_close) becomes ready then.
    pub fn close(&mut self, connected: bool) {
        self.open = false;
        self.waker = None;
        self.done.clear();
        while let Some(entry) = self.waiting.pop_front() {
            let request = &mut self.entries[usize::from(entry)];
            // It, or the rest of it, is not done: as a flush, it covers nothing.
            (request.waits, request.failed) = (false, Some(IoError::Cancelled));
            self.settle(entry);
        }
        if !connected {
            self.disconnected();
        }
    }

    /// Returns ready if no backend has a request of this queue, which was closed. Otherwise the task is woken when that
    /// is so.
    pub fn poll_close(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.is_idle() {
            return Poll::Ready(());
        }
        self.wake_with(context.waker());
        Poll::Pending
    }

    /// Returns whether another queue may have its place and its memory: it was closed and dropped, and the backend has
    /// answered everything.
    pub fn is_unused(&mut self) -> bool {
        // A queue holds a reference to its location until it is dropped.
        !self.open && self.is_idle() && Arc::get_mut(&mut self.location).is_some()
    }

    /// Returns whether the backend has answered everything.
    fn is_idle(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Returns the ring that it uses, and its number there.
    pub fn location(&self) -> &Arc<Location> {
        &self.location
    }

    /// Returns the vCPU that it is served on.
    pub fn vcpu(&self) -> usize {
        self.vcpu
    }

    pub fn memory(&mut self) -> &mut SharedMemory<H> {
        &mut self.memory
    }

    /// Returns the memory of a queue that is no longer needed.
    pub fn into_memory(self) -> SharedMemory<H> {
        self.memory
    }

    /// Notes a request and returns its entry; `None` if the queue is full.
    #[inline]
    pub fn begin(&mut self, tag: Tag, op: Op, page: u16, len: u32) -> Option<u16> {
        let entry = self.free.pop()?;
        self.submitted += 1;
        let flush = match op {
            Op::Flush => self.flushes.begin(),
            _ => 0,
        };
        self.entries[usize::from(entry)] = Entry {
            tag,
            op,
            page,
            len,
            used: true,
            order: self.submitted,
            flush,
            ..Entry::UNUSED
        };
        Some(entry)
    }

    /// Returns the queue's memory, and the request of an entry.
    #[inline]
    pub fn parts(&mut self, entry: u16) -> (&SharedMemory<H>, &mut Entry) {
        (&self.memory, &mut self.entries[usize::from(entry)])
    }

    /// Returns the number of requests that wait for room on the ring, or for a ring.
    pub fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    #[inline]
    pub fn none_waiting(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Has a request wait for room on the ring, or for a ring.
    pub fn wait(&mut self, entry: u16) {
        self.entries[usize::from(entry)].waits = true;
        self.waiting.push_back(entry);
    }

    /// Has a request wait for room on the ring, before all others.
    pub fn wait_first(&mut self, entry: u16) {
        self.entries[usize::from(entry)].waits = true;
        self.waiting.push_front(entry);
    }

    /// Takes the first request that waits. If a part of a request has failed, the rest of it is not sent.
    pub fn next_waiting(&mut self) -> Option<u16> {
        loop {
            let entry = self.waiting.pop_front()?;
            let request = &mut self.entries[usize::from(entry)];
            request.waits = false;
            if request.failed.is_none() {
                return Some(entry);
            }
            self.settle(entry);
        }
    }

    /// Notes that the backend has answered a part of a request.
    #[inline]
    pub fn answered(&mut self, entry: u16, outcome: Result<(), IoError>) {
        let request = &mut self.entries[usize::from(entry)];
        request.parts -= 1;
        if let Err(error) = outcome {
            request.failed = Some(error);
        }
        self.settle(entry);
    }

    /// Completes a request, unless some of it is still to be sent or to be answered.
    #[inline]
    fn settle(&mut self, entry: u16) {
        let request = &mut self.entries[usize::from(entry)];
        if request.parts > 0 || request.waits {
            return;
        }
        let outcome = request.failed.map_or(Ok(()), Err);
        self.end(entry, outcome);
    }

    #[inline]
    fn end(&mut self, entry: u16, outcome: Result<(), IoError>) {
        let request = &mut self.entries[usize::from(entry)];
        request.used = false;
        let tag = request.tag;
        match request.op {
            Op::Read { .. } => {}
            _ if outcome.is_err() => {}
            Op::Flush => self.flushes.end(request.flush),
            Op::Write { .. } | Op::Discard { .. } => self.written = Some(self.flushes.begun()),
        }
        self.free.push(entry);
        if self.open {
            self.done.push((tag, outcome));
        }
        self.wake();
    }

    /// Wakes the task that waits for a completion, or for the end of the queue.
    #[inline]
    pub fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Passes on the completed requests. Returns false if there are none.
    #[inline]
    pub fn drain(&mut self, sink: &mut dyn FnMut(Tag, Result<(), IoError>)) -> bool {
        let any = !self.done.is_empty();
        for (tag, outcome) in self.done.drain(..) {
            sink(tag, outcome);
        }
        any
    }

    /// Keeps the waker of the task that waits for a completion.
    #[inline]
    pub fn wake_with(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(kept) => kept.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Cancels the requests with that tag, or all requests, of which nothing was sent to a backend yet.
    pub fn cancel(&mut self, tag: Option<Tag>) {
        for _ in 0..self.waiting.len() {
            let Some(entry) = self.waiting.pop_front() else {
                return;
            };
            let request = &mut self.entries[usize::from(entry)];
            if request.next == 0 && tag.is_none_or(|tag| tag == request.tag) {
                request.waits = false;
                self.end(entry, Err(IoError::Cancelled));
            } else {
                self.waiting.push_back(entry);
            }
        }
    }

    /// Notes that there is no backend any more. Requests that it has not answered are to be sent again, in their
    /// order. The requests of a closed queue are forgotten.
    pub fn disconnected(&mut self) {
        self.waiting.clear();
        for number in 0..self.entries.len() as u16 {
            let request = &mut self.entries[usize::from(number)];
            if !request.used {
                continue;
            }
            (request.next, request.parts) = (0, 0);
            (request.failed, request.waits) = (None, self.open);
            match self.open {
                true => self.waiting.push_back(number),
                false => self.end(number, Err(IoError::Cancelled)),
            }
        }
        // An insertion sort: the requests are few, this is rare, and the sort of the standard library is larger code
        // than all of this function.
        let order = |number: u16| self.entries[usize::from(number)].order;
        let waiting = self.waiting.make_contiguous();
        for end in 1..waiting.len() {
            let mut at = end;
            while at > 0 && order(waiting[at - 1]) > order(waiting[at]) {
                waiting.swap(at - 1, at);
                at -= 1;
            }
        }
    }

    /// Returns whether a write was acknowledged to its guest that is not durable yet.
    pub fn has_unflushed(&self) -> bool {
        let written = self.written.filter(|_| self.open);
        written.is_some_and(|written| !self.flushes.cover(written))
    }

    /// Notes that writes that were acknowledged and are not durable may be lost.
    pub fn lose_unflushed(&mut self) {
        self.written = None;
    }

    /// Fails all requests, including those that the backend has.
    pub fn fail(&mut self) {
        self.waiting.clear();
        for number in 0..self.entries.len() as u16 {
            if self.entries[usize::from(number)].used {
                self.end(number, Err(IoError::Medium));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_grant::{GrantTable, PagePool};
    use bulkhead_images::Sector;
    use bulkhead_xen_sim::{Sim, SimVcpu};

    /// The writes of one guest, and the flush of another one that is gone before a backend has seen it.
    #[test]
    fn a_flush_that_was_not_sent_makes_nothing_durable_when_its_queue_is_closed() {
        let sim = Sim::new();
        let hypervisor = sim.add_domain().hypervisor();
        let table = GrantTable::new(hypervisor.clone()).expect("a table");
        let pool = PagePool::new(Arc::new(hypervisor));
        let flushes = Arc::new(Flushes::default());
        let client = || -> RingClient<SimVcpu> {
            let memory = SharedMemory::new(&pool, &table, 1).expect("memory");
            let location = Arc::new(Location::new(0, 0));
            RingClient::new(memory, 1, flushes.clone(), (location, 0)).expect("memory")
        };
        let (mut writer, mut other) = (client(), client());
        let (sector, fua) = (Sector(0), false);
        let write = writer.begin(Tag(0), Op::Write { sector, fua }, 0, 512);
        let write = write.expect("room");
        writer.parts(write).1.parts = 1;
        writer.answered(write, Ok(()));
        assert!(writer.has_unflushed());
        let flush = other.begin(Tag(0), Op::Flush, 0, 0).expect("room");
        other.wait(flush);
        other.close(true);
        assert!(other.is_idle());
        assert!(writer.has_unflushed());
        // One that was sent and answered does.
        let flush = writer.flushes.begin();
        writer.flushes.end(flush);
        assert!(!writer.has_unflushed());
    }
}
