//! Servers that are none, or that do not keep to the protocol.

use crate::world::{
    Authority, NAME, NEW, OLD, Server, Settings, VERSIONS, Versions, Wire, client, connect, take,
    turns,
};
use bulkhead_stream::{Ended, Stream};
use bulkhead_tls::TlsError;
use proptest::prelude::*;
use std::task::{Context, Poll, Waker};

/// Returns how a client's handshake ends with a server that says only that; `None` if the client waits for more.
fn after(authority: &Authority, bytes: &[u8]) -> Option<TlsError> {
    let client = client(authority);
    let wire = Wire::new(4096);
    wire.0.borrow_mut().to_client.extend(bytes);
    let mut connecting = Box::pin(client.connect(Box::new(wire.clone()), NAME));
    match turns(connecting.as_mut(), usize::MAX).0 {
        Poll::Pending => None,
        Poll::Ready(ended) => Some(ended.err().expect("there is no server")),
    }
}

/// Returns a server of these versions, the wire to it, and a connection.
fn connected(versions: Versions) -> (Server, Wire, Box<dyn Stream>) {
    let authority = Authority::new("CA");
    let wire = Wire::new(4096);
    let mut settings = Settings::new(authority.server());
    settings.versions = versions;
    let mut server = Server::new(settings, &wire);
    let stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
    (server, wire, stream)
}

#[test]
fn what_is_not_tls_is_named() {
    let authority = Authority::new("CA");
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"NBDMAGICIHAVEOPT\0\x03",
        &[0; 100],
        &[0xff; 100],
    ] {
        let error = after(&authority, garbage);
        assert_eq!(error, Some(TlsError::NotTls), "{garbage:?}");
    }
}

#[test]
fn a_message_without_an_end_is_given_up() {
    let authority = Authority::new("CA");
    // A handshake message of 16 MiB, in records of 16 KiB.
    let mut endless = Vec::new();
    for number in 0..64 {
        endless.extend([22, 3, 3, 0x40, 0]);
        let mut record = vec![0; 1 << 14];
        if number == 0 {
            record[..4].copy_from_slice(&[2, 0xff, 0xff, 0xff]);
        }
        endless.extend(record);
    }
    let error = after(&authority, &endless).expect("it is given up");
    assert!(!error.may_pass(), "{error}");
    // One that rustls would still take, which is longer than there is room for.
    let mut long = Vec::new();
    for number in 0..4 {
        long.extend([22, 3, 3, 0x38, 0]);
        let mut record = vec![0; 0x3800];
        if number == 0 {
            record[..4].copy_from_slice(&[2, 0, 0xdf, 0xfc]);
        }
        long.extend(record);
    }
    let error = after(&authority, &long).expect("it is given up");
    assert!(!error.may_pass(), "{error}");
}

#[test]
fn changed_bytes_are_noticed() {
    for versions in VERSIONS {
        let (mut server, wire, mut stream) = connected(versions);
        server.say(b"the truth");
        let last = wire.0.borrow().to_client.len() - 1;
        wire.0.borrow_mut().to_client[last] ^= 1;
        let mut got = Vec::new();
        assert_eq!(take(&mut *stream, &mut got), Err(Ended::Forged));
        assert!(got.is_empty());
        assert!(wire.0.borrow().closed_by_client);
    }
}

#[test]
fn records_without_data_are_not_taken_for_ever() {
    let (mut server, _, mut stream) = connected(NEW);
    let mut got = Vec::new();
    let mut rounds = 0;
    let ended = loop {
        rounds += 1;
        assert!(rounds < 10, "it has no end");
        // It renews its keys, as often as can be before each byte.
        for _ in 0..31 {
            server.connection.refresh_traffic_keys().expect("TLS 1.3");
        }
        server.say(b"x");
        server.step();
        match take(&mut *stream, &mut got) {
            Ok(_) => {}
            Err(ended) => break ended,
        }
        stream.push();
    };
    assert_eq!(ended, Ended::Forged);
}

#[test]
fn keys_are_renewed_as_often_as_data_needs_it() {
    let (mut server, _, mut stream) = connected(NEW);
    let data = [7; 16 << 10];
    for round in 0..300 {
        server.connection.refresh_traffic_keys().expect("TLS 1.3");
        server.say(&data);
        let mut got = Vec::new();
        while got.len() < data.len() {
            server.step();
            let taken = take(&mut *stream, &mut got).expect("it goes on");
            assert!(taken > 0, "round {round}");
            stream.push();
        }
    }
}

#[test]
fn a_half_message_after_the_handshake_does_no_harm_to_what_is_sent() {
    let (mut server, wire, mut stream) = connected(OLD);
    server.echoes = false;
    // The beginning of a record.
    wire.0
        .borrow_mut()
        .to_client
        .extend([23, 3, 3, 0x40, 0, 1, 2, 3]);
    assert_eq!(take(&mut *stream, &mut Vec::new()), Ok(0));
    for _ in 0..10 {
        let sent = stream.send(&mut |room| {
            room[..5].copy_from_slice(b"hello");
            5
        });
        assert_eq!(sent, Ok(5));
        stream.push();
        server.step();
    }
    assert_eq!(server.got, b"hello".repeat(10));
}

/// Returns whether a byte is one that says nothing: the second one of a record's version (RFC 8446, section 5.1).
fn is_ignored(records: &[u8], at: usize) -> bool {
    let mut header = 0;
    while header + 5 <= records.len() {
        if at == header + 2 {
            return true;
        }
        let len = u16::from_be_bytes([records[header + 3], records[header + 4]]);
        header += 5 + usize::from(len);
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever bytes of a server's handshake are changed, the client does not panic, and does not take it for one.
    #[test]
    fn a_handshake_with_a_changed_byte_fails(
        version in 0..2_usize,
        place in any::<prop::sample::Index>(),
        change in 1..=255_u8,
        piece in 1..3000_usize,
    ) {
        let authority = Authority::new("CA");
        let client = client(&authority);
        let wire = Wire::new(piece);
        let mut settings = Settings::new(authority.server());
        settings.versions = VERSIONS[version];
        let mut server = Server::new(settings, &wire);
        let mut connecting = Box::pin(client.connect(Box::new(wire.clone()), NAME));
        let mut context = Context::from_waker(Waker::noop());
        let mut changed = false;
        for _ in 0..10_000 {
            match connecting.as_mut().poll(&mut context) {
                Poll::Ready(Ok(_)) => prop_assert!(!changed, "it was taken for a server"),
                Poll::Ready(Err(_)) => return Ok(()),
                Poll::Pending => {}
            }
            server.step();
            let mut lines = wire.0.borrow_mut();
            if !changed && !lines.to_client.is_empty() {
                let at = place.index(lines.to_client.len());
                prop_assume!(!is_ignored(lines.to_client.make_contiguous(), at));
                lines.to_client[at] ^= change;
                changed = true;
            }
        }
        // A length that says that more is to come: the time, which the caller bounds, ends it.
    }
}
