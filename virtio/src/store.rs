//! The store `virtio:`, which serves devices and volumes on them.

use crate::devices::{Devices, missing};
use crate::disk::VirtioDisk;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::BlockDevice;
use bulkhead_pci::PciHost;
use bulkhead_volumes::{DiskStore, Disks, KnownDisk, Waiting};
use core::time::Duration;

/// Returns the store `virtio:` of these devices.
///
/// A target names a device by its PCI function, then a volume if it is not the whole disk: `virtio:03:00.0`,
/// `virtio:03:00.0/root-alice`, `virtio:03:00.0/vg0/alice`.
pub fn virtio_store<H: PciHost>(devices: Rc<Devices<H>>) -> DiskStore {
    DiskStore::new(Rc::new(All(devices)))
}

struct All<H: PciHost>(Rc<Devices<H>>);

impl<H: PciHost> Disks for All<H> {
    fn scheme(&self) -> &'static str {
        "virtio"
    }

    fn example(&self) -> &'static str {
        "03:00.0"
    }

    fn expected(&self) -> &'static str {
        "virtio:FUNCTION[/VOLUME]"
    }

    fn ready<'a>(&'a self, name: &'a str) -> Waiting<'a, Result<String, String>> {
        Box::pin(async move {
            let devices = &self.0;
            let device = devices
                .until(|| {
                    let device = devices.find(name)?;
                    (device.is_ready() || device.failure().is_some()).then_some(device)
                })
                .await;
            match device.failure() {
                Some(reason) => Err(format!("the device {name} was given up: {reason}")),
                None => Ok(device.name().to_string()),
            }
        })
    }

    fn missing(&self, name: &str) -> String {
        missing(&self.0.list(), name)
    }

    fn pause(&self, span: Duration) -> Waiting<'_, ()> {
        Box::pin(self.0.handle().sleep(span))
    }

    fn spawn(&self, task: Waiting<'static, ()>) {
        self.0.handle().spawn(task);
    }

    fn list(&self) -> Vec<KnownDisk> {
        let all = self.0.list();
        // While it is reset, or does not work for the moment, it stays listed: guests' disks on it stay attached.
        let usable = all
            .into_iter()
            .filter(|device| device.config().is_some() && !device.is_leaving());
        let known = usable.map(|device| KnownDisk {
            name: device.name().to_string(),
            identity: device,
        });
        known.collect()
    }

    fn lines(&self) -> Vec<String> {
        self.0.lines()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, String> {
        let device = self.0.find(name).ok_or_else(|| self.missing(name))?;
        if let Some(reason) = device.failure() {
            return Err(format!("the device was given up: {reason}"));
        }
        match device.config().copied() {
            Some(config) if !device.is_leaving() => Ok(Arc::new(VirtioDisk::new(device, config))),
            _ => Err(format!("the device {name} is not ready")),
        }
    }
}
