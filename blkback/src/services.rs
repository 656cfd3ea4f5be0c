//! Services that all disks share.

use crate::admission::{Admission, Refused};
use crate::device::DeviceId;
use crate::engine::{Needs, QueueOptions};
use crate::error_nodes::ErrorNodes;
use crate::frontends::GuestFrontends;
use crate::guest_log::GuestLogs;
use crate::id::VbdId;
use crate::limits::Limits;
use crate::statistics::Statistics;
use crate::vcpus::Vcpus;
use alloc::vec::Vec;
use bulkhead_executor::{Flag, Handle, VcpuSpawner};
use bulkhead_grant::Region;
use bulkhead_images::{Catalog, Stores};
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::Client;
use log::Level;

/// Services that all disks share.
pub struct Services<H: Hypervisor> {
    /// The executor of the first vCPU, on which the control plane runs.
    pub handle: Handle<H>,
    /// The vCPUs that serve queues.
    pub vcpus: Vcpus<H>,
    /// xenstore.
    pub store: Client,
    /// The address space for frontends' pages.
    pub region: Region<H>,
    /// The stores that targets can name.
    pub stores: Stores,
    /// The most that a frontend may ask for.
    pub limits: Limits,
    /// The shares of memory, address space and grants that each disk has or may take.
    pub admission: Admission,
    /// The options with which queues are served.
    pub options: QueueOptions,
    /// The counters of the connected disks.
    pub statistics: Statistics,
    /// The watches on frontends' directories.
    pub frontends: GuestFrontends,
    /// The error nodes that operators read.
    pub errors: ErrorNodes,
    /// The guests' shares of the log.
    pub guest_logs: GuestLogs,
    /// The memory of connected disks for the time after a crash.
    #[cfg(feature = "recover")]
    pub kept_queues: crate::recovery::KeptQueues,
    /// Set when the driver domain is to end: every disk closes.
    pub closing: Flag,
}

impl<H: Hypervisor> Services<H> {
    /// Returns services without any disk yet, which serve on these vCPUs with the operator's options.
    pub fn new(
        vcpus: Vec<VcpuSpawner<H>>,
        handle: Handle<H>,
        store: Client,
        region: Region<H>,
        stores: Stores,
        options: QueueOptions,
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
            stores,
            limits,
            admission: Admission::default(),
            options,
            statistics,
            frontends,
            errors,
            guest_logs,
            #[cfg(feature = "recover")]
            kept_queues: Default::default(),
            closing,
        }
    }

    /// Returns the images of the ramdisk.
    pub fn catalog(&self) -> &Catalog {
        self.stores.catalog()
    }

    /// Returns the offer to a disk now.
    pub fn offer(&self, id: VbdId) -> Limits {
        let free = self.region.free_pages();
        self.admission.offer(id, self.limits(), free)
    }

    /// Returns the most that any frontend may ask for.
    fn limits(&self) -> Limits {
        #[cfg(feature = "recover")]
        if self.kept_queues.keeps() {
            // Rings of more pages are not kept.
            return Limits {
                ring_page_order: 0,
                ..self.limits
            };
        }
        self.limits
    }

    /// Lets a disk take what its frontend's queues need, which was served before the crash.
    #[cfg(feature = "recover")]
    pub fn admit_again(&self, id: VbdId, needs: Needs) -> Result<(), Refused> {
        let free = self.region.free_pages();
        self.admission.admit_again(id, needs, free)
    }

    /// Lets a disk take what its frontend's queues need.
    pub fn admit(&self, id: VbdId, needs: Needs) -> Result<(), Refused> {
        self.admission.admit(id, needs, self.region.free_pages())
    }

    /// Writes the error node of a device, whose frontend's directory is `frontend`. If that fails, the log alone has the
    /// error, and says so as often as its guest may have a line: the guest decides how often there is an error.
    pub async fn write_error(&self, device: &DeviceId, frontend: &str, text: &str) {
        let written = self.errors.write(&self.store, device, frontend, text);
        if let Err(error) = written.await {
            let now = self.handle.now();
            let line = format_args!("{device}: the error node could not be written: {error}");
            let log = self.guest_logs.of(device.frontend, now);
            log.say(now, Level::Warn, line);
        }
    }
}
