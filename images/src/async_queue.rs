//! Stores written as straight-line `async` functions: one call for each request.

use crate::io::{Io, IoError, Op, Submitted, Tag};
use crate::queue::{Caps, DataAccess, IoQueue, KEPT_SEGMENTS, OpenQueueError, room};
use crate::segment::IoSegment;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use futures_util::task::AtomicWaker;

/// A queue whose requests are each served by one call of an `async` function.
///
/// The queue keeps as many futures as requests may be pending, in boxes that are used again and again: nothing is
/// allocated while it serves. A request that is given up is dropped where it awaits something; a function that must not
/// be left there (because a server's answer is still to come, say) hands that part to a task of its own.
///
/// [`BlockDevice`](crate::BlockDevice) has an example.
pub struct AsyncQueue<F, S> {
    caps: Caps,
    serve: F,
    slots: Vec<Slot<S>>,
    /// The requests that were given up, and whose end was not reported yet.
    cancelled: Vec<Tag>,
    /// Woken when one of the futures may go on.
    parent: Arc<AtomicWaker>,
}

/// The place of one request.
struct Slot<S> {
    /// The request that has it.
    tag: Option<Tag>,
    future: Pin<Box<Option<S>>>,
    segments: Segments,
    woken: Arc<Woken>,
    waker: Waker,
}

/// The segments of a request, as long as it is pending.
type Segments = Rc<RefCell<Vec<IoSegment>>>;

/// Notes that a future may go on.
struct Woken {
    flag: AtomicBool,
    parent: Arc<AtomicWaker>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.flag.store(true, Ordering::Release);
        self.parent.wake();
    }
}

/// A request, in the form in which an `async` function gets it.
#[derive(Debug)]
pub struct AsyncIo {
    /// The operation.
    pub op: Op,
    segments: Segments,
}

impl AsyncIo {
    /// Returns the number of bytes that a read or write moves.
    pub fn len(&self) -> usize {
        self.segments.borrow().iter().map(IoSegment::len).sum()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes that the guest writes to `to`, from its byte `start` on.
    ///
    /// # Panics
    /// If there are not that many bytes, as there are none after the request has ended.
    pub fn copy_to(&self, start: usize, to: &mut [u8]) {
        let mut done = 0;
        self.each(start, to.len(), |segment, from, len| {
            segment.copy_to(from, &mut to[done..done + len]);
            done += len;
        });
    }

    /// Copies `from` over the bytes that the guest reads, from its byte `start` on. Only reads may use this.
    ///
    /// # Panics
    /// As for [`copy_to`](Self::copy_to).
    pub fn copy_from(&self, start: usize, from: &[u8]) {
        let mut done = 0;
        self.each(start, from.len(), |segment, to, len| {
            segment.copy_from(to, &from[done..done + len]);
            done += len;
        });
    }

    /// Calls `act` with each part of the segments that has some of those bytes.
    fn each(&self, start: usize, len: usize, mut act: impl FnMut(&IoSegment, usize, usize)) {
        let (mut at, mut left) = (0, len);
        for segment in self.segments.borrow().iter() {
            let end = at + segment.len();
            let first = (start + len - left).max(at);
            let part = end.saturating_sub(first).min(left);
            if part > 0 {
                act(segment, first - at, part);
                left -= part;
            }
            at = end;
        }
        assert_eq!(left, 0, "{len} bytes from {start} are not in the request");
    }
}

impl<F, S> AsyncQueue<F, S>
where
    F: Fn(AsyncIo) -> S,
    S: Future<Output = Result<(), IoError>>,
{
    /// Returns a queue that serves each request by a call of `serve`, within `caps` and up to `depth` at a time.
    pub fn new(caps: Caps, depth: usize, serve: F) -> Result<Self, OpenQueueError> {
        let caps = Caps {
            depth: caps.depth.min(depth),
            segments: caps.segments.min(KEPT_SEGMENTS),
            // It copies, whatever is below.
            access: match caps.access {
                DataAccess::Dma => DataAccess::Mapped,
                other => other,
            },
            ..caps
        };
        let parent = Arc::new(AtomicWaker::new());
        let mut slots = room(caps.depth)?;
        for _ in 0..caps.depth {
            let woken = Arc::new(Woken {
                flag: AtomicBool::new(false),
                parent: parent.clone(),
            });
            slots.push(Slot {
                tag: None,
                future: Box::pin(None),
                segments: Rc::new(RefCell::new(room(caps.segments)?)),
                waker: woken.clone().into(),
                woken,
            });
        }
        Ok(AsyncQueue {
            cancelled: room(caps.depth)?,
            caps,
            serve,
            slots,
            parent,
        })
    }
}

impl<S: Future<Output = Result<(), IoError>>> Slot<S> {
    fn poll(&mut self) -> Poll<Result<(), IoError>> {
        self.woken.flag.store(false, Ordering::Relaxed);
        let Some(future) = self.future.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        let polled = future.poll(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            self.end();
        }
        polled
    }

    /// Ends the request: neither the future nor code that it passed the request to has the segments any more.
    fn end(&mut self) {
        self.future.set(None);
        self.segments.borrow_mut().clear();
        self.tag = None;
    }
}

impl<F, S> IoQueue for AsyncQueue<F, S>
where
    F: Fn(AsyncIo) -> S,
    S: Future<Output = Result<(), IoError>>,
{
    fn caps(&self) -> Caps {
        self.caps
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        let free = self.slots.iter_mut().find(|slot| slot.tag.is_none());
        let Some(slot) = free else {
            return Submitted::Busy;
        };
        slot.tag = Some(tag);
        // SAFETY: `end` drops them before the completion is told, and when the queue is closed.
        let kept = io.segments.iter().map(|segment| unsafe { segment.keep() });
        slot.segments.borrow_mut().extend(kept);
        let request = AsyncIo {
            op: io.op,
            segments: slot.segments.clone(),
        };
        slot.future.set(Some((self.serve)(request)));
        match slot.poll() {
            Poll::Ready(outcome) => Submitted::Done(outcome),
            Poll::Pending => Submitted::Pending,
        }
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.parent.register(context.waker());
        let mut told = Poll::Pending;
        for tag in self.cancelled.drain(..) {
            sink(tag, Err(IoError::Cancelled));
            told = Poll::Ready(());
        }
        for slot in &mut self.slots {
            if let Some(tag) = slot.tag
                && slot.woken.flag.load(Ordering::Acquire)
                && let Poll::Ready(outcome) = slot.poll()
            {
                sink(tag, outcome);
                told = Poll::Ready(());
            }
        }
        told
    }

    fn cancel(&mut self, tag: Tag) {
        for slot in &mut self.slots {
            if slot.tag == Some(tag) {
                slot.end();
                self.cancelled.push(tag);
            }
        }
    }

    fn cancel_all(&mut self) {
        for slot in &mut self.slots {
            if let Some(tag) = slot.tag {
                slot.end();
                self.cancelled.push(tag);
            }
        }
    }

    fn poll_close(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        self.slots.iter_mut().for_each(Slot::end);
        self.cancelled.clear();
        Poll::Ready(())
    }
}
