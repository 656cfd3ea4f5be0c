//! The time for which requests wait for a server that is gone or silent, where an operator limits it.

use bulkhead_images::{IoError, Submitted};
use bulkhead_nbd_testing::world::{Buffer, World, read};
use bulkhead_nbd_testing::{Config, Reach, Treatment};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

const DISK: &str = "nbd:10.0.0.2/disk";
const DOWN: Reach = Reach::Fails(ConnectError::Refused);

#[test]
fn requests_fail_after_the_time_that_was_asked_for() {
    let timeout = Duration::from_secs(60);
    let world = World::with(Config::default(), Some(timeout), None);
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
    let timeout = Duration::from_secs(86_400);
    let world = World::with(Config::default(), Some(timeout), None);
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
    for timeout in [1, 10, 20, 45, 60, 100, 600] {
        let world = World::with(Config::default(), Some(Duration::from_secs(timeout)), None);
        let mut disk = world.open(DISK);
        let buffer = Buffer::new(&world, 1);
        world.server.decide(|_| Treatment::Lost);
        disk.ask(1, read(0), &buffer.whole(512));
        // Half a minute until that shows, and the time that was asked for.
        world.wait(Duration::from_secs(29 + timeout));
        assert_eq!(disk.completed(), [], "{timeout}");
        world.wait(Duration::from_secs(2));
        let failed = [(1, Err(IoError::Medium))];
        assert_eq!(disk.completed(), failed, "{timeout}");
        // From then on, whatever is asked has half a minute at most.
        let (mut pending, mut waits) = (false, 0);
        for second in 0.. {
            if !pending && second > 300 {
                break;
            }
            if !pending {
                match disk.hand(2, read(0), &buffer.whole(512)) {
                    Submitted::Pending => (pending, waits) = (true, 0),
                    done => assert_eq!(done, Submitted::Done(Err(IoError::Medium))),
                }
                disk.queue.flush_submissions();
                disk.collect();
            }
            world.wait(Duration::from_secs(1));
            waits += 1;
            let done = disk.completed();
            if !done.is_empty() {
                assert_eq!(done, [(2, Err(IoError::Medium))]);
                pending = false;
            }
            assert!(
                !pending || waits <= 30,
                "{timeout}: one waits for {waits} s"
            );
        }
        // It is used again as soon as it answers.
        world.server.decide(|_| Treatment::Done);
        world.wait(Duration::from_secs(31));
        assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
        // A connection on which nothing was asked does not count against it.
        world.server.drop_all(Ended::TimedOut);
        world.wait(Duration::from_secs(600));
        world.server.change(|config| config.reach = DOWN);
        world.server.drop_all(Ended::TimedOut);
        disk.ask(2, read(0), &buffer.whole(512));
        world.wait(Duration::from_millis(timeout * 1000 - 500));
        assert_eq!(disk.completed(), [], "{timeout}");
        world.wait(Duration::from_secs(1));
        assert_eq!(disk.completed(), [(2, Err(IoError::Medium))], "{timeout}");
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn requests_that_come_one_after_the_other_do_not_hide_that_a_server_answers_none() {
    let world = World::with(Config::default(), Some(Duration::from_secs(20)), None);
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world.server.decide(|_| Treatment::Lost);
    let mut failed = None;
    for second in 0..55 {
        if second % 4 == 0 && failed.is_none() {
            disk.ask(second, read(0), &buffer.whole(512));
        }
        world.wait(Duration::from_secs(1));
        if !disk.completed().is_empty() {
            failed.get_or_insert(second + 1);
        }
    }
    let failed = failed.expect("they failed");
    assert!((49..=52).contains(&failed), "after {failed} s");
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_quiet_time_does_not_count_as_one_in_which_requests_have_waited() {
    let world = World::with(Config::default(), Some(Duration::from_secs(100)), None);
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    // Connected to again, with nothing to be asked for long.
    world.server.drop_all(Ended::Reset);
    world.wait(Duration::from_secs(600));
    world.server.decide(|_| Treatment::Lost);
    disk.ask(1, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(129));
    assert_eq!(disk.completed(), []);
    world.wait(Duration::from_secs(2));
    assert_eq!(disk.completed(), [(1, Err(IoError::Medium))]);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_server_that_answers_slowly_is_none_that_answers_nothing() {
    let world = World::with(Config::default(), Some(Duration::from_secs(10)), None);
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world.server.decide(|_| Treatment::Held);
    world.server.drop_all(Ended::Reset);
    for tag in 0..8 {
        disk.ask(tag, read(0), &buffer.whole(512));
    }
    let mut done = Vec::new();
    for _ in 0..8 {
        world.wait(Duration::from_secs(9));
        world.server.finish(0);
        world.run();
        done.extend(disk.completed());
    }
    assert_eq!(done, [0, 1, 2, 3, 4, 5, 6, 7].map(|tag| (tag, Ok(()))));
    drop((disk, buffer));
    world.end();
}
