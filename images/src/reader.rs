//! Reads a device for this domain's own use: the tables at its start, say.

use crate::device::{BlockDevice, Geometry};
use crate::guest_memory;
use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use crate::queue::{Caps, DataAccess, IoQueue, OpenQueueError, QueueContext, Staging, room};
use crate::segment::IoSegment;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::{DmaMemory, PAGE_SIZE, VcpuId};
use core::cell::UnsafeCell;
use core::fmt;
use core::future::poll_fn;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};

/// The pages that are read at a time.
const PAGES: usize = 8;

/// Memory that a store fills.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; PAGE_SIZE]>);

/// Reads bytes from anywhere on a device, a few pages at a time, with one request at a time.
///
/// The reader waits for the store without a limit. A caller that has waited long enough drops the future of
/// [`read`](Self::read), and keeps the reader until the store has let go of it ([`poll_close`](Self::poll_close)). If a
/// reader is dropped earlier, its pages are never used again.
///
/// ```
/// use bulkhead_images::{Access, DeviceReader, NullDevice, Sector, SectorSize};
/// use bulkhead_xen::VcpuId;
/// # use core::task::{Context, Poll, Waker};
/// # fn now<T>(future: impl Future<Output = T>) -> T {
/// #     let mut future = Box::pin(future);
/// #     match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
/// #         Poll::Ready(output) => output,
/// #         Poll::Pending => panic!("it waits"),
/// #     }
/// # }
/// let device = NullDevice::new(Sector(8), SectorSize::B512, Access::ReadOnly);
/// now(async {
///     let mut reader = DeviceReader::open(&device, VcpuId(0)).await?;
///     let mut bytes = [1; 700];
///     reader.read(100, &mut bytes).await?;
///     assert_eq!(bytes, [0; 700]);
///     reader.close().await;
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })
/// # .unwrap();
/// ```
pub struct DeviceReader {
    queue: ManuallyDrop<Box<dyn IoQueue>>,
    pages: ManuallyDrop<Vec<Page>>,
    geometry: Geometry,
    caps: Caps,
    dma: Option<Arc<dyn DmaMemory>>,
    /// True if the store has a request.
    pending: bool,
    /// True if the store has let go of everything.
    closed: bool,
}

/// The reason why bytes of a device cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The bytes are past the device's end.
    PastTheEnd,
    /// The store failed.
    Io(IoError),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::PastTheEnd => f.write_str("it ends before that"),
            ReadError::Io(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ReadError {}

const READ: Tag = Tag(1);

/// A read in progress.
pub type Reading<'a> = Pin<Box<dyn Future<Output = Result<(), ReadError>> + 'a>>;

impl DeviceReader {
    /// Opens a queue of the device, for the vCPU that calls this.
    pub async fn open(
        device: &dyn BlockDevice,
        vcpu: VcpuId,
    ) -> Result<DeviceReader, OpenQueueError> {
        let mut pages = room(PAGES)?;
        pages.resize_with(PAGES, || Page(UnsafeCell::new([0; PAGE_SIZE])));
        let queue = device.open_queue(&QueueContext::new(vcpu, 1)).await?;
        Ok(DeviceReader {
            geometry: device.geometry(),
            caps: queue.caps(),
            dma: queue.dma_memory(),
            queue: ManuallyDrop::new(queue),
            pages: ManuallyDrop::new(pages),
            pending: false,
            closed: false,
        })
    }

    /// Returns the device's geometry, as it was when the reader was opened.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Fills `to` with the bytes of the device from `start` on. The future is boxed, so that its code is there once, however
    /// many readers there are: none of them reads often.
    pub fn read<'a>(&'a mut self, start: u64, to: &'a mut [u8]) -> Reading<'a> {
        Box::pin(self.read_all(start, to))
    }

    async fn read_all(&mut self, start: u64, to: &mut [u8]) -> Result<(), ReadError> {
        let size = self.geometry.sectors.bytes().unwrap_or(u64::MAX);
        let end = start.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > size) {
            return Err(ReadError::PastTheEnd);
        }
        let unit = self.geometry.sector_size.bytes();
        // A device serves no less than one of its sectors, and a page has room for one.
        let pages = PAGES.min(self.caps.segments).max(1) * PAGE_SIZE;
        let most = pages.min(self.caps.bytes / unit * unit).max(unit);
        let mut done = 0;
        while done < to.len() {
            let at = start + done as u64;
            let skip = (at % unit as u64) as usize;
            let left = to.len() - done;
            let len = (skip + left).next_multiple_of(unit).min(most);
            let sector = Sector((at - skip as u64) / Sector::SIZE as u64);
            let part = (len - skip).min(left);
            done += self
                .read_sectors(sector, len, skip, &mut to[done..done + part])
                .await
                .map_err(ReadError::Io)?;
        }
        Ok(())
    }

    /// Reads up to `len` bytes in whole sectors, and takes those behind the first `skip`. Returns their number.
    async fn read_sectors(
        &mut self,
        sector: Sector,
        len: usize,
        skip: usize,
        to: &mut [u8],
    ) -> Result<usize, IoError> {
        let op = Op::Read { sector };
        let staged = self.caps.access == DataAccess::Staged;
        let len = match staged {
            true => self.queue.contiguous(op, len),
            false => len,
        };
        let memory = match staged {
            true => {
                let stage = |queue: &mut dyn IoQueue, _: &mut Context<'_>| {
                    queue
                        .stage(READ, op, len)
                        .map(|Staging { memory, .. }| memory)
                };
                self.attempt(stage).await
            }
            false => NonNull::from(&mut self.pages[..]).cast(),
        };
        let outcome = self.transfer(op, memory, len).await;
        let part = to.len().min(len.saturating_sub(skip));
        if outcome.is_ok() {
            // SAFETY: `len` bytes lie at `memory`, and no other code uses them while no request is pending;
            // they are seen through no reference.
            unsafe { guest_memory::copy(memory.as_ptr().add(skip), to.as_mut_ptr(), part) };
        }
        if staged {
            self.queue.unstage(READ);
        }
        outcome?;
        // A part that ends before what is wanted would never end.
        if part == 0 {
            Err(IoError::Medium)
        } else {
            Ok(part)
        }
    }

    /// Makes one request.
    async fn transfer(&mut self, op: Op, memory: NonNull<u8>, len: usize) -> Result<(), IoError> {
        let mut segments = room(PAGES + 1).map_err(|_| IoError::NoMemory)?;
        let mut start = 0;
        while start < len {
            let in_page = (memory.addr().get() + start) % PAGE_SIZE;
            let end = len.min(start + PAGE_SIZE - in_page);
            // SAFETY: within the pages, or within the memory that the store gave for `len` bytes.
            let address = unsafe { memory.add(start) };
            let dma = self.dma.as_ref();
            let dma = dma.and_then(|dma| dma.dma_addr(address.as_ptr()));
            // SAFETY: this domain's own, in one page, and there until the store has let go of it: `drop`
            // leaves it alone otherwise. No reference to it exists.
            segments.push(unsafe { IoSegment::new(address, end - start, dma) });
            start = end;
        }
        let submit = |queue: &mut dyn IoQueue, _: &mut Context<'_>| {
            let io = Io {
                op,
                segments: &segments,
            };
            match queue.submit(READ, io) {
                Submitted::Busy => None,
                Submitted::Done(outcome) => Some(Some(outcome)),
                Submitted::Pending => Some(None),
            }
        };
        let submitted = self.attempt(submit).await;
        if let Some(outcome) = submitted {
            return outcome;
        }
        self.pending = true;
        self.queue.flush_submissions();
        let outcome = poll_fn(|context| {
            loop {
                let mut told = None;
                let polled = self
                    .queue
                    .poll_complete(context, &mut |_, outcome| told = Some(outcome));
                match (told, polled) {
                    (Some(outcome), _) => return Poll::Ready(outcome),
                    (None, Poll::Ready(())) => {}
                    (None, Poll::Pending) => return Poll::Pending,
                }
            }
        })
        .await;
        self.pending = false;
        outcome
    }

    /// Calls `attempt` until the store is not too busy for it.
    async fn attempt<T>(
        &mut self,
        mut attempt: impl FnMut(&mut dyn IoQueue, &mut Context<'_>) -> Option<T>,
    ) -> T {
        poll_fn(|context| {
            loop {
                if let Some(done) = attempt(&mut **self.queue, context) {
                    return Poll::Ready(done);
                }
                if self
                    .queue
                    .poll_complete(context, &mut |_, _| {})
                    .is_pending()
                {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Waits until the store has let go of everything.
    pub async fn close(mut self) {
        poll_fn(|context| self.poll_close(context)).await;
    }

    /// Returns whether the store has let go of everything. No read is begun after the first call.
    pub fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.closed {
            self.closed = self.queue.poll_close(context).is_ready();
        }
        match self.closed {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for DeviceReader {
    fn drop(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        if self.pending && self.poll_close(&mut context).is_pending() {
            // The store may still write to the pages: they are leaked, so that no other code gets them.
            return;
        }
        // SAFETY: neither is used again, and the store has no request.
        unsafe {
            ManuallyDrop::drop(&mut self.queue);
            ManuallyDrop::drop(&mut self.pages);
        }
    }
}
