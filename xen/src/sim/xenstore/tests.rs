//! What domains see: rights, events, transactions, quotas.

use super::*;
use crate::abi::xs_wire::{Access, ERROR_PROTOCOL, Header, MessageType, PAYLOAD_MAX, RequestId};

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

#[test]
fn values_over_the_wire() {
    let mut store = store();
    assert_eq!(
        ask(&mut store, MessageType::WRITE, 0, "data/a/b|v|w"),
        "OK|"
    );
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/a/b|"), "v|w");
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/a|"), "");
    assert_eq!(ask(&mut store, MessageType::DIRECTORY, 0, "data|"), "a|");
    assert_eq!(ask(&mut store, MessageType::GET_PERMS, 0, "data/a|"), "n5|");
    assert_eq!(
        ask(&mut store, MessageType::SET_PERMS, 0, "data/a|n5|r2|"),
        "OK|"
    );
    assert_eq!(
        ask(&mut store, MessageType::GET_PERMS, 0, "data/a|"),
        "n5|r2|"
    );
    assert_eq!(ask(&mut store, MessageType::MKDIR, 0, "data/a|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::RM, 0, "data/a|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::RM, 0, "data/a|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::RM, 0, "data/a/b|"), "ENOENT|");
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/a|"), "ENOENT|");
    let own = ask(&mut store, MessageType::GET_DOMAIN_PATH, 0, "5|");
    assert_eq!(own, "/local/domain/5|");
}

#[test]
fn malformed_requests_are_refused() {
    let mut store = store();
    for path in ["", "data/", "data//a", "da ta", "@data", "data.a"] {
        let payload = format!("{path}|");
        assert_eq!(ask(&mut store, MessageType::READ, 0, &payload), "EINVAL|");
    }
    let long = format!("data/{}|", "x".repeat(2048));
    assert_eq!(ask(&mut store, MessageType::READ, 0, &long), "EINVAL|");
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data"), "EINVAL|");
    assert_eq!(
        ask(&mut store, MessageType::READ, 0, "data|data|"),
        "EINVAL|"
    );
    assert_eq!(ask(&mut store, MessageType::READ, 7, "data|"), "ENOENT|");
    assert_eq!(ask(&mut store, MessageType(77), 0, "data|"), "ENOSYS|");
    assert_eq!(ask(&mut store, MessageType::RELEASE, 0, "2|"), "EACCES|");
    assert_eq!(
        ask(&mut store, MessageType::SET_PERMS, 0, "data|"),
        "EINVAL|"
    );
    assert_eq!(
        ask(&mut store, MessageType::SET_PERMS, 0, "data|x5|"),
        "EINVAL|"
    );
}

#[test]
fn too_long_a_message_ends_the_connection() {
    let mut store = store();
    send(
        &mut store,
        GUEST,
        MessageType::READ,
        0,
        &[b'x'; PAYLOAD_MAX + 1],
    );
    assert_eq!(store.connection_error(GUEST), Some(ERROR_PROTOCOL));
    send(&mut store, GUEST, MessageType::READ, 0, b"data\0");
    assert!(!store.has_outgoing(GUEST));
}

#[test]
fn rights() {
    let mut store = store();
    // Its own directory is dom0's; it may read there, but make and remove nothing.
    let mut guest = store.as_domain(GUEST);
    assert_eq!(guest.read(""), Err(Refusal::Invalid));
    assert_eq!(guest.read("/local/domain/5"), Ok(vec![]));
    assert_eq!(guest.write("name", "x"), Err(Refusal::AccessDenied));
    assert_eq!(guest.remove("/local/domain/5"), Err(Refusal::AccessDenied));
    assert_eq!(guest.read("nothing"), Err(Refusal::NotFound));
    // Another's is not for it, whether there is something or not.
    assert_eq!(
        guest.read("/local/domain/2/data"),
        Err(Refusal::AccessDenied)
    );
    assert_eq!(
        guest.read("/local/domain/2/none"),
        Err(Refusal::AccessDenied)
    );
    assert_eq!(guest.read("/none"), Err(Refusal::AccessDenied));
    // What it owns, it can open to others, but not give away.
    guest.write("data/x", "1").unwrap();
    guest
        .set_permissions("data/x", &owned_by(GUEST, &[BACKEND]))
        .unwrap();
    assert_eq!(
        guest.set_permissions("data/x", &owned_by(BACKEND, &[])),
        Err(Refusal::NotPermitted)
    );
    let mut backend = store.as_domain(BACKEND);
    assert_eq!(backend.read("/local/domain/5/data/x"), Ok(b"1".to_vec()));
    assert_eq!(
        backend.write("/local/domain/5/data/x", "2"),
        Err(Refusal::AccessDenied)
    );
    // The owner removes what another domain owns below.
    store.write("/local/domain/5/data/x/y", "dom0's");
    store.set_permissions("/local/domain/5/data/x/y", &owned_by(DOM0, &[]));
    store.as_domain(GUEST).remove("data/x").unwrap();
    assert!(!store.exists("/local/domain/5/data/x/y"));
}

#[test]
fn watches_fire_for_what_is_below_and_readable() {
    let mut store = store();
    assert_eq!(
        ask(&mut store, MessageType::WATCH, 0, "data/dir|one|"),
        "OK|"
    );
    assert_eq!(
        ask(&mut store, MessageType::WATCH, 0, "data/dir|one|"),
        "EEXIST|"
    );
    assert_eq!(
        ask(
            &mut store,
            MessageType::WATCH,
            0,
            "/local/domain/5/data|two|"
        ),
        "OK|"
    );
    assert!(events(&mut store, GUEST).is_empty());
    store.write("/local/domain/5/data/dir/a", "1");
    assert_eq!(
        events(&mut store, GUEST),
        ["data/dir/a|one|", "/local/domain/5/data/dir/a|two|"]
    );
    // Readable neither itself nor from above: nothing is told.
    store.set_permissions("/local/domain/5/data/dir", &owned_by(DOM0, &[]));
    store.set_permissions("/local/domain/5/data/dir/a", &owned_by(DOM0, &[]));
    events(&mut store, GUEST);
    store.write("/local/domain/5/data/dir/a", "2");
    assert!(events(&mut store, GUEST).is_empty());
    // Equal events that wait are one event.
    store.write("/local/domain/5/data/x", "1");
    store.write("/local/domain/5/data/x", "2");
    assert_eq!(events(&mut store, GUEST), ["/local/domain/5/data/x|two|"]);
    assert_eq!(
        ask(&mut store, MessageType::UNWATCH, 0, "data|one|"),
        "ENOENT|"
    );
    assert_eq!(
        ask(&mut store, MessageType::UNWATCH, 0, "data/dir|one|"),
        "OK|"
    );
    assert_eq!(ask(&mut store, MessageType::RESET_WATCHES, 0, "|"), "OK|");
    assert_eq!(store.watch_count(GUEST), 0);
}

#[test]
fn first_event_follows_the_reply() {
    let mut store = store();
    send(&mut store, GUEST, MessageType::WATCH, 0, b"none/such\0t\0");
    let messages = messages(&mut store, GUEST);
    assert_eq!(messages[0].header.message_type, MessageType::WATCH);
    assert_eq!(messages[1].header.message_type, MessageType::WATCH_EVENT);
    assert_eq!(messages[1].header.request, RequestId(0));
    assert_eq!(messages[1].text(), "none/such|t|");
}

#[test]
fn removing_a_parent_fires_each_watched_node_by_its_own_name() {
    let mut store = store();
    store.write("/local/domain/5/data/dir/a/b", "1");
    for path in ["data", "data/dir/a", "data/dir/a/none"] {
        ask(&mut store, MessageType::WATCH, 0, &format!("{path}|t|"));
    }
    events(&mut store, GUEST);
    store.remove("/local/domain/5/data/dir");
    assert_eq!(events(&mut store, GUEST), ["data/dir/a|t|", "data/dir|t|"]);
}

#[test]
fn domains_come_and_go() {
    let mut store = store();
    let everyone = [Permission {
        domain: DOM0,
        access: Access::Read,
    }];
    ask(&mut store, MessageType::WATCH, 0, "@releaseDomain|r|");
    store.release(DomId(9));
    assert!(events(&mut store, GUEST).is_empty());
    store.set_permissions("@releaseDomain", &everyone);
    events(&mut store, GUEST);
    store.release(DomId(9));
    store.release(DomId(9));
    let event = "@releaseDomain|r|";
    assert_eq!(events(&mut store, GUEST), [event, event]);
    store.release(GUEST);
    assert!(!store.is_introduced(GUEST));
    assert_eq!(store.watch_count(GUEST), 0);
}

#[test]
fn transactions_are_invisible_until_committed() {
    let mut store = store();
    ask(&mut store, MessageType::WATCH, 0, "data|t|");
    let id = ask(&mut store, MessageType::TRANSACTION_START, 0, "|");
    let id: u32 = id.trim_end_matches('|').parse().unwrap();
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_START, id, "|"),
        "EBUSY|"
    );
    assert_eq!(ask(&mut store, MessageType::WRITE, id, "data/x/y|1"), "OK|");
    assert_eq!(ask(&mut store, MessageType::READ, id, "data/x/y|"), "1");
    assert_eq!(
        ask(&mut store, MessageType::READ, 0, "data/x/y|"),
        "ENOENT|"
    );
    assert!(events(&mut store, GUEST).is_empty());
    send(&mut store, GUEST, MessageType::TRANSACTION_END, id, b"T\0");
    assert_eq!(events(&mut store, GUEST), ["data/x/y|t|"]);
    assert_eq!(ask(&mut store, MessageType::READ, 0, "data/x/y|"), "1");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "ENOENT|"
    );
    assert_eq!(store.transaction_count(GUEST), 0);
}

#[test]
fn transactions_conflict_on_what_they_touched_alone() {
    let mut store = store();
    store.write("/local/domain/5/data/a", "1");
    store.write("/local/domain/5/data/b", "1");
    let begin = |store: &mut Server| {
        let id = ask(store, MessageType::TRANSACTION_START, 0, "|");
        id.trim_end_matches('|').parse::<u32>().unwrap()
    };
    // Another node: no conflict.
    let id = begin(&mut store);
    ask(&mut store, MessageType::WRITE, id, "data/a|2");
    store.write("/local/domain/5/data/b", "2");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "OK|"
    );
    // A node that was read.
    let id = begin(&mut store);
    ask(&mut store, MessageType::READ, id, "data/b|");
    ask(&mut store, MessageType::WRITE, id, "data/a|3");
    store.write("/local/domain/5/data/b", "3");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "EAGAIN|"
    );
    assert_eq!(store.read("/local/domain/5/data/a").unwrap(), "2");
    // A node that was not there.
    let id = begin(&mut store);
    ask(&mut store, MessageType::READ, id, "data/c|");
    store.write("/local/domain/5/data/c", "");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "EAGAIN|"
    );
    // Two children of one node, whose list of children both change.
    let id = begin(&mut store);
    ask(&mut store, MessageType::WRITE, id, "data/d|");
    store.write("/local/domain/5/data/e", "");
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_END, id, "T|"),
        "EAGAIN|"
    );
    // Forced, and discarded ones.
    store.faults.conflicts = 1;
    for (end, answer) in [("T|", "EAGAIN|"), ("F|", "OK|"), ("T|", "OK|")] {
        let id = begin(&mut store);
        assert_eq!(
            ask(&mut store, MessageType::TRANSACTION_END, id, end),
            answer
        );
    }
}

#[test]
fn quotas() {
    let mut store = store();
    store.quotas.nodes = 3;
    store.quotas.watches = 1;
    store.quotas.transactions = 1;
    let full = "ENOSPC|";
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a/b/c|"), full);
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a/b|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/c|"), full);
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, "data/a|2"), "OK|");
    let big = format!("data/a|{}", "x".repeat(2048));
    assert_eq!(ask(&mut store, MessageType::WRITE, 0, &big), full);
    assert_eq!(ask(&mut store, MessageType::WATCH, 0, "a|1|"), "OK|");
    assert_eq!(ask(&mut store, MessageType::WATCH, 0, "a|2|"), full);
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_START, 0, "|"),
        "1|"
    );
    assert_eq!(
        ask(&mut store, MessageType::TRANSACTION_START, 0, "|"),
        full
    );
    assert_eq!(
        ask(
            &mut store,
            MessageType::SET_PERMS,
            0,
            "data|n5|r1|r2|r3|r4|r6|"
        ),
        full
    );
    // What dom0 makes there inherits the owner and counts, but dom0 is not refused.
    store.write("/local/domain/5/data/dom0", "");
    assert_eq!(store.node_count(GUEST), 4);
}

#[test]
fn long_lists_come_in_parts() {
    let mut store = store();
    let names: Vec<String> = (0..600).map(|n| format!("child-{n}")).collect();
    for name in &names {
        store.write(&format!("/local/domain/5/data/{name}"), "");
    }
    assert_eq!(
        ask(&mut store, MessageType::DIRECTORY, 0, "data|"),
        "E2BIG|"
    );
    let mut list = String::new();
    let generation = loop {
        let request = format!("data|{}|", list.len());
        let part = ask(&mut store, MessageType::DIRECTORY_PART, 0, &request);
        let (generation, part) = part.split_once('|').unwrap();
        if let Some(last) = part.strip_suffix("||") {
            list += last;
            break generation.to_string();
        }
        list += part;
    };
    assert_eq!(list.split('|').collect::<Vec<_>>(), names);
    let end = ask(&mut store, MessageType::DIRECTORY_PART, 0, "data|99999|");
    assert_eq!(end, format!("{generation}||"));
    store.write("/local/domain/5/data/more", "");
    let end = ask(&mut store, MessageType::DIRECTORY_PART, 0, "data|99999|");
    assert_ne!(end, format!("{generation}||"));
}

#[test]
fn replies_that_nobody_takes_hold_requests_up() {
    let mut store = store();
    store.quotas.outstanding = 2;
    for _ in 0..3 {
        send(&mut store, GUEST, MessageType::READ, 0, b"data\0");
    }
    assert_eq!(messages(&mut store, GUEST).len(), 2);
    store.step();
    assert_eq!(messages(&mut store, GUEST).len(), 1);
}

#[test]
fn the_whole_store_as_text() {
    let mut store = Server::new();
    let before = store.dump();
    store.write("/local/x", "a\"\n");
    assert!(store.dump().contains("/local/x = \"a\\\"\\n\" (n0)\n"));
    store.remove("/local");
    assert_eq!(store.dump(), before);
}
