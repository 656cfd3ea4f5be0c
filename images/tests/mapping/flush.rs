//! Devices of which some have nothing to flush.

use crate::support::submit;
use crate::world::{map, mapped, ram};
use bulkhead_images::testing::{CompleteNow, Delayed, OpenNow};
use bulkhead_images::{
    BlockDevice, Caps, Geometry, Io, IoError, IoQueue, Op, OpenQueue, QueueContext, Submitted, Tag,
    opened,
};
use std::sync::Arc;
use std::task::{Context, Poll};

#[test]
fn a_device_that_cannot_be_flushed_does_not_keep_the_others_from_it() {
    let slow = Delayed::new(ram(300, 1).0);
    for unflushed in [0, 1] {
        let mut devices: [Arc<dyn BlockDevice>; 2] = [0, 1].map(|_| Arc::new(slow.clone()) as _);
        devices[unflushed] = Arc::new(Unflushed(ram(300, 2).0));
        let device = mapped(&devices, map());
        assert!(device.geometry().flush);
        let mut queue = device.queue();
        let flush = Io {
            op: Op::Flush,
            segments: &[],
        };
        assert_eq!(queue.submit(Tag(3), flush), Submitted::Pending);
        assert_eq!(slow.ops(), [Op::Flush]);
        slow.release(0);
        let mut told = Vec::new();
        queue.complete(&mut |tag, outcome| told.push((tag, outcome)));
        assert_eq!(told, [(Tag(3), Ok(()))]);
    }
    let devices = [(); 2].map(|()| Arc::new(Unflushed(ram(300, 2).0)) as Arc<dyn BlockDevice>);
    let device = mapped(&devices, map());
    assert!(!device.geometry().flush);
    let refused = submit(&mut *device.queue(), Op::Flush, &[]);
    assert_eq!(refused, Err(IoError::NotSupported));
}

/// A disk that cannot flush, and refuses to.
struct Unflushed(Arc<dyn BlockDevice>);

impl BlockDevice for Unflushed {
    fn geometry(&self) -> Geometry {
        Geometry {
            flush: false,
            ..self.0.geometry()
        }
    }

    fn open_queue<'a>(&'a self, _: &QueueContext) -> OpenQueue<'a> {
        opened(UnflushedQueue(self.0.queue()))
    }
}

struct UnflushedQueue(Box<dyn IoQueue>);

impl IoQueue for UnflushedQueue {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        match io.op {
            Op::Flush => Submitted::Done(Err(IoError::NotSupported)),
            _ => self.0.submit(tag, io),
        }
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.0.poll_complete(context, sink)
    }

    fn cancel(&mut self, tag: Tag) {
        self.0.cancel(tag);
    }

    fn cancel_all(&mut self) {
        self.0.cancel_all();
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.0.poll_close(context)
    }
}
