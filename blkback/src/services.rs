//! What all disks share, and the one place where they find it.

use crate::admission::{Admission, Refused};
use crate::engine::{Needs, Options};
use crate::error_nodes::ErrorNodes;
use crate::frontends::Frontends;
use crate::guest_log::GuestLogs;
use crate::id::VbdId;
use crate::limits::Limits;
use crate::statistics::Statistics;
use crate::vcpus::Vcpus;
use alloc::vec::Vec;
use bulkhead_executor::{Flag, Handle, VcpuSpawner};
use bulkhead_grant::Region;
use bulkhead_images::Catalog;
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::Client;

/// What all disks share.
pub struct Services<H: Hypervisor> {
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
    /// Who may take how much of it, and of the memory.
    pub admission: Admission,
    /// How queues are served.
    pub options: Options,
    /// What the connected disks count.
    pub statistics: Statistics,
    /// Who is told of changes in frontends' directories.
    pub frontends: Frontends,
    /// What operators are told.
    pub errors: ErrorNodes,
    /// What the log says of guests.
    pub guest_logs: GuestLogs,
    /// Set when the driver domain is to end: every disk closes.
    pub closing: Flag,
}

impl<H: Hypervisor> Services<H> {
    /// Returns services that serve nobody yet, as the operator wants it, on these vCPUs.
    pub fn new(
        vcpus: Vec<VcpuSpawner<H>>,
        handle: Handle<H>,
        store: Client,
        region: Region<H>,
        catalog: Catalog,
        options: Options,
    ) -> Self {
        let vcpus = Vcpus::new(vcpus);
        let limits = Limits {
            persistent: options.data_path.offers_persistent(),
            ..Limits::for_vcpus(vcpus.count())
        };
        let (statistics, frontends, errors, guest_logs, closing) = Default::default();
        Services {
            handle,
            vcpus,
            store,
            region,
            catalog,
            limits,
            admission: Admission::default(),
            options,
            statistics,
            frontends,
            errors,
            guest_logs,
            closing,
        }
    }

    /// Returns what a disk is offered now.
    pub fn offer(&self, id: VbdId) -> Limits {
        let free = self.region.free_pages();
        self.admission.offer(id, self.limits, free)
    }

    /// Lets a disk take what the queues need that its frontend has made.
    pub fn admit(&self, id: VbdId, needs: Needs) -> Result<(), Refused> {
        self.admission.admit(id, needs, self.region.free_pages())
    }
}
