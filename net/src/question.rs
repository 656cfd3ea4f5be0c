//! Questions to name servers, and what answers say (RFC 1035).
//!
//! The stack's client takes answers from hosts that were not asked, and its numbers can be computed by those who see
//! the sequence numbers of connections. These numbers cannot, if the machine has a source of random numbers.

use crate::interface::{Interface, InterfaceState};
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_xen::Hypervisor;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::{Either, select};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{
    DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRcode, DnsRecord, DnsRecordData,
    DnsRepr, IpAddress, IpEndpoint,
};

/// The port of name servers.
const PORT: u16 = 53;
/// The lowest port that a question comes from, and the number of such ports: all that no system service has (RFC 6056,
/// 3.2).
const LOWEST_PORT: u16 = 1024;
const PORTS: u64 = 65536 - LOWEST_PORT as u64;
/// The time that a name server has for an answer to the first packet, and to the second one.
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// The longest name, and the longest part of one (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: usize = 63;
/// Room for answers; a server sends 512 bytes at most (RFC 1035, 2.3.4).
const ROOM: usize = 1024;
/// The most answers that wait to be read. Any host can send some.
const MOST_ANSWERS: usize = 4;
/// The most addresses of a host that are used.
const MOST_ADDRESSES: usize = 4;

/// What a name server answers.
pub enum Answer {
    /// The host has these addresses, or none.
    Addresses(Vec<IpAddress>),
    /// The server cannot tell, as one whose own servers are away.
    Fails,
}

/// Returns a host's name as packets have it; `None` if no host can have the name.
pub fn encode(host: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    for label in host.strip_suffix('.').unwrap_or(host).split('.') {
        if label.is_empty() || label.len() > LONGEST_LABEL {
            return None;
        }
        name.push(label.len() as u8);
        name.extend_from_slice(label.as_bytes());
    }
    name.push(0);
    (name.len() <= LONGEST_NAME).then_some(name)
}

/// Returns whether two names in a packet are the same (RFC 4343).
fn is_same(packet: &DnsPacket<&[u8]>, one: &[u8], other: &[u8]) -> bool {
    let (mut one, mut other) = (packet.parse_name(one), packet.parse_name(other));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(Ok(one)), Some(Ok(other))) if one.eq_ignore_ascii_case(other) => {}
            _ => return false,
        }
    }
}

/// Reads a server's answer; `None` if it is none to that question.
fn read(bytes: &[u8], id: u16, name: &[u8], kind: DnsQueryType) -> Option<Answer> {
    let packet = DnsPacket::new_checked(bytes).ok()?;
    let is_answer =
        packet.flags().contains(DnsFlags::RESPONSE) && packet.opcode() == DnsOpcode::Query;
    if !is_answer || packet.transaction_id() != id {
        return None;
    }
    let code = packet.rcode();
    let fails = !matches!(code, DnsRcode::NoError | DnsRcode::NXDomain);
    // A server that does not understand a question may not repeat it.
    if fails && packet.question_count() == 0 {
        return Some(Answer::Fails);
    }
    let (mut rest, question) = DnsQuestion::parse(packet.payload()).ok()?;
    let is_repeated = question.type_ == kind && is_same(&packet, question.name, name);
    if packet.question_count() != 1 || !is_repeated {
        return None;
    }
    if fails {
        return Some(Answer::Fails);
    }
    let (mut wanted, mut addresses) = (name, Vec::new());
    for _ in 0..packet.answer_record_count() {
        let (behind, record) = DnsRecord::parse(rest).ok()?;
        rest = behind;
        if !is_same(&packet, record.name, wanted) {
            continue;
        }
        match record.data {
            // The records of an alias follow it.
            DnsRecordData::Cname(other) => wanted = other,
            DnsRecordData::A(address) => addresses.push(address.into()),
            DnsRecordData::Aaaa(address) => addresses.push(address.into()),
            DnsRecordData::Other(..) => {}
        }
    }
    addresses.truncate(MOST_ADDRESSES);
    Some(Answer::Addresses(addresses))
}

/// A socket for one question. Dropping this withdraws the question.
struct Asking<'i, H: Hypervisor> {
    interface: &'i Interface<H>,
    socket: SocketHandle,
}

impl<H: Hypervisor> Drop for Asking<'_, H> {
    fn drop(&mut self) {
        let mut state = self.interface.state.borrow_mut();
        state.sockets.remove(self.socket);
    }
}

impl<H: Hypervisor> InterfaceState<H> {
    /// Makes a socket with a port that no other question has: `port`, or the next one.
    fn question_socket(&mut self, mut port: u16) -> SocketHandle {
        let is_taken = |port: u16| {
            let mut all = self.sockets.iter();
            all.any(|(_, socket)| match socket {
                smoltcp::socket::Socket::Udp(socket) => socket.endpoint().port == port,
                _ => false,
            })
        };
        while is_taken(port) {
            port = port.checked_add(1).unwrap_or(LOWEST_PORT);
        }
        let buffer = |packets, bytes| {
            PacketBuffer::new(vec![PacketMetadata::EMPTY; packets], vec![0; bytes])
        };
        let mut socket = Socket::new(
            buffer(MOST_ANSWERS, ROOM),
            buffer(WAITS.len(), WAITS.len() * (LONGEST_NAME + 16)),
        );
        // It has a port, and is not bound yet.
        let _ = socket.bind(port);
        self.sockets.add(socket)
    }
}

/// Asks one name server. Returns `None` if it does not answer.
pub async fn ask<H: Hypervisor>(
    interface: &Interface<H>,
    server: IpAddress,
    name: &[u8],
    kind: DnsQueryType,
) -> Option<Answer> {
    let number = interface.number();
    let (id, port) = (number as u16, LOWEST_PORT + ((number >> 16) % PORTS) as u16);
    let repr = DnsRepr {
        transaction_id: id,
        opcode: DnsOpcode::Query,
        flags: DnsFlags::RECURSION_DESIRED,
        question: DnsQuestion { name, type_: kind },
    };
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut DnsPacket::new_unchecked(&mut packet[..]));
    let asking = Asking {
        interface,
        socket: interface.state.borrow_mut().question_socket(port),
    };
    let server = IpEndpoint::new(server, PORT);
    for wait in WAITS {
        {
            let mut state = interface.state.borrow_mut();
            state.want(&server.addr, interface.handle.now());
            let socket = state.sockets.get_mut::<Socket<'_>>(asking.socket);
            // If the last one could not be sent yet, there is room for this one, too.
            let _ = socket.send_slice(&packet, server);
        }
        interface.work.raise();
        let answer = poll_fn(|context| {
            let mut state = interface.state.borrow_mut();
            let socket = state.sockets.get_mut::<Socket<'_>>(asking.socket);
            while let Ok((bytes, from)) = socket.recv() {
                if from.endpoint == server
                    && let Some(answer) = read(bytes, id, name, kind)
                {
                    return Poll::Ready(answer);
                }
            }
            socket.register_recv_waker(context.waker());
            Poll::Pending
        });
        let over = interface.handle.sleep(wait);
        if let Either::Left((answer, _)) = select(answer, pin!(over)).await {
            return Some(answer);
        }
    }
    None
}
