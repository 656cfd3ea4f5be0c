//! Stores for tests: completions that come late, in any order, or as errors.

use crate::device::{BlockDevice, Geometry};
use crate::io::{Io, IoError, Op, Submitted, Tag};
use crate::queue::{Caps, IoQueue, OpenQueue, QueueContext, opened};
use crate::segment::IoSegment;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_xen::VcpuId;
use core::task::{Context, Poll, Waker};
use spin::Mutex;

/// Opens queues of devices that need not wait for it.
pub trait OpenNow {
    /// Returns a queue for up to 32 requests at a time.
    ///
    /// # Panics
    /// If the device has to wait, or cannot open one.
    fn queue(&self) -> Box<dyn IoQueue>;
}

impl<D: BlockDevice + ?Sized> OpenNow for D {
    fn queue(&self) -> Box<dyn IoQueue> {
        let mut opening = self.open_queue(&QueueContext::new(VcpuId(0), 32));
        match opening
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(Ok(queue)) => queue,
            Poll::Ready(Err(error)) => panic!("the queue cannot be opened: {error}"),
            Poll::Pending => panic!("the queue is not open at once"),
        }
    }
}

/// Asks queues for completions without waiting for them.
pub trait CompleteNow {
    /// Passes what has completed to `sink`.
    fn complete(&mut self, sink: &mut dyn FnMut(Tag, Result<(), IoError>));
}

impl<Q: IoQueue + ?Sized> CompleteNow for Q {
    fn complete(&mut self, sink: &mut dyn FnMut(Tag, Result<(), IoError>)) {
        let _ = self.poll_complete(&mut Context::from_waker(Waker::noop()), sink);
    }
}

type Over = dyn Fn(Arc<dyn BlockDevice>, &str) -> Arc<dyn BlockDevice>;

/// What a test puts before every device that a [`Catalog`](crate::Catalog) opens, given the device
/// and its owner's name: a [`Delayed`], for instance.
pub struct Layer(Box<Over>);

impl Layer {
    /// A layer of what `over` makes of each device.
    pub fn new(
        over: impl Fn(Arc<dyn BlockDevice>, &str) -> Arc<dyn BlockDevice> + 'static,
    ) -> Layer {
        Layer(Box::new(over))
    }

    pub(crate) fn over(&self, device: Arc<dyn BlockDevice>, owner: &str) -> Arc<dyn BlockDevice> {
        (self.0)(device, owner)
    }
}

impl core::fmt::Debug for Layer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Layer")
    }
}

/// Puts itself before a device and holds every request back until it is told to let it through.
///
/// ```
/// use bulkhead_images::testing::{CompleteNow, Delayed, OpenNow};
/// use bulkhead_images::{Access, BlockDevice, Io, NullDevice, Op, Sector, SectorSize, Submitted, Tag};
/// use std::sync::Arc;
///
/// let null = NullDevice::new(Sector(8), SectorSize::B512, Access::ReadWrite);
/// let device = Delayed::new(Arc::new(null));
/// let mut queue = device.queue();
/// for number in 0..2 {
///     let flush = Io { op: Op::Flush, segments: &[] };
///     assert_eq!(queue.submit(Tag(number), flush), Submitted::Pending);
/// }
/// device.release(1); // the second one first
/// let mut told = Vec::new();
/// queue.complete(&mut |tag, result| told.push((tag, result)));
/// assert_eq!(told, [(Tag(1), Ok(()))]);
/// assert_eq!(device.held(), 1);
/// ```
#[derive(Clone)]
pub struct Delayed {
    inner: Arc<dyn BlockDevice>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    queues: usize,
    held: Vec<HeldRequest>,
    done: VecDeque<(usize, Tag, Result<(), IoError>)>,
    wakers: Vec<(usize, Waker)>,
}

struct HeldRequest {
    queue: usize,
    tag: Tag,
    op: Op,
    segments: Vec<IoSegment>,
}

impl Delayed {
    /// Holds back what is asked of `inner`.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Delayed {
        Delayed {
            inner,
            state: Arc::default(),
        }
    }

    /// How many requests are held back.
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// What the requests held back are, the oldest first.
    pub fn ops(&self) -> Vec<Op> {
        self.state.lock().held.iter().map(|held| held.op).collect()
    }

    /// Serves the request held back at that position now, and completes it.
    ///
    /// # Panics
    /// If there is none, or if the inner device is one that holds requests back itself.
    pub fn release(&self, position: usize) {
        let held = self.state.lock().held.remove(position);
        let io = Io {
            op: held.op,
            segments: &held.segments,
        };
        let Submitted::Done(result) = self.inner.queue().submit(held.tag, io) else {
            panic!("the device behind a Delayed has to complete at once");
        };
        self.finish(held.queue, held.tag, result);
    }

    /// Serves all requests held back, the newest first.
    pub fn release_backwards(&self) {
        for position in (0..self.held()).rev() {
            self.release(position);
        }
    }

    /// Completes the request held back at that position with an error, without serving it.
    ///
    /// # Panics
    /// If there is none.
    pub fn fail(&self, position: usize, error: IoError) {
        let held = self.state.lock().held.remove(position);
        self.finish(held.queue, held.tag, Err(error));
    }

    fn finish(&self, queue: usize, tag: Tag, result: Result<(), IoError>) {
        let mut state = self.state.lock();
        state.done.push_back((queue, tag, result));
        let (woken, others) = core::mem::take(&mut state.wakers)
            .into_iter()
            .partition::<Vec<_>, _>(|(waiting, _)| *waiting == queue);
        state.wakers = others;
        drop(state);
        for (_, waker) in woken {
            waker.wake();
        }
    }
}

impl BlockDevice for Delayed {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn on_change(&self, waker: &Waker) {
        self.inner.on_change(waker);
    }

    fn open_queue<'a>(&'a self, _context: &QueueContext) -> OpenQueue<'a> {
        let mut state = self.state.lock();
        state.queues += 1;
        opened(DelayedQueue {
            number: state.queues,
            state: self.state.clone(),
        })
    }
}

struct DelayedQueue {
    number: usize,
    state: Arc<Mutex<State>>,
}

impl IoQueue for DelayedQueue {
    fn caps(&self) -> Caps {
        Caps::UNLIMITED
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        self.state.lock().held.push(HeldRequest {
            queue: self.number,
            tag,
            op: io.op,
            // SAFETY: dropped when the request is released or failed, or the queue is closed.
            segments: io.segments.iter().map(|it| unsafe { it.keep() }).collect(),
        });
        Submitted::Pending
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        let mut told = Poll::Pending;
        loop {
            let mut state = self.state.lock();
            let mine = state
                .done
                .iter()
                .position(|(queue, ..)| *queue == self.number);
            let Some((_, tag, result)) = mine.and_then(|at| state.done.remove(at)) else {
                state.wakers.retain(|(queue, _)| *queue != self.number);
                if told.is_pending() {
                    let waker = context.waker().clone();
                    state.wakers.push((self.number, waker));
                }
                return told;
            };
            drop(state);
            sink(tag, result);
            told = Poll::Ready(());
        }
    }

    fn cancel(&mut self, _tag: Tag) {}

    fn cancel_all(&mut self) {}

    fn poll_close(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        self.let_go();
        Poll::Ready(())
    }
}

impl DelayedQueue {
    fn let_go(&self) {
        let mut state = self.state.lock();
        state.held.retain(|held| held.queue != self.number);
        state.done.retain(|(queue, ..)| *queue != self.number);
        state.wakers.retain(|(queue, _)| *queue != self.number);
    }
}

impl Drop for DelayedQueue {
    fn drop(&mut self) {
        self.let_go();
    }
}
