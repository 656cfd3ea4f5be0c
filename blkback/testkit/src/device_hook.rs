//! A device that runs a hook of the test's whenever it is called. The hook stands for the guest's other
//! processor, which acts while the backend is in the middle of a sweep.

use bulkhead_images::testing::Layer;
use bulkhead_images::{
    BlockDevice, Caps, Geometry, Io, IoError, IoQueue, OpenQueue, QueueContext, Submitted, Tag,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The hook that runs whenever a device is asked for something. Empty at first.
#[derive(Clone, Default)]
pub struct DeviceHook(Rc<RefCell<Option<Act>>>, Rc<Cell<bool>>);

type Act = Box<dyn FnMut()>;

// SAFETY: the tests that use this have one thread.
unsafe impl Send for DeviceHook {}
// SAFETY: as above.
unsafe impl Sync for DeviceHook {}

impl DeviceHook {
    /// Makes `act` the hook from now on.
    pub fn set(&self, act: impl FnMut() + 'static) {
        self.0.replace(Some(Box::new(act)));
    }

    /// Has the hook run also whenever the device is asked for its completions.
    pub fn at_every_look(&self) {
        self.1.set(true);
    }

    /// Removes the hook.
    pub fn end(&self) {
        self.0.take();
    }

    fn act(&self) {
        if let Some(act) = &mut *self.0.borrow_mut() {
            act();
        }
    }

    /// Returns a layer that runs the hook, for every disk of that name.
    pub fn layer(&self, name: &'static str) -> Layer {
        let hook = self.clone();
        Layer::new(move |device, owner| match owner.contains(name) {
            true => Arc::new(HookedDevice(device, hook.clone())),
            false => device,
        })
    }
}

struct HookedDevice(Arc<dyn BlockDevice>, DeviceHook);

impl BlockDevice for HookedDevice {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        let opening = self.0.open_queue(context);
        Box::pin(async {
            let queue: Box<dyn IoQueue> = Box::new(HookedQueue(opening.await?, self.1.clone()));
            Ok(queue)
        })
    }
}

struct HookedQueue(Box<dyn IoQueue>, DeviceHook);

impl IoQueue for HookedQueue {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        self.1.act();
        self.0.submit(tag, io)
    }

    fn flush_submissions(&mut self) {
        self.0.flush_submissions();
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        if self.1.1.get() {
            self.1.act();
        }
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
