//! Handshakes: refusals that say why, and servers that do not keep to the protocol.

use bulkhead_images::Access;
use bulkhead_images::target::Target;
use bulkhead_images::{Owner, Store};
use bulkhead_nbd::{HandshakeError, without_tls};
use bulkhead_nbd_testing::world::World;
use bulkhead_nbd_testing::{Config, FakeExport, FakeTls, Reach, TlsMode};
use bulkhead_stream::{ConnectError, Ended, StartTlsError, StartingTls, Stream, Tls};
use bulkhead_xen::DomId;
use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const DISK: &str = "nbd:10.0.0.2/disk";

#[test]
fn a_missing_export_is_refused_with_those_that_there_are() {
    let exports = ["alice", "bob", ""].map(|name| FakeExport::new(name, 512));
    let world = World::new(Config {
        exports: exports.to_vec(),
        ..Config::default()
    });
    assert_eq!(
        world.refusal("nbd:10.0.0.2/carol"),
        "nbd:10.0.0.2:10809/carol: no export 'carol', there are: alice, bob, '' (the default)"
    );
    // The server was told that nothing more comes, and is asked again the next time.
    assert_eq!(world.server.connections(), (1, 0));
    world
        .server
        .change(|config| config.exports.push(FakeExport::new("carol", 512)));
    drop(world.open("nbd:10.0.0.2/carol"));
    world.server.change(|config| {
        config.exports = (0..20)
            .map(|n| FakeExport::new(&format!("e{n}"), 512))
            .collect();
    });
    let many = world.refusal("nbd:10.0.0.2/x");
    assert!(many.ends_with("e14, e15 and 4 more"), "{many}");
    world.server.change(|config| config.lists = false);
    assert_eq!(
        world.refusal("nbd:10.0.0.2/y"),
        "nbd:10.0.0.2:10809/y: no export 'y' on the server, which does not say what it has"
    );
    world.server.change(|config| {
        config.lists = true;
        config.exports = vec![FakeExport::new("a\u{1b}[2J\nb", 512)];
    });
    let odd = world.refusal("nbd:10.0.0.2/z");
    assert!(odd.ends_with(r"there are: a\u{1b}[2J\nb"), "{odd}");
    world.end();
}

#[test]
fn servers_that_cannot_be_used_are_refused_with_a_reason() {
    let sized = |sizes| FakeExport {
        sizes: Some(sizes),
        ..FakeExport::new("disk", 1 << 20)
    };
    for (export, reason) in [
        (sized([0, 0, 0]), "impossible block sizes: 0, 0 and 0"),
        (sized([3, 4096, 1 << 20]), "impossible block sizes"),
        (sized([512, 256, 1 << 20]), "impossible block sizes"),
        (sized([512, 5000, 1 << 20]), "impossible block sizes"),
        (sized([4096, 4096, 512]), "impossible block sizes"),
        (sized([512, 4096, 1 << 20 | 1]), "impossible block sizes"),
        (sized([8192, 8192, 1 << 20]), "in units of 8192 bytes only"),
        (sized([1, 512, 511]), "takes 511 bytes at a time"),
        (FakeExport::new("disk", 511), "has 511 bytes, less than"),
        (FakeExport::new("disk", 0), "has 0 bytes, less than"),
    ] {
        let world = World::new(Config {
            exports: vec![export],
            ..Config::default()
        });
        let refusal = world.refusal(DISK);
        assert!(refusal.contains(reason), "{refusal}");
        world.end();
    }
    let world = World::new(Config {
        goes: false,
        ..Config::default()
    });
    let refusal = world.refusal(DISK);
    assert!(refusal.contains("too old"), "{refusal}");
    world.end();
}

#[test]
fn a_server_that_is_not_there_is_tried_again_and_then_refused_with_the_last_reason() {
    for (reach, reason) in [
        (
            Reach::Fails(ConnectError::Refused),
            "it refuses the connection",
        ),
        (Reach::Fails(ConnectError::NoNetwork), "no network (vif="),
        (Reach::Hangs, "does not answer"),
    ] {
        let world = World::new(Config {
            reach,
            ..Config::default()
        });
        let before = world.sim.now();
        let refusal = world.refusal(DISK);
        assert!(refusal.contains(reason), "{refusal}");
        let waited = world.sim.now().since(before);
        assert!((6..8).contains(&waited.as_secs()), "{waited:?}");
        // It is there by the time of the next attempt.
        world.server.change(|config| config.reach = Reach::Connects);
        drop(world.open(DISK));
        world.end();
    }
    // It comes while the guest's toolstack still waits.
    let world = World::new(Config {
        reach: Reach::Fails(ConnectError::Refused),
        ..Config::default()
    });
    let (handle, server) = (world.handle(), world.server.clone());
    world.handle().spawn(async move {
        handle.sleep(Duration::from_secs(3)).await;
        server.change(|config| config.reach = Reach::Connects);
    });
    drop(world.open(DISK));
    world.end();
}

/// Every message of the handshake ends behind any byte, and then the server is silent, or gone.
#[test]
fn a_handshake_that_stops_at_any_byte_costs_time_alone() {
    let world = World::new(Config {
        tls: TlsMode::Absent,
        ..Config::default()
    });
    drop(world.open(DISK));
    let whole: usize = 18 + 20 + 20 + 12 + 20;
    world.end();
    for cut in 0..whole {
        let world = World::new(Config::default());
        world.server.cut_after(Some(cut), None);
        let cut_off = world.refusal(DISK);
        assert!(
            cut_off.contains("before it had offered the export"),
            "{cut}: {cut_off}"
        );
        world.server.cut_after(None, None);
        drop(world.open(DISK));
        world.end();
    }
    let world = World::new(Config::default());
    world.server.change(|config| config.is_deaf = true);
    let silent = world.refusal(DISK);
    assert!(silent.contains("does not answer"), "{silent}");
    // The next one waits until the handshake is given up, and is told that.
    let silent = world.refusal(DISK);
    assert!(
        silent.contains("takes too long to offer the export"),
        "{silent}"
    );
    world.end();
}

/// Each field of each message out of its range: what is wrong is said, and nothing is believed.
#[test]
fn each_field_of_the_handshake_is_checked() {
    type Change = fn(&mut Vec<u8>);
    let long: fn(&mut Vec<u8>) = |message| message[16..20].fill(0xff);
    let changes: [(usize, Change, &str); 20] = [
        (0, |m| m[0] ^= 1, "not an NBD server"),
        (0, |m| m[8] ^= 1, "not an NBD server"),
        (0, |m| m[17] = 2, "too old"),
        (
            0,
            |m| *m = b"HTTP/1.1 400 Bad Request".to_vec(),
            "not an NBD server",
        ),
        (
            0,
            |m| m[8..16].copy_from_slice(&[0, 0, 0x42, 2, 0x81, 0x86, 0x12, 0x53]),
            "too old",
        ),
        (1, |m| m[0] ^= 1, "not a reply to what was asked"),
        (1, |m| m[11] ^= 1, "not a reply to what was asked"),
        (1, |m| m[15] = 2, "a reply says what cannot be said here"),
        (1, |m| m[15] = 77, "a reply says what cannot be said here"),
        (1, long, "a reply is too long"),
        (2, |m| m[7] ^= 1, "not a reply to what was asked"),
        (2, |m| m[11] = 8, "not a reply to what was asked"),
        (2, |m| m[15] = 2, "a reply says what cannot be said here"),
        (2, |m| m[12..16].fill(0xff), "the server refuses Go"),
        (2, long, "a reply is too long"),
        (
            2,
            |m| {
                m[19] = 1;
                m.truncate(21);
            },
            "an information has the wrong length",
        ),
        (
            2,
            |m| {
                m[19] = 11;
                m.truncate(31);
            },
            "an information has the wrong length",
        ),
        (2, |m| m[21] = 3, "an information has the wrong length"),
        (2, |m| m[21] = 99, "does not say how large the export is"),
        (
            2,
            |m| m[22..30].fill(0xff),
            "says that it has 18446744073709551615 bytes",
        ),
    ];
    for (number, change, reason) in changes {
        let world = World::new(Config::default());
        world.server.forge(move |count, message| {
            if count == number {
                change(message);
            }
        });
        let refusal = world.refusal(DISK);
        assert!(refusal.contains(reason), "{number}: {reason}: {refusal}");
        // Nothing stays: the same server is used when it is in order.
        world.server.forge(|_, _| {});
        drop(world.open(DISK));
        world.end();
    }
}

#[test]
fn what_a_server_tells_without_an_end_has_one() {
    // Informations.
    let world = World::new(Config::default());
    world.server.forge(|count, message| {
        if count == 2 {
            let one = message.clone();
            (0..1000).for_each(|_| message.extend(&one));
        }
    });
    let endless = world.refusal(DISK);
    assert!(
        endless.contains("no end to tell of the export"),
        "{endless}"
    );
    world.end();
    // Names of exports.
    let world = World::new(Config {
        piece: 4096,
        ..Config::default()
    });
    world.server.forge(|count, message| {
        if count == 3 {
            let one = message.clone();
            (0..20_000).for_each(|_| message.extend(&one));
        }
    });
    let endless = world.refusal("nbd:10.0.0.2/other");
    assert!(endless.ends_with("and 9984 more"), "{endless}");
    world.server.forge(|count, message| {
        if count == 3 {
            message[20..24].fill(0xff);
        }
    });
    let wrong = world.refusal("nbd:10.0.0.2/other");
    assert!(wrong.contains("a name has the wrong length"), "{wrong}");
    world.end();
    // A byte now and then.
    let world = World::new(Config::default());
    let greeted = Rc::new(Cell::new(0));
    let counted = greeted.clone();
    world.server.forge(move |count, message| match count {
        0 => counted.set(counted.get() + 1),
        _ => message[16..20].copy_from_slice(&16_000_u32.to_be_bytes()),
    });
    let slow = world.refusal(DISK);
    assert!(slow.contains("does not answer"), "{slow}");
    for _ in 0..40 {
        world.wait(Duration::from_secs(1));
        world.server.send(b"x");
    }
    let greeted = greeted.get();
    assert!(
        (4..6).contains(&greeted),
        "each is given up in its time: {greeted}"
    );
    world.end();
}

#[test]
fn tls_comes_first_where_it_is_asked_for() {
    let with = |mode, known: &str| {
        let tls = Rc::new(FakeTls(vec![known.to_string()]));
        let config = Config {
            tls: mode,
            ..Config::default()
        };
        World::with(config, None, Some(tls))
    };
    for mode in [TlsMode::Offered, TlsMode::Required] {
        let world = with(mode, "10.0.0.2");
        let disk = world.open("nbds:10.0.0.2/disk");
        drop(disk);
        world.end();
    }
    let world = with(TlsMode::Required, "10.0.0.9");
    assert_eq!(
        world.refusal("nbds:10.0.0.2/disk"),
        "nbds:10.0.0.2:10809/disk: TLS failed: the certificate is not one of 10.0.0.2"
    );
    world.end();
    let world = with(TlsMode::Absent, "10.0.0.2");
    let refusal = world.refusal("nbds:10.0.0.2/disk");
    assert!(refusal.contains("the server has no TLS"), "{refusal}");
    world.end();
    let world = World::new(Config {
        tls: TlsMode::Required,
        ..Config::default()
    });
    let refusal = world.refusal(DISK);
    assert!(refusal.contains("the server wants TLS"), "{refusal}");
    world.end();
}

#[test]
fn tls_that_fails_for_now_is_tried_again() {
    /// A TLS that fails that many times, and then knows every server.
    struct Late(Cell<u32>);
    impl Tls for Late {
        fn start<'a>(&'a self, stream: Box<dyn Stream>, _: &'a str) -> StartingTls<'a> {
            let left = self.0.get();
            self.0.set(left.saturating_sub(1));
            let outcome = match left {
                0 => Ok(stream),
                _ => Err(StartTlsError {
                    reason: "the connection was cut off".to_string(),
                    passes: true,
                }),
            };
            Box::pin(std::future::ready(outcome))
        }
    }
    let config = Config {
        tls: TlsMode::Required,
        ..Config::default()
    };
    let tls = Rc::new(Late(Cell::new(2)));
    let world = World::with(config, None, Some(tls.clone()));
    drop(world.open("nbds:10.0.0.2/disk"));
    assert_eq!(tls.0.get(), 0);
    assert_eq!(world.server.connections().0, 3);
    world.end();
}

#[test]
fn an_alert_in_the_handshake_does_not_pass() {
    let refused = HandshakeError::Ended(Ended::Alert(116));
    assert!(!refused.may_pass());
    assert_eq!(
        refused.to_string(),
        "the server ended TLS: it wants a client's certificate (certificate_required) before it had offered the export"
    );
    assert!(HandshakeError::Ended(Ended::Truncated).may_pass());
}

#[test]
fn a_driver_domain_without_tls_says_so() {
    let store = without_tls("another file has TLS".to_string());
    assert_eq!(store.scheme(), "nbds");
    let target = Target::parse("nbds:10.0.0.2/disk").expect("a target");
    let owner = Owner {
        name: "domain 5, xvda",
        domain: DomId(5),
    };
    let mut opening = store.open(target, Access::ReadWrite, owner);
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(Err(error)) = opening.as_mut().poll(&mut context) else {
        panic!("it is refused at once");
    };
    assert_eq!(
        error.to_string(),
        "nbds: cannot be served: another file has TLS"
    );
}
