//! Connections that work: versions, suites, curves, and how the bytes come.

use crate::rsa_keys;
use crate::world::{
    Authority, NAME, NEW, OLD, Server, Settings, VERSIONS, Wire, client, connect, echo, take, turns,
};
use bulkhead_tls::TlsClient;
use rcgen::KeyPair;
use rustls::crypto::ring;
use rustls::{NamedGroup, ProtocolVersion};

/// Bytes that do not repeat soon.
fn data(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn goes(client: &TlsClient, settings: Settings, piece: usize, len: usize) -> Server {
    let wire = Wire::new(piece);
    let mut server = Server::new(settings, &wire);
    let mut stream = connect(client, &mut server, NAME).expect("it connects");
    let data = data(len);
    assert!(
        echo(&mut *stream, &mut server, &data) == data,
        "what came back is other data"
    );
    stream.close();
    server.step();
    assert!(server.client_has_closed, "the server knows that it is over");
    server
}

#[test]
fn every_suite_carries_data() {
    let authority = Authority::new("CA");
    let (curve, rsa) = (KeyPair::generate(), KeyPair::from_pem(rsa_keys::SERVER));
    let [curve, rsa] = [curve, rsa].map(|key| {
        let key = key.expect("a key");
        authority.sign(&[NAME], &key, |_| {})
    });
    let client = client(&authority);
    let mut count = 0;
    for suite in ring::ALL_CIPHER_SUITES {
        let name = format!("{:?}", suite.suite());
        let certified = if name.contains("_RSA_") { &rsa } else { &curve };
        let mut settings = Settings::new(certified.clone());
        settings.suites = vec![*suite];
        settings.versions = match name.starts_with("TLS13") {
            true => NEW,
            false => OLD,
        };
        let server = goes(&client, settings, 4096, 100_000);
        let used = server.connection.negotiated_cipher_suite();
        assert_eq!(used.map(|used| used.suite()), Some(suite.suite()));
        count += 1;
    }
    assert_eq!(count, 9);
}

#[test]
fn every_curve_makes_keys() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    for group in ring::ALL_KX_GROUPS {
        for versions in VERSIONS {
            let mut settings = Settings::new(authority.server());
            settings.groups = vec![*group];
            settings.versions = versions;
            let server = goes(&client, settings, 4096, 1000);
            let used = server.connection.negotiated_key_exchange_group();
            assert_eq!(used.map(|used| used.name()), Some(group.name()));
        }
    }
    let names: Vec<_> = ring::ALL_KX_GROUPS.iter().map(|it| it.name()).collect();
    assert!(
        names.contains(&NamedGroup::X25519) && names.len() == 3,
        "{names:?}"
    );
}

#[test]
fn both_versions_go_one_byte_at_a_time() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    for (versions, version) in [
        (OLD, ProtocolVersion::TLSv1_2),
        (NEW, ProtocolVersion::TLSv1_3),
    ] {
        let mut settings = Settings::new(authority.server());
        settings.versions = versions;
        let server = goes(&client, settings, 1, 20_000);
        assert_eq!(server.connection.protocol_version(), Some(version));
    }
}

#[test]
fn much_data_goes_through_little_room() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    let wire = Wire::new(1500);
    wire.0.borrow_mut().room = 700;
    let mut server = Server::new(Settings::new(authority.server()), &wire);
    let mut stream = connect(&client, &mut server, NAME).expect("it connects");
    let data = data(1 << 20);
    assert!(
        echo(&mut *stream, &mut server, &data) == data,
        "what came back is other data"
    );
}

#[test]
fn what_cannot_be_sent_at_once_goes_when_the_client_only_receives() {
    let authority = Authority::new("CA");
    let wire = Wire::new(1 << 20);
    let mut server = Server::new(Settings::new(authority.server()), &wire);
    let mut stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
    wire.0.borrow_mut().room = 100;
    let data = data(10_000);
    let sent = stream.send(&mut |room| {
        room[..data.len()].copy_from_slice(&data);
        data.len()
    });
    assert_eq!(sent, Ok(data.len()));
    stream.push();
    let mut back = Vec::new();
    for _ in 0..1000 {
        server.step();
        take(&mut *stream, &mut back).expect("it is open");
    }
    assert!(back == data, "{} bytes came back", back.len());
}

#[test]
fn receiving_does_not_wait_for_room_to_send() {
    let authority = Authority::new("CA");
    let wire = Wire::new(1 << 20);
    let mut server = Server::new(Settings::new(authority.server()), &wire);
    let mut stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
    let said = data(50_000);
    server.say(&said);
    // The server reads nothing as long as that is on its way.
    wire.0.borrow_mut().room = 10;
    while stream.send(&mut |room| room.len()).expect("it is open") > 0 {
        stream.push();
    }
    let mut got = Vec::new();
    while take(&mut *stream, &mut got).expect("it is open") > 0 {}
    assert!(got == said, "{} bytes came", got.len());
}

#[test]
fn small_writes_of_a_batch_make_one_record() {
    let authority = Authority::new("CA");
    let wire = Wire::new(1 << 20);
    let mut server = Server::new(Settings::new(authority.server()), &wire);
    let mut stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
    for byte in 0..100_u8 {
        let sent = stream.send(&mut |room| {
            room[..28].fill(byte);
            28
        });
        assert_eq!(sent, Ok(28));
    }
    assert!(
        wire.0.borrow().to_server.is_empty(),
        "nothing goes before the batch ends"
    );
    stream.push();
    let on_the_way = wire.0.borrow().to_server.len();
    assert!(
        (2800..2900).contains(&on_the_way),
        "{on_the_way} bytes are one record"
    );
}

#[test]
fn what_was_not_taken_is_lent_again() {
    let authority = Authority::new("CA");
    let wire = Wire::new(1 << 20);
    let mut server = Server::new(Settings::new(authority.server()), &wire);
    let mut stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
    let data = data(40_000);
    server.say(&data);
    let mut got = Vec::new();
    let mut calls = 0;
    while got.len() < data.len() {
        let taken = stream.receive(&mut |bytes| {
            let part = bytes.len().min(1 + calls % 700);
            got.extend_from_slice(&bytes[..part]);
            part
        });
        assert!(taken.expect("it is open") > 0);
        calls += 1;
    }
    assert!(got == data, "other data");
    assert_eq!(stream.receive(&mut |_| panic!("there is nothing")), Ok(0));
}

#[test]
fn keys_that_the_server_renews_are_renewed() {
    let authority = Authority::new("CA");
    let wire = Wire::new(1000);
    let mut settings = Settings::new(authority.server());
    settings.versions = NEW;
    let mut server = Server::new(settings, &wire);
    let mut stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
    for round in 0..100 {
        server.connection.refresh_traffic_keys().expect("TLS 1.3");
        let data = data(100 + round);
        assert_eq!(echo(&mut *stream, &mut server, &data), data);
    }
}

#[test]
fn other_tasks_have_a_turn_between_the_steps_of_a_handshake() {
    let authority = Authority::new("CA");
    for versions in VERSIONS {
        let wire = Wire::new(1 << 16);
        let mut settings = Settings::new(authority.server());
        settings.versions = versions;
        let mut server = Server::new(settings, &wire);
        let client = client(&authority);
        let mut connecting = Box::pin(client.connect(Box::new(wire.clone()), NAME));
        assert!(turns(connecting.as_mut(), usize::MAX).0.is_pending());
        server.step();
        // All of the server's first part is there: its keys, its certificate, and its signature.
        let (_, turns) = turns(connecting.as_mut(), usize::MAX);
        assert!(turns > 3, "all was done in {turns} turns");
    }
}
