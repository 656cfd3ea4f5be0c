//! The nodes that a backend publishes (`io/blkif.h`, "Backend XenBus Nodes"), read as those of a hostile domain.

use alloc::string::String;
use bulkhead_images::{DiscardLimits, Geometry, Sector, SectorSize};
use bulkhead_ring::MAX_PAGES;
use bulkhead_xenbus::{NodeMap, excerpt};
use core::fmt;

/// The nodes that are read before rings are published.
pub const OFFER_NODES: [&str; 3] = [
    "max-ring-page-order",
    "max-ring-pages",
    "multi-queue-max-queues",
];

/// The nodes that describe the disk, there once the backend has connected. `params` names what the backend
/// serves, and is compared only.
pub const DISK_NODES: [&str; 12] = [
    "sectors",
    "sector-size",
    "physical-sector-size",
    "info",
    "feature-max-indirect-segments",
    "feature-flush-cache",
    "feature-barrier",
    "feature-discard",
    "discard-granularity",
    "discard-alignment",
    "discard-secure",
    "params",
];

/// The bit of the `info` node that says that the disk is read-only (`VDISK_READONLY`).
const VDISK_READONLY: u32 = 4;

/// The limits of the rings that a backend takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The largest number of pages of a ring, as a power of two; no more than this frontend uses.
    pub ring_page_order: u32,
    /// The largest number of queues, 1 to 64.
    pub queues: usize,
}

impl Offer {
    /// Reads what a backend offers. A node that is missing or not a number counts as 1 (page or queue), and a number
    /// that is too large as the largest that this frontend uses.
    pub fn parse(nodes: &NodeMap) -> Offer {
        let number = |name| number(nodes, name).ok().flatten();
        let largest = MAX_PAGES.ilog2();
        let order = number("max-ring-page-order")
            .map(|order| order.min(largest.into()) as u32)
            .or_else(|| {
                let pages = number("max-ring-pages")?.clamp(1, MAX_PAGES as u64);
                Some(pages.ilog2())
            });
        let queues = number("multi-queue-max-queues").unwrap_or(1);
        Offer {
            ring_page_order: order.unwrap_or(0),
            queues: queues.clamp(1, 64) as usize,
        }
    }
}

/// The properties that a backend publishes of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The disk's size, sector sizes and features.
    pub geometry: Geometry,
    /// The request that makes data durable.
    pub flush: FlushBy,
    /// The most segments of an indirect request, at most 4096; 0 if the backend takes no indirect requests.
    pub indirect_segments: usize,
    /// The name of the storage behind the disk, if the backend publishes one.
    pub params: Option<String>,
}

/// The request by which a backend makes data durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushBy {
    /// None.
    Nothing,
    /// `FLUSH_DISKCACHE`
    Flush,
    /// An empty `WRITE_BARRIER`: older backends know nothing else.
    Barrier,
}

/// An error in what a backend published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadProperties {
    /// A node that must be there is not.
    Missing(&'static str),
    /// A node's value has no meaning, or is out of range.
    Value {
        /// The node.
        node: &'static str,
        /// The start of its value.
        value: String,
    },
}

impl fmt::Display for BadProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(node) => write!(f, "the backend published no {node}"),
            Self::Value { node, value } => write!(f, "the backend's {node} is {value:?}"),
        }
    }
}

impl core::error::Error for BadProperties {}

impl Properties {
    /// Reads the properties that a connected backend publishes of its disk. `sectors` counts units of 512 bytes whatever
    /// the sector size: that is what implementations do, and what newer versions of `io/blkif.h` say. A part of a sector
    /// at the end of the disk is left out.
    ///
    /// # Errors
    /// If `sectors` is missing, 0 or too large, `sector-size` is neither 512 nor 4096, or a node is not a decimal
    /// number.
    pub fn parse(nodes: &NodeMap) -> Result<Properties, BadProperties> {
        let bad = |node| BadProperties::Value {
            node,
            value: excerpt(nodes.get(node).map_or("", String::as_str)),
        };
        let set = |node| Ok(number(nodes, node)?.unwrap_or(0) != 0);
        let sector_size = match number(nodes, "sector-size")? {
            None | Some(512) => SectorSize::B512,
            Some(4096) => SectorSize::B4096,
            Some(_) => return Err(bad("sector-size")),
        };
        let physical_sector_size = match number(nodes, "physical-sector-size")? {
            Some(4096) => SectorSize::B4096,
            // Others, such as 8192, cannot be passed on: the store has two sizes.
            _ => sector_size,
        };
        let sectors = number(nodes, "sectors")?.ok_or(BadProperties::Missing("sectors"))?;
        let sectors = Sector(sectors - sectors % sector_size.sectors().0);
        if sectors == Sector(0) || sectors.bytes().is_none() {
            return Err(bad("sectors"));
        }
        let info = number(nodes, "info")?.unwrap_or(0);
        let read_only = info & u64::from(VDISK_READONLY) != 0;
        let flush = match (set("feature-flush-cache")?, set("feature-barrier")?) {
            (true, _) => FlushBy::Flush,
            (false, true) => FlushBy::Barrier,
            (false, false) => FlushBy::Nothing,
        };
        let discard = match set("feature-discard")? && !read_only {
            true => discard(nodes, physical_sector_size)?,
            false => None,
        };
        let indirect = number(nodes, "feature-max-indirect-segments")?.unwrap_or(0);
        Ok(Properties {
            geometry: Geometry {
                sectors,
                sector_size,
                physical_sector_size,
                read_only,
                flush: flush != FlushBy::Nothing,
                discard,
            },
            flush,
            indirect_segments: indirect.min(4096) as usize,
            params: nodes.get("params").cloned(),
        })
    }
}

/// Reads the limits of discards; `None` if they are not in whole sectors, so that no discard is offered.
fn discard(nodes: &NodeMap, physical: SectorSize) -> Result<Option<DiscardLimits>, BadProperties> {
    const SECTOR: u64 = Sector::SIZE as u64;
    let default = physical.bytes() as u64;
    let granularity = number(nodes, "discard-granularity")?.unwrap_or(default);
    let alignment = number(nodes, "discard-alignment")?.unwrap_or(0);
    let whole = granularity.is_multiple_of(SECTOR) && alignment.is_multiple_of(SECTOR);
    Ok((whole && alignment < granularity).then_some(DiscardLimits {
        granularity: Sector(granularity / SECTOR),
        alignment: Sector(alignment / SECTOR),
        secure: number(nodes, "discard-secure")?.unwrap_or(0) != 0,
    }))
}

/// Reads a number of decimal digits.
fn number(nodes: &NodeMap, node: &'static str) -> Result<Option<u64>, BadProperties> {
    let Some(value) = nodes.get(node) else {
        return Ok(None);
    };
    let digits = value.trim();
    let digits = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(digits);
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(BadProperties::Value {
            node,
            value: excerpt(value),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn nodes(pairs: &[(&str, &str)]) -> NodeMap {
        let pairs = pairs.iter();
        pairs
            .map(|&(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn what_xen_blkback_publishes() {
        let offered = Offer::parse(&nodes(&[
            ("max-ring-page-order", "4"),
            ("multi-queue-max-queues", "8"),
        ]));
        assert_eq!((offered.ring_page_order, offered.queues), (4, 8));
        let properties = Properties::parse(&nodes(&[
            ("sectors", "2048"),
            ("sector-size", "512"),
            ("physical-sector-size", "4096"),
            ("info", "0"),
            ("feature-max-indirect-segments", "256"),
            ("feature-flush-cache", "1"),
            ("feature-barrier", "1"),
            ("feature-discard", "1"),
            ("discard-granularity", "4096"),
            ("discard-alignment", "512"),
            ("discard-secure", "0"),
            ("params", "/dev/loop0"),
        ]))
        .expect("a disk");
        let expected = Geometry {
            sectors: Sector(2048),
            sector_size: SectorSize::B512,
            physical_sector_size: SectorSize::B4096,
            read_only: false,
            flush: true,
            discard: Some(DiscardLimits {
                granularity: Sector(8),
                alignment: Sector(1),
                secure: false,
            }),
        };
        assert_eq!(properties.geometry, expected);
        assert_eq!(properties.flush, FlushBy::Flush);
        assert_eq!(properties.indirect_segments, 256);
        assert_eq!(properties.params.as_deref(), Some("/dev/loop0"));
    }

    #[test]
    fn the_smallest_backend_says_little() {
        let offer = Offer::parse(&nodes(&[]));
        assert_eq!((offer.ring_page_order, offer.queues), (0, 1));
        let properties = Properties::parse(&nodes(&[("sectors", "7"), ("info", "4")])).unwrap();
        assert!(properties.geometry.read_only && !properties.geometry.flush);
        assert_eq!(properties.flush, FlushBy::Nothing);
        assert_eq!(properties.geometry.sectors, Sector(7));
        let barrier = nodes(&[("sectors", "8"), ("feature-barrier", "1")]);
        assert_eq!(Properties::parse(&barrier).unwrap().flush, FlushBy::Barrier);
    }

    #[test]
    fn what_makes_no_sense_is_bounded_or_refused() {
        let offer = Offer::parse(&nodes(&[
            ("max-ring-page-order", "4000000000"),
            ("multi-queue-max-queues", "18446744073709551615"),
        ]));
        assert_eq!((offer.ring_page_order, offer.queues), (4, 64));
        let offer = Offer::parse(&nodes(&[
            ("max-ring-pages", "0"),
            ("multi-queue-max-queues", "0"),
        ]));
        assert_eq!((offer.ring_page_order, offer.queues), (0, 1));
        let refused = |pairs: &[(&str, &str)]| {
            Properties::parse(&nodes(pairs))
                .expect_err("refused")
                .to_string()
        };
        assert_eq!(refused(&[]), "the backend published no sectors");
        for value in [
            "0",
            "-1",
            "x",
            "36028797018963968",
            "99999999999999999999",
            "+1",
        ] {
            let expected = alloc::format!("the backend's sectors is {value:?}");
            assert_eq!(refused(&[("sectors", value)]), expected);
        }
        // Not one whole sector.
        let small = [("sectors", "7"), ("sector-size", "4096")];
        assert_eq!(refused(&small), "the backend's sectors is \"7\"");
        for size in ["0", "1024", "8192", "no"] {
            let expected = alloc::format!("the backend's sector-size is {size:?}");
            assert_eq!(
                refused(&[("sectors", "8"), ("sector-size", size)]),
                expected
            );
        }
        let odd = [
            ("sectors", "8"),
            ("feature-discard", "1"),
            ("discard-granularity", "1000"),
        ];
        assert_eq!(
            Properties::parse(&nodes(&odd)).unwrap().geometry.discard,
            None
        );
    }
}
