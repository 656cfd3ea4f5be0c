//! A store that completes requests later, in an order of its own.

use super::Random;
use bulkhead_images::testing::{Layer, OpenNow};
use bulkhead_images::{
    BlockDevice, Caps, Geometry, Io, IoError, IoQueue, IoSegment, Op, OpenQueue, QueueContext,
    Submitted, Tag, opened,
};
use std::sync::Arc;
use std::task::{Context, Poll};

/// Returns a layer that completes all requests later, in another order than they came in.
pub fn reordering() -> Layer {
    Layer::new(|device, _| Arc::new(Reordering(device)))
}

struct Reordering(Arc<dyn BlockDevice>);

impl BlockDevice for Reordering {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_queue<'a>(&'a self, _: &QueueContext) -> OpenQueue<'a> {
        opened(ReorderingQueue {
            inner: self.0.clone(),
            random: Random::new(3),
            held: Vec::new(),
        })
    }
}

struct ReorderingQueue {
    inner: Arc<dyn BlockDevice>,
    random: Random,
    held: Vec<(Tag, Op, Vec<IoSegment>)>,
}

impl IoQueue for ReorderingQueue {
    fn caps(&self) -> Caps {
        Caps::UNLIMITED
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        // Some are so quick that they are done at once.
        if self.random.below(8) == 0 {
            return self.inner.queue().submit(tag, io);
        }
        // SAFETY: dropped when the request completes, or the queue is closed.
        let segments = io.segments.iter().map(|it| unsafe { it.keep() }).collect();
        self.held.push((tag, io.op, segments));
        Submitted::Pending
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        if self.held.is_empty() {
            return Poll::Pending;
        }
        // The task is to look again, whether or not anything is done now.
        context.waker().wake_by_ref();
        for _ in 0..self.random.below(3) {
            if self.held.is_empty() {
                break;
            }
            let any = self.random.below(self.held.len() as u64) as usize;
            let (tag, op, segments) = self.held.remove(any);
            let io = Io {
                op,
                segments: &segments,
            };
            let Submitted::Done(outcome) = self.inner.queue().submit(tag, io) else {
                panic!("the device below has to complete at once");
            };
            sink(tag, outcome);
        }
        Poll::Ready(())
    }

    fn cancel(&mut self, _: Tag) {}

    fn cancel_all(&mut self) {}

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<()> {
        self.held.clear();
        Poll::Ready(())
    }
}
