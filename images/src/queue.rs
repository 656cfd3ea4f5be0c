//! The queue of a device: what a store has to do for the requests of one ring, on one vCPU.

use crate::io::{Io, IoError, Op, Submitted, Tag};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::{DmaMemory, VcpuId};
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll};
use core::time::Duration;

/// The vCPU that a queue is opened on, and the number of requests it is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueContext {
    /// The vCPU that opens the queue and makes every later call.
    pub vcpu: VcpuId,
    /// The most requests that the caller has pending at a time. A store may offer fewer
    /// ([`Caps::depth`]).
    pub depth: usize,
    /// The number of queues that the caller opens of the device, this one among them. A store that has a
    /// certain amount of memory for a disk divides it among them.
    pub queues: usize,
}

impl QueueContext {
    /// Returns a context for a queue on `vcpu` for up to `depth` requests at a time, the only one of its device.
    pub fn new(vcpu: VcpuId, depth: usize) -> QueueContext {
        QueueContext {
            vcpu,
            depth,
            queues: 1,
        }
    }

    /// Returns the same, for one of `queues` queues.
    pub fn among(self, queues: usize) -> QueueContext {
        QueueContext { queues, ..self }
    }
}

/// The future that opens a queue ([`BlockDevice::open_queue`](crate::BlockDevice::open_queue)).
pub type OpenQueue<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn IoQueue>, OpenQueueError>> + 'a>>;

/// Returns a queue that is open at once, for stores that need not wait.
pub fn opened<'a>(queue: impl IoQueue + 'static) -> OpenQueue<'a> {
    let queue: Box<dyn IoQueue> = Box::new(queue);
    Box::pin(core::future::ready(Ok(queue)))
}

/// Returns a failure to open a queue, for stores that know it at once.
pub fn not_opened<'a>(error: OpenQueueError) -> OpenQueue<'a> {
    Box::pin(core::future::ready(Err(error)))
}

/// A queue, with which one ring does I/O on a device.
///
/// Everything is called on the vCPU that opened the queue. A request is submitted with a tag of the
/// caller's choice, that no other pending request has, and completes once: at once by
/// [`Submitted::Done`], or later through [`poll_complete`](Self::poll_complete), in any order. No method
/// blocks, and none allocates: a store takes all memory when the queue is opened.
///
/// A queue that has pending requests is closed ([`poll_close`](Self::poll_close)) before it is dropped.
/// The caller keeps all segments and all staging memory in place until the store is closed, however long
/// that takes.
pub trait IoQueue {
    /// Returns what the queue can take. It stays the same as long as the queue is open.
    fn caps(&self) -> Caps;

    /// Returns the bus addresses of this domain's own memory, for queues with [`DataAccess::Dma`]: the caller may have
    /// copied a guest's data there. Each segment of such a queue has a bus address
    /// ([`IoSegment::dma_addr`](crate::IoSegment::dma_addr)).
    ///
    /// A layer with [`DataAccess::Staged`] over such a queue returns the same, so that segments in its memory have
    /// bus addresses, too. Queues with other ways of access are not asked.
    fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        None
    }

    /// Starts a request. A store that returns [`Submitted::Pending`] has [kept](crate::IoSegment::keep) the segments;
    /// the slice is only valid during the call.
    ///
    /// The store checks range, alignment and access by itself; that a request is within
    /// [`caps`](Self::caps) is the caller's part. A failed read may have filled some of the segments, a
    /// failed write stored some of them.
    ///
    /// A store may return [`Submitted::Busy`] whenever it cannot take a request now, also where fewer than
    /// [`Caps::depth`] are pending. The caller submits the request again after [`poll_complete`](Self::poll_complete)
    /// was ready.
    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted;

    /// Ends a batch: no more requests come for the moment. A store that collects requests passes them on
    /// now (rings its doorbell, sends its notification). The caller makes this call after one or more
    /// calls of [`submit`](Self::submit), once a sweep, not after each.
    fn flush_submissions(&mut self) {}

    /// Passes all completions that have come in to `sink`.
    ///
    /// Returns ready if there was one, or if a request that was [`Busy`](Submitted::Busy) may be submitted again.
    /// Otherwise the store keeps the context's waker, in the place of an earlier one, and wakes it when one of these
    /// happens. A store that does its work in slices may do one here, and wakes the waker where there are more. The
    /// caller need not ask while nothing is pending and nothing was busy.
    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()>;

    /// Gives up a pending request, because its caller no longer waits for it. It completes all the same: with
    /// [`IoError::Cancelled`] if the store could leave its work undone, else as usual. May be called again.
    /// A tag that no pending request has is ignored.
    fn cancel(&mut self, tag: Tag);

    /// Gives up all pending requests, each as [`cancel`](Self::cancel) does.
    fn cancel_all(&mut self);

    /// Closes the queue: abandons the pending requests, without completions. Once this is ready, the store touches no
    /// segment and no staging memory any more, and the queue is dropped. Only this method is called after its first
    /// call.
    ///
    /// A store that is not ready wakes the context's waker when it may be. If that takes too long, the caller logs it
    /// and goes on without the queue; the segments stay in place, and this is polled, until it is ready.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()>;

    /// Returns memory of the store's own for the `len` contiguous bytes that the read or write `op` covers, so that the
    /// caller can have the hypervisor copy between it and the guest's pages. [`Staging::phase`] is the purpose of the
    /// copy. No layer can be bypassed: a layer answers this call for all that is below it.
    ///
    /// Returns `None` from a queue with [`DataAccess::Direct`] if the request is to be submitted with the guest's
    /// pages. That includes every request that [`submit`](Self::submit) would refuse.
    ///
    /// Returns `None` from a queue with [`DataAccess::Staged`] if no memory is free. The caller asks for it again, as
    /// after [`Submitted::Busy`], or after [`unstage`](Self::unstage). The queue has memory for every request within
    /// [`caps`](Self::caps), also one that `submit` would refuse.
    ///
    /// Queues with other ways of access are not asked.
    fn stage(&mut self, tag: Tag, op: Op, len: usize) -> Option<Staging> {
        let _ = (tag, op, len);
        None
    }

    /// Returns how many of the `len` bytes of the read or write `op`, from its first on, can have memory of
    /// [`stage`](Self::stage) together: all, or whole sectors up to the point from which they lie elsewhere below a
    /// layer. The caller asks for that part's memory and submits it, and then the rest as a request of its own.
    ///
    /// Queues with other ways of access than [`DataAccess::Staged`] are not asked: they cut requests
    /// themselves.
    fn contiguous(&mut self, op: Op, len: usize) -> usize {
        let _ = op;
        len
    }

    /// Ends the use of all memory that [`stage`](Self::stage) gave with [`StagingPhase::InPlace`].
    fn end_in_place(&mut self) {}

    /// Ends the use of the memory that [`stage`](Self::stage) gave for a request with another phase. Either the request
    /// has completed and the data of a read was copied, or the request is not going to be submitted.
    fn unstage(&mut self, tag: Tag) {
        let _ = tag;
    }
}

/// The most segments of a request that is kept, unless the capabilities set a lower limit.
pub(crate) const KEPT_SEGMENTS: usize = 256;

/// Returns an empty list with room for that many entries.
pub(crate) fn room<T>(count: usize) -> Result<Vec<T>, OpenQueueError> {
    let mut room = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    let reserved = room.try_reserve_exact(count);
    reserved.map_err(|_| OpenQueueError::NoMemory { bytes })?;
    Ok(room)
}

/// The limits of a queue. The caller splits larger requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// The most requests that may be pending at a time; not zero.
    pub depth: usize,
    /// The most segments of one request; not zero. Segments in staging memory do not count.
    pub segments: usize,
    /// The most bytes of one request: a multiple of the device's sector size; not zero.
    pub bytes: usize,
    /// Every segment starts and ends on a multiple of this many bytes: a power of two, at most the
    /// device's sector size.
    pub alignment: usize,
    /// The way in which the store reaches the data.
    pub access: DataAccess,
    /// True if the queue takes writes that are durable when they complete ([`Op::Write`]). Other queues are never given
    /// such a write: the caller flushes after it.
    pub fua: bool,
    /// The longest time that the store may take without a completion while requests are pending. After that, the caller
    /// gives up all of them ([`IoQueue::cancel_all`]). `None` sets no limit.
    pub timeout: Option<Duration>,
    /// True if reads, writes and flushes complete in [`IoQueue::submit`], so that they complete in the order in which
    /// they are submitted. Stores for which this is false may complete requests at once, too.
    pub at_once: bool,
}

impl Caps {
    /// The capabilities of a store without limits.
    pub const UNLIMITED: Caps = Caps {
        depth: usize::MAX,
        segments: usize::MAX,
        bytes: usize::MAX,
        alignment: 1,
        access: DataAccess::Mapped,
        fua: false,
        timeout: None,
        at_once: false,
    };
}

/// The way in which a store reaches the data of reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataAccess {
    /// The store copies from and to mapped segments, or has memory in which the hypervisor's copy is the whole
    /// operation ([`StagingPhase::InPlace`]). The caller chooses the cheaper way.
    Direct,
    /// The store never gets a guest's page: all data goes through memory of the store's own ([`IoQueue::stage`]), and
    /// the segments that are submitted lie in this domain's own memory.
    Staged,
    /// The store copies from and to mapped segments.
    Mapped,
    /// A device reads and writes the segments by their bus addresses, which all of them have ([`IoQueue::dma_memory`]).
    /// They may have nothing else: the device can reach the pages, and they need not be mapped for anyone. A store that
    /// looks at the bytes itself is not of this kind.
    Dma,
}

/// Memory of a store's own for one request ([`IoQueue::stage`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging {
    /// Its first byte. The memory is contiguous and mapped, and no Rust reference to it exists.
    pub memory: NonNull<u8>,
    /// The purpose of the copy.
    pub phase: StagingPhase,
}

/// The purpose of the copy from or to [`Staging::memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StagingPhase {
    /// The copy is the operation: the memory holds the device's own bytes, and the request is not submitted. The memory
    /// is valid until [`IoQueue::end_in_place`].
    InPlace,
    /// The memory is for a write: the guest's data is copied in, then the request is submitted with segments in that
    /// memory. It is valid until [`IoQueue::unstage`].
    BeforeSubmit,
    /// The memory is for a read: the request is submitted with segments in that memory, and the data is copied out
    /// after its completion. It is valid until [`IoQueue::unstage`].
    AfterComplete,
}

/// The reason why a queue cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenQueueError {
    /// There is no memory for the store's state of each request.
    NoMemory {
        /// The bytes that were asked for.
        bytes: usize,
    },
    /// The store failed, for this reason, which is a sentence for the operator.
    Failed(String),
}

impl fmt::Display for OpenQueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenQueueError::NoMemory { bytes } => {
                write!(f, "no {bytes} bytes of memory for requests")
            }
            OpenQueueError::Failed(reason) => f.write_str(reason),
        }
    }
}

impl core::error::Error for OpenQueueError {}
