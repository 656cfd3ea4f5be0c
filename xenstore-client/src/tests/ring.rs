//! The shared page: wrapping, full rings, impossible indices, and servers that break.

use super::*;
use crate::connection::Transport;
use crate::{ConnectionFault, Error, Fault};
use bulkhead_xen::abi::xs_wire::{
    ERROR_PROTOCOL, Header, MessageType, RECONNECT, RequestId, TransactionId,
};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

fn message(kind: MessageType, request: u32, length: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        message_type: kind,
        request: RequestId(request),
        transaction: TransactionId::NONE,
        length,
    };
    [&header.to_bytes()[..], payload].concat()
}

#[test]
fn bytes_go_around_the_ring() {
    let page = Page::new();
    let hypervisor = NotificationCount::default();
    let mut ring = page.ring(hypervisor.clone());
    // More than fits: the rest has to wait.
    let bytes: Vec<u8> = (0..1500).map(|n| n as u8).collect();
    assert_eq!(ring.send(&bytes), Ok(1024));
    assert_eq!(ring.send(&bytes[1024..]), Ok(0));
    let written = page.get(offset_of!(XenstoreInterface, request_producer));
    assert_eq!(written, (u32::MAX - 100).wrapping_add(1024));
    // The other side reads 1000 of them.
    page.set(
        offset_of!(XenstoreInterface, request_consumer),
        written.wrapping_sub(24),
    );
    assert_eq!(ring.send(&bytes[1024..]), Ok(476));
    assert_eq!(ring.send(&[]), Ok(0));
    assert_eq!(hypervisor.rung(), 0);
    ring.notify();
    assert_eq!(hypervisor.rung(), 1);
}

#[test]
fn messages_longer_than_the_ring_pass() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let long: String = "0123456789".repeat(200);
    rig.run(async {
        for _ in 0..50 {
            store.write("data/long", &long).await?;
            assert_eq!(store.read("data/long").await?, long);
        }
        Ok::<(), Error>(())
    })
    .unwrap();
}

#[test]
fn what_was_there_before_is_dropped() {
    let page = Page::new();
    page.set(offset_of!(XenstoreInterface, response_producer), 7);
    let mut ring = page.ring(NotificationCount::default());
    assert_eq!(
        page.get(offset_of!(XenstoreInterface, response_consumer)),
        7
    );
    assert_eq!(ring.receive(&mut [0; 16]), Ok(0));
}

#[test]
fn impossible_indices_break_the_connection() {
    for (index, offset) in [
        (3000, offset_of!(XenstoreInterface, response_producer)),
        (3000, offset_of!(XenstoreInterface, request_consumer)),
        (
            u32::MAX / 2,
            offset_of!(XenstoreInterface, response_producer),
        ),
    ] {
        let mut rig = Rig::new();
        let store = rig.client.clone();
        let mut waiting = pin!(store.read("data"));
        assert!(rig.poll(waiting.as_mut()).is_pending());
        let consumer = rig.page.get(offset);
        rig.page.set(offset, consumer.wrapping_add(index));
        let breakdown = rig.connection.pump().unwrap_err();
        assert!(matches!(breakdown, ConnectionFault::RingIndex { .. }));
        // It stays broken, whatever the index says later.
        rig.page.set(offset, consumer);
        assert_eq!(rig.connection.pump(), Err(breakdown.clone()));
        // The tasks that wait have the error, and so have later requests.
        let told = Poll::Ready(Err(Fault::Disconnected(breakdown.clone()).into()));
        assert_eq!(rig.poll(waiting.as_mut()), told);
        let later = rig.run(store.read("data"));
        assert_eq!(later, Err(Fault::Disconnected(breakdown).into()));
    }
}

/// Sends bytes that no xenstored would send to a client that waits for an answer, an event and a
/// place for a transaction; returns why the connection broke.
fn breakdown(bytes: &[u8]) -> ConnectionFault {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let mut watch = rig.run(store.watch("data")).unwrap();
    rig.run(watch.next()).unwrap();
    let open: Vec<_> = (0..8).map(|_| rig.run(store.begin()).unwrap()).collect();
    rig.server.faults.stalled = true;
    let mut answer = pin!(store.read("data"));
    let mut event = pin!(watch.next());
    let mut transaction = pin!(store.begin());
    assert!(rig.poll(answer.as_mut()).is_pending());
    assert!(rig.poll(event.as_mut()).is_pending());
    assert!(rig.poll(transaction.as_mut()).is_pending());
    rig.server.inject(GUEST, bytes);
    rig.settle();
    let Poll::Ready(Err(error)) = rig.poll(answer.as_mut()) else {
        panic!("still connected");
    };
    let Fault::Disconnected(breakdown) = error.fault().clone() else {
        panic!("{error}");
    };
    assert_eq!(rig.poll(event.as_mut()), Poll::Ready(Err(error.clone())));
    let Poll::Ready(begun) = rig.poll(transaction.as_mut()) else {
        panic!("still waiting for a place");
    };
    assert_eq!(begun.unwrap_err(), error);
    drop(open);
    breakdown
}

#[test]
fn a_message_without_an_end_breaks_the_connection_and_is_shown() {
    let oversized = message(MessageType::READ, 1, 4097, b"");
    let shown = breakdown(&oversized).to_string();
    assert_eq!(
        shown,
        "message longer than the protocol allows: \"\\x02\\x00\\x00\\x00\\x01\\x00\\x00\\x00\
         \\x00\\x00\\x00\\x00\\x01\\x10\\x00\\x00\""
    );
}

#[test]
fn a_message_that_makes_no_sense_is_skipped() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let mut watch = rig.run(store.watch("data")).unwrap();
    rig.run(watch.next()).unwrap();
    for rubbish in [
        message(MessageType(99), 1, 0, b""),
        message(MessageType(99), 0, 3, b"abc"),
        message(MessageType::READ, 999_999, 2, b"ab"),
        message(MessageType::ERROR, 0, 7, b"ENOENT\0"),
        message(MessageType::TRANSACTION_START, 999_999, 2, b"7\0"),
    ] {
        for _ in 0..20 {
            rig.server.inject(GUEST, &rubbish);
        }
        assert_eq!(rig.run(store.read("data")), Ok(String::new()));
    }
    assert!(rig.poll(pin!(watch.next())).is_pending());
    // An event that cannot be understood may be for any watch.
    for rubbish in [
        message(MessageType::WATCH_EVENT, 0, 6, b"data\x001"),
        message(MessageType::WATCH_EVENT, 0, 0, b""),
        message(MessageType::WATCH_EVENT, 0, 8, b"da//ta\x00\xff"),
    ] {
        rig.server.inject(GUEST, &rubbish);
        assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data");
    }
    rig.server.write("/local/domain/5/data/x", "1");
    assert_eq!(rig.run(watch.next()).unwrap().as_str(), "data/x");
}

#[test]
fn a_reply_of_another_kind_or_transaction_is_malformed_for_its_asker_alone() {
    for change in [0usize, 8] {
        let mut rig = Rig::new();
        let store = rig.client.clone();
        rig.server.faults.mangle = Some(Box::new(move |_, bytes| bytes[change] ^= 1));
        let result = rig.run(store.read("data"));
        let error = result.unwrap_err();
        assert!(matches!(error.fault(), Fault::Malformed { .. }), "{error}");
        rig.server.faults.mangle = None;
        assert_eq!(rig.run(store.read("data")), Ok(String::new()));
    }
}

#[test]
fn a_malformed_answer_concerns_its_asker_alone() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let spoil = |rig: &mut Rig, kind: Option<MessageType>, with: &'static [u8]| {
        rig.server.faults.mangle = Some(Box::new(move |_, bytes| {
            bytes.truncate(Header::SIZE);
            if let Some(kind) = kind {
                bytes[0] = kind.0 as u8;
            }
            bytes[12..16].copy_from_slice(&(with.len() as u32).to_le_bytes());
            bytes.extend_from_slice(with);
        }));
    };
    let is_malformed = |error: Option<Error>| {
        let fault = error.as_ref().map(Error::fault);
        assert!(matches!(fault, Some(Fault::Malformed { .. })), "{error:?}");
    };
    spoil(&mut rig, None, b"KO\0");
    is_malformed(rig.run(store.write("data/x", "1")).err());
    is_malformed(rig.run(store.begin()).err());
    is_malformed(rig.run(store.permissions("data")).err());
    is_malformed(rig.run(store.domain_path(GUEST)).err());
    spoil(&mut rig, None, b"a\0b");
    is_malformed(rig.run(store.directory("data")).err());
    spoil(&mut rig, Some(MessageType::ERROR), b"E2BIGGER\0");
    let error = rig.run(store.read("data")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "xenstore: READ of \"data\": malformed reply \"E2BIGGER\\x00\""
    );
    rig.server.faults.mangle = None;
    assert_eq!(rig.run(store.read("data/x")).unwrap(), "1");
}

#[test]
fn a_server_that_gives_up_is_heard() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.run(store.read("data")).unwrap();
    rig.server.give_up(GUEST, ERROR_PROTOCOL);
    let error = rig.run(store.read("data")).unwrap_err();
    let code = ERROR_PROTOCOL;
    assert_eq!(
        error,
        Fault::Disconnected(ConnectionFault::GivenUp { code }).into()
    );
    assert_eq!(
        error.to_string(),
        "xenstore: xenstored has disconnected us: message too long (3)"
    );
}

#[test]
fn a_ring_that_is_being_set_up_is_left_alone() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let connection = offset_of!(XenstoreInterface, connection);
    rig.page.set(connection, RECONNECT);
    // Meanwhile nothing else in the page means anything.
    rig.page.set(
        offset_of!(XenstoreInterface, response_producer),
        0x1234_5678,
    );
    let mut waiting = pin!(store.read("data"));
    assert!(rig.poll(waiting.as_mut()).is_pending());
    rig.connection.pump().unwrap();
    assert_eq!(rig.hypervisor.rung(), 0);
    // The server sets the ring up; from then on it works.
    assert_eq!(rig.run(waiting), Ok(String::new()));
    assert_eq!(rig.page.get(connection), 0);
}

#[test]
fn an_event_of_an_earlier_system_is_nobodys() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    let event = message(MessageType::WATCH_EVENT, 0, 15, b"data\0left-over\0");
    rig.server.inject(GUEST, &event);
    assert_eq!(rig.run(store.read("data")), Ok(String::new()));
    let event = message(MessageType::WATCH_EVENT, 0, 8, b"data\x0099\0");
    rig.server.inject(GUEST, &event);
    assert_eq!(rig.run(store.read("data")), Ok(String::new()));
}

#[test]
fn nothing_to_do_rings_no_bell() {
    let mut rig = Rig::new();
    let store = rig.client.clone();
    rig.run(store.read("data")).unwrap();
    rig.settle();
    let rung = rig.hypervisor.rung();
    for _ in 0..10 {
        rig.connection.pump().unwrap();
    }
    assert_eq!(rig.hypervisor.rung(), rung);
    // A burst of requests rings once.
    let reads: Vec<_> = vec!["data"; 5];
    let reads: Vec<_> = reads
        .iter()
        .map(|path| Box::pin(store.read(path)))
        .collect();
    for mut read in reads {
        assert!(rig.poll(read.as_mut()).is_pending());
    }
    rig.connection.pump().unwrap();
    assert_eq!(rig.hypervisor.rung(), rung + 1);
}
