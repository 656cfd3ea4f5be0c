//! A namespace, and the block device that each of its users has.

use crate::command::{ControllerData, NamespaceData, NamespaceId};
use crate::controller::Controller;
use crate::queue::NamespaceQueue;
use crate::splits::Action;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use bulkhead_executor::Waiters;
use bulkhead_images::{
    Access, BlockDevice, DiscardLimits, Geometry, OpenQueue, OpenQueueError, QueueContext, Sector,
    not_opened, opened,
};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::Waker;
use spin::{Mutex, Once};

/// A namespace.
pub struct Namespace {
    id: NamespaceId,
    /// Its identify structure when it was found. Its size, and whether it can be written to, may have changed since.
    data: NamespaceData,
    /// The serial number and the model of its controller, which all controllers of a drive have alike.
    drive: (String, String),
    /// The command by which it discards data, if there is one.
    discards: Option<Action>,
    flushes: bool,
    sectors: AtomicU64,
    read_only: AtomicBool,
    /// The reason why it is not served any more.
    failure: Once<String>,
    users: AtomicUsize,
    changed: Mutex<Waiters>,
}

impl Namespace {
    /// Returns a namespace of a controller.
    pub fn new(id: NamespaceId, data: NamespaceData, controller: &ControllerData) -> Namespace {
        Namespace {
            id,
            data,
            drive: (controller.serial.clone(), controller.model.clone()),
            discards: if controller.deallocates {
                Some(Action::Deallocate)
            } else if controller.writes_zeroes && data.zeroes_deallocate {
                Some(Action::WriteZeroes)
            } else {
                None
            },
            flushes: controller.volatile_cache,
            sectors: AtomicU64::new(data.sectors.0),
            read_only: AtomicBool::new(data.read_only),
            failure: Once::new(),
            users: AtomicUsize::new(0),
            changed: Mutex::default(),
        }
    }

    /// Returns its number.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Returns its size, in sectors of 512 bytes.
    #[inline]
    pub fn sectors(&self) -> Sector {
        Sector(self.sectors.load(Ordering::Relaxed))
    }

    /// Returns its identify structure as it was when the namespace was found.
    pub fn data(&self) -> &NamespaceData {
        &self.data
    }

    /// Returns whether it is another controller's, too, as both ports of a drive have it: by a name that no other one in
    /// the world has, if it has one. The namespaces of some drives all have the same name, so that the drive is compared.
    pub fn is_same(&self, other: &Namespace) -> bool {
        let named = self.data.guid != [0; 24];
        named && self.data.guid == other.data.guid && self.drive == other.drive
    }

    /// Returns the command by which it discards data, if there is one.
    pub fn discards(&self) -> Option<Action> {
        self.discards
    }

    /// Returns whether writes need a flush to be durable.
    pub fn flushes(&self) -> bool {
        self.flushes
    }

    /// Returns whether it can only be read.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Returns the number of its users.
    pub fn users(&self) -> usize {
        self.users.load(Ordering::Acquire)
    }

    /// Returns the reason why it is not served any more.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Stops serving it: requests and new queues fail. The first reason is kept.
    pub fn fail(&self, reason: &str) {
        self.failure.call_once(|| reason.to_string());
    }

    /// Applies its present size and write protection. Returns false, and changes nothing, if `now` describes another
    /// namespace of the same number: other identifiers, or another size of blocks.
    pub fn update(&self, now: &NamespaceData) -> bool {
        let same = now.sector_size == self.data.sector_size && now.guid == self.data.guid;
        if same {
            self.read_only.store(now.read_only, Ordering::Relaxed);
            self.sectors.store(now.sectors.0, Ordering::Relaxed);
            let waiting = self.changed.lock().take();
            waiting.for_each(Waker::wake);
        }
        same
    }
}

/// A user's claim on a namespace, shared by the user's queues.
pub struct OpenedNamespace {
    pub controller: Arc<Controller>,
    pub namespace: Arc<Namespace>,
    pub access: Access,
    watcher: u64,
}

impl Drop for OpenedNamespace {
    fn drop(&mut self) {
        let namespace = &self.namespace;
        namespace.changed.lock().forget(self.watcher);
        namespace.users.fetch_sub(1, Ordering::AcqRel);
        // Wakes the tasks that wait for the namespace to be unused.
        self.controller.watch().changed();
    }
}

/// A namespace as a block device.
pub struct NamespaceDevice(Arc<OpenedNamespace>);

impl NamespaceDevice {
    /// Opens a namespace for reading and, unless it is write-protected, writing.
    pub fn new(controller: Arc<Controller>, namespace: Arc<Namespace>) -> NamespaceDevice {
        namespace.users.fetch_add(1, Ordering::AcqRel);
        let watcher = namespace.changed.lock().number();
        NamespaceDevice(Arc::new(OpenedNamespace {
            watcher,
            access: match namespace.is_read_only() {
                true => Access::ReadOnly,
                false => Access::ReadWrite,
            },
            controller,
            namespace,
        }))
    }
}

impl BlockDevice for NamespaceDevice {
    fn geometry(&self) -> Geometry {
        let OpenedNamespace {
            namespace, access, ..
        } = &*self.0;
        let read_only = *access == Access::ReadOnly;
        let data = &namespace.data;
        let limits = DiscardLimits {
            granularity: data.deallocation,
            alignment: Sector(0),
            secure: false,
        };
        Geometry {
            sectors: namespace.sectors(),
            sector_size: data.sector_size,
            physical_sector_size: data.physical_sector_size,
            read_only,
            // Offered without a cache, too: a flush then completes at once.
            flush: true,
            discard: namespace.discards.filter(|_| !read_only).map(|_| limits),
        }
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        match NamespaceQueue::open(&self.0, context) {
            Ok(queue) => opened(queue),
            Err(error) => not_opened(error),
        }
    }

    fn on_change(&self, waker: &Waker) {
        self.0.namespace.changed.lock().wait(self.0.watcher, waker);
    }
}

impl NamespaceQueue {
    fn open(
        opened: &Arc<OpenedNamespace>,
        context: &QueueContext,
    ) -> Result<NamespaceQueue, OpenQueueError> {
        if let Some(reason) = opened.namespace.failure() {
            return Err(OpenQueueError::Failed(reason.to_string()));
        }
        if let Some(reason) = opened.controller.failure() {
            return Err(OpenQueueError::Failed(reason.to_string()));
        }
        NamespaceQueue::new(opened.clone(), context)
    }
}
