//! Exports are connected when a guest's disk wants them, and let go of when none does.

use bulkhead_images::{Access, Submitted};
use bulkhead_nbd_testing::world::{Buffer, Disk, World, pattern, read, write};
use bulkhead_nbd_testing::{Config, Reach, Treatment};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

const DISK: &str = "nbd:10.0.0.2/disk";

#[test]
fn an_export_is_let_go_of_when_it_was_not_used_for_a_minute() {
    let world = World::new(Config::default());
    let disk = world.open(DISK);
    world.wait(Duration::from_secs(1000));
    assert_eq!(world.server.connections(), (1, 1));
    drop(disk);
    world.wait(Duration::from_secs(50));
    // The same name, written in another way, is the same export.
    let disk = world.open("nbd:10.0.0.2:10809/disk");
    world.wait(Duration::from_secs(50));
    assert_eq!(world.server.connections(), (1, 1));
    drop(disk);
    world.wait(Duration::from_secs(59));
    assert_eq!(world.server.connections(), (1, 1));
    world.wait(Duration::from_secs(2));
    assert_eq!(world.server.connections(), (1, 0));
    assert_eq!((world.server.disconnects(), world.exports.count()), (1, 0));
    world.end();
}

#[test]
fn one_that_cannot_be_reached_is_not_tried_for_ever() {
    let world = World::new(Config {
        reach: Reach::Hangs,
        ..Config::default()
    });
    world.refusal(DISK);
    assert_eq!(world.exports.count(), 1);
    world.wait(Duration::from_secs(61));
    assert_eq!(world.exports.count(), 0);
    world.end();
}

#[test]
fn a_name_without_an_address_is_refused_at_once_and_waited_for_later() {
    let no_address = Reach::Fails(ConnectError::NoAddress);
    let world = World::new(Config {
        reach: no_address,
        ..Config::default()
    });
    let begun = world.sim.now();
    let refused = world.refusal(DISK);
    assert!(refused.contains("its name has no address"), "{refused}");
    assert!(world.sim.now().since(begun) < Duration::from_secs(1));
    assert_eq!(world.exports.count(), 0);
    // A guest that has the export waits.
    world.server.change(|config| config.reach = Reach::Connects);
    let mut disk = world.open(DISK);
    world.server.change(|config| config.reach = no_address);
    world.server.drop_all(Ended::Reset);
    world.wait(Duration::from_secs(100));
    world.server.change(|config| config.reach = Reach::Connects);
    world.wait(Duration::from_secs(31));
    let buffer = Buffer::new(&world, 1);
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn an_export_has_one_writer() {
    let world = World::new(Config::default());
    let disk = world.open(DISK);
    let refused = world.refusal("nbd:10.0.0.2:10809/disk");
    assert!(
        refused.contains("open for writing by domain 5, xvda"),
        "{refused}"
    );
    let other = world.open("nbd:10.0.0.3/disk");
    assert_eq!(world.other.connections(), (1, 1));
    let lines = world.lines();
    for line in [
        "nbd:10.0.0.2:10809/disk: connected, 2048 sectors; 1 users; 1 connections made",
        "nbd:10.0.0.2:10809/disk is open for writing by domain 5, xvda",
        "nbd:10.0.0.3:10809/disk: connected",
    ] {
        assert!(lines.contains(line), "{lines}");
    }
    drop((disk, other));
    world.end();
}

#[test]
fn a_queue_is_closed_when_the_server_cannot_write_for_it_any_more() {
    let world = World::new(Config::default());
    let device = world.try_open(DISK, Access::ReadWrite).expect("opened");
    let mut disk = Disk::new(&world, device.clone(), 0, 8);
    let mut second = Disk::new(&world, device, 0, 8);
    let (buffer, kept) = (Buffer::new(&world, 1), Buffer::new(&world, 1));
    buffer.fill(&[7; 4096]);
    world.server.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    disk.ask(2, write(8), &buffer.whole(512));
    second.ask(1, read(0), &kept.whole(512));
    world.run();
    let handed = disk.hand(3, write(16), &buffer.whole(512));
    assert_eq!(handed, Submitted::Pending);
    assert!(!disk.close(), "the server may still write");
    let wakes = disk.wakes.count();
    // The reply to the read is for nobody: the guest's page is not touched.
    let data = pattern(5, 512);
    world
        .server
        .change(|config| config.exports[0].bytes[..512].copy_from_slice(&data));
    world.server.finish(0);
    world.run();
    assert!(!disk.close());
    assert_eq!(buffer.bytes(0, 512), [7; 512]);
    world.server.finish(0);
    world.run();
    assert!(disk.wakes.count() > wakes, "it is woken for that");
    assert!(disk.close());
    world.server.finish(0);
    assert_eq!(second.completed(), [(1, Ok(()))]);
    assert!(kept.bytes(0, 512) == data);
    assert_eq!(world.server.seen().len(), 3, "what was not sent never is");
    drop((disk, second, buffer, kept));
    world.end();
}

#[test]
fn the_end_of_a_queue_does_not_concern_those_that_are_opened_meanwhile() {
    let world = World::new(Config::default());
    let device = world.try_open(DISK, Access::ReadWrite).expect("opened");
    let open = || Disk::new(&world, device.clone(), 0, 8);
    let (mut disk, buffer) = (open(), Buffer::new(&world, 1));
    world.server.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &buffer.whole(512));
    world.run();
    assert!(!disk.close());
    world.server.finish(0);
    world.run();
    // The server has answered, but the queue was not polled since.
    let mut second = open();
    second.ask(2, write(8), &buffer.whole(512));
    assert!(disk.close());
    let mut third = open();
    third.ask(3, write(16), &buffer.whole(512));
    drop(disk);
    world.run();
    assert_eq!(world.server.seen().len(), 3, "all of them are sent");
    world.server.finish(0);
    world.server.finish(0);
    assert_eq!(second.completed(), [(2, Ok(()))]);
    assert_eq!(third.completed(), [(3, Ok(()))]);
    drop((second, third, device, buffer));
    world.end();
}

#[test]
fn a_queue_is_closed_while_the_server_is_gone() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 32);
    world.server.change(|config| {
        config.is_deaf = true;
        config.room = 4096;
    });
    // Half of a write is on its way: it cannot be taken back.
    disk.ask(1, write(0), &buffer.whole(128 << 10));
    world.run();
    assert!(!disk.close());
    world.server.change(|config| config.reach = Reach::Hangs);
    world.server.drop_all(Ended::Reset);
    world.run();
    assert!(disk.close());
    let mut again = Disk::new(&world, disk.device.clone(), 0, 8);
    again.ask(1, write(0), &buffer.whole(512));
    world.run();
    assert!(again.close(), "what waits was never sent");
    drop((disk, again));
    world.server.change(|config| {
        config.is_deaf = false;
        config.reach = Reach::Connects;
    });
    world.wait(Duration::from_secs(45));
    assert_eq!(world.server.seen(), []);
    drop(buffer);
    world.end();
}

#[test]
fn queues_are_opened_again_and_again_without_more_memory() {
    let world = World::new(Config::default());
    let device = world.try_open(DISK, Access::ReadWrite).expect("opened");
    let buffer = Buffer::new(&world, 1);
    for round in 0..50 {
        let mut disk = Disk::new(&world, device.clone(), 0, 1 + round % 7);
        assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
        assert!(disk.close());
    }
    // Each has the first place: no list of them grows.
    let places = world
        .server
        .seen()
        .iter()
        .map(|seen| seen.cookie >> 48)
        .max();
    assert_eq!(places, Some(0));
    drop((device, buffer));
    world.end();
}
