//! Devices of the emulated machine that are not dom0's: they can be passed through to domains.

use super::Host;
use anyhow::{Context, Result};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The IOMMU that a machine with such devices has, as QEMU's `-device` names it. It comes before all other devices. Xen
/// looks for Intel's on a processor of AMD's too, and logs what it refuses to a device.
pub const IOMMU: &str = "intel-iommu,intremap=on";

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciDevice {
    /// Its number on the only bus.
    pub number: u8,
    /// Its sort, and what it stores data on.
    pub controller: Controller,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// An NVMe controller with these namespaces, numbered from 1.
    Nvme(&'static [Medium]),
    /// A virtio-blk device behind the IOMMU.
    VirtioBlk(Medium),
}

/// What holds the data: a raw file in the host's folder, of zeros at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Its size in MiB.
    pub mib: u64,
    /// The size of its blocks in bytes, 512 or 4096.
    pub block: u32,
}

/// The devices of the hosts of scenarios. QEMU gives the first numbers to the devices that are dom0's.
pub const LAB: &[PciDevice] = &[NVME, TWO_NAMESPACES, VIRTIO_BLK];

/// An NVMe controller as most are: one namespace, blocks of 512 bytes.
pub const NVME: PciDevice = PciDevice::nvme(
    0x10,
    &[Medium {
        mib: 64,
        block: 512,
    }],
);

/// An NVMe controller with two namespaces; the first one has blocks of 4096 bytes.
pub const TWO_NAMESPACES: PciDevice = PciDevice::nvme(
    0x11,
    &[
        Medium {
            mib: 32,
            block: 4096,
        },
        Medium {
            mib: 16,
            block: 512,
        },
    ],
);

/// A virtio-blk device.
pub const VIRTIO_BLK: PciDevice = PciDevice {
    number: 0x12,
    controller: Controller::VirtioBlk(Medium {
        mib: 64,
        block: 512,
    }),
};

/// The address by which dom0 and domains' configurations name it.
impl fmt::Display for PciDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.number)
    }
}

impl PciDevice {
    /// An NVMe controller.
    pub const fn nvme(number: u8, namespaces: &'static [Medium]) -> Self {
        let controller = Controller::Nvme(namespaces);
        Self { number, controller }
    }

    /// Returns its name as targets have it: without the PCI domain.
    pub fn short_name(&self) -> String {
        self.to_string().trim_start_matches("0000:").to_owned()
    }

    fn media(&self) -> &[Medium] {
        match &self.controller {
            Controller::Nvme(namespaces) => namespaces,
            Controller::VirtioBlk(medium) => std::slice::from_ref(medium),
        }
    }

    /// The files of a host in `dir` that hold the data, in order.
    pub fn files(&self, dir: &Path) -> Vec<PathBuf> {
        let numbers = 1..=self.media().len();
        let name = |n| format!("pci-{:02x}-{n}.img", self.number);
        numbers.map(|n| dir.join(name(n))).collect()
    }

    pub(super) fn make_media(&self, dir: &Path) -> Result<()> {
        for (file, medium) in self.files(dir).iter().zip(self.media()) {
            File::create(file)
                .and_then(|made| made.set_len(medium.mib << 20))
                .with_context(|| format!("cannot make {}", file.display()))?;
        }
        Ok(())
    }

    /// Returns QEMU's options for it, each with its value.
    pub(super) fn arguments(&self, dir: &Path) -> Vec<(&'static str, String)> {
        let address = format!("bus=pcie.0,addr={:#x}", self.number);
        let id = format!("pci{:02x}", self.number);
        let mut arguments = Vec::new();
        for (n, file) in (1..).zip(self.files(dir)) {
            let drive = format!(
                "file={},format=raw,if=none,id={id}-{n},cache=unsafe,discard=unmap",
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
        assert_eq!(files.len(), 4);
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
