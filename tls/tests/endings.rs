//! How connections end: in order, cut off, or by the network.

use crate::world::{Authority, NAME, Server, Settings, VERSIONS, Wire, client, connect, take};
use bulkhead_stream::{Ended, Stream};
use bulkhead_tls::TlsError;

fn connected(authority: &Authority) -> (Wire, Server, Box<dyn Stream>) {
    let wire = Wire::new(4096);
    let mut server = Server::new(Settings::new(authority.server()), &wire);
    let stream = connect(&client(authority), &mut server, NAME).expect("it connects");
    (wire, server, stream)
}

#[test]
fn the_end_comes_after_all_data() {
    let authority = Authority::new("CA");
    let (wire, mut server, mut stream) = connected(&authority);
    server.say(b"the last words");
    server.connection.send_close_notify();
    server.step();
    wire.0.borrow_mut().ended = Some(Ended::Closed);
    let mut got = Vec::new();
    assert_eq!(take(&mut *stream, &mut got), Ok(14));
    assert_eq!(take(&mut *stream, &mut got), Err(Ended::Closed));
    assert_eq!(
        take(&mut *stream, &mut got),
        Err(Ended::Closed),
        "and stays"
    );
    assert_eq!(stream.send(&mut |_| 0), Err(Ended::Closed));
    assert_eq!(got, b"the last words");
}

#[test]
fn a_connection_that_is_closed_without_the_end_of_tls_is_cut_off() {
    let authority = Authority::new("CA");
    for versions in VERSIONS {
        let wire = Wire::new(4096);
        let mut settings = Settings::new(authority.server());
        settings.versions = versions;
        let mut server = Server::new(settings, &wire);
        let mut stream = connect(&client(&authority), &mut server, NAME).expect("it connects");
        server.say(b"some words");
        let mut got = Vec::new();
        assert_eq!(take(&mut *stream, &mut got), Ok(10));
        // In the middle of a record.
        server.say(b"that do not come");
        let all = wire.0.borrow().to_client.len();
        wire.0.borrow_mut().to_client.truncate(all - 1);
        wire.0.borrow_mut().ended = Some(Ended::Closed);
        assert_eq!(take(&mut *stream, &mut got), Err(Ended::Truncated));
        assert_eq!(got, b"some words");
    }
}

#[test]
fn a_handshake_may_end_behind_any_byte() {
    let authority = Authority::new("CA");
    let client = client(&authority);
    for versions in VERSIONS {
        let mut cut = 0;
        loop {
            let wire = Wire::new(4096);
            let mut settings = Settings::new(authority.server());
            settings.versions = versions;
            let mut server = Server::new(settings, &wire);
            let mut given = 0;
            let mut connecting = Box::pin(client.connect(Box::new(wire.clone()), NAME));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let ended = loop {
                if let std::task::Poll::Ready(ended) = connecting.as_mut().poll(&mut context) {
                    break ended;
                }
                server.step();
                let mut lines = wire.0.borrow_mut();
                given += lines.to_client.len();
                if given >= cut {
                    let over = given - cut;
                    let left = lines.to_client.len() - over.min(lines.to_client.len());
                    lines.to_client.truncate(left);
                    lines.ended = Some(Ended::Closed);
                }
            };
            match ended {
                Err(error) => assert_eq!(error, TlsError::Ended(Ended::Truncated), "{cut}"),
                Ok(_) => break,
            }
            // Each handshake takes a while without optimisation.
            cut += 17;
        }
        assert!(cut > 500, "a handshake has more than {cut} bytes");
    }
}

#[test]
fn the_networks_end_is_passed_on() {
    let authority = Authority::new("CA");
    for ended in [Ended::Reset, Ended::TimedOut, Ended::NoNetwork] {
        let (wire, _, mut stream) = connected(&authority);
        wire.0.borrow_mut().ended = Some(ended);
        assert_eq!(take(&mut *stream, &mut Vec::new()), Err(ended));
        assert_eq!(stream.send(&mut |_| 0), Err(ended));
    }
}

#[test]
fn closing_sends_what_was_filled_and_says_that_it_is_over() {
    let authority = Authority::new("CA");
    let (wire, mut server, mut stream) = connected(&authority);
    server.echoes = false;
    assert_eq!(
        stream.send(&mut |room| {
            room[..4].copy_from_slice(b"bye!");
            4
        }),
        Ok(4)
    );
    stream.close();
    drop(stream);
    assert!(wire.0.borrow().closed_by_client);
    server.step();
    assert_eq!(server.got, b"bye!");
    assert!(server.client_has_closed);
}
