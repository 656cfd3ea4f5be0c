//! What the backend tells a frontend: the features it may use, and what the disk is like
//! (`io/blkif.h`, "Backend XenBus Nodes").

use super::config::VbdConfig;
use super::published::Limits;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_images::Geometry;

/// Bits of the `info` node (`VDISK_*`).
const VDISK_CDROM: u32 = 1;
const VDISK_REMOVABLE: u32 = 2;
const VDISK_READONLY: u32 = 4;

/// Nodes to be written into the backend's directory: name and value.
pub type NodeValues = Vec<(&'static str, String)>;

/// What a frontend may use, written before it connects.
pub fn offered(_config: &VbdConfig, geometry: &Geometry, _limits: Limits) -> NodeValues {
    alloc::vec![("feature-flush-cache", u32::from(geometry.flush).to_string())]
}

/// What the disk is like, written when the frontend has connected.
pub fn disk(config: &VbdConfig, geometry: &Geometry) -> NodeValues {
    let info = [
        (config.cdrom, VDISK_CDROM),
        (config.removable, VDISK_REMOVABLE),
        (geometry.read_only, VDISK_READONLY),
    ];
    let info: u32 = info
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, bit)| bit)
        .sum();
    alloc::vec![
        // In units of 512 bytes whatever the sector size: that is how every implementation
        // reads it, though older headers say otherwise.
        ("sectors", geometry.sectors.to_string()),
        ("sector-size", geometry.sector_size.to_string()),
        (
            "physical-sector-size",
            geometry.physical_sector_size.to_string()
        ),
        ("info", info.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_images::{Access, Sector, SectorSize};

    fn config(cdrom: bool) -> VbdConfig {
        VbdConfig {
            frontend_path: "/local/domain/5/device/vbd/51712".into(),
            target: "ram:disk0".into(),
            access: Access::ReadOnly,
            cdrom,
            removable: cdrom,
            discard: true,
        }
    }

    #[test]
    fn a_read_only_cdrom_says_so() {
        let geometry = Geometry {
            sectors: Sector(2048),
            sector_size: SectorSize::B512,
            physical_sector_size: SectorSize::B4096,
            read_only: true,
            flush: true,
            discard: None,
        };
        let nodes = disk(&config(true), &geometry);
        let value = |name| {
            nodes
                .iter()
                .find(|node| node.0 == name)
                .map(|node| node.1.as_str())
        };
        assert_eq!(value("info"), Some("7"));
        assert_eq!(value("sectors"), Some("2048"));
        assert_eq!(value("sector-size"), Some("512"));
        assert_eq!(value("physical-sector-size"), Some("4096"));
        assert_eq!(disk(&config(false), &geometry)[3].1, "4");
    }
}
