//! One domain's connection: bytes in, requests waiting, messages out, watches and transactions.

use super::Server;
use super::transaction::Transaction;
use super::tree::DOM0;
use super::watch::Watch;
use bulkhead_xen::DomId;
use bulkhead_xen::abi::xs_wire::{ERROR_PROTOCOL, Header, MessageType, PAYLOAD_MAX, RequestId};
use bulkhead_xen::abi::xs_wire::{Refusal, TransactionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A message on its way out.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    event: bool,
}

/// The reply to one request, and the event that follows it.
struct Reply {
    domain: DomId,
    bytes: Vec<u8>,
    event: Option<Vec<u8>>,
}

/// Requests that begin with a path.
const NAMING: [MessageType; 8] = [
    MessageType::DIRECTORY,
    MessageType::DIRECTORY_PART,
    MessageType::READ,
    MessageType::WRITE,
    MessageType::MKDIR,
    MessageType::RM,
    MessageType::SET_PERMS,
    MessageType::WATCH,
];

#[derive(Debug, Default)]
pub(super) struct Connection {
    pub watches: Vec<Watch>,
    pub transactions: BTreeMap<TransactionId, Transaction>,
    pub last_transaction: u32,
    incoming: Vec<u8>,
    requests: VecDeque<(Header, Vec<u8>)>,
    /// The number of requests that were served.
    pub(super) served: u64,
    /// The paths that those requests named.
    pub(super) named: BTreeSet<String>,
    outgoing: VecDeque<Outgoing>,
    /// The number of bytes of the first outgoing message that were sent already.
    gone: usize,
    /// The reason why the server has given up on the domain (`XENSTORE_ERROR_*`).
    error: Option<u32>,
}

impl Connection {
    /// Queues an event, unless it is too long, or the same one waits already. Special events (`@…`) are queued each
    /// time.
    pub fn push_event(&mut self, payload: Vec<u8>) {
        if payload.len() > PAYLOAD_MAX {
            return;
        }
        let header = Header {
            message_type: MessageType::WATCH_EVENT,
            request: RequestId(0),
            transaction: TransactionId::NONE,
            length: payload.len() as u32,
        };
        let bytes = [&header.to_bytes()[..], &payload].concat();
        let waits = |message: &Outgoing| message.event && message.bytes == bytes;
        if payload.starts_with(b"@") || !self.outgoing.iter().any(waits) {
            self.outgoing.push_back(Outgoing { bytes, event: true });
        }
    }

    fn push_reply(&mut self, bytes: Vec<u8>) {
        self.outgoing.push_back(Outgoing {
            bytes,
            event: false,
        });
    }

    fn replies_waiting(&self) -> usize {
        self.outgoing
            .iter()
            .filter(|message| !message.event)
            .count()
    }

    fn receive(&mut self, bytes: &[u8]) {
        if self.error.is_some() {
            return;
        }
        self.incoming.extend_from_slice(bytes);
        while let Some(start) = self.incoming.first_chunk() {
            let header = Header::from_bytes(start);
            let length = header.length as usize;
            if length > PAYLOAD_MAX {
                self.give_up(ERROR_PROTOCOL);
                return;
            }
            let end = Header::SIZE + length;
            if self.incoming.len() < end {
                return;
            }
            let payload = self.incoming[Header::SIZE..end].to_vec();
            self.incoming.drain(..end);
            self.requests.push_back((header, payload));
        }
    }

    /// Ends the connection for good, as xenstored does with a domain that breaks the protocol.
    fn give_up(&mut self, error: u32) {
        *self = Connection {
            error: Some(error),
            ..Connection::default()
        };
    }
}

impl Server {
    /// Takes bytes that a domain sent, cut anywhere. Whole requests wait for
    /// [`step`](Self::step).
    pub fn receive(&mut self, domain: DomId, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&domain) {
            connection.receive(bytes);
        }
    }

    /// Serves the requests that wait, one of each domain in turn, as far as faults and quotas
    /// let it. Returns how many it has served.
    pub fn step(&mut self) -> usize {
        if self.faults.stalled {
            return 0;
        }
        let most = self.faults.requests_per_step.unwrap_or(usize::MAX);
        let mut held_back: Vec<Reply> = Vec::new();
        let mut served = 0;
        loop {
            let before = served;
            for domain in self.connections.keys().copied().collect::<Vec<_>>() {
                if served == most {
                    break;
                }
                let Some(request) = self.next_request(domain, &held_back) else {
                    continue;
                };
                served += 1;
                let reply = self.serve(domain, &request.0, &request.1);
                if self.faults.reverse_replies {
                    held_back.push(reply);
                } else {
                    self.push(reply);
                }
            }
            if served == before {
                break;
            }
        }
        for reply in held_back.into_iter().rev() {
            self.push(reply);
        }
        served
    }

    fn next_request(&mut self, domain: DomId, held_back: &[Reply]) -> Option<(Header, Vec<u8>)> {
        let held = held_back
            .iter()
            .filter(|reply| reply.domain == domain)
            .count();
        let connection = self.connections.get_mut(&domain)?;
        let waiting = connection.replies_waiting() + held;
        if domain != DOM0 && waiting >= self.quotas.outstanding {
            return None;
        }
        let request = connection.requests.pop_front();
        connection.served += u64::from(request.is_some());
        if let Some((header, payload)) = &request
            && NAMING.contains(&header.message_type)
            && let Some(path) = payload.split(|&byte| byte == 0).next()
        {
            let path = String::from_utf8_lossy(path).into_owned();
            connection.named.insert(path);
        }
        request
    }

    fn push(&mut self, reply: Reply) {
        if let Some(connection) = self.connections.get_mut(&reply.domain) {
            connection.push_reply(reply.bytes);
            if let Some(event) = reply.event {
                connection.push_event(event);
            }
        }
    }

    /// Takes up to `most` bytes of what waits to go to a domain.
    pub fn take_outgoing(&mut self, domain: DomId, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Some(connection) = self.connections.get_mut(&domain) else {
            return bytes;
        };
        while bytes.len() < most {
            let Some(message) = connection.outgoing.front_mut() else {
                break;
            };
            if connection.gone == 0
                && let Some(mangle) = &mut self.faults.mangle
            {
                mangle(domain, &mut message.bytes);
            }
            let rest = &message.bytes[connection.gone..];
            let part = rest.len().min(most - bytes.len());
            bytes.extend_from_slice(&rest[..part]);
            if part == rest.len() {
                connection.outgoing.pop_front();
                connection.gone = 0;
            } else {
                connection.gone += part;
            }
        }
        bytes
    }

    /// Returns whether anything waits to go to a domain.
    pub fn has_outgoing(&self, domain: DomId) -> bool {
        self.connections
            .get(&domain)
            .is_some_and(|connection| !connection.outgoing.is_empty())
    }

    /// Sends a domain any bytes, as a broken server might.
    pub fn inject(&mut self, domain: DomId, bytes: &[u8]) {
        if let Some(connection) = self.connections.get_mut(&domain) {
            connection.push_reply(bytes.into());
        }
    }

    /// Returns the reason why the server has given up on a domain (`XENSTORE_ERROR_*`), if it has.
    pub fn connection_error(&self, domain: DomId) -> Option<u32> {
        self.connections.get(&domain)?.error
    }

    /// Gives up on a domain, as the server does with one that breaks the protocol.
    pub fn give_up(&mut self, domain: DomId, error: u32) {
        if let Some(connection) = self.connections.get_mut(&domain) {
            connection.give_up(error);
        }
    }

    fn serve(&mut self, domain: DomId, request: &Header, payload: &[u8]) -> Reply {
        let answer = self.answer(domain, request, payload).and_then(|answer| {
            if answer.payload.len() > self.program.longest_answer() {
                return Err(Refusal::TooBig);
            }
            Ok(answer)
        });
        let (message_type, payload, event) = match answer {
            Ok(answer) => (request.message_type, answer.payload, answer.event),
            Err(refusal) => {
                let refusal = self.program.word(refusal);
                let name = [refusal.name().as_bytes(), b"\0"].concat();
                (MessageType::ERROR, name, None)
            }
        };
        let header = Header {
            message_type,
            length: payload.len() as u32,
            ..*request
        };
        Reply {
            domain,
            bytes: [&header.to_bytes()[..], &payload].concat(),
            event,
        }
    }
}
