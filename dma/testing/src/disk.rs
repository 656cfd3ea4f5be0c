//! A guest's disk on the device, and pages for its data.

use crate::Machine;
use bulkhead_images::testing::OpenNow;
use bulkhead_images::{
    BlockDevice, Io, IoError, IoQueue, IoSegment, Op, QueueContext, Sector, Submitted, Tag,
};
use bulkhead_xen::{DmaMemory, PAGE_SIZE, VcpuId};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

/// A guest's disk: a queue of a device, on one vCPU.
pub struct Disk<'w> {
    /// Where it is.
    pub machine: &'w Machine,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// The queue.
    pub queue: Box<dyn IoQueue>,
    /// How often its task was woken.
    pub wakes: Arc<Wakes>,
    /// The requests that have completed and were not looked at yet.
    pub done: Vec<(usize, Result<(), IoError>)>,
}

/// Counts how often it was woken.
#[derive(Default)]
pub struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    /// Returns how often that was.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl<'w> Disk<'w> {
    /// Opens a queue of a device.
    ///
    /// # Panics
    /// If that is refused.
    pub fn new(
        machine: &'w Machine,
        device: Arc<dyn BlockDevice>,
        vcpu: u32,
        depth: usize,
    ) -> Self {
        let queue = device.queue_for(&QueueContext::new(VcpuId(vcpu), depth));
        Disk {
            machine,
            device,
            queue,
            wakes: Arc::default(),
            done: Vec::new(),
        }
    }

    /// Hands a request over without telling the device.
    pub fn hand(&mut self, tag: usize, op: Op, segments: &[IoSegment]) -> Submitted {
        self.queue.submit(Tag(tag), Io { op, segments })
    }

    /// Hands over a request, which the queue takes, and tells the device.
    ///
    /// # Panics
    /// If the queue does not take it.
    pub fn ask(&mut self, tag: usize, op: Op, segments: &[IoSegment]) {
        assert_eq!(self.hand(tag, op, segments), Submitted::Pending);
        self.queue.flush_submissions();
    }

    /// Looks for completions as an engine does: until there are none, so that it may sleep.
    pub fn collect(&mut self) -> usize {
        let before = self.done.len();
        let waker = Waker::from(self.wakes.clone());
        let done = &mut self.done;
        let mut sink = |tag: Tag, outcome| done.push((tag.0, outcome));
        let mut context = Context::from_waker(&waker);
        while self.queue.poll_complete(&mut context, &mut sink).is_ready() {}
        self.done.len() - before
    }

    /// Does one request, and returns how it went.
    ///
    /// # Panics
    /// If the queue is busy, or the device does not do it.
    pub fn does(&mut self, op: Op, segments: &[IoSegment]) -> Result<(), IoError> {
        match self.hand(7777, op, segments) {
            Submitted::Done(outcome) => return outcome,
            Submitted::Busy => panic!("an idle queue is busy"),
            Submitted::Pending => {}
        }
        self.queue.flush_submissions();
        self.collect();
        // A driver may hold completions back for a moment.
        self.machine.wait(Duration::from_millis(10));
        self.collect();
        let (tag, outcome) = self.done.pop().expect("it is complete");
        assert_eq!((tag, self.done.len()), (7777, 0));
        outcome
    }

    /// Closes the queue. Returns whether the device has let go of everything.
    pub fn close(&mut self) -> bool {
        let waker = Waker::from(self.wakes.clone());
        let closed = self.queue.poll_close(&mut Context::from_waker(&waker));
        closed.is_ready()
    }
}

/// Pages of the domain's, for data.
pub struct Buffer<'w> {
    machine: &'w Machine,
    base: NonNull<u8>,
    pages: usize,
}

impl<'w> Buffer<'w> {
    /// Takes that many pages.
    pub fn new(machine: &'w Machine, pages: usize) -> Buffer<'w> {
        Buffer {
            base: machine.domain.alloc_pages(pages),
            machine,
            pages,
        }
    }

    /// Returns a segment of `len` bytes at an offset in a page.
    ///
    /// # Panics
    /// If the bytes are not all within that page of the buffer.
    pub fn segment(&self, page: usize, offset: usize, len: usize) -> IoSegment {
        assert!(page < self.pages && offset + len <= PAGE_SIZE);
        // SAFETY: within the pages.
        let address = unsafe { self.base.add(page * PAGE_SIZE + offset) };
        let dma = self.machine.domain.hypervisor().dma_addr(address.as_ptr());
        // The driver has no business with the address.
        let nowhere = NonNull::<u8>::dangling();
        // SAFETY: the device finds the bytes at their bus address, and the address is never used.
        unsafe { IoSegment::new(nowhere, len, Some(dma.expect("own memory"))) }
    }

    /// Segments that cover so many bytes from the start on, a page each.
    pub fn whole(&self, len: usize) -> Vec<IoSegment> {
        let pages = 0..len.div_ceil(PAGE_SIZE);
        pages
            .map(|page| self.segment(page, 0, PAGE_SIZE.min(len - page * PAGE_SIZE)))
            .collect()
    }

    /// Writes bytes to the start of the buffer.
    ///
    /// # Panics
    /// If there are too many.
    pub fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.pages * PAGE_SIZE);
        // SAFETY: within the pages, which nothing else uses now.
        unsafe {
            self.base
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
    }

    /// Returns bytes of it.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn bytes(&self, start: usize, len: usize) -> Vec<u8> {
        assert!(start + len <= self.pages * PAGE_SIZE);
        // SAFETY: within the pages, which nothing else uses now.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(start), len) }.to_vec()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.machine.domain.free_pages(self.base, self.pages);
    }
}

/// Bytes of which no two sectors are alike.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| seed ^ (at / 512) as u8 ^ (at % 251) as u8)
        .collect()
}

/// A read from that sector on.
pub fn read(sector: u64) -> Op {
    Op::Read {
        sector: Sector(sector),
    }
}

/// A write from that sector on.
pub fn write(sector: u64) -> Op {
    Op::write(Sector(sector))
}

/// A discard of so many sectors.
pub fn discard(sector: u64, count: u64) -> Op {
    Op::Discard {
        sector: Sector(sector),
        count: Sector(count),
        secure: false,
    }
}
