//! UDP datagrams over IPv4, as the servers in the network receive and send them.

use crate::peer::{Frame, MAC};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

/// The bytes before a datagram's payload.
const HEADERS: usize = 14 + 20 + 8;

/// A datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The interface that it comes from.
    pub from: EthernetAddress,
    /// The address and the port that it comes from.
    pub source: (Ipv4Address, u16),
    /// The address and the port that it is for.
    pub destination: (Ipv4Address, u16),
    /// The bytes.
    pub payload: Vec<u8>,
}

impl Datagram {
    /// Returns the datagram that is in a frame.
    pub fn find(frame: &Frame) -> Option<Datagram> {
        let ethernet = EthernetFrame::new_checked(&frame.bytes).ok()?;
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        if ip.next_header() != IpProtocol::Udp {
            return None;
        }
        let udp = UdpPacket::new_checked(ip.payload()).ok()?;
        let sound = udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into());
        assert!(
            sound && udp.checksum() != 0,
            "a datagram with a wrong checksum"
        );
        Some(Datagram {
            from: ethernet.src_addr(),
            source: (ip.src_addr(), udp.src_port()),
            destination: (ip.dst_addr(), udp.dst_port()),
            payload: udp.payload().to_vec(),
        })
    }

    /// Returns the frame of a datagram to the interface `to`.
    pub fn frame(&self, to: EthernetAddress) -> Frame {
        let mut bytes = vec![0; HEADERS + self.payload.len()];
        let mut ethernet = EthernetFrame::new_unchecked(&mut bytes);
        let repr = EthernetRepr {
            src_addr: MAC,
            dst_addr: to,
            ethertype: EthernetProtocol::Ipv4,
        };
        repr.emit(&mut ethernet);
        let ip = Ipv4Repr {
            src_addr: self.source.0,
            dst_addr: self.destination.0,
            next_header: IpProtocol::Udp,
            payload_len: 8 + self.payload.len(),
            hop_limit: 64,
        };
        let sums = ChecksumCapabilities::default();
        let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.emit(&mut packet, &sums);
        let udp = UdpRepr {
            src_port: self.source.1,
            dst_port: self.destination.1,
        };
        udp.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &self.source.0.into(),
            &self.destination.0.into(),
            self.payload.len(),
            |room| room.copy_from_slice(&self.payload),
            &sums,
        );
        Frame {
            bytes,
            ..Frame::default()
        }
    }
}
