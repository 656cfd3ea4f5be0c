//! The configuration of a simulated machine.

use super::content;
use bulkhead_blkback::engine::{DataPath, QueueOptions};
use bulkhead_images::testing::Layer;
use bulkhead_images::{DiscardMode, Store};
use bulkhead_nvme_testing::Config;
use bulkhead_xen_sim::DomainKind;
use bulkhead_xen_sim::pci::FunctionConfig;

/// The configuration of a simulated machine.
pub struct Setup {
    /// Names and contents of the images.
    pub images: Vec<(String, Vec<u8>)>,
    /// A layer over every device that is opened.
    pub layer: Option<Layer>,
    /// Stores beside those of the images.
    pub stores: Vec<Box<dyn Store>>,
    /// The way in which Xen runs the driver domain.
    pub kind: DomainKind,
    /// Its vCPUs.
    pub vcpus: u32,
    /// The driver domain's address space for foreign pages.
    pub region_pages: usize,
    /// The entries of its grant table.
    pub grant_entries: u32,
    /// The options of its engine.
    pub options: QueueOptions,
    /// Images can have more memory from Xen, and give it back.
    pub reservation: bool,
    /// Memory that the driver domain may have later (`maxmem=`), in pages.
    pub memory_later: usize,
    /// The driver domain serves disks of its own (`vbd:`).
    pub own_disks: bool,
    /// The NVMe controller of the PV driver domain (`nvme:03:00.0`), if it has one: its PCI function, and the device
    /// behind that.
    pub controller: Option<(FunctionConfig, Config)>,
    /// The NBD server (`nbd:10.0.0.2`), if there is one.
    pub server: Option<bulkhead_nbd_testing::Config>,
    /// True if the server is reached over a network interface of the driver domain's own.
    pub network: bool,
    /// The virtio-blk device of the PV driver domain (`virtio:04:00.0`), if it has one.
    pub virtio: Option<bulkhead_virtio_testing::Config>,
    /// The driver domain starts again in place after a crash.
    #[cfg(feature = "recover")]
    pub recover: bool,
    /// The start of the damage to the ramdisk: bytes from here on are overwritten.
    pub damage: Option<usize>,
}

/// Bytes of the images `disk0`, `disk1`, … of [`Setup::default`].
pub const IMAGE_SIZE: usize = 128 * 1024;
/// The number of their sectors.
pub const SECTORS: u64 = (IMAGE_SIZE / 512) as u64;

impl Default for Setup {
    fn default() -> Self {
        Setup {
            images: (0..6)
                .map(|number| (format!("disk{number}"), content(number, IMAGE_SIZE)))
                .collect(),
            layer: None,
            stores: Vec::new(),
            kind: DomainKind::Pvh,
            vcpus: 1,
            region_pages: 32 * 1024,
            grant_entries: 2048,
            options: QueueOptions::default(),
            reservation: false,
            memory_later: 0,
            own_disks: false,
            controller: None,
            server: None,
            network: false,
            virtio: None,
            #[cfg(feature = "recover")]
            recover: false,
            damage: None,
        }
    }
}

impl Setup {
    /// Returns the default, whose images give memory back to Xen when a guest discards.
    pub fn giving_back() -> Setup {
        Setup {
            reservation: true,
            options: QueueOptions {
                discard: DiscardMode::Release,
                ..QueueOptions::default()
            },
            ..Setup::default()
        }
    }

    /// Returns the default, with one way to guests' pages.
    pub fn on_path(data_path: DataPath) -> Setup {
        Setup {
            options: QueueOptions {
                data_path,
                ..QueueOptions::default()
            },
            ..Setup::default()
        }
    }
}

/// Every way to a guest's pages, and whether the guest keeps them granted.
pub const PATHS: [(DataPath, bool); 3] = [
    (DataPath::Auto, true),
    (DataPath::Map, false),
    (DataPath::Copy, false),
];
