//! How long requests wait for a server that is gone or silent, where an operator limits that.

use bulkhead_images::IoError;
use bulkhead_nbd_testing::world::{Buffer, World, read};
use bulkhead_nbd_testing::{Config, Fate, Reach};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

const DISK: &str = "nbd:10.0.0.2/disk";
const DOWN: Reach = Reach::Fails(ConnectError::Refused);

#[test]
fn requests_fail_after_the_time_that_was_asked_for() {
    let patience = Duration::from_secs(60);
    let world = World::with(Config::default(), Some(patience), None);
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world.server.change(|config| config.reach = DOWN);
    world.server.drop_all(Ended::TimedOut);
    disk.ask(1, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(59));
    assert_eq!(disk.completed(), []);
    world.wait(Duration::from_secs(2));
    assert_eq!(disk.completed(), [(1, Err(IoError::Medium))]);
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Err(IoError::Medium));
    // It is used again when it comes back.
    world.server.change(|config| config.reach = Reach::Connects);
    world.wait(Duration::from_secs(31));
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    // A connection that comes back in time resets the time.
    world.server.drop_all(Ended::TimedOut);
    disk.ask(2, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(120));
    assert_eq!(disk.completed(), [(2, Ok(()))]);
    drop((disk, buffer));
    world.end();
}

#[test]
fn no_timer_of_a_connection_outlasts_its_export() {
    let patience = Duration::from_secs(86_400);
    let world = World::with(Config::default(), Some(patience), None);
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    for _ in 0..3 {
        assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
        world.server.drop_all(Ended::Reset);
        world.wait(Duration::from_secs(31));
    }
    drop((disk, buffer));
    world.end();
}

#[test]
fn requests_fail_after_that_time_although_a_server_that_says_nothing_is_connected_to() {
    let patience = Duration::from_secs(60);
    let world = World::with(Config::default(), Some(patience), None);
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world.server.decide(|_| Fate::Lost);
    disk.ask(1, read(0), &buffer.whole(512));
    // Half a minute until that shows, and the time that was asked for.
    world.wait(Duration::from_secs(85));
    assert_eq!(disk.completed(), []);
    world.wait(Duration::from_secs(10));
    assert_eq!(disk.completed(), [(1, Err(IoError::Medium))]);
    // It is used again as soon as it answers.
    world.server.decide(|_| Fate::Done);
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    // A connection on which nothing was asked does not count against it.
    world.server.drop_all(Ended::TimedOut);
    world.wait(Duration::from_secs(600));
    world.server.change(|config| config.reach = DOWN);
    world.server.drop_all(Ended::TimedOut);
    disk.ask(2, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(59));
    assert_eq!(disk.completed(), []);
    world.wait(Duration::from_secs(2));
    assert_eq!(disk.completed(), [(2, Err(IoError::Medium))]);
    drop((disk, buffer));
    world.end();
}
