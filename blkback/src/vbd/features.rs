//! The nodes that the backend publishes: the features that a frontend may use, and the disk's properties
//! (`io/blkif.h`, "Backend XenBus Nodes").

use super::config::VbdConfig;
use crate::limits::Limits;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_images::{Geometry, Sector};

/// Bits of the `info` node (`VDISK_*`).
const VDISK_CDROM: u32 = 1;
const VDISK_REMOVABLE: u32 = 2;
const VDISK_READONLY: u32 = 4;

/// Nodes to be written into the backend's directory: name and value.
pub type NodeValues = Vec<(&'static str, String)>;

/// Returns the features that a frontend may use, written before it connects.
pub fn offered(config: &VbdConfig, geometry: &Geometry, limits: Limits) -> NodeValues {
    let flag = |set: bool| u32::from(set).to_string();
    let mut nodes = alloc::vec![
        ("feature-flush-cache", flag(geometry.flush)),
        ("feature-barrier", flag(geometry.flush)),
        ("feature-persistent", flag(limits.persistent)),
        ("max-ring-page-order", limits.ring_page_order.to_string()),
        (
            "max-ring-pages",
            (1u32 << limits.ring_page_order).to_string()
        ),
        ("multi-queue-max-queues", limits.queues.to_string()),
    ];
    if limits.indirect_segments > 0 {
        nodes.push((
            "feature-max-indirect-segments",
            limits.indirect_segments.to_string(),
        ));
    }
    // Offered again to another frontend, the disk may have lost the feature: 0 is written, too.
    let discard = geometry.discard.filter(|_| config.discard);
    nodes.push(("feature-discard", flag(discard.is_some())));
    if let Some(limits) = discard {
        // In bytes. A frontend takes one without the other for a mistake (note 4).
        let bytes = |sectors: Sector| sectors.bytes().unwrap_or(0).to_string();
        nodes.push(("discard-granularity", bytes(limits.granularity)));
        nodes.push(("discard-alignment", bytes(limits.alignment)));
        nodes.push(("discard-secure", flag(limits.secure)));
    }
    nodes
}

/// Returns the disk's properties, written when the frontend has connected.
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
    use bulkhead_images::{Access, DiscardLimits, SectorSize};

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

    fn value<'a>(nodes: &'a NodeValues, name: &str) -> Option<&'a str> {
        let node = nodes.iter().find(|node| node.0 == name)?;
        Some(&node.1)
    }

    #[test]
    fn what_is_offered_depends_on_the_disk_and_the_options() {
        let discard = DiscardLimits {
            granularity: Sector(8),
            alignment: Sector(3),
            secure: true,
        };
        let geometry = Geometry {
            sectors: Sector(2048),
            sector_size: SectorSize::B512,
            physical_sector_size: SectorSize::B512,
            read_only: false,
            flush: true,
            discard: Some(discard),
        };
        let (mut config, limits) = (config(false), Limits::default());
        let nodes = offered(&config, &geometry, limits);
        for (name, expected) in [
            ("feature-flush-cache", "1"),
            ("feature-barrier", "1"),
            ("max-ring-page-order", "4"),
            ("max-ring-pages", "16"),
            ("feature-max-indirect-segments", "256"),
            ("feature-discard", "1"),
            ("discard-granularity", "4096"),
            ("discard-alignment", "1536"),
            ("discard-secure", "1"),
        ] {
            assert_eq!(value(&nodes, name), Some(expected), "{name}");
        }
        config.discard = false;
        let limits = Limits {
            persistent: false,
            ..limits
        };
        let nodes = offered(&config, &geometry, limits);
        assert_eq!(value(&nodes, "feature-discard"), Some("0"));
        assert_eq!(value(&nodes, "discard-granularity"), None);
        assert_eq!(value(&nodes, "feature-persistent"), Some("0"));
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
        let value = |name| value(&nodes, name);
        assert_eq!(value("info"), Some("7"));
        assert_eq!(value("sectors"), Some("2048"));
        assert_eq!(value("sector-size"), Some("512"));
        assert_eq!(value("physical-sector-size"), Some("4096"));
        assert_eq!(disk(&config(false), &geometry)[3].1, "4");
    }
}
