//! The backend as a whole: finds the disks that the toolstack attaches and gives each a task.

use crate::engine::Options;
use crate::error_nodes::ErrorNodes;
use crate::frontends::Frontends;
use crate::retry::{PAUSE, persist};
use crate::statistics::Statistics;
use crate::vbd;
use crate::vbd::identity::{BACKEND_ROOT, VbdId};
use crate::vbd::published::Limits;
use crate::vcpus::Vcpus;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_executor::{Flag, Handle, Remote, Signal};
use bulkhead_grant::Region;
use bulkhead_images::Catalog;
use bulkhead_xen::{Hypervisor, Instant};
use bulkhead_xenstore_client::{Client, Error, Path};
use core::cell::RefCell;
use core::convert::Infallible;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};

/// How often the end of the last disk is looked for while closing.
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// What all disks share.
pub struct Backend<H: Hypervisor> {
    /// The executor of the first vCPU, on which the control plane runs.
    pub handle: Handle<H>,
    /// The vCPUs that serve queues.
    pub vcpus: Vcpus<H>,
    /// xenstore.
    pub store: Client,
    /// The address space for frontends' pages.
    pub region: Region<H>,
    /// What can be served.
    pub catalog: Catalog,
    /// How much a frontend may ask for.
    pub limits: Limits,
    /// How queues are served.
    pub options: Options,
    /// What the connected disks count.
    pub statistics: Statistics,
    /// Who is told of changes in frontends' directories.
    pub frontends: Frontends,
    /// What operators are told.
    pub errors: ErrorNodes,
    /// Set when the driver domain is to end: every disk closes.
    pub closing: Flag,
    /// The disks that have a task, and how to nudge it.
    disks: RefCell<BTreeMap<VbdId, Signal>>,
}

impl<H: Hypervisor> Backend<H> {
    /// A backend that serves nobody yet.
    pub fn new(handle: Handle<H>, store: Client, region: Region<H>, catalog: Catalog) -> Rc<Self> {
        let vcpus = vec![handle.remote()];
        Self::with(vcpus, handle, store, region, catalog, Options::default())
    }

    /// As [`new`](Self::new), serving as the operator wants it, on these vCPUs.
    pub fn with(
        vcpus: Vec<Remote<H>>,
        handle: Handle<H>,
        store: Client,
        region: Region<H>,
        catalog: Catalog,
        options: Options,
    ) -> Rc<Self> {
        let vcpus = Vcpus::new(vcpus);
        let limits = Limits::for_vcpus(vcpus.count());
        let (statistics, frontends, errors, closing, disks) = Default::default();
        Rc::new(Backend {
            handle,
            vcpus,
            store,
            region,
            catalog,
            limits,
            options,
            statistics,
            frontends,
            errors,
            closing,
            disks,
        })
    }

    /// How many disks there are.
    pub fn disks(&self) -> usize {
        self.disks.borrow().len()
    }

    /// Closes every disk, after finishing what is in flight, and waits until that is done.
    pub async fn close(&self) {
        self.closing.set();
        while self.disks() > 0 {
            self.handle.sleep(CLOSE_POLL).await;
        }
    }

    /// Serves every disk that the toolstack attaches. `ready` is called once attaches are seen.
    /// Only returns if xenstore cannot be used any more; what is connected is served even then.
    pub async fn serve(self: &Rc<Self>, ready: impl FnOnce()) -> Result<Infallible, Error> {
        let Err(error) = self.serve_with_xenstore(ready).await;
        log::error!(
            "no disk can be attached or detached any more: {error}; {} connected disk(s) are served on",
            self.statistics.disks().len()
        );
        // Each is to know.
        self.disks.borrow().values().for_each(Signal::raise);
        Err(error)
    }

    async fn serve_with_xenstore(
        self: &Rc<Self>,
        ready: impl FnOnce(),
    ) -> Result<Infallible, Error> {
        // The directory need not be there yet: the first attach makes it.
        let set = async || self.store.watch(BACKEND_ROOT).await;
        let mut watch = persist(&self.handle, BACKEND_ROOT, set).await?;
        let backend = self.clone();
        self.handle.spawn(async move {
            let (errors, handle) = (&backend.errors, &backend.handle);
            errors.follow_guests(handle, &backend.store).await;
        });
        ready();
        // When to list all disks once more, which xenstored has refused.
        let mut again: Option<Instant> = None;
        loop {
            let listing = match again {
                None => self.follow(watch.next().await?),
                Some(at) => {
                    let pause = pin!(self.handle.sleep_until(at));
                    match select(pin!(watch.next()), pause).await {
                        Either::Left((event, _)) => self.follow(event?),
                        Either::Right(_) => true,
                    }
                }
            };
            if !listing {
                continue;
            }
            match self.look_at_all().await {
                Ok(()) => again = None,
                Err(error) if error.is_disconnected() => return Err(error),
                Err(error) => {
                    if again.is_none() {
                        log::error!("the disks cannot be listed, to be tried again: {error}");
                    }
                    again = Some(self.handle.now() + PAUSE);
                }
            }
        }
    }

    /// Looks at the disk that an event is about. Answers whether it may be about any of them.
    fn follow(self: &Rc<Self>, event: Path) -> bool {
        let id = VbdId::from_path(event.as_ref());
        if let Some(id) = id {
            self.look_at(id);
        }
        id.is_none()
    }

    /// Waits until no disk is connected.
    pub async fn none_connected(&self) {
        while !self.statistics.disks().is_empty() {
            self.handle.sleep(PAUSE).await;
        }
    }

    /// Something has changed at one disk.
    fn look_at(self: &Rc<Self>, id: VbdId) {
        let mut disks = self.disks.borrow_mut();
        if let Some(changed) = disks.get(&id) {
            return changed.raise();
        }
        if self.closing.is_set() {
            return;
        }
        let changed = Signal::default();
        disks.insert(id, changed.clone());
        let backend = self.clone();
        self.handle.spawn(async move {
            loop {
                vbd::live(&backend, id, &changed).await;
                // A disk that was attached again meanwhile has raised the signal of the old one.
                if !changed.take() || backend.closing.is_set() {
                    break;
                }
            }
            backend.disks.borrow_mut().remove(&id);
        });
    }

    /// Something has changed above the disks' own directories, or too much at once to be told.
    async fn look_at_all(self: &Rc<Self>) -> Result<(), Error> {
        for id in self.disks.borrow().keys() {
            self.disks.borrow()[id].raise();
        }
        let mut refused = Ok(());
        for guest in self.store.directory_or_empty(BACKEND_ROOT).await? {
            let guest = format!("{BACKEND_ROOT}/{guest}");
            let devices = match self.store.directory_or_empty(&guest).await {
                Ok(devices) => devices,
                Err(error) if error.is_disconnected() => return Err(error),
                // The other guests' disks are looked at all the same.
                Err(error) => {
                    refused = Err(error);
                    continue;
                }
            };
            for device in devices {
                if let Some(id) = VbdId::from_path(&format!("{guest}/{device}")) {
                    self.look_at(id);
                }
            }
        }
        refused
    }
}
