//! Tells a server which of its packets came twice: the duplicate SACK of RFC 2883, which the stack does not have.
//!
//! A server that waits for an acknowledgement sends the last of its packets again (RFC 8985, 7.2). Linux then takes a
//! packet for lost and halves its window, unless it is told that both came. Where the driver domain's processor is late
//! now and then, that window is down to a few packets soon, and a reply of 4 KiB no longer leaves in one.

use crate::packet::Transport;
use crate::sequences::Sequences;
use smoltcp::wire::{
    EthernetFrame, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpOption, TcpPacket,
};

/// The bytes that [`report`] adds to a packet: an option with one range (RFC 2018, 3), and two of padding.
pub const OPTION: usize = 12;

/// The bytes of a TCP header without options.
const HEADER: usize = 20;

/// Adds the range of the bytes that came twice to a packet that is about to be sent, if it is a mere acknowledgement on
/// such a connection. The packet has `len` bytes, and room for [`OPTION`] more. Returns its new length.
pub fn report(frame: &mut [u8], len: usize, sequences: &mut Sequences) -> usize {
    let end = len + OPTION;
    let found = frame.get(..len).and_then(Transport::find);
    let found = found.filter(|found| found.protocol == IpProtocol::Tcp && found.end == len);
    let Some(found) = found.filter(|_| end <= frame.len()) else {
        return len;
    };
    let Ok(tcp) = TcpPacket::new_checked(&frame[found.start..len]) else {
        return len;
    };
    // One with other options tells of packets that are missing.
    let acknowledges = tcp.ack() && tcp.segment_len() == 0 && !tcp.rst();
    if !acknowledges || usize::from(tcp.header_len()) != HEADER {
        return len;
    }
    let Some(range) = sequences.take_duplicate(tcp.src_port()) else {
        return len;
    };
    let options = [
        TcpOption::NoOperation,
        TcpOption::NoOperation,
        TcpOption::SackRange([Some(range), None, None]),
    ];
    let mut room = &mut frame[len..end];
    for option in options {
        room = option.emit(room);
    }
    let mut tcp = TcpPacket::new_unchecked(&mut frame[found.start..end]);
    tcp.set_header_len((HEADER + OPTION) as u8);
    let ip = &mut frame[EthernetFrame::<&[u8]>::header_len()..end];
    match found.source {
        IpAddress::Ipv4(_) => {
            let mut ip = Ipv4Packet::new_unchecked(ip);
            ip.set_total_len(ip.total_len() + OPTION as u16);
            ip.fill_checksum();
        }
        IpAddress::Ipv6(_) => {
            let mut ip = Ipv6Packet::new_unchecked(ip);
            ip.set_payload_len(ip.payload_len() + OPTION as u16);
        }
    }
    end
}
