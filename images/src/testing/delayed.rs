//! A store that answers when a test lets it.

use crate::device::{BlockDevice, Geometry};
use crate::io::{Io, IoError, Op, Submitted, Tag};
use crate::queue::{Caps, IoQueue, OpenQueue, OpenQueueError, QueueContext, not_opened, opened};
use crate::segment::IoSegment;
use crate::testing::OpenNow;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};
use spin::Mutex;

/// A layer over a device that holds every request back until a test lets it through. The test also sets what it can
/// take, whether it is busy, and the treatment of requests that are given up or abandoned.
///
/// # Panics
/// If a request is not within what it can take.
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

struct State {
    queues: usize,
    caps: Caps,
    busy: bool,
    /// True if it has yet to say that a request may be submitted again.
    calls: bool,
    /// True if requests are completed at once.
    prompt: bool,
    /// True if a request that is given up comes back.
    cancels: bool,
    /// True if a queue is closed only once none of its requests is held.
    holds_on: bool,
    /// If no queue is opened: the reason for that, if the device gives one.
    unopened: Option<Option<String>>,
    /// The number of batches that have ended.
    batches: usize,
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
    /// Returns a layer that holds back the requests to `inner`.
    pub fn new(inner: Arc<dyn BlockDevice>) -> Delayed {
        Delayed {
            inner,
            state: Arc::new(Mutex::new(State {
                queues: 0,
                caps: Caps::UNLIMITED,
                busy: false,
                calls: false,
                prompt: false,
                cancels: false,
                holds_on: false,
                unopened: None,
                batches: 0,
                held: Vec::new(),
                done: VecDeque::new(),
                wakers: Vec::new(),
            })),
        }
    }

    /// Sets the capabilities of queues that are opened from now on. A request beyond them is a fault of the caller's.
    pub fn limit(&self, caps: Caps) {
        self.state.lock().caps = caps;
    }

    /// Sets whether it is too busy for any request from now on.
    pub fn be_busy(&self, busy: bool) {
        self.state.lock().busy = busy;
        self.wake_all();
    }

    /// Says once that a request may be submitted again, though it has taken all of them.
    pub fn call(&self) {
        self.state.lock().calls = true;
        self.wake_all();
    }

    fn wake_all(&self) {
        let wakers = core::mem::take(&mut self.state.lock().wakers);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Sets whether it completes requests at once from now on.
    pub fn be_prompt(&self, prompt: bool) {
        self.state.lock().prompt = prompt;
    }

    /// Has requests that are given up left undone from now on.
    pub fn cancel_what_is_given_up(&self) {
        self.state.lock().cancels = true;
    }

    /// Has a queue closed only once none of its requests is held, from now on.
    pub fn hold_on(&self) {
        self.state.lock().holds_on = true;
    }

    /// Has no queue opened from now on, for that reason; without a reason, opening one never ends.
    pub fn refuse_to_open(&self, reason: Option<&str>) {
        self.state.lock().unopened = Some(reason.map(String::from));
    }

    /// Returns the number of batches that have ended.
    pub fn batches(&self) -> usize {
        self.state.lock().batches
    }

    /// Returns the number of requests that are held back.
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Returns the operations of the requests that are held back, the oldest first.
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
        match &state.unopened {
            Some(Some(reason)) => return not_opened(OpenQueueError::Failed(reason.clone())),
            Some(None) => return Box::pin(core::future::pending()),
            None => {}
        }
        state.queues += 1;
        opened(DelayedQueue {
            number: state.queues,
            caps: state.caps,
            was_busy: false,
            inner: self.inner.clone(),
            state: self.state.clone(),
        })
    }
}

struct DelayedQueue {
    number: usize,
    caps: Caps,
    /// True if a request was not taken.
    was_busy: bool,
    inner: Arc<dyn BlockDevice>,
    state: Arc<Mutex<State>>,
}

impl IoQueue for DelayedQueue {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        let mut state = self.state.lock();
        let caps = &self.caps;
        let bytes: usize = io.segments.iter().map(IoSegment::len).sum();
        let aligned = |segment: &IoSegment| segment.is_aligned(caps.alignment);
        assert!(bytes <= caps.bytes, "{bytes} bytes of {}", caps.bytes);
        let segments = io.segments.len();
        assert!(segments <= caps.segments, "{segments} segments");
        assert!(io.segments.iter().all(aligned), "aligned segments");
        let fua = matches!(io.op, Op::Write { fua: true, .. });
        assert!(caps.fua || !fua, "a write that is to be durable");
        let mine = |held: &&HeldRequest| held.queue == self.number;
        let pending = state.held.iter().filter(mine).count();
        assert!(pending < caps.depth, "{pending} requests are pending");
        if state.busy {
            self.was_busy = true;
            return Submitted::Busy;
        }
        if state.prompt {
            drop(state);
            return self.inner.queue().submit(tag, io);
        }
        state.held.push(HeldRequest {
            queue: self.number,
            tag,
            op: io.op,
            // SAFETY: dropped when the request is released or failed, or the queue is closed.
            segments: io.segments.iter().map(|it| unsafe { it.keep() }).collect(),
        });
        Submitted::Pending
    }

    fn flush_submissions(&mut self) {
        self.state.lock().batches += 1;
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        let mut told = Poll::Pending;
        if self.was_busy && !self.state.lock().busy {
            self.was_busy = false;
            told = Poll::Ready(());
        }
        if core::mem::take(&mut self.state.lock().calls) {
            told = Poll::Ready(());
        }
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

    fn cancel(&mut self, tag: Tag) {
        self.give_up(|held| held.tag == tag);
    }

    fn cancel_all(&mut self) {
        self.give_up(|_| true);
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        let holds = state.held.iter().any(|held| held.queue == self.number);
        if holds && state.holds_on {
            state.wakers.retain(|(queue, _)| *queue != self.number);
            state.wakers.push((self.number, context.waker().clone()));
            return Poll::Pending;
        }
        drop(state);
        self.let_go();
        Poll::Ready(())
    }
}

impl DelayedQueue {
    fn give_up(&self, which: impl Fn(&HeldRequest) -> bool) {
        let state = &mut *self.state.lock();
        if !state.cancels {
            return;
        }
        let (mine, others) = core::mem::take(&mut state.held)
            .into_iter()
            .partition::<Vec<_>, _>(|held| held.queue == self.number && which(held));
        state.held = others;
        let cancelled = |held: HeldRequest| (self.number, held.tag, Err(IoError::Cancelled));
        state.done.extend(mine.into_iter().map(cancelled));
    }

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
