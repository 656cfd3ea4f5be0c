//! xenstore as domains see it: rights, events, transactions, quotas.

mod events;
mod toolstack;
mod transactions;
mod values;

use super::*;
use bulkhead_xen::abi::xs_wire::{
    ERROR_PROTOCOL, Header, MessageType, NodeAccess, PAYLOAD_MAX, RequestId,
};

const GUEST: DomId = DomId(5);
const BACKEND: DomId = DomId(2);

struct Message {
    header: Header,
    payload: Vec<u8>,
}

impl Message {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).replace('\0', "|")
    }
}

fn store() -> Server {
    let mut store = Server::new();
    for domain in [BACKEND, GUEST] {
        store.introduce(domain);
        let path = domain_path(domain);
        store.write(&path, "");
        store.set_permissions(&path, &owned_by(DOM0, &[domain]));
        store.write(&format!("{path}/data"), "");
        store.set_permissions(&format!("{path}/data"), &owned_by(domain, &[]));
    }
    store
}

fn send(store: &mut Server, domain: DomId, kind: MessageType, tx: u32, payload: &[u8]) {
    let header = Header {
        message_type: kind,
        request: RequestId(9),
        transaction: TransactionId(tx),
        length: payload.len() as u32,
    };
    store.receive(domain, &header.to_bytes());
    store.receive(domain, payload);
    store.step();
}

fn messages(store: &mut Server, domain: DomId) -> Vec<Message> {
    let mut bytes = store.take_outgoing(domain, usize::MAX);
    let mut messages = Vec::new();
    while let Some(start) = bytes.first_chunk() {
        let header = Header::from_bytes(start);
        let rest = bytes.split_off(Header::SIZE);
        let (payload, rest) = rest.split_at(header.length as usize);
        messages.push(Message {
            header,
            payload: payload.into(),
        });
        bytes = rest.into();
    }
    messages
}

fn ask(store: &mut Server, kind: MessageType, tx: u32, payload: &str) -> String {
    send(
        store,
        GUEST,
        kind,
        tx,
        payload.replace('|', "\0").as_bytes(),
    );
    let message = messages(store, GUEST).remove(0);
    assert_eq!(message.header.request, RequestId(9));
    assert_eq!(message.header.transaction, TransactionId(tx));
    if message.header.message_type == MessageType::ERROR {
        return message.text();
    }
    assert_eq!(message.header.message_type, kind);
    message.text()
}

fn events(store: &mut Server, domain: DomId) -> Vec<String> {
    let messages = messages(store, domain);
    let events = messages
        .iter()
        .filter(|message| message.header.message_type == MessageType::WATCH_EVENT);
    events.map(Message::text).collect()
}
