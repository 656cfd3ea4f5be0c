//! The store `vbd:`, which serves disks of our own and volumes on them.

use crate::device::Disk;
use crate::frontends::Frontends;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use bulkhead_images::target::{Options, Target};
use bulkhead_images::{Access, BlockDevice, OpenDevice, OpenError, Rescan, Store};
use bulkhead_volumes::{NameError, Opening, VolumeName, Volumes};
use bulkhead_xen::{Hypervisor, VcpuId};
use core::cell::RefCell;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};
use litemap::LiteMap;

/// The time that a guest's disk waits for a disk of ours to connect, and to be read: less than the ten seconds for
/// which libxl waits for the guest's disk to be offered.
const CONNECTS: Duration = Duration::from_secs(6);

/// The vCPU of the control plane, which reads the tables of disks.
const CONTROL: VcpuId = VcpuId(0);

/// The store `vbd:`.
pub struct VbdStore<H: Hypervisor> {
    frontends: Rc<Frontends<H>>,
    volumes: Volumes,
    /// The disks that the volumes know, by their names there.
    shown: RefCell<LiteMap<String, Weak<Disk<H>>>>,
}

impl<H: Hypervisor> VbdStore<H> {
    /// Returns the store of these disks.
    pub fn new(frontends: Rc<Frontends<H>>) -> Self {
        VbdStore {
            frontends,
            volumes: Volumes::default(),
            shown: RefCell::default(),
        }
    }

    /// Waits until a disk is connected, and returns its name among the volumes' disks.
    async fn connected(&self, name: &str) -> Result<String, String> {
        let frontends = &self.frontends;
        let connected = frontends.until(|| {
            let disk = frontends.find(name)?;
            (disk.is_connected() || disk.failure().is_some()).then_some(disk)
        });
        let over = frontends.handle().sleep(CONNECTS);
        let disk = match select(pin!(connected), pin!(over)).await {
            Either::Left((disk, _)) => disk,
            Either::Right(_) => return Err(self.missing(name)),
        };
        if let Some(failure) = disk.failure() {
            return Err(format!(
                "the driver domain's disk {name} was given up: {failure}"
            ));
        }
        self.show_disks();
        Ok(Self::volumes_name(&disk.name))
    }

    fn volumes_name(disk: &str) -> String {
        format!("vbd:{disk}")
    }

    /// Tells the volumes which disks there are: a volume group may lie on several.
    fn show_disks(&self) {
        let disks = self.frontends.disks().into_iter();
        let disks: LiteMap<String, Arc<Disk<H>>> = disks
            .map(|disk| (Self::volumes_name(&disk.name), disk))
            .collect();
        let mut shown = self.shown.borrow_mut();
        // What was given up is another disk than the one attached in its place, however long guests have it.
        shown.retain(|name, known| {
            let same = disks.get(name).map(Arc::as_ptr) == Some(known.as_ptr());
            same || {
                self.volumes.remove(name);
                false
            }
        });
        for (name, disk) in disks.iter() {
            if shown.get(name).is_none() {
                let (frontends, own) = (self.frontends.clone(), disk.name.clone());
                self.volumes.add(name, move || open_disk(&frontends, &own));
                shown.insert(name.clone(), Arc::downgrade(disk));
            }
        }
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        opening: Opening<'_>,
    ) -> Result<Arc<dyn BlockDevice>, String> {
        let disk = self.connected(&name.disk).await?;
        let name = VolumeName {
            disk,
            part: name.part.clone(),
        };
        let opened = self.volumes.open(CONTROL, &name, opening);
        let over = self.frontends.handle().sleep(CONNECTS);
        match select(pin!(opened), pin!(over)).await {
            Either::Left((opened, _)) => opened.map_err(|error| error.to_string()),
            Either::Right(_) => Err(silent(&name.disk)),
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
        "vbd:DISK[/VOLUME]"
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = self.frontends.lines();
        for disk in self.volumes.disks() {
            let volumes = disk.volumes.iter();
            lines
                .extend(volumes.map(|(name, sectors)| format!("volume {name}, {sectors} sectors")));
            let users = disk.users.iter();
            lines
                .extend(users.map(|(name, owner, access)| {
                    format!("{name} is open for {access} by {owner}")
                }));
        }
        lines
    }

    fn rescan<'a>(&'a self, device: &'a str) -> Rescan<'a> {
        Box::pin(async move {
            let disk = self.connected(device).await?;
            let rescan = self.volumes.rescan(CONTROL, &disk);
            let over = self.frontends.handle().sleep(CONNECTS);
            match select(pin!(rescan), pin!(over)).await {
                Either::Left((Ok(rescan), _)) => {
                    let changes = rescan.changes.iter().map(ToString::to_string);
                    Ok([rescan.to_string()].into_iter().chain(changes).collect())
                }
                Either::Left((Err(error), _)) => Err(error.to_string()),
                Either::Right(_) => Err(silent(&disk)),
            }
        })
    }

    fn open<'a>(&'a self, target: Target<'a>, access: Access, owner: &'a str) -> OpenDevice<'a> {
        Box::pin(async move {
            let name: VolumeName = target.value.parse().map_err(|error| {
                OpenError::Store(match error {
                    NameError::NoDisk => "'vbd:' names no disk, expected vbd:xvda".to_string(),
                    error => error.to_string(),
                })
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
            let opening = Opening {
                access,
                shared: options.shared.unwrap_or(false),
                owner,
            };
            self.open_volume(&name, opening)
                .await
                .map_err(OpenError::Store)
        })
    }
}

/// Opens a disk for all who have something of it. What they share is for the volumes to say.
fn open_disk<H: Hypervisor>(
    frontends: &Frontends<H>,
    name: &str,
) -> Result<Arc<dyn BlockDevice>, String> {
    let disk = frontends.find(name).ok_or("it is not there any more")?;
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

/// What is said of a disk that does not answer.
fn silent(disk: &str) -> String {
    format!("the driver domain's disk {disk} does not answer")
}
