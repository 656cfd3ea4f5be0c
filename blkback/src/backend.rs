//! The backend as a whole: finds the disks that the toolstack attaches and gives each a task.

use crate::changes::{Changes, Stale};
use crate::device::{BACKENDS, DeviceId};
use crate::engine::QueueOptions;
use crate::frontends::is_within;
use crate::id::VbdId;
use crate::services::Services;
use crate::unserved;
use crate::vbd;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_executor::{Handle, VcpuSpawner};
use bulkhead_grant::Region;
use bulkhead_images::{Catalog, Stores};
use bulkhead_xen::{Hypervisor, Instant};
use bulkhead_xenbus::retry::{PAUSE, persist};
use bulkhead_xenstore_client::{Client, Error, Path};
use core::cell::RefCell;
use core::convert::Infallible;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};
use litemap::LiteMap;

/// The time between two looks for the end of the last disk while closing.
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// The backend: all disks, and the services that they share.
pub struct Backend<H: Hypervisor> {
    /// The services that the disks share.
    pub services: Rc<Services<H>>,
    /// The disks that have a task, and the changes that are reported to it.
    disks: RefCell<LiteMap<VbdId, Changes>>,
    /// The same of devices that are refused because their kind is not served here.
    unserved: RefCell<Vec<(DeviceId, Changes)>>,
}

impl<H: Hypervisor> Backend<H> {
    /// Returns a backend without any disk yet.
    pub fn new(handle: Handle<H>, store: Client, region: Region<H>, catalog: Catalog) -> Rc<Self> {
        let (vcpus, stores) = (vec![handle.spawner()], Stores::new(catalog));
        Self::with(
            vcpus,
            handle,
            store,
            region,
            stores,
            QueueOptions::default(),
        )
    }

    /// Returns a backend as [`new`](Self::new) does, which serves on these vCPUs with the operator's options.
    pub fn with(
        vcpus: Vec<VcpuSpawner<H>>,
        handle: Handle<H>,
        store: Client,
        region: Region<H>,
        stores: Stores,
        options: QueueOptions,
    ) -> Rc<Self> {
        let services = Services::new(vcpus, handle, store, region, stores, options);
        let (disks, unserved) = Default::default();
        Rc::new(Backend {
            services: Rc::new(services),
            disks,
            unserved,
        })
    }

    /// Returns the number of disks.
    pub fn disks(&self) -> usize {
        self.disks.borrow().len()
    }

    /// Returns the number of devices that are not served.
    pub fn unserved(&self) -> usize {
        self.unserved.borrow().len()
    }

    /// Closes every disk, after finishing what is in flight, and waits until that is done.
    pub async fn close(&self) {
        self.services.closing.set();
        while self.disks() > 0 {
            self.services.handle.sleep(CLOSE_POLL).await;
        }
    }

    /// Serves every disk that the toolstack attaches. `ready` is called once attaches are seen.
    /// Returns only if xenstore cannot be used any more; what is connected is served even then.
    pub async fn serve(self: &Rc<Self>, ready: impl FnOnce()) -> Result<Infallible, Error> {
        let Err(error) = self.serve_with_xenstore(ready).await;
        log::error!(
            "no disk can be attached or detached any more: {error}; {} connected disk(s) are served on",
            self.services.statistics.disks().len()
        );
        // Each disk's task has to find that out.
        self.disks.borrow().values().for_each(Changes::raise);
        Err(error)
    }

    async fn serve_with_xenstore(
        self: &Rc<Self>,
        ready: impl FnOnce(),
    ) -> Result<Infallible, Error> {
        // The directory need not be there yet: the first attach makes it.
        let set = async || self.services.store.watch(BACKENDS).await;
        let mut watch = persist(&self.services.handle, BACKENDS, set).await?;
        let backend = self.clone();
        self.services.handle.spawn(async move {
            let (errors, handle) = (&backend.services.errors, &backend.services.handle);
            errors.follow_guests(handle, &backend.services.store).await;
        });
        ready();
        let all = watch.path().clone();
        // When to list all devices once more, which xenstored has refused.
        let mut again: Option<Instant> = None;
        loop {
            let listing = match again {
                None => self.follow(watch.next().await?),
                Some(at) => {
                    let pause = pin!(self.services.handle.sleep_until(at));
                    match select(pin!(watch.next()), pause).await {
                        Either::Left((event, _)) => self.follow(event?),
                        Either::Right(_) => Some(all.clone()),
                    }
                }
            };
            let Some(directory) = listing else {
                continue;
            };
            match self.look_below(&directory).await {
                Ok(()) if directory == all => {
                    again = None;
                    self.forget_the_lost();
                }
                Ok(()) => {}
                Err(error) if error.is_disconnected() => return Err(error),
                Err(error) => {
                    if again.is_none() {
                        log::error!("the disks cannot be listed, to be tried again: {error}");
                    }
                    again = Some(self.services.handle.now() + PAUSE);
                }
            }
        }
    }

    /// Forgets the disks that were served before a crash and whose directories are gone by now: each other one has a
    /// task.
    fn forget_the_lost(&self) {
        #[cfg(feature = "recover")]
        {
            let disks = self.disks.borrow();
            let kept_queues = &self.services.kept_queues;
            kept_queues.settle_unless(&|id| disks.get(&id).is_some());
        }
    }

    /// Looks at the device that an event is about. Returns the directory to be listed, if the
    /// event may be about any of the devices in it.
    fn follow(self: &Rc<Self>, event: Path) -> Option<Path> {
        match DeviceId::from_path(event.as_ref()) {
            Some(device) => {
                let rest = event.as_str().strip_prefix(&device.backend_path());
                // Spelt in another way than libxl's, it may be about anything.
                let stale = rest.map_or(Stale::ALL, Stale::in_backend);
                self.look_at_device(device, stale);
            }
            None if may_hold_devices(event.as_ref()) => return Some(event),
            None => {}
        }
        None
    }

    /// Waits until no disk is connected.
    pub async fn none_connected(&self) {
        while !self.services.statistics.disks().is_empty() {
            self.services.handle.sleep(PAUSE).await;
        }
    }

    /// Reports to a disk's task what has changed, and starts the task if there is none.
    fn look_at(self: &Rc<Self>, id: VbdId, stale: Stale) {
        let mut disks = self.disks.borrow_mut();
        if let Some(changed) = disks.get(&id) {
            return changed.raise_for(stale);
        }
        if self.services.closing.is_set() {
            return;
        }
        let changed = Changes::default();
        disks.insert(id, changed.clone());
        let backend = self.clone();
        self.services.handle.spawn(async move {
            loop {
                #[cfg(feature = "recover")]
                backend.services.kept_queues.turn(id).await;
                vbd::live(&backend.services, id, &changed).await;
                #[cfg(feature = "recover")]
                backend.services.kept_queues.settle(id);
                // A disk that was attached again meanwhile has raised the signal of the old one.
                if !changed.take() || backend.services.closing.is_set() {
                    break;
                }
            }
            backend.services.admission.forget(id);
            backend.disks.borrow_mut().remove(&id);
        });
    }

    fn look_at_device(self: &Rc<Self>, device: DeviceId, stale: Stale) {
        match device.as_vbd() {
            _ if stale == Stale::NONE => {}
            Some(id) => self.look_at(id, stale),
            None => self.look_at_unserved(device),
        }
    }

    /// Reports a change to the task of a device that is not served, and starts the task if there is none.
    fn look_at_unserved(self: &Rc<Self>, device: DeviceId) {
        let mut unserved = self.unserved.borrow_mut();
        if let Some((_, changed)) = unserved.iter().find(|(known, _)| *known == device) {
            return changed.raise();
        }
        if self.services.closing.is_set() {
            return;
        }
        let changed = Changes::default();
        unserved.push((device.clone(), changed.clone()));
        let backend = self.clone();
        self.services.handle.spawn(async move {
            loop {
                unserved::refuse(&backend.services, &device, &changed).await;
                if !changed.take() || backend.services.closing.is_set() {
                    break;
                }
            }
            let mut unserved = backend.unserved.borrow_mut();
            unserved.retain(|(known, _)| *known != device);
        });
    }

    /// Looks at all devices below a path: something has changed above their own directories, or too much at
    /// once for single events.
    async fn look_below(self: &Rc<Self>, top: &Path) -> Result<(), Error> {
        let top = top.as_str();
        for (id, changed) in self.disks.borrow().iter() {
            if is_within(&id.backend_path(), top) {
                changed.raise();
            }
        }
        for (device, changed) in self.unserved.borrow().iter() {
            if is_within(&device.backend_path(), top) {
                changed.raise();
            }
        }
        let mut refused = Ok(());
        let mut directories = vec![top.to_string()];
        while let Some(directory) = directories.pop() {
            let names = match self.services.store.directory_or_empty(&directory).await {
                Ok(names) => names,
                Err(error) if error.is_disconnected() => return Err(error),
                // The other guests' devices are looked at all the same.
                Err(error) => {
                    refused = Err(error);
                    continue;
                }
            };
            for name in names {
                let path = format!("{directory}/{name}");
                match DeviceId::from_path(&path) {
                    Some(device) => self.look_at_device(device, Stale::ALL),
                    None if may_hold_devices(&path) => directories.push(path),
                    None => {}
                }
            }
        }
        refused
    }
}

/// Returns whether a path is that of all devices, of a kind, or of a kind's devices of one guest.
fn may_hold_devices(path: &str) -> bool {
    path.split('/').count() < 4
}
