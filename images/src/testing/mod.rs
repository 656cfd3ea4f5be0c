//! Stores for tests: one that answers late, in any order, with errors or never, and one that encrypts.

mod delayed;
mod encrypting;

pub use delayed::Delayed;
pub use encrypting::Encrypting;

use crate::catalog::OpenError;
use crate::claim::Access;
use crate::device::BlockDevice;
use crate::io::{IoError, Tag};
use crate::queue::{IoQueue, QueueContext};
use crate::store::{Owner, Stores};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use bulkhead_xen::{DomId, VcpuId};
use core::task::{Context, Poll, Waker};

/// Opens queues of devices that need not wait for it.
pub trait OpenNow {
    /// Returns a queue.
    ///
    /// # Panics
    /// If the device has to wait, or cannot open one.
    fn queue_for(&self, context: &QueueContext) -> Box<dyn IoQueue>;

    /// Returns a queue on the first vCPU, for up to 32 requests at a time.
    ///
    /// # Panics
    /// As [`queue_for`](Self::queue_for).
    fn queue(&self) -> Box<dyn IoQueue> {
        self.queue_for(&QueueContext::new(VcpuId(0), 32))
    }
}

impl<D: BlockDevice + ?Sized> OpenNow for D {
    fn queue_for(&self, context: &QueueContext) -> Box<dyn IoQueue> {
        let mut opening = self.open_queue(context);
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

impl Stores {
    /// Opens a device of a store that need not wait, for a guest.
    ///
    /// # Panics
    /// If the store waits.
    pub fn open_now(
        &self,
        target: &str,
        access: Access,
        owner: &str,
    ) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let owner = Owner {
            name: owner,
            domain: DomId(5),
        };
        let opening = core::pin::pin!(self.open(target, access, owner));
        match opening.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(opened) => opened,
            Poll::Pending => panic!("{target} is not open at once"),
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

/// A wrapper that a test puts around every device that [`Stores`] opens: it gets the device and its owner's name, and
/// may return a [`Delayed`], for instance.
#[derive(Clone)]
pub struct Layer(Rc<Over>);

impl Layer {
    /// Returns a layer that replaces each device by the one that `over` returns for it.
    pub fn new(
        over: impl Fn(Arc<dyn BlockDevice>, &str) -> Arc<dyn BlockDevice> + 'static,
    ) -> Layer {
        Layer(Rc::new(over))
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
