//! Devices of the emulated machine that are not dom0's: they can be passed through to domains.

use super::Host;
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The IOMMU that a machine with such devices has, in the form of QEMU's `-device`. It comes before all other devices.
/// Xen looks for Intel's on a processor of AMD's too, and logs the accesses that it refuses to a device.
pub const IOMMU: &str = "intel-iommu,intremap=on";

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciDevice {
    /// Its number on the only bus.
    pub number: u8,
    /// Its kind, and the media on which it stores data.
    pub controller: Controller,
}

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// An NVMe controller with these namespaces, numbered from 1.
    Nvme(&'static [Medium]),
    /// A virtio-blk device behind the IOMMU.
    VirtioBlk(Medium),
}

/// A medium for data: a file in the host's folder, of zeros at first; a raw one if the medium does not cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Its size in MiB.
    pub mib: u64,
    /// The size of its blocks in bytes, 512 or 4096.
    pub block: u32,
    /// True if data that was not flushed is lost when QEMU is killed. The file is qcow2 then: QEMU keeps the place of
    /// data that was written to new places in its own memory until it is flushed.
    pub caches: bool,
}

/// The devices of the hosts of scenarios. QEMU gives the first numbers to the devices that are dom0's.
pub const LAB: &[PciDevice] = &[NVME, TWO_NAMESPACES, VIRTIO_BLK, CACHING];

/// A usual NVMe controller: one namespace, blocks of 512 bytes.
pub const NVME: PciDevice = PciDevice::nvme(
    0x10,
    &[Medium {
        mib: 64,
        block: 512,
        caches: false,
    }],
);

/// An NVMe controller with two namespaces; the first one has blocks of 4096 bytes.
pub const TWO_NAMESPACES: PciDevice = PciDevice::nvme(
    0x11,
    &[
        Medium {
            mib: 32,
            block: 4096,
            caches: false,
        },
        Medium {
            mib: 16,
            block: 512,
            caches: false,
        },
    ],
);

/// A virtio-blk device.
pub const VIRTIO_BLK: PciDevice = PciDevice {
    number: 0x12,
    controller: Controller::VirtioBlk(Medium {
        mib: 64,
        block: 512,
        caches: false,
    }),
};

/// An NVMe controller whose two namespaces lose data that was not flushed when QEMU is killed.
pub const CACHING: PciDevice = PciDevice::nvme(
    0x13,
    &[
        Medium {
            mib: 32,
            block: 512,
            caches: true,
        },
        Medium {
            mib: 8,
            block: 512,
            caches: true,
        },
    ],
);

/// The address by which dom0 and domains' configurations name it.
impl fmt::Display for PciDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.number)
    }
}

impl PciDevice {
    /// Returns an NVMe controller.
    pub const fn nvme(number: u8, namespaces: &'static [Medium]) -> Self {
        let controller = Controller::Nvme(namespaces);
        Self { number, controller }
    }

    /// Returns its name in targets, which is without the PCI domain.
    pub fn short_name(&self) -> String {
        self.to_string().trim_start_matches("0000:").to_owned()
    }

    fn media(&self) -> &[Medium] {
        match &self.controller {
            Controller::Nvme(namespaces) => namespaces,
            Controller::VirtioBlk(medium) => std::slice::from_ref(medium),
        }
    }

    /// Returns the files of a host in `dir` that hold the data, in order.
    pub fn files(&self, dir: &Path) -> Vec<PathBuf> {
        let numbers = 1..=self.media().len();
        let name = |n| format!("pci-{:02x}-{n}.img", self.number);
        numbers.map(|n| dir.join(name(n))).collect()
    }

    /// Returns its name in QEMU.
    fn id(&self) -> String {
        format!("pci{:02x}", self.number)
    }

    /// Returns the names of its media in QEMU, in the order of [`Self::files`].
    pub(super) fn drives(&self) -> Vec<String> {
        let numbers = 1..=self.media().len();
        numbers.map(|n| format!("{}-{n}", self.id())).collect()
    }

    pub(super) fn make_media(&self, dir: &Path) -> Result<()> {
        for (file, medium) in self.files(dir).iter().zip(self.media()) {
            if medium.caches {
                make_qcow2(file, medium.mib)?;
                continue;
            }
            File::create(file)
                .and_then(|made| made.set_len(medium.mib << 20))
                .with_context(|| format!("cannot make {}", file.display()))?;
        }
        Ok(())
    }

    /// Returns QEMU's options for it, each with its value.
    pub(super) fn arguments(&self, dir: &Path) -> Vec<(&'static str, String)> {
        let address = format!("bus=pcie.0,addr={:#x}", self.number);
        let id = self.id();
        let mut arguments = Vec::new();
        let files = self.files(dir).into_iter().zip(self.media());
        for (drive, (file, medium)) in self.drives().into_iter().zip(files) {
            let format = if medium.caches { "qcow2" } else { "raw" };
            let drive = format!(
                "file={},format={format},if=none,id={drive},cache=unsafe,discard=unmap",
                file.display()
            );
            arguments.push(("drive", drive));
        }
        let sizes = |block| format!("logical_block_size={block},physical_block_size={block}");
        match self.controller {
            Controller::Nvme(namespaces) => {
                let controller = format!("nvme,id={id},serial={id},{address}");
                arguments.push(("device", controller));
                for (n, namespace) in (1..).zip(namespaces) {
                    let sizes = sizes(namespace.block);
                    let namespace = format!("nvme-ns,bus={id},nsid={n},drive={id}-{n},{sizes}");
                    arguments.push(("device", namespace));
                }
            }
            Controller::VirtioBlk(medium) => {
                let sizes = sizes(medium.block);
                arguments.push((
                    "device",
                    format!(
                        "virtio-blk-pci,drive={id}-1,iommu_platform=on,disable-legacy=on,{sizes},{address}"
                    ),
                ));
            }
        }
        arguments
    }
}

fn make_qcow2(file: &Path, mib: u64) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(file)
        .arg(format!("{mib}M"))
        .status()
        .context("cannot start qemu-img")?;
    ensure!(status.success(), "qemu-img cannot make {}", file.display());
    Ok(())
}

impl Host {
    /// Takes a device from dom0's own driver, if one has it, so that it can be passed through.
    pub fn make_assignable(&self, device: &PciDevice) -> Result<()> {
        self.ok(&format!(
            "modprobe xen-pciback && xl pci-assignable-add {device}"
        ))
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_device_has_its_place_and_each_medium_its_file() {
        let addresses: BTreeSet<String> = LAB.iter().map(PciDevice::to_string).collect();
        assert_eq!(addresses.len(), LAB.len());
        assert!(addresses.contains("0000:00:10.0"));
        let files: BTreeSet<PathBuf> = LAB
            .iter()
            .flat_map(|device| device.files(Path::new("/host")))
            .collect();
        assert_eq!(files.len(), 6);
        for device in LAB {
            let arguments = device.arguments(Path::new("/host"));
            let named = |file: &PathBuf| {
                let file = format!("file={},", file.display());
                arguments.iter().any(|(_, value)| value.starts_with(&file))
            };
            assert!(device.files(Path::new("/host")).iter().all(named));
            let is_device = |(name, _): &&(&str, String)| *name == "device";
            let behind_the_iommu = arguments.iter().filter(is_device);
            assert!(behind_the_iommu.count() >= 1, "{arguments:?}");
        }
    }
}
