//! The backend as a whole: finds the disks that the toolstack attaches and gives each a task.

use crate::engine::Options;
use crate::frontends::Frontends;
use crate::statistics::Statistics;
use crate::vbd::identity::{BACKEND_ROOT, VbdId};
use crate::vbd::published::Limits;
use crate::vbd::{self, ErrorNodes};
use crate::vcpus::Vcpus;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_executor::{Flag, Handle, Remote, Signal};
use bulkhead_grant::Region;
use bulkhead_images::Catalog;
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::{Client, Error};
use core::cell::RefCell;
use core::convert::Infallible;
use core::time::Duration;

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
    /// Only returns if xenstore cannot be used any more.
    pub async fn serve(self: &Rc<Self>, ready: impl FnOnce()) -> Result<Infallible, Error> {
        // The directory need not be there yet: the first attach makes it.
        let mut watch = self.store.watch(BACKEND_ROOT).await?;
        ready();
        loop {
            let path = watch.next().await?;
            match VbdId::from_path(path.as_ref()) {
                Some(id) => self.look_at(id),
                None => self.look_at_all().await?,
            }
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
        for guest in self.store.directory_or_empty(BACKEND_ROOT).await? {
            let guest = format!("{BACKEND_ROOT}/{guest}");
            for device in self.store.directory_or_empty(&guest).await? {
                if let Some(id) = VbdId::from_path(&format!("{guest}/{device}")) {
                    self.look_at(id);
                }
            }
        }
        Ok(())
    }
}
