//! Packets on the rings: their flags, and the checksums that are left to the other end.

use crate::sequences::Sequences;
use bulkhead_ring::netif::PacketFlags;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IPV6_HEADER_LEN, IpAddress, IpProtocol,
    Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};

/// The offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;

/// The port from which a client asks, and on which it gets its answers (RFC 2131, 4.1).
const DHCP_CLIENT_PORT: u16 = 68;
/// The offsets of the transaction's number and of the client's address in a datagram of DHCP: a UDP header, and what
/// precedes them (RFC 2131, 2).
const TRANSACTION: usize = 8 + 4;
const CLIENT: usize = 8 + 28;

/// A packet that has arrived, and that the backend cannot change any more.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The number of its bytes.
    pub len: usize,
    /// The backend's flags of it.
    pub flags: PacketFlags,
    /// The offset of its beginning in the pages in which it arrived; `None` if it was copied out of them.
    pub start: Option<usize>,
}

/// The way in which the backend is to cut a packet.
#[derive(Clone, Copy, Debug)]
pub struct Segmentation {
    /// The payload of each segment.
    pub segment: u16,
    /// `XEN_NETIF_GSO_TYPE_*`.
    pub protocol: u8,
}

/// A TCP or UDP packet in a frame.
pub struct Transport {
    pub source: IpAddress,
    destination: IpAddress,
    pub protocol: IpProtocol,
    /// The offset in the frame of its beginning, and of its end.
    pub start: usize,
    pub end: usize,
}

impl Transport {
    /// Finds the packet in a frame; `None` if there is none, or the frame is not valid.
    pub fn find(frame: &[u8]) -> Option<Transport> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let payload = ethernet.payload();
        let header = frame.len() - payload.len();
        let (source, destination, protocol, start, len) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(payload).ok()?;
                if ip.more_frags() || ip.frag_offset() != 0 {
                    return None;
                }
                let (start, len) = (usize::from(ip.header_len()), usize::from(ip.total_len()));
                let addresses = (ip.src_addr().into(), ip.dst_addr().into());
                (addresses.0, addresses.1, ip.next_header(), start, len)
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(payload).ok()?;
                let (start, len) = (ip.header_len(), ip.total_len());
                let addresses = (ip.src_addr().into(), ip.dst_addr().into());
                (addresses.0, addresses.1, ip.next_header(), start, len)
            }
            _ => return None,
        };
        let transport = Transport {
            source,
            destination,
            protocol,
            start: header + start,
            end: header + len,
        };
        let inside = transport.start <= transport.end && transport.end <= frame.len();
        let known = matches!(protocol, IpProtocol::Tcp | IpProtocol::Udp);
        (inside && known).then_some(transport)
    }

    /// Returns the checksum of the pseudo-header, as an offload starts from it (RFC 9293, 3.1).
    fn pseudo_header(&self) -> u16 {
        let mut sum = u32::from(u8::from(self.protocol)) + (self.end - self.start) as u32;
        for address in [self.source, self.destination] {
            let add = |bytes: &[u8]| -> u32 {
                let words = bytes.chunks_exact(2);
                words
                    .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
                    .sum()
            };
            sum += match address {
                IpAddress::Ipv4(address) => add(&address.octets()),
                IpAddress::Ipv6(address) => add(&address.octets()),
            };
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// A frame, and the packet that was found in it.
pub struct Contents<'f> {
    frame: &'f [u8],
    found: Option<Transport>,
}

impl<'f> Contents<'f> {
    /// Finds the packet in a frame.
    #[inline]
    pub fn of(frame: &'f [u8]) -> Contents<'f> {
        let found = Transport::find(frame);
        Contents { frame, found }
    }

    /// Returns the addresses of a packet of that protocol, and its bytes.
    fn packet(&self, protocol: IpProtocol) -> Option<(&Transport, &'f [u8])> {
        let found = self.found.as_ref();
        let found = found.filter(|found| found.protocol == protocol)?;
        Some((found, &self.frame[found.start..found.end]))
    }

    /// Returns the TCP packet in the frame, and the address that it comes from.
    #[inline]
    pub fn tcp(&self) -> Option<(IpAddress, TcpPacket<&'f [u8]>)> {
        let (found, bytes) = self.packet(IpProtocol::Tcp)?;
        Some((found.source, TcpPacket::new_checked(bytes).ok()?))
    }

    /// Returns whether the checksum of a TCP or UDP packet is right. Other packets are sound, except those in which
    /// only the stack would find one.
    pub fn is_sound(&self) -> bool {
        if let Some((found, bytes)) = self.packet(IpProtocol::Tcp) {
            return TcpPacket::new_checked(bytes)
                .is_ok_and(|tcp| tcp.verify_checksum(&found.source, &found.destination));
        }
        if let Some((found, bytes)) = self.packet(IpProtocol::Udp) {
            return UdpPacket::new_checked(bytes)
                .is_ok_and(|udp| udp.verify_checksum(&found.source, &found.destination));
        }
        !is_hidden(self.frame)
    }

    /// Returns the number of the transaction if the packet is a DHCP server's answer to the client with that interface.
    /// Nothing else of it is checked.
    pub fn dhcp_answer(&self, client: EthernetAddress) -> Option<u32> {
        let (_, udp) = self.packet(IpProtocol::Udp)?;
        let is_answer = udp.get(2..4)? == DHCP_CLIENT_PORT.to_be_bytes()
            && udp.get(CLIENT..)?.starts_with(client.as_bytes());
        transaction(udp).filter(|_| is_answer)
    }
}

/// Returns the number of the transaction in a datagram of DHCP.
fn transaction(udp: &[u8]) -> Option<u32> {
    let number = udp.get(TRANSACTION..)?.first_chunk()?;
    Some(u32::from_be_bytes(*number))
}

/// Returns whether there is a TCP or UDP packet behind a header of IPv6 that has no use there. The stack would find the
/// packet, and take its checksum for verified.
fn is_hidden(frame: &[u8]) -> bool {
    let payload = frame
        .get(EthernetFrame::<&[u8]>::header_len()..)
        .unwrap_or_default();
    let is_ipv6 = payload.first().is_some_and(|first| first >> 4 == 6);
    let options = is_ipv6 && payload.get(6) == Some(&IpProtocol::HopByHop.into());
    let next = payload.get(IPV6_HEADER_LEN).copied().map(IpProtocol::from);
    options && matches!(next, Some(IpProtocol::Tcp | IpProtocol::Udp))
}

/// Completes a TCP packet that the stack has made without a checksum, and notes its sequence numbers: writes the
/// checksum of the pseudo-header if the backend computes the rest, and all of it otherwise. Returns what the rings have
/// to know of it.
pub fn complete(frame: &mut [u8], offload: Offload, sequences: &mut Sequences) -> Flow {
    let Some(found) = Transport::find(frame) else {
        return Flow::default();
    };
    if found.protocol == IpProtocol::Udp {
        let udp = &frame[found.start..found.end];
        let is_client = udp.starts_with(&DHCP_CLIENT_PORT.to_be_bytes());
        return Flow {
            dhcp: transaction(udp).filter(|_| is_client),
            ..Flow::default()
        };
    }
    let mut port = 0;
    let blank = match found.source {
        IpAddress::Ipv4(_) => offload.ipv4,
        IpAddress::Ipv6(_) => offload.ipv6,
    };
    let sum = found.pseudo_header();
    let bytes = &mut frame[found.start..found.end];
    if let Ok(tcp) = TcpPacket::new_checked(&*bytes) {
        port = tcp.src_port();
        sequences.sent(&tcp);
    }
    if blank {
        if let Some(field) = bytes.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
    } else if let Ok(mut tcp) = TcpPacket::new_checked(bytes) {
        tcp.fill_checksum(&found.source, &found.destination);
    }
    Flow {
        port,
        blank,
        dhcp: None,
    }
}

/// What the rings have to know of a packet that is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    /// The connection to which it belongs: its port at this end, which no other one has; 0 for other packets.
    pub port: u16,
    /// True if the backend computes its checksum.
    pub blank: bool,
    /// The transaction for which it asks a DHCP server.
    pub dhcp: Option<u32>,
}

/// The checksums that the backend computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offload {
    /// True for TCP over IPv4.
    pub ipv4: bool,
    /// True for TCP over IPv6.
    pub ipv6: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_behind_other_headers_is_not_believed() {
        // A TCP packet without a checksum, after a header of options for each hop.
        let mut frame = [0; 14 + 40 + 8 + 20];
        frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        frame[19] = 8 + 20;
        frame[54 + 8 + 12] = 0x50;
        for (next, sound) in [(6, false), (17, false), (58, true)] {
            frame[54] = next;
            assert_eq!(Contents::of(&frame).is_sound(), sound, "{next}");
        }
    }
}
