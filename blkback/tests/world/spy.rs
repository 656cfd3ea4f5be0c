//! A device that does something else whenever it is asked: the guest's other processor, which
//! acts while the backend is in the middle of a sweep.

use bulkhead_images::testing::Layer;
use bulkhead_images::{BlockDevice, Geometry, Io, IoError, IoQueue, OutOfMemory, Submitted, Tag};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

/// What happens whenever a device is asked for something. Empty at first.
#[derive(Clone, Default)]
pub struct Meanwhile(Rc<RefCell<Option<Act>>>, Rc<Cell<bool>>);

type Act = Box<dyn FnMut()>;

// SAFETY: the tests that use this have one thread.
unsafe impl Send for Meanwhile {}
// SAFETY: as above.
unsafe impl Sync for Meanwhile {}

impl Meanwhile {
    /// From now on, this.
    pub fn set(&self, act: impl FnMut() + 'static) {
        self.0.replace(Some(Box::new(act)));
    }

    /// Also whenever the device is asked for what it has done.
    pub fn at_every_look(&self) {
        self.1.set(true);
    }

    /// From now on, nothing.
    pub fn end(&self) {
        self.0.take();
    }

    fn act(&self) {
        if let Some(act) = &mut *self.0.borrow_mut() {
            act();
        }
    }

    /// Puts it before every disk of that name.
    pub fn layer(&self, name: &'static str) -> Layer {
        let meanwhile = self.clone();
        Layer::new(move |device, owner| match owner.contains(name) {
            true => Arc::new(Spied(device, meanwhile.clone())),
            false => device,
        })
    }
}

struct Spied(Arc<dyn BlockDevice>, Meanwhile);

impl BlockDevice for Spied {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn queue(&self) -> Box<dyn IoQueue> {
        Box::new(SpiedQueue(self.0.queue(), self.1.clone()))
    }
}

struct SpiedQueue(Box<dyn IoQueue>, Meanwhile);

impl IoQueue for SpiedQueue {
    fn reserve(&mut self, depth: usize) -> Result<(), OutOfMemory> {
        self.0.reserve(depth)
    }

    fn cancel_pending(&mut self) {
        self.0.cancel_pending();
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        self.1.act();
        self.0.submit(tag, io)
    }

    fn complete(&mut self, sink: &mut dyn FnMut(Tag, Result<(), IoError>)) {
        if self.1.1.get() {
            self.1.act();
        }
        self.0.complete(sink);
    }

    fn wake_on_completion(&mut self, waker: &Waker) {
        self.0.wake_on_completion(waker);
    }
}
