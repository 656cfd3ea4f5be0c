//! The store `vbd:`, which serves disks of our own.

use crate::frontends::Frontends;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_images::target::{Options, Target};
use bulkhead_images::{Access, BlockDevice, OpenDevice, OpenError, Store};
use bulkhead_xen::Hypervisor;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};

/// The time that a guest's disk waits for a disk of ours to connect: less than the ten seconds for which libxl
/// waits for the guest's disk to be offered.
const CONNECTS: Duration = Duration::from_secs(6);

/// A provider of the volumes on a disk. The text after the first slash of a target names a volume.
pub trait Volumes {
    /// Opens the volume of that name. While the device exists, others can open the disk only if they share it.
    fn open<'a>(
        &'a self,
        disk: Arc<dyn BlockDevice>,
        volume: &'a str,
        access: Access,
        owner: &'a str,
    ) -> OpenDevice<'a>;
}

/// The name in a target: `DISK`, or `DISK/VOLUME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name<'a> {
    disk: &'a str,
    volume: Option<&'a str>,
}

impl<'a> Name<'a> {
    fn parse(value: &'a str) -> Option<Name<'a>> {
        let (disk, volume) = match value.split_once('/') {
            Some((disk, volume)) => (disk, Some(volume)),
            None => (value, None),
        };
        let empty = disk.is_empty() || volume == Some("");
        (!empty).then_some(Name { disk, volume })
    }
}

/// The store `vbd:`.
pub struct VbdStore<H: Hypervisor> {
    frontends: Rc<Frontends<H>>,
    volumes: Option<Box<dyn Volumes>>,
}

impl<H: Hypervisor> VbdStore<H> {
    /// Returns the store of these disks, whole ones.
    pub fn new(frontends: Rc<Frontends<H>>) -> Self {
        VbdStore {
            frontends,
            volumes: None,
        }
    }

    /// Returns the same store, which also serves the volumes on its disks.
    pub fn with_volumes(self, volumes: Box<dyn Volumes>) -> Self {
        let volumes = Some(volumes);
        VbdStore { volumes, ..self }
    }

    async fn open_disk(
        &self,
        name: &str,
        access: Access,
        shared: bool,
        owner: &str,
    ) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let frontends = &self.frontends;
        let connected = frontends.until(|| {
            let disk = frontends.find(name)?;
            (disk.is_connected() || disk.failure().is_some()).then_some(disk)
        });
        let over = frontends.handle().sleep(CONNECTS);
        let disk = match select(pin!(connected), pin!(over)).await {
            Either::Left((disk, _)) => disk,
            Either::Right(_) => return Err(OpenError::Store(self.missing(name))),
        };
        if let Some(failure) = disk.failure() {
            let reason = format!("the driver domain's disk {name} was given up: {failure}");
            return Err(OpenError::Store(reason));
        }
        let read_only = disk
            .properties()
            .is_some_and(|properties| properties.geometry.read_only);
        if read_only && access == Access::ReadWrite {
            let reason =
                format!("the driver domain's disk {name} is read-only, expected access=ro");
            return Err(OpenError::Store(reason));
        }
        match disk.open(access, shared, owner) {
            Ok(device) => Ok(Arc::new(device)),
            Err(in_use) => Err(OpenError::Store(format!("disk {name} is {in_use}"))),
        }
    }

    /// The reason why a disk is not there.
    fn missing(&self, name: &str) -> String {
        let disks = self.frontends.disks();
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
}

impl<H: Hypervisor> Store for VbdStore<H> {
    fn scheme(&self) -> &'static str {
        "vbd"
    }

    fn expected(&self) -> &'static str {
        "vbd:DISK"
    }

    fn lines(&self) -> Vec<String> {
        self.frontends.lines()
    }

    fn open<'a>(&'a self, target: Target<'a>, access: Access, owner: &'a str) -> OpenDevice<'a> {
        Box::pin(async move {
            let name = Name::parse(target.value).ok_or_else(|| {
                OpenError::Store("'vbd:' names no disk, expected vbd:xvda".to_string())
            })?;
            let options = Options::parse(target.options)?;
            for (option, given) in [
                ("sector-size", options.sector_size.is_some()),
                (
                    "physical-sector-size",
                    options.physical_sector_size.is_some(),
                ),
                ("discard", options.discard.is_some()),
            ] {
                if given {
                    let reason =
                        format!("vbd: shows a disk as it is, expected it without {option}=");
                    return Err(OpenError::Store(reason));
                }
            }
            let shared = options.shared.unwrap_or(false);
            match (name.volume, &self.volumes) {
                (None, _) => self.open_disk(name.disk, access, shared, owner).await,
                (Some(volume), Some(volumes)) => {
                    let disk = self.open_disk(name.disk, access, true, owner).await?;
                    volumes.open(disk, volume, access, owner).await
                }
                (Some(volume), None) => Err(OpenError::Store(format!(
                    "volumes such as {volume} are not served yet, expected a whole disk: vbd:{}",
                    name.disk
                ))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn a_target_names_a_disk_or_a_volume_on_it() {
        let name = |disk, volume| Some(Name { disk, volume });
        assert_eq!(Name::parse("xvda"), name("xvda", None));
        assert_eq!(Name::parse("xvda/root"), name("xvda", Some("root")));
        assert_eq!(
            Name::parse("xvda/vg0/alice"),
            name("xvda", Some("vg0/alice"))
        );
        for nothing in ["", "/", "xvda/", "/root"] {
            assert_eq!(Name::parse(nothing), None, "{nothing}");
        }
    }
}
