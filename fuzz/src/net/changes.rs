//! Changes to packets on their way.

use bulkhead_blkback_testkit::Script;
use bulkhead_net_testing::Frame;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};

/// A change to a packet.
#[derive(Clone, Copy)]
pub(super) enum Change {
    Drop,
    Twice,
    Cut(usize),
    Longer(usize),
    Flip(usize, u8),
    Set(usize, u8),
    /// The backend claims that the checksum is blank, so that the domain does not check it.
    Vouched,
    /// The backend claims that the packet was joined from several, with this payload in bytes each (GSO).
    Joined(u16),
    /// The checksums are computed again.
    Mended,
}

pub(super) fn changes(script: &mut Script<'_>) -> Vec<Change> {
    let one = |script: &mut Script<'_>| {
        // Most changes are in the headers.
        let at = match script.below(4) {
            0 => script.number() as usize % 1600,
            _ => script.below(80),
        };
        match script.below(12) {
            0 => Change::Drop,
            1 => Change::Twice,
            2 => Change::Cut(at),
            3 => Change::Longer(script.number() as usize % 5000),
            4 | 5 => Change::Flip(at, 1 << script.below(8)),
            6 | 7 => Change::Set(at, script.byte()),
            8 => Change::Vouched,
            9 => Change::Joined(script.number() as u16),
            _ => Change::Mended,
        }
    };
    (0..=script.below(5)).map(|_| one(script)).collect()
}

pub(super) fn changed(mut frame: Frame, changes: &[Change]) -> Vec<Frame> {
    let mut times = 1;
    for change in changes {
        let bytes = &mut frame.bytes;
        match *change {
            Change::Drop => times = 0,
            Change::Twice => times = 2,
            Change::Cut(len) => bytes.truncate(len),
            Change::Longer(more) => bytes.resize((bytes.len() + more).min(65_535), 0xa5),
            Change::Flip(at, bits) => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= bits),
            Change::Set(at, to) => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte = to),
            Change::Vouched => frame.blank = true,
            Change::Joined(segment) => frame.segment = Some(segment),
            Change::Mended => mend(bytes),
        }
    }
    let empty = frame.bytes.is_empty();
    (0..if empty { 0 } else { times })
        .map(|_| frame.clone())
        .collect()
}

/// Computes the checksums of the headers that can be parsed.
pub(super) fn mend(bytes: &mut [u8]) {
    let Ok(mut ethernet) = EthernetFrame::new_checked(bytes) else {
        return;
    };
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let Ok(mut ip) = Ipv4Packet::new_checked(ethernet.payload_mut()) else {
                return;
            };
            let (source, destination) = (ip.src_addr().into(), ip.dst_addr().into());
            match ip.next_header() {
                IpProtocol::Tcp => {
                    if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
                        tcp.fill_checksum(&source, &destination);
                    }
                }
                IpProtocol::Udp => {
                    if let Ok(mut udp) = UdpPacket::new_checked(ip.payload_mut()) {
                        udp.fill_checksum(&source, &destination);
                    }
                }
                _ => {}
            }
            ip.fill_checksum();
        }
        EthernetProtocol::Ipv6 => {
            let Ok(mut ip) = Ipv6Packet::new_checked(ethernet.payload_mut()) else {
                return;
            };
            let (source, destination) = (ip.src_addr().into(), ip.dst_addr().into());
            if let (IpProtocol::Tcp, Ok(mut tcp)) =
                (ip.next_header(), TcpPacket::new_checked(ip.payload_mut()))
            {
                tcp.fill_checksum(&source, &destination);
            }
        }
        _ => {}
    }
}
