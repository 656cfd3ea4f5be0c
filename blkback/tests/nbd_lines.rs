//! The log lines about an export with several connections.

use bulkhead_blkback_testkit::{Guest, Nbd, Setup, Style, World};
use bulkhead_nbd_testing::{Config, FakeExport, Reach};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

fn nbd(world: &World) -> &Nbd {
    world.nbd.as_ref().expect("it has a server")
}

#[test]
fn the_log_tells_whose_requests_wait_and_when_all_are_served_again() {
    let export = FakeExport {
        flags: 0b1_0110_1101,
        ..FakeExport::new("alice", 256 * 1024)
    };
    let world = World::with(Setup {
        vcpus: 2,
        server: Some(Config {
            exports: vec![export],
            ..Config::default()
        }),
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let style = Style {
        queues: 2,
        ..Style::default()
    };
    let disk = guest.attach("xvda", "nbd:10.0.0.2/alice");
    let disk = disk.styled(style).connected();
    world.wait(Duration::from_secs(10));
    let server = &nbd(&world).server;
    assert_eq!(server.connections(), (2, 2));
    let said = |expected: &[&str]| {
        world.wait(Duration::from_secs(60));
        let said: Vec<_> = world
            .journal()
            .into_iter()
            .filter(|line| line.contains("nbd:10.0.0.2:10809/alice: "))
            .map(|line| line.replace("nbd:10.0.0.2:10809/alice: ", ""))
            .collect();
        assert_eq!(said, expected);
        world.forget_journal();
    };
    world.forget_journal();
    let refuses = Reach::Fails(ConnectError::Refused);
    server.change(|config| config.reach = refuses);
    server.drop_one(1, Ended::Reset);
    said(&[
        "WARN the server reset the connection; the requests of 1 of its 2 connections wait",
        "WARN the server 10.0.0.2:10809: it refuses the connection; the requests of 1 of its 2 connections wait",
    ]);
    server.drop_one(0, Ended::Reset);
    said(&["WARN the server reset the connection; its requests wait"]);
    server.change(|config| {
        config.reach = Reach::Connects;
        config.most_connections = 1;
    });
    world.wait(Duration::from_secs(30));
    said(&[
        "INFO it is connected again by 1 of its 2 connections",
        "WARN the server 10.0.0.2:10809 does not answer; the requests of 1 of its 2 connections wait",
    ]);
    server.change(|config| config.most_connections = usize::MAX);
    said(&["INFO it is connected again"]);
    disk.detach();
    world.wait(Duration::from_secs(62));
    world.nothing_left();
}
