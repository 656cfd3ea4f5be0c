//! All disks of our own: finds those that the toolstack attaches, gives each a task, and opens them for guests.

use crate::counts::RingCounts;
use crate::device::Disk;
use crate::lifecycle::live;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, Signal, VcpuSpawner, Waiters};
use bulkhead_grant::{GrantTable, PagePool, TableOnDemand};
use bulkhead_xen::{DomId, Hypervisor, KeptPorts, Port, Reservation};
use bulkhead_xenbus::DiskName;
use bulkhead_xenbus::retry::persist;
use bulkhead_xenstore_client::{Client, Error};
use core::cell::RefCell;
use core::convert::Infallible;
use core::task::Waker;
use core::time::Duration;
use litemap::LiteMap;
use spin::Mutex;

/// The directory of this domain's own disks, relative to its home.
const DISKS: &str = "device/vbd";

/// The time after which ports of a boot before this one are closed that no disk has taken over. They cost nothing until
/// then, and a busy xenstored takes seconds for what a disk reads before it can take one.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(60);

/// The disks of this domain's own.
pub struct Frontends<H: Hypervisor> {
    handle: Handle<H>,
    store: Client,
    vcpus: Vec<VcpuSpawner<H>>,
    pool: PagePool,
    grants: TableOnDemand<H>,
    kept: KeptPorts,
    /// Ports of a boot before this one that are still open, and that no disk has taken over.
    left: RefCell<Vec<Port>>,
    /// The domains with backends that stayed connected to rings of the boot before.
    gone_on: RefCell<Vec<DomId>>,
    disks: RefCell<LiteMap<u32, Followed<H>>>,
    /// The tasks that wait for a disk to connect.
    waiting: Mutex<Waiters>,
}

/// A disk that has a task, and the signal that tells the task of changes.
struct Followed<H: Hypervisor> {
    disk: Arc<Disk<H>>,
    changed: Signal,
}

impl<H: Hypervisor> Frontends<H> {
    /// Returns an empty list of disks, which [`follow`](Self::follow) fills. `handle` is of the vCPU that this is
    /// called on, requests are served on `vcpus`, and rings and data lie in `memory` and are granted by `grants`. A crash
    /// leaves the ports in `kept` open. Must be called before this boot has opened a port.
    pub fn new(
        handle: Handle<H>,
        store: Client,
        vcpus: Vec<VcpuSpawner<H>>,
        memory: Arc<dyn Reservation>,
        grants: TableOnDemand<H>,
        kept: KeptPorts,
    ) -> Rc<Self> {
        let is_open = |port: &Port| handle.hypervisor().is_connected(*port) == Ok(true);
        let left = kept.iter().filter(|_| grants.was_left()).filter(is_open);
        let left = RefCell::new(left.collect());
        // Ports that a disk takes over are added again.
        kept.clear();
        Rc::new(Frontends {
            kept,
            left,
            gone_on: RefCell::default(),
            handle,
            store,
            vcpus,
            pool: PagePool::new(memory),
            grants,
            disks: RefCell::default(),
            waiting: Mutex::default(),
        })
    }

    /// Connects every disk that the toolstack attaches. Returns only if xenstore cannot be used any more;
    /// connected disks stay in use even then.
    pub async fn follow(self: &Rc<Self>) -> Result<Infallible, Error> {
        if !self.left.borrow().is_empty() {
            let all = self.clone();
            self.handle.spawn(async move {
                all.handle.sleep(TAKEN_UP_WITHIN).await;
                for port in all.left.take() {
                    // Cannot fail: the port is open.
                    let _ = all.handle.hypervisor().close_port(port);
                }
            });
        }
        persist(&self.handle, DISKS, async || self.follow_watch().await).await
    }

    async fn follow_watch(self: &Rc<Self>) -> Result<Infallible, Error> {
        // The directory need not be there yet.
        let mut watch = self.store.watch(DISKS).await?;
        loop {
            let event = watch.next().await?;
            let below = event.as_str().strip_prefix(DISKS).unwrap_or_default();
            match below.strip_prefix('/') {
                None => {
                    for name in self.store.directory_or_empty(DISKS).await? {
                        self.look_at(&name);
                    }
                    let known: Vec<String> =
                        self.disks.borrow().keys().map(u32::to_string).collect();
                    known.iter().for_each(|name| self.look_at(name));
                }
                Some(below) => match below.split_once('/') {
                    None => self.look_at(below),
                    Some((name, "state" | "backend" | "backend-id")) => self.look_at(name),
                    // Written by this end.
                    Some(_) => {}
                },
            }
        }
    }

    /// Wakes a disk's task because something may have changed, and starts the task if there is none.
    fn look_at(self: &Rc<Self>, name: &str) {
        let Ok(device) = name.parse() else {
            return;
        };
        let mut disks = self.disks.borrow_mut();
        if let Some(followed) = disks.get(&device) {
            return followed.changed.raise();
        }
        let Some(grants) = self.grants() else {
            return log::error!("{DISKS}/{device}: Xen gives no grant table");
        };
        let changed = Signal::default();
        let disk = self.disk(device, grants);
        let followed = Followed {
            disk: disk.clone(),
            changed: changed.clone(),
        };
        disks.insert(device, followed);
        let all = self.clone();
        self.handle.spawn(async move {
            let mut disk = disk;
            loop {
                if let Err(error) = live(&all, device, disk, &changed).await {
                    log::error!("{DISKS}/{device}: {error}");
                }
                if !changed.take() {
                    break;
                }
                let Some(grants) = all.grants() else {
                    break;
                };
                disk = all.disk(device, grants);
                if let Some(followed) = all.disks.borrow_mut().get_mut(&device) {
                    followed.disk = disk.clone();
                }
            }
            all.disks.borrow_mut().remove(&device);
            all.something_changed();
        });
    }

    fn disk(&self, device: u32, grants: GrantTable<H>) -> Arc<Disk<H>> {
        let name = DiskName::of(device).map_or_else(|| device.to_string(), |name| name.to_string());
        Arc::new(Disk::new(name, self.vcpus.len(), self.pool.clone(), grants))
    }

    /// Returns the disk of that name (`xvda`) or device number (`51712`).
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Disk<H>>> {
        let disks = self.disks.borrow();
        let mut disks = disks.iter();
        let named = |device: &u32, disk: &Disk<H>| disk.name == name || device.to_string() == name;
        let found = disks.find(|(device, followed)| named(device, &followed.disk));
        found.map(|(_, followed)| followed.disk.clone())
    }

    /// Returns all disks.
    pub fn disks(&self) -> Vec<Arc<Disk<H>>> {
        let disks = self.disks.borrow();
        disks
            .values()
            .map(|followed| followed.disk.clone())
            .collect()
    }

    /// Returns a line about each disk, for the operator.
    pub fn lines(&self) -> Vec<String> {
        let line = |disk: &Arc<Disk<H>>| {
            let (backend, connections) = disk.served();
            let state = match disk.failure() {
                Some(failure) => format!("given up: {failure}"),
                None if disk.is_connected() => format!("connected to domain {backend}"),
                None => "not connected".to_string(),
            };
            let RingCounts {
                requests,
                errors,
                outstanding,
                waiting,
            } = disk.counts();
            format!(
                "disk vbd:{}, {state}, {} sectors, connections={connections} requests={requests} \
                 errors={errors} outstanding={outstanding} waiting={waiting}",
                disk.name,
                disk.sectors(),
            )
        };
        self.disks().iter().map(line).collect()
    }

    /// Wakes the tasks that wait for a disk.
    pub(crate) fn something_changed(&self) {
        let waiting = self.waiting.lock().take();
        waiting.for_each(Waker::wake);
    }

    /// Waits until `look` returns a value; calls it again whenever a disk has changed.
    pub(crate) async fn until<T>(&self, look: impl FnMut() -> Option<T>) -> T {
        Waiters::until(&self.waiting, look).await
    }

    pub(crate) fn handle(&self) -> &Handle<H> {
        &self.handle
    }

    pub(crate) fn store(&self) -> &Client {
        &self.store
    }

    pub(crate) fn vcpus(&self) -> &[VcpuSpawner<H>] {
        &self.vcpus
    }

    pub(crate) fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Returns whether the domain has started again in place after a crash, so that backends may still be connected to a boot
    /// before this one.
    pub(crate) fn was_left(&self) -> bool {
        self.grants.was_left()
    }

    /// Returns the ports that a crash leaves open.
    pub(crate) fn kept(&self) -> KeptPorts {
        self.kept
    }

    /// Gives the caller ports that a boot before this one has left open. Returns false, and gives none, if one of
    /// `ports` is not such a port.
    pub(crate) fn take_left(&self, ports: &[Port]) -> bool {
        let mut left = self.left.borrow_mut();
        let all = ports.iter().all(|port| left.contains(port));
        left.retain(|port| !all || !ports.contains(port));
        all
    }

    /// Notes that a backend in that domain stayed connected to rings of the boot before: it may keep pages of that boot
    /// mapped for good.
    pub(crate) fn note_gone_on(&self, backend: DomId) {
        self.gone_on.borrow_mut().push(backend);
    }

    /// Returns whether there is such a backend in a domain.
    pub(crate) fn has_gone_on(&self, backend: DomId) -> bool {
        self.gone_on.borrow().contains(&backend)
    }

    /// Returns the domain's grant table, which is taken when the first disk is there.
    pub(crate) fn grants(&self) -> Option<GrantTable<H>> {
        self.grants.get()
    }
}
