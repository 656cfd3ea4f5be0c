//! The xenstore nodes with a backend's offer, and with the toolstack's settings.

use crate::packet::Offload;
use bulkhead_xenbus::NodeMap;
use core::fmt;
use smoltcp::wire::EthernetAddress;

/// The node with the most queues that a backend takes; without it, it knows one alone.
const MOST_QUEUES: &str = "multi-queue-max-queues";

/// The nodes of the backend's directory that are read.
pub const OFFER_NODES: [&str; 5] = [
    MOST_QUEUES,
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-ipv6-csum-offload",
    "feature-no-csum-offload",
];

/// The nodes that this end publishes for every backend.
pub const OWN_FEATURES: [(&str, &str); 6] = [
    ("request-rx-copy", "1"),
    ("feature-rx-notify", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-ipv6-csum-offload", "1"),
];

/// The node that tells a backend of the number of queues.
pub const QUEUES: &str = "multi-queue-num-queues";

/// The size of IP packets if no node gives another one.
const MTU: u16 = 1500;
/// The least size with which IPv6 works.
const LEAST_MTU: u16 = 1280;
/// The largest size that the stack supports.
const LARGEST_MTU: u16 = 9000;
/// The largest frame of a backend that takes no packets of several parts is a page.
const PAGE_MTU: u16 = 4096 - 14;

/// The features of a backend.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The checksums that it computes.
    pub offload: Offload,
    /// True if it cuts TCP packets over IPv4.
    pub gso_tcpv4: bool,
    /// The bytes of the largest IP packet.
    pub mtu: u16,
    /// The most queues that it takes: one at least.
    pub queues: u32,
}

impl Default for Offer {
    fn default() -> Self {
        Offer {
            offload: Offload::default(),
            gso_tcpv4: false,
            mtu: MTU,
            queues: 1,
        }
    }
}

impl Offer {
    /// Reads the nodes of a backend. `mtu` is the toolstack's node.
    pub fn parse(nodes: &NodeMap, mtu: Option<&str>) -> Offer {
        let has = |name: &str| nodes.get(name).is_some_and(|value| value.trim() == "1");
        let parts = has("feature-sg");
        let offload = Offload {
            ipv4: !has("feature-no-csum-offload"),
            ipv6: has("feature-ipv6-csum-offload"),
        };
        let mtu = mtu.and_then(|mtu| mtu.trim().parse().ok()).unwrap_or(MTU);
        let queues = nodes
            .get(MOST_QUEUES)
            .and_then(|most| most.trim().parse().ok());
        let largest = if parts { LARGEST_MTU } else { PAGE_MTU };
        Offer {
            offload,
            gso_tcpv4: parts && offload.ipv4 && has("feature-gso-tcpv4"),
            mtu: mtu.clamp(LEAST_MTU, largest),
            // A backend that says nothing usable gets what each knows.
            queues: queues.unwrap_or(1).max(1),
        }
    }
}

/// The reason why an interface has no address of its own in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMac;

impl fmt::Display for NoMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its node mac is not the address of one interface")
    }
}

impl core::error::Error for NoMac {}

/// Reads an Ethernet address, which has to be that of one interface.
pub fn mac(node: Option<&str>) -> Result<EthernetAddress, NoMac> {
    let mut bytes = [0; 6];
    let mut parts = node.ok_or(NoMac)?.trim().split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2).ok_or(NoMac)?;
        // `from_str_radix` alone would let a sign pass.
        if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NoMac);
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| NoMac)?;
    }
    let address = EthernetAddress(bytes);
    match parts.next() {
        None if address.is_unicast() && bytes != [0; 6] => Ok(address),
        _ => Err(NoMac),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_mac_is_that_of_one_interface() {
        let read = mac(Some("00:16:3E:01:02:ff\n"));
        assert_eq!(read, Ok(EthernetAddress([0, 0x16, 0x3e, 1, 2, 0xff])));
        for no in [
            None,
            Some(""),
            Some("00:16:3e:01:02"),
            Some("00:16:3e:01:02:03:04"),
            Some("00:16:3e:01:02:+3"),
            Some("00:00:00:00:00:00"),
            Some("01:16:3e:01:02:03"),
            Some("ff:ff:ff:ff:ff:ff"),
        ] {
            assert_eq!(mac(no), Err(NoMac), "{no:?}");
        }
    }

    #[test]
    fn a_backend_takes_one_queue_unless_it_says_more() {
        let mut nodes = NodeMap::new();
        assert_eq!(Offer::parse(&nodes, None).queues, 1);
        for (node, queues) in [
            ("1", 1),
            ("4\n", 4),
            ("0", 1),
            ("-3", 1),
            ("", 1),
            ("two", 1),
            ("4294967295", u32::MAX),
            ("4294967296", 1),
        ] {
            nodes.insert("multi-queue-max-queues".to_string(), node.to_string());
            assert_eq!(Offer::parse(&nodes, None).queues, queues, "{node}");
        }
    }

    #[test]
    fn segmentation_needs_what_it_is_built_on() {
        let mut nodes = NodeMap::new();
        nodes.insert("feature-gso-tcpv4".to_string(), "1".to_string());
        let offer = Offer::parse(&nodes, None);
        assert!(!offer.gso_tcpv4 && offer.offload.ipv4 && !offer.offload.ipv6);
        nodes.insert("feature-sg".to_string(), "1".to_string());
        let offer = Offer::parse(&nodes, Some("9000"));
        assert!(offer.gso_tcpv4 && offer.mtu == 9000);
        nodes.insert("feature-no-csum-offload".to_string(), "1".to_string());
        nodes.insert("feature-ipv6-csum-offload".to_string(), "1".to_string());
        let offer = Offer::parse(&nodes, Some("70000"));
        assert!(!offer.gso_tcpv4 && offer.offload.ipv6 && offer.mtu == 1500);
        nodes.insert("feature-sg".to_string(), "rubbish".to_string());
        assert_eq!(Offer::parse(&nodes, Some("9000")).mtu, 4082);
        assert_eq!(Offer::parse(&nodes, Some("0")).mtu, 1280);
    }
}
