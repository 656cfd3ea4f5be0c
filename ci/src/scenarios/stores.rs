//! Stores of all kinds, of which a driver domain that crashes or is upgraded serves several at once.

use super::nbd_tls::shared_elf;
use crate::config::Kind;
use crate::host::pci::{self, Controller, PciDevice};
use crate::testbed::images::Image;
use crate::testbed::network::{CONNECTED, DRIVER_DOMAIN, Server};
use crate::testbed::storage::{
    Running, Storage, controller_started, device_number, own_disk_connected,
};
use crate::testbed::tls_servers::TlsServer;
use crate::testbed::{MINUTE, Testbed};
use anyhow::Result;

/// What a guest's disk lies on, 16 MiB or more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Store {
    /// An image of that name in the driver domain's memory.
    Image(&'static str),
    /// A disk of the driver domain's own, which dom0 serves.
    Own(&'static str),
    /// An export of a server in dom0, which the driver domain reaches over a network.
    Export(Server, &'static str),
    /// The same of a server that requires TLS.
    TlsExport(TlsServer, &'static str),
    /// The first namespace of an NVMe controller that was passed through, or a virtio-blk device.
    Device(PciDevice),
}

/// Images in the driver domain's memory.
pub(super) const IMAGES: [Store; 2] = [Store::Image("written"), Store::Image("read")];

/// Disks of the driver domain's own.
pub(super) const OWN_DISKS: [Store; 2] = [Store::Own("xvda"), Store::Own("xvdb")];

/// Exports of nbdkit, which takes several connections to one export at a time, and of qemu-nbd with one.
pub(super) const EXPORTS: [Store; 2] = [
    Store::Export(Server::Files, "root-bob"),
    Store::Export(Server::Single, "qcow"),
];

/// The same two servers with TLS; qemu-nbd requires a certificate of its clients.
pub(super) const TLS_EXPORTS: [Store; 2] = [
    Store::TlsExport(TlsServer::Files, ""),
    Store::TlsExport(TlsServer::Qcow2, "qcow"),
];

/// Two NVMe controllers.
pub(super) const CONTROLLERS: [Store; 2] =
    [Store::Device(pci::NVME), Store::Device(pci::TWO_NAMESPACES)];

/// An NVMe controller, and a virtio-blk device beside it.
pub(super) const VIRTIO: [Store; 2] = [Store::Device(pci::NVME), Store::Device(pci::VIRTIO_BLK)];

impl Store {
    /// Returns the target that names it.
    pub(super) fn target(&self) -> String {
        match self {
            Self::Image(name) => format!("ram:{name}"),
            Self::Own(name) => format!("vbd:{name}"),
            Self::Export(server, export) => server.target(export),
            Self::TlsExport(server, export) => server.target(export),
            Self::Device(device) => {
                let kind = match device.controller {
                    Controller::Nvme(_) => "nvme",
                    Controller::VirtioBlk(_) => "virtio",
                };
                format!("{kind}:{}", device.short_name())
            }
        }
    }

    /// Waits until a driver domain has it.
    fn wait(&self, storage: &Running) -> Result<()> {
        let words = match self {
            Self::Image(_) => return Ok(()),
            Self::Own(name) => own_disk_connected(name),
            Self::Export(..) | Self::TlsExport(..) => CONNECTED.to_owned(),
            Self::Device(device) => match device.controller {
                Controller::Nvme(_) => controller_started(device),
                Controller::VirtioBlk(_) => format!("{}: ", self.target()),
            },
        };
        storage.wait_console(&words, MINUTE).map(drop)
    }
}

/// Makes these stores for a driver domain with that command line, which has `images` anyway.
pub(super) fn make<'l, 'h>(
    testbed: &'l Testbed<'h>,
    kind: Kind,
    cmdline: &str,
    stores: &[Store],
    mut images: Vec<Image>,
) -> Result<Storage<'l, 'h>> {
    let mut storage = testbed.storage(kind).cmdline(cmdline);
    let is_remote = |store: &Store| matches!(store, Store::Export(..) | Store::TlsExport(..));
    if stores.iter().any(is_remote) {
        testbed.network()?;
        storage = storage.on_network(&format!("ip={DRIVER_DOMAIN}"));
    }
    if stores
        .iter()
        .any(|store| matches!(store, Store::TlsExport(..)))
    {
        let files = testbed.make_certificates()?;
        images.push(files.authority);
        images.extend(files.identity);
        storage = storage.elf(shared_elf(testbed)?);
    }
    for store in stores {
        match store {
            Store::Image(name) => images.push(Image::mib(name, 16)),
            Store::Own(device) => {
                let file = own_file(kind, device);
                let script = format!("rm -f {file} && truncate --size=16M {file}");
                testbed.host.ok(&script)?;
                storage = storage.disk(&own_disk(kind, device));
            }
            Store::Export(server, _) => testbed.start_server(*server)?,
            Store::TlsExport(server, _) => testbed.start_tls_server(*server)?,
            Store::Device(device) => storage = storage.pci(device),
        }
    }
    match images.is_empty() {
        true => Ok(storage),
        false => storage.images(&images),
    }
}

/// Returns dom0's file for a disk of the domain's own.
fn own_file(kind: Kind, device: &str) -> String {
    format!("/tmp/crashing-{kind}-{device}.img")
}

/// Returns the specification of that disk for `xl`.
fn own_disk(kind: Kind, device: &str) -> String {
    let file = own_file(kind, device);
    format!("format=raw,vdev={device},access=rw,backendtype=phy,target={file}")
}

/// Detaches the domain's own disks, which no guest uses, and attaches them again.
pub(super) fn replace_own_disks(storage: &Running, kind: Kind, stores: &[Store]) -> Result<()> {
    for store in stores {
        let Store::Own(device) = store else {
            continue;
        };
        let detach = format!("xl block-detach {} {device}", storage.name);
        storage.host.ok(&detach)?;
        let seen = storage.console_length();
        let own = own_disk(kind, device);
        storage
            .host
            .attach_disk(storage, &own, device_number(device))?;
        storage.wait_console_from(seen, &own_disk_connected(device), MINUTE)?;
    }
    Ok(())
}

/// Waits until a driver domain has them.
pub(super) fn wait(storage: &Running, stores: &[Store]) -> Result<()> {
    stores.iter().try_for_each(|store| store.wait(storage))
}

/// Removes what [`make`] has made in dom0 and other scenarios would find.
pub(super) fn remove(testbed: &Testbed, stores: &[Store]) -> Result<()> {
    let mut servers = 0;
    for store in stores {
        match store {
            Store::Export(server, _) => testbed.kill_server(*server)?,
            Store::TlsExport(server, _) => testbed.kill_tls_server(*server)?,
            Store::Image(_) | Store::Own(_) | Store::Device(_) => continue,
        }
        servers += 1;
    }
    match servers {
        0 => Ok(()),
        _ => testbed.host.ok("rm -r /tmp/nbd").map(drop),
    }
}
