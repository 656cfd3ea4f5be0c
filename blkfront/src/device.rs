//! A disk of our own: the state that guests' disks on it share, on all vCPUs, and each of them as a block
//! device.

use crate::assignment::{assign, ring_of};
use crate::backend_nodes::Properties;
use crate::client::RingClient;
use crate::counts::RingCounts;
use crate::link::Link;
use crate::queue::{MOST_PAGES, REQUEST_PAGES, VbdQueue, depth_of};
use crate::wire::BlkifViolation;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::Waiters;
use bulkhead_grant::{GrantTable, NotShared, PagePool, SharedMemory};
use bulkhead_images::{
    Access, BlockDevice, Claim, Claims, DiscardLimits, Flushes, Geometry, InUse, OpenQueue,
    OpenQueueError, QueueContext, Sector, SectorSize, not_opened, opened,
};
use bulkhead_xen::{DomId, Hypervisor};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::Waker;
use futures_util::task::AtomicWaker;
use spin::{Mutex, Once};

/// The pages of all queues of a guest's disk together, for up to twelve queues: enough for twelve of the largest
/// requests. With its rings, and what the engine needs, a disk then takes at most 2 MiB. See [`queue_pages`] for more
/// queues.
const DISK_PAGES: usize = 400;

const _: () = assert!(DISK_PAGES <= MOST_PAGES);

/// A disk of our own.
pub struct Disk<H: Hypervisor> {
    /// Its name, as guests' targets have it, such as `xvda`.
    pub name: String,
    links: Vec<Mutex<Link<H>>>,
    /// The number of links that have a ring, or had one when a backend was last connected; 0 before that.
    rings: AtomicUsize,
    properties: Mutex<Option<Properties>>,
    sectors: AtomicU64,
    connected: AtomicBool,
    /// The backend that connected last takes discards, and secure ones.
    discards: [AtomicBool; 2],
    /// An earlier backend may still use the queues' memory.
    held: AtomicBool,
    /// The domain that served it last, and the number of times that a backend connected.
    served: Mutex<(DomId, u64)>,
    /// The reason why the disk was given up for good.
    failure: Once<String>,
    /// Wakes the disk's task.
    task: AtomicWaker,
    claims: Arc<Claims>,
    flushes: Arc<Flushes>,
    /// The guests' disks that learn of a new size.
    resized: Mutex<Waiters>,
    /// Rings that the backend had not unmapped when the disk, which had been given up, was taken away.
    kept: Mutex<Vec<SharedMemory<H>>>,
    pool: PagePool,
    grants: GrantTable<H>,
}

impl<H: Hypervisor> Drop for Disk<H> {
    fn drop(&mut self) {
        let kept = self.kept.get_mut();
        kept.retain_mut(|ring| !ring.revoke());
        if !kept.is_empty() {
            let links = self.links.iter_mut();
            links.for_each(|link| link.get_mut().abandon());
        }
    }
}

impl<H: Hypervisor> Disk<H> {
    /// Returns a disk that is not connected, for a driver domain with `vcpus` vCPUs.
    pub fn new(name: String, vcpus: usize, pool: PagePool, grants: GrantTable<H>) -> Self {
        Disk {
            name,
            links: (0..vcpus).map(|_| Mutex::default()).collect(),
            rings: AtomicUsize::new(0),
            properties: Mutex::new(None),
            sectors: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            discards: Default::default(),
            held: AtomicBool::new(false),
            served: Mutex::default(),
            failure: Once::new(),
            task: AtomicWaker::new(),
            claims: Arc::default(),
            flushes: Arc::default(),
            resized: Mutex::default(),
            kept: Mutex::default(),
            pool,
            grants,
        }
    }

    /// Returns the domain's grant table.
    pub fn grants(&self) -> &GrantTable<H> {
        &self.grants
    }

    /// Returns the link of that number.
    ///
    /// # Panics
    /// If the driver domain has no more vCPUs than that.
    pub fn link(&self, number: usize) -> &Mutex<Link<H>> {
        &self.links[number]
    }

    /// Returns the links, one for each vCPU. The first ones have a ring while a backend is connected.
    pub fn links(&self) -> &[Mutex<Link<H>>] {
        &self.links
    }

    /// Has all queues use the first `rings` links, none of which is in use yet.
    pub fn use_rings(&self, rings: usize) -> Result<(), NotShared> {
        // A queue that is opened meanwhile is moved, too, or finds the new number once it has the link.
        self.rings.store(rings, Ordering::Release);
        assign(&self.links, rings)
    }

    /// Returns whether a guest uses it.
    pub fn is_in_use(&self) -> bool {
        self.claims.count() > 0
    }

    /// Returns the number of guests' disks that use it.
    pub fn users(&self) -> usize {
        self.claims.count()
    }

    /// Returns whether a backend serves it now.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Returns the domain that served it last, and the number of times that a backend connected.
    pub fn served(&self) -> (DomId, u64) {
        *self.served.lock()
    }

    /// Returns counts of the requests of all guests that use it, since it was attached.
    pub fn counts(&self) -> RingCounts {
        let mut all = RingCounts::default();
        let links = self.links.iter();
        links.for_each(|link| all += link.lock().counts());
        all
    }

    /// Returns the properties that its backend published last.
    pub fn properties(&self) -> Option<Properties> {
        self.properties.lock().clone()
    }

    /// Returns its size, in sectors of 512 bytes.
    #[inline]
    pub fn sectors(&self) -> Sector {
        Sector(self.sectors.load(Ordering::Relaxed))
    }

    /// Notes its size, and wakes the guests' disks to tell them.
    pub fn resize(&self, sectors: Sector) {
        if let Some(properties) = &mut *self.properties.lock() {
            properties.geometry.sectors = sectors;
        }
        self.sectors.store(sectors.0, Ordering::Relaxed);
        let waiting = self.resized.lock().take();
        waiting.for_each(Waker::wake);
    }

    /// Notes that a backend, in that domain, serves it.
    pub fn connected(&self, backend: DomId, properties: Properties) {
        let (_, times) = self.served();
        *self.served.lock() = (backend, times + 1);
        let sectors = properties.geometry.sectors;
        let discard = properties.geometry.discard;
        let takes = [discard.is_some(), discard.is_some_and(|it| it.secure)];
        for (kept, takes) in self.discards.iter().zip(takes) {
            kept.store(takes, Ordering::Relaxed);
        }
        *self.properties.lock() = Some(properties);
        self.resize(sectors);
        self.connected.store(true, Ordering::Release);
    }

    /// Returns whether the backend that connected last takes discards, or secure ones.
    fn takes_discards(&self, secure: bool) -> bool {
        self.discards[usize::from(secure)].load(Ordering::Relaxed)
    }

    /// Notes that no backend serves it. The last one may still use the queues' memory.
    pub fn disconnected(&self) {
        self.held.store(true, Ordering::Release);
        self.connected.store(false, Ordering::Release);
    }

    /// Notes that no backend uses the queues' memory any more.
    pub fn let_go(&self) {
        self.held.store(false, Ordering::Release);
    }

    /// Returns whether a backend that is gone may still use the queues' memory.
    #[inline]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Keeps rings that a backend which is gone may still use. Nothing that the requests on them name is used again before it
    /// has unmapped them.
    pub fn keep_rings(&self, rings: Vec<SharedMemory<H>>) {
        self.kept.lock().extend(rings);
    }

    /// Returns the count of its flushes.
    pub fn flushes(&self) -> &Flushes {
        &self.flushes
    }

    /// Returns whether a write was acknowledged to a guest that is not durable yet.
    pub fn has_unflushed(&self) -> bool {
        let offered = self.properties().is_some_and(|it| it.geometry.flush);
        let mut links = self.links.iter();
        offered && links.any(|link| link.lock().clients().iter().any(RingClient::has_unflushed))
    }

    /// Notes that writes that were acknowledged and are not durable may be lost. Returns whether there are any.
    pub fn lose_unflushed(&self) -> bool {
        if !self.has_unflushed() {
            return false;
        }
        for link in &self.links {
            let mut link = link.lock();
            link.clients()
                .iter_mut()
                .for_each(RingClient::lose_unflushed);
        }
        true
    }

    /// Gives it up because the backend broke the protocol: its task fails all requests.
    #[cold]
    pub fn note_violation(&self, violation: BlkifViolation) {
        self.fail(violation.to_string());
    }

    /// Gives it up for good: all requests of the guests that use it fail.
    pub fn fail(&self, reason: String) {
        self.failure.call_once(|| reason);
        self.task.wake();
    }

    /// Returns the reason why it was given up.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Keeps the waker of its task.
    pub fn wake_task_with(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// Opens it for a guest, unless another guest's use of it forbids that. `owner` names the guest's disk for
    /// messages.
    pub fn open(
        self: &Arc<Self>,
        access: Access,
        shared: bool,
        owner: &str,
    ) -> Result<VbdDevice<H>, InUse> {
        let claim = self.claims.take(access, shared, owner)?;
        Ok(VbdDevice(Arc::new(OpenedVbd {
            watcher: self.resized.lock().number(),
            disk: self.clone(),
            access,
            claim: Some(claim),
            geometry: self.properties().map(|properties| properties.geometry),
        })))
    }
}

/// A guest's claim on a disk. The claim lasts until this value and all queues are dropped.
pub struct OpenedVbd<H: Hypervisor> {
    disk: Arc<Disk<H>>,
    access: Access,
    claim: Option<Claim>,
    watcher: u64,
    /// The disk's properties when it was opened; its size may change.
    geometry: Option<Geometry>,
}

impl<H: Hypervisor> OpenedVbd<H> {
    /// Returns the disk.
    #[inline]
    pub fn disk(&self) -> &Disk<H> {
        &self.disk
    }

    /// Returns the access that the guest has.
    #[inline]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns the unit in which the disk is addressed.
    #[inline]
    pub fn sector_size(&self) -> SectorSize {
        self.geometry
            .map_or(SectorSize::B512, |geometry| geometry.sector_size)
    }

    /// Returns whether the backend can be asked to make data durable.
    pub fn flushes(&self) -> bool {
        self.geometry.is_some_and(|geometry| geometry.flush)
    }

    /// Returns whether the guest may discard, or discard securely, now: a backend that has connected since may take
    /// less than the guest was offered.
    pub fn discards(&self, secure: bool) -> bool {
        self.access == Access::ReadWrite
            && self.discard_limits().is_some()
            && self.disk.takes_discards(secure)
    }

    fn discard_limits(&self) -> Option<DiscardLimits> {
        self.geometry?.discard
    }
}

impl<H: Hypervisor> Drop for OpenedVbd<H> {
    fn drop(&mut self) {
        self.disk.resized.lock().forget(self.watcher);
        drop(self.claim.take());
        // The task detaches a disk that is to be detached once no guest uses it.
        self.disk.task.wake();
    }
}

/// Returns the number of pages of each of `queues` queues of a guest's disk. They are enough for one of the largest
/// requests, however many queues there are: beyond twelve queues, a disk has more than [`DISK_PAGES`].
fn queue_pages(queues: usize) -> usize {
    let queues = queues.max(1).next_power_of_two();
    (DISK_PAGES / queues).max(REQUEST_PAGES + 1)
}

/// A disk of our own, as a block device.
pub struct VbdDevice<H: Hypervisor>(Arc<OpenedVbd<H>>);

impl<H: Hypervisor> VbdDevice<H> {
    fn queue(&self, context: &QueueContext) -> Result<VbdQueue<H>, NotShared> {
        let opened = &self.0;
        let disk = &opened.disk;
        let vcpu = context.vcpu.0 as usize;
        let ring = || ring_of(vcpu, disk.rings.load(Ordering::Acquire));
        let pages = queue_pages(context.queues);
        let depth = depth_of(context.depth, pages);
        let (number, mut link) = loop {
            let number = ring();
            let link = disk.link(number).lock();
            if number == ring() {
                break (number, link);
            }
        };
        let memory = || SharedMemory::new(&disk.pool, &disk.grants, pages);
        let client = link.open((number, vcpu), depth, &disk.flushes, memory)?;
        let client = link.client(client);
        let location = client.location().clone();
        // The memory may be that of a queue that was closed, with more pages, or fewer.
        let memory = client.memory();
        let memory = (memory.base(), memory.pages());
        drop(link);
        let queue = VbdQueue::new(opened.clone(), location, memory, depth);
        queue.map_err(|no| NotShared::NoMemory { bytes: no.bytes })
    }
}

impl<H: Hypervisor> BlockDevice for VbdDevice<H> {
    fn geometry(&self) -> Geometry {
        let unknown = Geometry {
            sectors: Sector(0),
            sector_size: SectorSize::B512,
            physical_sector_size: SectorSize::B512,
            read_only: true,
            flush: false,
            discard: None,
        };
        let read_only = self.0.access == Access::ReadOnly;
        Geometry {
            sectors: self.0.disk.sectors(),
            read_only,
            discard: self.0.discard_limits().filter(|_| !read_only),
            ..self.0.geometry.unwrap_or(unknown)
        }
    }

    fn open_queue<'a>(&'a self, context: &QueueContext) -> OpenQueue<'a> {
        match self.queue(context) {
            Ok(queue) => opened(queue),
            Err(NotShared::NoMemory { bytes }) => not_opened(OpenQueueError::NoMemory { bytes }),
            Err(error) => not_opened(OpenQueueError::Failed(error.to_string())),
        }
    }

    fn on_change(&self, waker: &Waker) {
        self.0.disk.resized.lock().wait(self.0.watcher, waker);
    }
}
