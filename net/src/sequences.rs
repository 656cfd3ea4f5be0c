//! Packets that were sent twice, found by each connection's sequence numbers as its packets pass by.
//!
//! The stack counts no retransmissions, and nothing else shows that a network loses packets. A packet counts if its
//! first number is one that another packet had before (RFC 9293, 3.4). That costs a packet one look at its header.

use crate::traces::Kept;
use alloc::vec::Vec;
use smoltcp::wire::TcpPacket;

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
    /// The number that follows all that were sent, and the one that follows all that were received.
    sent: Option<u32>,
    received: Option<u32>,
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
    /// Follows a connection, and keeps its trace.
    pub fn add(&mut self, port: u16, trace: Option<Kept>) {
        self.remove(port);
        self.connections.push(Connection {
            port,
            sent: None,
            received: None,
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
        }
    }

    /// Follows a packet that has arrived.
    #[inline]
    pub fn received(&mut self, tcp: &TcpPacket<&[u8]>) {
        let Some(connection) = find(&mut self.connections, tcp.dst_port()) else {
            return;
        };
        connection.heard = true;
        connection.over |= tcp.rst() || tcp.fin();
        let all_before = connection.received;
        let repeated = is_repeated(&mut connection.received, tcp);
        self.counts.repeated += u64::from(repeated);
        if tcp.syn() {
            connection.sack = tcp.selective_ack_permitted().unwrap_or(false);
        } else if repeated && connection.received == all_before && connection.sack {
            let first = tcp.seq_number().0 as u32;
            let end = first.wrapping_add(tcp.payload().len() as u32);
            connection.duplicate = Some((first, end)).filter(|_| first != end);
            self.any_duplicate |= first != end;
        }
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

/// Returns whether a packet begins before the number that follows all earlier ones, and moves that number on.
fn is_repeated(next: &mut Option<u32>, tcp: &TcpPacket<&[u8]>) -> bool {
    let len = tcp.segment_len();
    // Nothing, or a byte that asks whether the other end is there (RFC 9293, 3.8.4), or has room (3.8.6.1).
    if len == 0 || (len == 1 && !tcp.syn() && !tcp.fin()) {
        return false;
    }
    let first = tcp.seq_number().0 as u32;
    let end = first.wrapping_add(len as u32);
    let is_before = |number: u32, other: u32| (number.wrapping_sub(other) as i32) < 0;
    let repeated = next.is_some_and(|next| is_before(first, next));
    if next.is_none_or(|next| is_before(next, end)) {
        *next = Some(end);
    }
    repeated
}

#[cfg(test)]
mod tests {
    use super::*;

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
        sequences.add(50000, None);
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
        sequences.add(50000, None);
        let before = sequences.counts();
        sequences.sent(&again);
        sequences.remove(50000);
        sequences.sent(&again);
        assert_eq!(sequences.counts(), before);
    }
}
