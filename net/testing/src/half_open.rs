//! Connections that the other end has forgotten, treated as in Linux: a packet that asks for a connection that exists
//! is answered with the sequence number that is expected there (RFC 5961, 4). The host's own stack drops such a packet.

use crate::peer::Frame;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber,
};
use std::collections::BTreeMap;

/// The number that follows all bytes that the host has sent, by the ports of both ends.
#[derive(Default)]
pub struct HalfOpen(BTreeMap<(u16, u16), TcpSeqNumber>);

/// A distance that is larger than what a connection has in flight.
const FAR: usize = 1 << 28;

impl HalfOpen {
    /// Follows a packet that the host sends.
    pub fn sent(&mut self, frame: &mut Frame) {
        with_tcp(frame, |tcp| {
            let ends = (tcp.src_port(), tcp.dst_port());
            match tcp.rst() {
                true => _ = self.0.remove(&ends),
                false => _ = self.0.insert(ends, tcp.seq_number() + tcp.segment_len()),
            }
        });
    }

    /// Follows a packet for the host. Turns one that asks for a connection that exists into one that the stack answers.
    pub fn arrives(&mut self, frame: &mut Frame) {
        with_tcp(frame, |tcp| {
            let ends = (tcp.dst_port(), tcp.src_port());
            if tcp.rst() || tcp.fin() {
                self.0.remove(&ends);
            } else if tcp.syn()
                && !tcp.ack()
                && let Some(next) = self.0.get(&ends)
            {
                tcp.set_syn(false);
                tcp.set_ack(true);
                tcp.set_ack_number(*next + FAR);
            }
        });
    }
}

/// Calls `act` with the TCP packet in a frame, if there is one over IPv4.
fn with_tcp(frame: &mut Frame, act: impl FnOnce(&mut TcpPacket<&mut [u8]>)) {
    let Ok(mut ethernet) = EthernetFrame::new_checked(&mut frame.bytes[..]) else {
        return;
    };
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return;
    }
    let Ok(mut ip) = Ipv4Packet::new_checked(ethernet.payload_mut()) else {
        return;
    };
    let (source, destination) = (ip.src_addr().into(), ip.dst_addr().into());
    if ip.next_header() != IpProtocol::Tcp {
        return;
    }
    let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) else {
        return;
    };
    let blank = frame.blank;
    act(&mut tcp);
    if !blank {
        tcp.fill_checksum(&source, &destination);
    }
}
