//! Messages after the handshake in several records, and records without data: how they arrive, and how many are taken.

use crate::world::{
    Authority, NAME, NEW, Server, Settings, VERSIONS, Wire, client, connect, run, take, turns,
};
use bulkhead_stream::{Ended, Stream};
use proptest::prelude::*;
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::cipher::{
    AeadKey, Iv, MessageDecrypter, MessageEncrypter, OutboundOpaqueMessage, OutboundPlainMessage,
    Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, SupportedCipherSuite, Tls13CipherSuite,
};
use std::cell::Cell;
use std::io::Write;

thread_local! {
    /// What the server sends as data becomes a part of a handshake message.
    static IS_HANDSHAKE: Cell<bool> = const { Cell::new(false) };
}

fn original() -> &'static Tls13CipherSuite {
    TLS13_AES_128_GCM_SHA256.tls13().expect("one of TLS 1.3")
}

/// A suite whose records have the type that the test wants.
struct Retyped;

struct Encrypter(Box<dyn MessageEncrypter>);

impl Tls13AeadAlgorithm for Retyped {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Encrypter(original().aead_alg.encrypter(key, iv)))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        original().aead_alg.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        original().aead_alg.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        original().aead_alg.extract_keys(key, iv)
    }
}

impl MessageEncrypter for Encrypter {
    fn encrypt(
        &mut self,
        mut message: OutboundPlainMessage<'_>,
        seq: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        if message.typ == ContentType::ApplicationData && IS_HANDSHAKE.get() {
            message.typ = ContentType::Handshake;
        }
        self.0.encrypt(message, seq)
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        self.0.encrypted_payload_len(payload_len)
    }
}

/// Returns the settings of a server that can send handshake messages of the test's own, and sends none by itself.
fn retyped(authority: &Authority) -> Settings {
    let suite = Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: original().common.suite,
            hash_provider: original().common.hash_provider,
            confidentiality_limit: original().common.confidentiality_limit,
        },
        hkdf_provider: original().hkdf_provider,
        aead_alg: &Retyped,
        quic: None,
    };
    let mut settings = Settings::new(authority.server());
    settings.versions = NEW;
    settings.suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))];
    settings.change = |config| config.send_tls13_tickets = 0;
    settings
}

/// Returns such a server, and a connection to it on which at most `piece` bytes arrive at a time.
fn connected(piece: usize) -> (Server, Box<dyn Stream>) {
    let authority = Authority::new("CA");
    let mut server = Server::new(retyped(&authority), &Wire::new(piece));
    let stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
    (server, stream)
}

/// Sends one record, which is a part of a handshake message.
fn send_part(server: &mut Server, part: &[u8]) {
    IS_HANDSHAKE.set(true);
    server.say(part);
    IS_HANDSHAKE.set(false);
}

/// Returns a message with a session ticket of that many bytes (RFC 8446, section 4.6.1).
fn ticket(len: u16, byte: u8) -> Vec<u8> {
    let body = usize::from(len) + 13;
    let mut message = vec![4];
    message.extend(&(body as u32).to_be_bytes()[1..]);
    message.extend([0; 9]);
    message.extend(len.to_be_bytes());
    message.resize(message.len() + usize::from(len), byte);
    message.extend([0; 2]);
    message
}

/// Takes all data that has arrived.
fn take_all(stream: &mut dyn Stream) -> Vec<u8> {
    let mut got = Vec::new();
    while take(stream, &mut got).expect("it goes on") > 0 {}
    got
}

#[test]
fn a_ticket_in_two_records_arrives_in_any_pieces() {
    // The bytes of the second one take the place of its own header.
    for byte in [0, 1, 0xff] {
        let ticket = ticket(5000, byte);
        for first in [1, 4, 20] {
            for piece in [1, 1 << 16] {
                let (mut server, mut stream) = connected(piece);
                send_part(&mut server, &ticket[..first]);
                send_part(&mut server, &ticket[first..1000]);
                assert_eq!(take_all(&mut *stream), b"");
                assert_eq!(take_all(&mut *stream), b"", "again");
                stream.push();
                send_part(&mut server, &ticket[1000..]);
                assert_eq!(take_all(&mut *stream), b"");
                server.say(b"data");
                assert_eq!(take_all(&mut *stream), b"data");
                // All at once.
                send_part(&mut server, &ticket[..first]);
                send_part(&mut server, &ticket[first..]);
                server.say(b"more");
                assert_eq!(take_all(&mut *stream), b"more");
            }
        }
    }
}

#[test]
fn what_is_sent_in_the_middle_of_a_message_goes() {
    let ticket = ticket(5000, 0);
    let (mut server, mut stream) = connected(1 << 16);
    server.echoes = false;
    send_part(&mut server, &ticket[..4]);
    send_part(&mut server, &ticket[4..1000]);
    for _ in 0..3 {
        assert_eq!(take_all(&mut *stream), b"");
        let sent = stream.send(&mut |room| {
            room[..4].copy_from_slice(b"word");
            4
        });
        assert_eq!(sent, Ok(4));
        stream.push();
        server.step();
    }
    assert_eq!(server.got, b"word".repeat(3));
    stream.close();
    server.step();
    assert!(server.client_has_closed);
}

#[test]
fn a_message_in_many_records_is_taken() {
    for len in [1, 4, 30] {
        let ticket = ticket(100 * len, 0);
        for piece in [1, 1 << 16] {
            let (mut server, mut stream) = connected(piece);
            for part in ticket.chunks(len.into()) {
                send_part(&mut server, part);
            }
            assert_eq!(take_all(&mut *stream), b"");
            server.say(b"data");
            assert_eq!(take_all(&mut *stream), b"data");
        }
    }
}

#[test]
fn data_behind_many_records_without_any_is_taken_at_once() {
    for empty in [31, 32, 33, 64, 100] {
        let (mut server, mut stream) = connected(1 << 16);
        for _ in 0..empty {
            send_part(&mut server, &ticket(1, 0));
        }
        server.say(b"data");
        let mut got = Vec::new();
        assert_eq!(take(&mut *stream, &mut got), Ok(4), "behind {empty}");
        assert_eq!(got, b"data");
    }
}

#[test]
fn records_without_data_are_counted_whatever_is_written_over_their_headers() {
    let (mut server, mut stream) = connected(1 << 16);
    // The parts of a message are moved together: what is counted behind them was the longest record.
    let ticket = ticket(40, 0xff);
    let mut renewed = 0;
    let ended = loop {
        send_part(&mut server, &ticket[..16]);
        send_part(&mut server, &ticket[16..]);
        for _ in 0..30 {
            server.connection.refresh_traffic_keys().expect("TLS 1.3");
        }
        server.say(b"x");
        match take(&mut *stream, &mut Vec::new()) {
            Ok(_) => renewed += 30,
            Err(ended) => break ended,
        }
        assert!(renewed < 200, "keys were renewed {renewed} times");
        stream.push();
        server.step();
    };
    assert_eq!(ended, Ended::Forged);
}

#[test]
fn many_messages_in_a_record_count_as_many() {
    let (mut server, mut stream) = connected(1 << 16);
    let tickets = ticket(1, 0).repeat(100);
    let mut taken = 0;
    let ended = loop {
        send_part(&mut server, &tickets);
        server.say(b"x");
        match take(&mut *stream, &mut Vec::new()) {
            Ok(_) => taken += 100,
            Err(ended) => break ended,
        }
        assert!(taken < 2000, "{taken} tickets were taken");
    };
    assert_eq!(ended, Ended::Forged);
}

#[test]
fn no_data_comes_after_too_many_records_without_any() {
    let (over, data) = (Err(Ended::Forged), &b"data"[..]);
    for (empty, taken, again, all) in [
        (128, Ok(4), Ok(0), data),
        (129, over, over, b""),
        (130, over, over, b""),
        (200, over, over, b""),
    ] {
        let (mut server, mut stream) = connected(1 << 16);
        for _ in 0..empty {
            send_part(&mut server, &ticket(1, 0));
        }
        server.say(data);
        let mut got = Vec::new();
        assert_eq!(take(&mut *stream, &mut got), taken, "behind {empty}");
        assert_eq!(take(&mut *stream, &mut got), again, "behind {empty}");
        assert_eq!(got, all);
    }
}

#[test]
fn bytes_of_a_message_are_not_counted_as_records() {
    // Read as headers, they would be of 40 records without a byte.
    let ticket = ticket(200, 0);
    let (mut server, mut stream) = connected(1 << 16);
    for _ in 0..20 {
        send_part(&mut server, &ticket[..4]);
        send_part(&mut server, &ticket[4..]);
        server.say(b"x");
        assert_eq!(take_all(&mut *stream), b"x");
    }
}

#[test]
fn records_behind_the_handshake_are_counted() {
    let authority = Authority::new("CA");
    for (tickets, fits) in [(100, true), (200, false)] {
        let mut settings = retyped(&authority);
        settings.change = |config| config.send_half_rtt_data = true;
        let mut server = Server::new(settings, &Wire::new(1 << 16));
        let client = client(&authority);
        let mut connecting = Box::pin(client.connect(Box::new(server.wire.clone()), NAME));
        assert!(turns(connecting.as_mut(), usize::MAX).0.is_pending());
        server.step();
        // The server has sent all of its part, and can send data.
        IS_HANDSHAKE.set(true);
        for _ in 0..tickets {
            let ticket = ticket(1, 0);
            server
                .connection
                .writer()
                .write_all(&ticket)
                .expect("memory");
        }
        IS_HANDSHAKE.set(false);
        server.say(b"data");
        let connected = run(&mut server, connecting).expect("it comes to an end");
        assert_eq!(connected.is_ok(), fits, "{tickets} tickets");
        if let Ok(mut stream) = connected {
            assert_eq!(take_all(&mut *stream), b"data");
        }
    }
}

#[test]
fn a_handshake_in_small_records_is_one() {
    let authority = Authority::new("CA");
    for versions in VERSIONS {
        for piece in [1, 100, 1 << 16] {
            let mut settings = Settings::new(authority.server());
            settings.versions = versions;
            settings.change = |config| config.max_fragment_size = Some(32);
            let mut server = Server::new(settings, &Wire::new(piece));
            let mut stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
            server.say(&[7; 5000]);
            assert_eq!(take_all(&mut *stream), [7; 5000]);
        }
    }
}

#[test]
fn what_follows_the_end_is_not_looked_at() {
    let (mut server, mut stream) = connected(1 << 16);
    server.say(b"bye");
    server.connection.send_close_notify();
    server.step();
    for _ in 0..500 {
        let record = [23, 3, 3, 0, 1, 0];
        server.wire.0.borrow_mut().to_client.extend(record);
    }
    let mut got = Vec::new();
    assert_eq!(take(&mut *stream, &mut got), Ok(3));
    assert_eq!(take(&mut *stream, &mut got), Err(Ended::Closed));
}

/// What a server sends.
#[derive(Clone, Debug)]
enum Sent {
    Data(Vec<u8>),
    /// A ticket of that many bytes, all of which are this one, in records of up to so many bytes.
    Ticket(u16, u8, usize),
    KeyUpdate,
}

fn sent() -> impl Strategy<Value = Sent> {
    let data = prop::collection::vec(any::<u8>(), 1..2000);
    prop_oneof![
        data.prop_map(Sent::Data),
        (1..400_u16, prop_oneof![Just(0), any::<u8>()], 1..7_usize)
            .prop_map(|(len, byte, parts)| Sent::Ticket(len, byte, usize::from(len) / parts + 7)),
        Just(Sent::KeyUpdate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Data arrives as it was sent, whatever else a server sends, and in whatever pieces that arrives.
    #[test]
    fn data_between_messages_arrives_in_any_pieces(
        all in prop::collection::vec((sent(), any::<bool>()), 1..12),
        piece in prop_oneof![1..300_usize, Just(1 << 16)],
    ) {
        let (mut server, mut stream) = connected(piece);
        let (mut said, mut got) = (Vec::new(), Vec::new());
        for (sent, looks) in all {
            match sent {
                Sent::Data(data) => {
                    server.say(&data);
                    said.extend(data);
                }
                Sent::Ticket(len, byte, part) => {
                    for part in ticket(len, byte).chunks(part) {
                        send_part(&mut server, part);
                        if looks {
                            got.extend(take_all(&mut *stream));
                        }
                    }
                }
                Sent::KeyUpdate => {
                    server.connection.refresh_traffic_keys().expect("TLS 1.3");
                    server.step();
                }
            }
            if looks {
                got.extend(take_all(&mut *stream));
            }
        }
        got.extend(take_all(&mut *stream));
        prop_assert_eq!(got, said);
    }
}
