//! Exports with several connections, only some of which are up.

use bulkhead_images::Access;
use bulkhead_nbd_testing::world::{Buffer, Disk, World, write};
use bulkhead_nbd_testing::{Config, FakeExport, Reach, Treatment};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

#[test]
fn the_operator_is_told_how_many_connections_there_are() {
    for broken in [1, 0] {
        let export = FakeExport {
            flags: 0b1_0110_1101,
            ..FakeExport::new("disk", 1 << 20)
        };
        let world = World::new(Config {
            exports: vec![export],
            ..Config::default()
        });
        let shown = |what: &str| {
            let (lines, what) = (world.lines(), format!("disk: {what}"));
            assert!(lines.contains(&what), "{what}: {lines}");
        };
        let device = world.try_open("nbd:10.0.0.2/disk", Access::ReadWrite);
        let device = device.expect("opened");
        let mut disks = [0, 1].map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8));
        let buffer = Buffer::new(&world, 1);
        shown("connected, 2048 sectors; 1 users");
        let refuses = Reach::Fails(ConnectError::Refused);
        world.server.change(|config| config.reach = refuses);
        world.server.drop_one(broken, Ended::Reset);
        disks[broken].ask(1, write(0), &buffer.whole(512));
        world.wait(Duration::from_secs(5));
        shown("connected by 1 of 2 connections (the server 10.0.0.2:10809: ");
        assert_eq!(disks[1 - broken].does(write(1), &buffer.whole(512)), Ok(()));
        assert_eq!(disks[broken].completed(), []);
        world.server.drop_all(Ended::Reset);
        world.wait(Duration::from_secs(5));
        shown("not connected: the server 10.0.0.2:10809: ");
        // One of the two is taken.
        world.server.change(|config| {
            config.reach = Reach::Connects;
            config.most_connections = 1;
        });
        world.wait(Duration::from_secs(60));
        shown("connected by 1 of 2 connections (");
        let all = usize::MAX;
        world.server.change(|config| config.most_connections = all);
        world.wait(Duration::from_secs(60));
        shown("connected, 2048 sectors; 1 users");
        assert_eq!(disks[broken].completed(), [(1, Ok(()))]);
        drop((disks, device, buffer));
        world.end();
    }
}

/// Returns a machine whose two servers have the same export, for several connections each.
fn two_servers() -> World {
    let export = FakeExport {
        flags: 0b1_0110_1101,
        ..FakeExport::new("disk", 1 << 20)
    };
    let config = Config {
        exports: vec![export],
        ..Config::default()
    };
    let world = World::new(config.clone());
    world.other.change(|other| *other = config);
    world
}

#[test]
fn all_connections_of_an_export_are_to_one_of_the_addresses_of_its_name() {
    let world = two_servers();
    let device = world.try_open("nbd:storage/disk", Access::ReadWrite);
    let device = device.expect("opened");
    let mut disks = [0, 1].map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8));
    let buffer = Buffer::new(&world, 1);
    let at = |first: usize, second: usize| {
        let connected = [&world.server, &world.other].map(|server| server.connections().1);
        assert_eq!(connected, [first, second]);
    };
    at(2, 0);
    let refuses = Reach::Fails(ConnectError::Refused);
    world.server.change(|config| config.reach = refuses);
    world.server.drop_all(Ended::Reset);
    for disk in &mut disks {
        disk.ask(1, write(0), &buffer.whole(512));
    }
    world.wait(Duration::from_secs(5));
    at(0, 2);
    // Both are there again, and one connection is lost: it is made again where the other one is.
    world.server.change(|config| config.reach = Reach::Connects);
    for lost in [0, 1] {
        world.other.drop_one(lost, Ended::Reset);
        world.wait(Duration::from_secs(5));
        at(0, 2);
    }
    for disk in &mut disks {
        assert_eq!(disk.completed(), [(1, Ok(()))]);
    }
    drop((disks, device, buffer));
    world.end();
}

#[test]
fn the_other_connections_leave_an_address_before_the_first_one_is_used_at_another() {
    let world = two_servers();
    let device = world.try_open("nbd:storage/disk", Access::ReadWrite);
    let device = device.expect("opened");
    let mut disks = [0, 1].map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8));
    let buffer = Buffer::new(&world, 1);
    // The server lets nobody in any more, and serves those who are.
    let refuses = Reach::Fails(ConnectError::Refused);
    world.server.change(|config| config.reach = refuses);
    assert_eq!(disks[1].does(write(0), &buffer.whole(512)), Ok(()));
    world.server.decide(|_| Treatment::Held);
    disks[1].ask(1, write(1), &buffer.whole(512));
    world.run();
    assert_eq!(world.server.held().len(), 1);
    world.server.drop_one(0, Ended::Reset);
    disks[0].ask(1, write(2), &buffer.whole(512));
    world.wait(Duration::from_secs(5));
    assert_eq!(world.server.connections().1, 0);
    assert_eq!(world.other.connections().1, 2);
    let asked: Vec<_> = world.other.seen().iter().map(|it| it.offset).collect();
    assert_eq!(asked.len(), 2, "what was not answered: {asked:?}");
    for disk in &mut disks {
        assert_eq!(disk.completed(), [(1, Ok(()))]);
    }
    drop((disks, device, buffer));
    world.end();
}
