//! The queue of a packet.

use super::NetBack;
use crate::peer::Frame;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};

/// Returns the ports of a TCP packet: its sender's, and its receiver's.
fn ports(frame: &[u8]) -> Option<(u16, u16)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let (protocol, payload) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            (ip.next_header(), ip.payload())
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            (ip.next_header(), ip.payload())
        }
        _ => return None,
    };
    let tcp = TcpPacket::new_checked(payload).ok()?;
    (protocol == IpProtocol::Tcp).then(|| (tcp.src_port(), tcp.dst_port()))
}

impl NetBack {
    /// Notes by which queue a packet of the frontend's came.
    ///
    /// # Panics
    /// If another packet of the connection came by another one: they may overtake each other.
    pub(super) fn note_flow(&mut self, frame: &Frame, queue: usize) {
        if let Some((own, _)) = ports(&frame.bytes) {
            let first = *self.flows.entry(own).or_insert(queue);
            assert_eq!(first, queue, "a connection is in one queue");
        }
    }

    /// Returns the queue, of that many, for a packet to the frontend: one connection is in one queue, and another one
    /// than that by which it sends.
    pub(super) fn queue_of(&mut self, frame: &Frame, count: usize) -> usize {
        if self.scatters {
            self.scattered += 1;
            return self.scattered % count;
        }
        let ports = ports(&frame.bytes);
        ports.map_or(0, |(other, own)| {
            (usize::from(other) + usize::from(own)) % count
        })
    }

    /// Returns the number of queues by which the frontend has sent packets of connections.
    pub fn queues_in_use(&self) -> usize {
        let mut queues: Vec<_> = self.flows.values().collect();
        queues.sort_unstable();
        queues.dedup();
        queues.len()
    }
}
