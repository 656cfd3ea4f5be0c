//! A device with several users: each has the claim that it took, and each is told of changes.

use crate::claim::Access;
use crate::device::{BlockDevice, Geometry};
use crate::io::{Io, IoError, Op, Sector, Submitted, Tag};
use crate::queue::{Caps, IoQueue, OpenQueue, QueueContext, Staging};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::task::Wake;
use bulkhead_executor::Waiters;
use bulkhead_xen::DmaMemory;
use core::task::{Context, Poll, Waker};
use spin::Mutex;

/// The claim on the device that a user keeps as long as it or one of its queues exists.
pub type Held = Arc<dyn Send + Sync>;

/// A device with several users. A device itself wakes one waker when it changes; this one wakes each user's.
#[derive(Clone)]
pub struct SharedDevice(Arc<Inner>);

struct Inner {
    device: Arc<dyn BlockDevice>,
    users: Arc<Users>,
}

/// The tasks that wait for a change. The device has this as its waker, which does not keep the device.
#[derive(Default)]
struct Users(Mutex<Waiters>);

impl Wake for Users {
    fn wake(self: Arc<Self>) {
        let users = self.0.lock().take();
        users.for_each(Waker::wake);
    }
}

impl SharedDevice {
    /// Shares a device. No other code may ask it for changes.
    pub fn new(device: Arc<dyn BlockDevice>) -> SharedDevice {
        SharedDevice(Arc::new(Inner {
            device,
            users: Arc::default(),
        }))
    }

    /// Returns a reference to the same device that does not keep it.
    pub fn downgrade(&self) -> WeakSharedDevice {
        WeakSharedDevice(Arc::downgrade(&self.0))
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.0.device
    }

    /// Returns the whole device for one more user, who may write if `access` says so.
    pub fn user(&self, access: Access, held: Held) -> Arc<dyn BlockDevice> {
        Arc::new(User {
            watcher: Watcher::new(self),
            access,
            held,
        })
    }
}

/// A reference to a shared device that may be in use, or no longer.
#[derive(Clone, Default)]
pub struct WeakSharedDevice(Weak<Inner>);

impl WeakSharedDevice {
    /// Returns the device, as long as it has a user.
    pub fn upgrade(&self) -> Option<SharedDevice> {
        self.0.upgrade().map(SharedDevice)
    }
}

/// A user that may be waiting for changes of a shared device.
pub(crate) struct Watcher {
    pub device: SharedDevice,
    number: u64,
}

impl Watcher {
    pub fn new(device: &SharedDevice) -> Watcher {
        Watcher {
            number: device.0.users.0.lock().number(),
            device: device.clone(),
        }
    }

    /// Wakes `waker` at the next change, in the place of an earlier one.
    pub fn watch(&self, waker: &Waker) {
        let inner = &self.device.0;
        inner.users.0.lock().wait(self.number, waker);
        inner.device.on_change(&Waker::from(inner.users.clone()));
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.device.0.users.0.lock().forget(self.number);
    }
}

/// The whole of a shared device.
struct User {
    watcher: Watcher,
    access: Access,
    held: Held,
}

impl BlockDevice for User {
    fn geometry(&self) -> Geometry {
        for_access(self.watcher.device.0.device.geometry(), self.access)
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        let opening = self.watcher.device.0.device.open_queue(context);
        Box::pin(async move {
            let queue: Box<dyn IoQueue> = Box::new(UserQueue {
                queue: opening.await?,
                access: self.access,
                _held: self.held.clone(),
            });
            Ok(queue)
        })
    }

    fn uses_dma(&self) -> bool {
        self.watcher.device.0.device.uses_dma()
    }

    fn identity(&self, sectors: Sector) -> u32 {
        self.watcher.device.0.device.identity(sectors)
    }

    fn resumed(&self) {
        self.watcher.device.0.device.resumed();
    }

    fn on_change(&self, waker: &Waker) {
        self.watcher.watch(waker);
    }
}

/// Returns the geometry that a user with that access sees.
pub(crate) fn for_access(geometry: Geometry, access: Access) -> Geometry {
    let read_only = geometry.read_only || access == Access::ReadOnly;
    Geometry {
        read_only,
        discard: geometry.discard.filter(|_| !read_only),
        ..geometry
    }
}

struct UserQueue {
    queue: Box<dyn IoQueue>,
    access: Access,
    _held: Held,
}

impl IoQueue for UserQueue {
    fn caps(&self) -> Caps {
        self.queue.caps()
    }

    fn dma_memory(&self) -> Option<Arc<dyn DmaMemory>> {
        self.queue.dma_memory()
    }

    #[inline]
    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        match (self.access, io.op) {
            (Access::ReadOnly, Op::Write { .. } | Op::Discard { .. }) => {
                Submitted::Done(Err(IoError::ReadOnly))
            }
            _ => self.queue.submit(tag, io),
        }
    }

    fn flush_submissions(&mut self) {
        self.queue.flush_submissions();
    }

    #[inline]
    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.queue.poll_complete(context, sink)
    }

    fn cancel(&mut self, tag: Tag) {
        self.queue.cancel(tag);
    }

    fn cancel_all(&mut self) {
        self.queue.cancel_all();
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_close(context)
    }

    #[inline]
    fn stage(&mut self, tag: Tag, op: Op, len: usize) -> Option<Staging> {
        match (self.access, op, self.queue.caps().access) {
            // The copy would be the operation.
            (Access::ReadOnly, Op::Write { .. }, crate::DataAccess::Direct) => None,
            _ => self.queue.stage(tag, op, len),
        }
    }

    fn contiguous(&mut self, op: Op, len: usize) -> usize {
        self.queue.contiguous(op, len)
    }

    fn end_in_place(&mut self) {
        self.queue.end_in_place();
    }

    fn unstage(&mut self, tag: Tag) {
        self.queue.unstage(tag);
    }
}
