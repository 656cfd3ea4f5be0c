//! The checksums of TCP packets, as a network card computes and verifies them.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};

/// Returns a TCP packet's addresses, and its range in the frame.
fn tcp(frame: &[u8]) -> Option<(IpAddress, IpAddress, std::ops::Range<usize>)> {
    let ethernet = EthernetFrame::new_checked(frame).expect("a frame");
    let payload = ethernet.payload();
    let (source, destination, protocol, start, end): (IpAddress, IpAddress, _, usize, usize) =
        match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(payload).expect("an IP packet");
                assert!(ip.verify_checksum());
                let (start, end) = (ip.header_len().into(), ip.total_len().into());
                let addresses = (ip.src_addr().into(), ip.dst_addr().into());
                (addresses.0, addresses.1, ip.next_header(), start, end)
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(payload).expect("an IP packet");
                let addresses = (ip.src_addr().into(), ip.dst_addr().into());
                (
                    addresses.0,
                    addresses.1,
                    ip.next_header(),
                    ip.header_len(),
                    ip.total_len(),
                )
            }
            _ => return None,
        };
    (protocol == IpProtocol::Tcp).then_some((source, destination, 14 + start..14 + end))
}

/// Computes the checksum from that of the pseudo-header, as a network card does, which knows only the bytes.
pub fn finish(frame: &mut [u8]) {
    let (_, _, range) = tcp(frame).expect("only TCP's checksums are left blank");
    let bytes = &mut frame[range];
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Returns whether the checksum of a TCP packet is right; true for other packets, whose checksums are not checked.
pub fn is_sound(frame: &[u8]) -> bool {
    match tcp(frame) {
        Some((source, destination, range)) => TcpPacket::new_checked(&frame[range])
            .is_ok_and(|tcp| tcp.verify_checksum(&source, &destination)),
        None => true,
    }
}
