//! Each connection's sequence numbers, followed as its packets pass by: packets that were sent twice are counted, and
//! packets that end a connection are looked at more closely than the stack does.
//!
//! The stack counts no retransmissions, and nothing else shows that a network loses packets. A packet counts if its
//! first number is one that another packet had before (RFC 9293, 3.4). That costs a packet one look at its header.
//!
//! The stack ends a connection at a reset with any number in the window. Somebody who sees none of its packets would have
//! to guess one number of some thousands then; a reset is believed only if it has the very number that comes next (RFC
//! 5961, 3.2). A server that has lost the connection has seen what this end sent last, so its reset has that number, or
//! the next one that it sends has.

use crate::traces::Kept;
use alloc::vec::Vec;
use smoltcp::wire::{IpAddress, TcpPacket};

/// The connections of an interface, by their ports at this end, which differ.
#[derive(Default)]
pub struct Sequences {
    connections: Vec<Connection>,
    counts: Repeats,
    /// True if there may be a connection with bytes that came twice.
    any_duplicate: bool,
}

/// Packets that were sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repeats {
    /// Packets that this end has sent again.
    pub retransmitted: u64,
    /// Packets that servers have sent again, as far as it shows here: a lost packet is only missed if another one came
    /// after it. A packet that another one has overtaken counts, too.
    pub repeated: u64,
}

struct Connection {
    port: u16,
    server: (IpAddress, u16),
    /// The number that follows all that were sent, and the one that follows all that were received.
    sent: Option<u32>,
    received: Option<u32>,
    /// The last number that was acknowledged, and the one that follows all that came in order.
    acknowledged: Option<u32>,
    expected: Option<u32>,
    /// True if the other end understands selective acknowledgements (RFC 2018).
    sack: bool,
    /// The last bytes that came twice, until the other end is told: their first number, and the one that follows them.
    duplicate: Option<(u32, u32)>,
    /// True if a packet has arrived.
    heard: bool,
    /// True if the other end has said that the connection is over.
    over: bool,
    /// The trace by which the connection is found later if the other end keeps it for longer.
    trace: Option<Kept>,
}

impl Sequences {
    /// Follows a connection to a server, and keeps its trace.
    pub fn add(&mut self, port: u16, server: (IpAddress, u16), trace: Option<Kept>) {
        self.remove(port);
        self.connections.push(Connection {
            port,
            server,
            sent: None,
            received: None,
            acknowledged: None,
            expected: None,
            sack: false,
            duplicate: None,
            heard: false,
            over: false,
            trace,
        });
    }

    /// Returns whether a packet has arrived at that port since the connection is followed.
    pub fn has_heard(&self, port: u16) -> bool {
        let mut connections = self.connections.iter();
        connections.any(|connection| connection.port == port && connection.heard)
    }

    /// Stops following a connection. Unless the other end has said that the connection is over, it may not know that:
    /// the last packet was lost, or was not sent at all.
    pub fn remove(&mut self, port: u16) {
        let mut connections = self.connections.iter();
        let Some(place) = connections.position(|connection| connection.port == port) else {
            return;
        };
        let connection = self.connections.remove(place);
        if let Some(trace) = connection.trace
            && connection.heard
            && !connection.over
        {
            trace.leave();
        }
    }

    /// Returns whether a connection with that port is followed.
    pub fn has(&self, port: u16) -> bool {
        self.connections
            .iter()
            .any(|connection| connection.port == port)
    }

    /// Returns the numbers of packets so far.
    pub fn counts(&self) -> Repeats {
        self.counts
    }

    /// Follows a packet that is sent.
    #[inline]
    pub fn sent(&mut self, tcp: &TcpPacket<&[u8]>) {
        if let Some(connection) = find(&mut self.connections, tcp.src_port()) {
            self.counts.retransmitted += u64::from(is_repeated(&mut connection.sent, tcp));
            if tcp.ack() {
                let number = tcp.ack_number().0 as u32;
                connection.acknowledged = Some(number);
                if connection
                    .expected
                    .is_none_or(|next| is_before(next, number))
                {
                    connection.expected = Some(number);
                }
            }
        }
    }

    /// Follows a packet that has arrived from `source`. Returns false for a reset that the server has hardly sent.
    #[inline]
    pub fn received(&mut self, source: IpAddress, tcp: &TcpPacket<&[u8]>) -> bool {
        let Some(connection) = find(&mut self.connections, tcp.dst_port()) else {
            return true;
        };
        if connection.server != (source, tcp.src_port()) {
            return true;
        }
        let first = tcp.seq_number().0 as u32;
        if tcp.rst() {
            // The stack itself looks at the answer to the first packet.
            let is_next = [connection.expected, connection.acknowledged].contains(&Some(first));
            let believed = connection.expected.is_none() || is_next;
            connection.heard |= believed;
            connection.over |= believed && (is_next || answers_first(connection.sent, tcp));
            return believed;
        }
        connection.heard = true;
        if connection.expected == Some(first) {
            let end = first.wrapping_add(tcp.segment_len() as u32);
            connection.expected = Some(end);
            connection.over |= tcp.fin();
        }
        let all_before = connection.received;
        let repeated = is_repeated(&mut connection.received, tcp);
        self.counts.repeated += u64::from(repeated);
        if tcp.syn() {
            connection.sack = tcp.selective_ack_permitted().unwrap_or(false);
        } else if repeated && connection.received == all_before && connection.sack {
            let end = first.wrapping_add(tcp.payload().len() as u32);
            connection.duplicate = Some((first, end)).filter(|_| first != end);
            self.any_duplicate |= first != end;
        }
        true
    }

    /// Returns whether [`take_duplicate`](Self::take_duplicate) may find any bytes.
    #[inline]
    pub fn any_duplicate(&self) -> bool {
        self.any_duplicate
    }

    /// Takes the last bytes of a connection that came twice, if the other end was not told yet: their first number, and
    /// the one that follows them.
    pub fn take_duplicate(&mut self, port: u16) -> Option<(u32, u32)> {
        let taken = find(&mut self.connections, port).and_then(|found| found.duplicate.take());
        self.any_duplicate = self
            .connections
            .iter()
            .any(|other| other.duplicate.is_some());
        taken
    }
}

fn find(connections: &mut [Connection], port: u16) -> Option<&mut Connection> {
    connections
        .iter_mut()
        .find(|connection| connection.port == port)
}

/// Returns whether a number comes before another one.
fn is_before(number: u32, other: u32) -> bool {
    (number.wrapping_sub(other) as i32) < 0
}

/// Returns whether a reset is the answer to the first packet of a connection, of which `sent` is the next number.
fn answers_first(sent: Option<u32>, tcp: &TcpPacket<&[u8]>) -> bool {
    tcp.ack() && sent == Some(tcp.ack_number().0 as u32)
}

/// Returns whether a packet begins before the number that follows all earlier ones, and moves that number on.
fn is_repeated(next: &mut Option<u32>, tcp: &TcpPacket<&[u8]>) -> bool {
    let len = tcp.segment_len();
    // Nothing, or a byte that asks whether the other end is there (RFC 9293, 3.8.4), or has room (3.8.6.1).
    if len == 0 || (len == 1 && !tcp.syn() && !tcp.fin()) {
        return false;
    }
    let first = tcp.seq_number().0 as u32;
    let end = first.wrapping_add(len as u32);
    let repeated = next.is_some_and(|next| is_before(first, next));
    if next.is_none_or(|next| is_before(next, end)) {
        *next = Some(end);
    }
    repeated
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: (IpAddress, u16) = (IpAddress::v4(10, 0, 0, 2), 7);

    /// Returns a packet with that number, those flags, and `bytes` bytes.
    fn packet(number: u32, flags: u8, bytes: usize) -> Vec<u8> {
        let mut packet = alloc::vec![0; 20 + bytes];
        packet[..2].copy_from_slice(&50000u16.to_be_bytes());
        packet[4..8].copy_from_slice(&number.to_be_bytes());
        (packet[12], packet[13]) = (0x50, flags);
        packet
    }

    #[test]
    fn what_was_sent_before_is_counted_once_each_time() {
        const SYN: u8 = 2;
        const FIN: u8 = 1;
        const ACK: u8 = 16;
        let mut sequences = Sequences::default();
        sequences.add(50000, SERVER, None);
        let start = u32::MAX - 100;
        for (after, flags, bytes, repeated) in [
            (0, SYN, 0, false),
            (0, SYN, 0, true),
            (1, ACK, 0, false),
            // Past the last number.
            (1, ACK, 200, false),
            (201, ACK, 1400, false),
            (201, ACK, 1400, true),
            (1, ACK, 200, true),
            // The end of what was sent, and more.
            (1500, ACK, 500, true),
            (2000, ACK, 100, false),
            // A server is asked whether it is there, or has room.
            (2099, ACK, 1, false),
            (2100, ACK, 1, false),
            (2100, ACK, 1, false),
            (2100, ACK, 10, false),
            (2110, ACK | FIN, 0, false),
            (2110, ACK | FIN, 0, true),
        ] {
            let before = sequences.counts().retransmitted;
            let bytes = packet(start.wrapping_add(after), flags, bytes);
            sequences.sent(&TcpPacket::new_checked(&bytes[..]).expect("a packet"));
            let counted = sequences.counts().retransmitted - before;
            assert_eq!(counted, u64::from(repeated), "{after} {flags}");
        }
        let bytes = packet(start, SYN, 0);
        let again = TcpPacket::new_checked(&bytes[..]).expect("a packet");
        // Of another connection, with the same port.
        sequences.add(50000, SERVER, None);
        let before = sequences.counts();
        sequences.sent(&again);
        sequences.remove(50000);
        sequences.sent(&again);
        assert_eq!(sequences.counts(), before);
    }
}
