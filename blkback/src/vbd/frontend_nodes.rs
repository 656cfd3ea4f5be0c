//! The nodes that a frontend publishes in its xenstore directory before it connects, read as those of a
//! hostile guest (`io/blkif.h`, "Frontend XenBus Nodes").

use crate::engine::Needs;
use crate::limits::Limits;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_ring::blkif::Abi;
use bulkhead_xen::{GrantRef, Port};
use bulkhead_xenbus::{NodeMap, excerpt};
use core::fmt;

/// The details that a frontend published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The layout of its requests.
    pub abi: Abi,
    /// True if the frontend keeps its data pages granted (`feature-persistent`).
    pub persistent: bool,
    /// Its queues, at least one.
    pub queues: Vec<QueueDetails>,
}

impl Published {
    /// Returns the resources that serving these queues takes.
    pub fn needs(&self, limits: Limits) -> Needs {
        // All its rings have the same number of pages.
        let ring_pages = self.queues.first().map_or(0, |one| one.ring.len());
        let queue = limits.queue_of(self.persistent, ring_pages);
        queue.times(self.queues.len())
    }
}

/// The details of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDetails {
    /// The granted pages of the ring, in order.
    pub ring: Vec<GrantRef>,
    /// The frontend's event channel.
    pub event_channel: Port,
}

/// An error in what a frontend published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishedError {
    /// A node that must be there is not.
    Missing(String),
    /// A node that must hold a number does not.
    NotANumber {
        /// The node.
        node: String,
        /// Its value.
        value: String,
    },
    /// A number is out of range.
    OutOfRange {
        /// The node.
        node: String,
        /// Its value.
        value: u32,
        /// The range.
        expected: String,
    },
    /// The frontend speaks an ABI that is not one of blkif's.
    UnknownProtocol(String),
}

impl fmt::Display for PublishedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(node) => write!(f, "the frontend published no {node}"),
            Self::NotANumber { node, value } => {
                write!(f, "the frontend's {node} is not a number: {value:?}")
            }
            Self::OutOfRange {
                node,
                value,
                expected,
            } => {
                write!(f, "the frontend's {node} is {value}, expected {expected}")
            }
            Self::UnknownProtocol(name) => write!(
                f,
                "the frontend's protocol is {name:?}, expected x86_64-abi or x86_32-abi"
            ),
        }
    }
}

impl core::error::Error for PublishedError {}

/// The nodes that give the number of queues and their properties.
pub const COMMON_NODES: [&str; 5] = [
    "protocol",
    "feature-persistent",
    "multi-queue-num-queues",
    "ring-page-order",
    "num-ring-pages",
];

/// Returns the names of the nodes that describe the queues, given the common ones. There are never more
/// than the limits allow, whatever the guest claims.
pub fn queue_nodes(common: &NodeMap, limits: Limits) -> Result<Vec<String>, PublishedError> {
    let mut names = Vec::new();
    for prefix in queue_prefixes(common, limits)? {
        names.push(format!("{prefix}event-channel"));
        names.extend(ring_nodes(&prefix, ring_pages(common, limits)?));
    }
    Ok(names)
}

/// Parses the common nodes and those of the queues.
pub fn parse(nodes: &NodeMap, limits: Limits) -> Result<Published, PublishedError> {
    let abi = match nodes.get("protocol").map(String::as_str) {
        // Frontends of old say nothing and mean the native one.
        None | Some("") => Abi::NATIVE,
        Some(name) => name
            .parse()
            .map_err(|_| PublishedError::UnknownProtocol(excerpt(name)))?,
    };
    let ring_pages = ring_pages(nodes, limits)?;
    let mut queues = Vec::new();
    for prefix in queue_prefixes(nodes, limits)? {
        let ring = ring(nodes, &prefix, ring_pages)?;
        let name = format!("{prefix}event-channel");
        let event_channel = Port(required(nodes, &name)?);
        queues.push(QueueDetails {
            ring,
            event_channel,
        });
    }
    let persistent = number(nodes, "feature-persistent")?.unwrap_or(0) == 1 && limits.persistent;
    Ok(Published {
        abi,
        persistent,
        queues,
    })
}

/// Returns the prefix of each queue's nodes: none (the frontend's own directory) if there is just one queue
/// and the frontend does not negotiate, else `queue-N/`.
fn queue_prefixes(nodes: &NodeMap, limits: Limits) -> Result<Vec<String>, PublishedError> {
    const NODE: &str = "multi-queue-num-queues";
    match number(nodes, NODE)? {
        // Linux's frontend writes 1 and still uses its own directory.
        None | Some(1) => Ok(alloc::vec![String::new()]),
        Some(count) if (1..=limits.queues).contains(&count) => {
            Ok((0..count).map(|queue| format!("queue-{queue}/")).collect())
        }
        Some(value) => Err(PublishedError::OutOfRange {
            node: NODE.into(),
            value,
            expected: format!("1 to {}", limits.queues),
        }),
    }
}

fn ring_pages(nodes: &NodeMap, limits: Limits) -> Result<RingPages, PublishedError> {
    let most = 1u32 << limits.ring_page_order;
    if let Some(order) = number(nodes, "ring-page-order")? {
        if order > limits.ring_page_order {
            return Err(PublishedError::OutOfRange {
                node: "ring-page-order".into(),
                value: order,
                expected: format!("0 to {}", limits.ring_page_order),
            });
        }
        return Ok(RingPages::Numbered(1 << order));
    }
    match number(nodes, "num-ring-pages")? {
        None => Ok(RingPages::Single),
        Some(pages) if pages.is_power_of_two() && pages <= most => Ok(RingPages::Numbered(pages)),
        Some(value) => Err(PublishedError::OutOfRange {
            node: "num-ring-pages".into(),
            value,
            expected: format!("a power of two up to {most}"),
        }),
    }
}

#[derive(Clone, Copy)]
enum RingPages {
    /// A single page, named `ring-ref`.
    Single,
    /// Pages in this number, named `ring-ref0` and on.
    Numbered(u32),
}

/// Returns the nodes that may name the ring's pages.
fn ring_nodes(prefix: &str, pages: RingPages) -> Vec<String> {
    match pages {
        RingPages::Single => alloc::vec![format!("{prefix}ring-ref")],
        // For the header this is a ring of a single page. Linux's and QEMU's backends look for a
        // numbered one where the frontend negotiated the order 0.
        RingPages::Numbered(1) => {
            alloc::vec![format!("{prefix}ring-ref"), format!("{prefix}ring-ref0")]
        }
        RingPages::Numbered(count) => (0..count)
            .map(|page| format!("{prefix}ring-ref{page}"))
            .collect(),
    }
}

/// Returns the ring's pages.
fn ring(nodes: &NodeMap, prefix: &str, pages: RingPages) -> Result<Vec<GrantRef>, PublishedError> {
    let mut names = ring_nodes(prefix, pages);
    if matches!(pages, RingPages::Numbered(1)) {
        let published = names.iter().position(|name| nodes.contains_key(name));
        names.swap(0, published.unwrap_or(0));
        names.truncate(1);
    }
    names
        .iter()
        .map(|name| required(nodes, name).map(GrantRef))
        .collect()
}

fn number(nodes: &NodeMap, name: &str) -> Result<Option<u32>, PublishedError> {
    let Some(value) = nodes.get(name) else {
        return Ok(None);
    };
    value
        .trim()
        .parse()
        .map(Some)
        .map_err(|_| PublishedError::NotANumber {
            node: name.into(),
            value: excerpt(value),
        })
}

fn required(nodes: &NodeMap, name: &str) -> Result<u32, PublishedError> {
    number(nodes, name)?.ok_or_else(|| PublishedError::Missing(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        queues: 4,
        ring_page_order: 4,
        indirect_segments: 256,
        persistent: true,
    };

    fn nodes(pairs: &[(&str, &str)]) -> NodeMap {
        pairs
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect()
    }

    fn refused(pairs: &[(&str, &str)]) -> String {
        alloc::string::ToString::to_string(&parse(&nodes(pairs), LIMITS).unwrap_err())
    }

    #[test]
    fn a_plain_linux_frontend() {
        let nodes = nodes(&[
            ("ring-ref", "8"),
            ("event-channel", "15"),
            ("protocol", "x86_64-abi"),
        ]);
        let published = parse(&nodes, LIMITS).unwrap();
        assert_eq!(published.abi, Abi::X86_64);
        assert!(!published.persistent);
        let queue = QueueDetails {
            ring: alloc::vec![GrantRef(8)],
            event_channel: Port(15),
        };
        assert_eq!(published.queues, [queue]);
    }

    #[test]
    fn several_queues_of_several_pages() {
        let mut nodes = nodes(&[
            ("multi-queue-num-queues", "2"),
            ("ring-page-order", "1"),
            ("feature-persistent", "1"),
        ]);
        let wanted = queue_nodes(&nodes, LIMITS).unwrap();
        assert_eq!(wanted.len(), 6);
        for (value, name) in wanted.into_iter().enumerate() {
            nodes.insert(name, format!("{}", value + 10));
        }
        let published = parse(&nodes, LIMITS).unwrap();
        assert!(published.persistent);
        assert_eq!(published.queues[0].event_channel, Port(10));
        assert_eq!(published.queues[0].ring, [GrantRef(11), GrantRef(12)]);
        assert_eq!(published.queues[1].ring, [GrantRef(14), GrantRef(15)]);
    }

    #[test]
    fn a_single_page_goes_by_either_name() {
        for count in [("ring-page-order", "0"), ("num-ring-pages", "1")] {
            for name in ["ring-ref", "ring-ref0"] {
                let nodes = nodes(&[count, (name, "8"), ("event-channel", "15")]);
                assert!(queue_nodes(&nodes, LIMITS).unwrap().contains(&name.into()));
                let published = parse(&nodes, LIMITS).unwrap();
                assert_eq!(published.queues[0].ring, [GrantRef(8)], "{name}");
            }
            let neither = refused(&[count, ("event-channel", "15")]);
            assert_eq!(neither, "the frontend published no ring-ref");
        }
        let both = nodes(&[
            ("ring-page-order", "0"),
            ("ring-ref", "8"),
            ("ring-ref0", "9"),
            ("event-channel", "15"),
        ]);
        assert_eq!(parse(&both, LIMITS).unwrap().queues[0].ring, [GrantRef(8)]);
    }

    #[test]
    fn rubbish_is_refused_by_name() {
        assert_eq!(
            refused(&[("event-channel", "1")]),
            "the frontend published no ring-ref"
        );
        assert_eq!(
            refused(&[("ring-ref", "1")]),
            "the frontend published no event-channel"
        );
        assert_eq!(
            refused(&[("ring-ref", "-1"), ("event-channel", "1")]),
            "the frontend's ring-ref is not a number: \"-1\""
        );
        assert_eq!(
            refused(&[("ring-ref", "1"), ("event-channel", "99999999999")]),
            "the frontend's event-channel is not a number: \"99999999999\""
        );
        // Shown in six characters each.
        let unprintable = "\u{1d}".repeat(300);
        for (node, value) in [("protocol", &unprintable), ("ring-ref", &unprintable)] {
            let message = refused(&[(node, value)]);
            assert!(message.len() < 160, "{} characters", message.len());
        }
        assert!(refused(&[("protocol", "sparc-abi")]).contains("sparc-abi"));
        assert!(refused(&[("multi-queue-num-queues", "0")]).contains("expected 1 to 4"));
        assert!(refused(&[("multi-queue-num-queues", "4000000000")]).contains("expected 1 to 4"));
        assert!(refused(&[("ring-page-order", "5")]).contains("expected 0 to 4"));
        assert!(refused(&[("ring-page-order", "4294967295")]).contains("expected 0 to 4"));
        assert!(refused(&[("num-ring-pages", "3")]).contains("a power of two up to 16"));
    }
}
