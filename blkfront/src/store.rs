//! The store `vbd:`, which serves disks of our own and volumes on them.

use crate::frontends::Frontends;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::{Access, BlockDevice};
use bulkhead_volumes::{DiskStore, Disks, KnownDisk, Waiting};
use bulkhead_xen::Hypervisor;
use core::time::Duration;

/// Returns the store `vbd:` of these disks.
pub fn vbd_store<H: Hypervisor>(frontends: Rc<Frontends<H>>) -> DiskStore {
    DiskStore::new(Rc::new(OwnDisks(frontends)))
}

struct OwnDisks<H: Hypervisor>(Rc<Frontends<H>>);

impl<H: Hypervisor> Disks for OwnDisks<H> {
    fn scheme(&self) -> &'static str {
        "vbd"
    }

    fn example(&self) -> &'static str {
        "xvda"
    }

    fn expected(&self) -> &'static str {
        "vbd:DISK[/VOLUME]"
    }

    fn ready<'a>(&'a self, name: &'a str) -> Waiting<'a, Result<String, String>> {
        Box::pin(async move {
            let frontends = &self.0;
            let connected = frontends.until(|| {
                let disk = frontends.find(name)?;
                (disk.is_connected() || disk.failure().is_some()).then_some(disk)
            });
            let disk = connected.await;
            match disk.failure() {
                Some(failure) => Err(format!(
                    "the driver domain's disk {name} was given up: {failure}"
                )),
                None => Ok(disk.name.clone()),
            }
        })
    }

    fn missing(&self, name: &str) -> String {
        let disks = self.0.disks();
        if disks.iter().any(|disk| disk.name == name) {
            return format!("the driver domain's disk {name} has no backend that is connected");
        }
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        match names.is_empty() {
            true => format!(
                "no disk {name}: the driver domain has no disks of its own (disk= in its configuration)"
            ),
            false => format!("no disk {name}, there are: {}", names.join(", ")),
        }
    }

    fn pause(&self, span: Duration) -> Waiting<'_, ()> {
        Box::pin(self.0.handle().sleep(span))
    }

    fn spawn(&self, task: Waiting<'static, ()>) {
        self.0.handle().spawn(task);
    }

    fn list(&self) -> Vec<KnownDisk> {
        let disks = self.0.disks().into_iter();
        disks
            .map(|disk| KnownDisk {
                name: disk.name.clone(),
                identity: disk,
            })
            .collect()
    }

    fn lines(&self) -> Vec<String> {
        self.0.lines()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, String> {
        let disk = self.0.find(name).ok_or("it is not there any more")?;
        if let Some(failure) = disk.failure() {
            return Err(format!("it was given up: {failure}"));
        }
        let properties = disk.properties();
        let properties = properties.ok_or("it has no backend that is connected")?;
        let access = match properties.geometry.read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        match disk.open(access, true, "users of its volumes") {
            Ok(device) => Ok(Arc::new(device)),
            Err(in_use) => Err(format!("it is {in_use}")),
        }
    }
}
