//! Requests that take too long, devices that fail, and devices that vanish.

use bulkhead_dma_testing::{Buffer, pattern, read, write};
use bulkhead_images::{IoError, Submitted};
use bulkhead_virtio_testing::{Config, Treatment, World};
use std::time::Duration;

#[test]
fn a_device_that_never_answers_is_reset_and_asked_again() {
    for indirect in [true, false] {
        let mut config = Config::default();
        if !indirect {
            config.features -= virtio_spec::blk::F::INDIRECT_DESC;
        }
        let world = World::new(config);
        let mut disk = world.open("virtio:04:00.0");
        let buffer = Buffer::new(&world, 4);
        let data = pattern(1, 4 * 4096);
        buffer.fill(&data);
        world.fake.decide(|_| Treatment::Lost);
        for tag in 0..4 {
            disk.ask(tag, write(8 * tag as u64), &[buffer.segment(tag, 0, 4096)]);
        }
        disk.collect();
        world.wait(Duration::from_secs(25));
        assert_eq!((disk.collect(), world.fake.resets()), (0, 0));
        world.fake.decide(|_| Treatment::Done);
        world.wait(Duration::from_secs(8));
        disk.collect();
        disk.done.sort_unstable_by_key(|(tag, _)| *tag);
        assert_eq!(
            disk.done,
            (0..4).map(|tag| (tag, Ok(()))).collect::<Vec<_>>()
        );
        assert!(world.fake.bytes()[..data.len()] == data);
        assert_eq!(world.fake.resets(), 1);
        disk.done.clear();
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn a_request_that_stops_the_device_again_and_again_fails() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|request| match request.sector {
        64 => Treatment::Lost,
        _ => Treatment::Done,
    });
    disk.ask(1, read(64), &[buffer.segment(0, 0, 512)]);
    disk.collect();
    for _ in 0..100 {
        world.wait(Duration::from_secs(2));
        if disk.collect() > 0 {
            break;
        }
    }
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    assert_eq!(disk.does(read(0), &[buffer.segment(1, 0, 512)]), Ok(()));
    assert_eq!(world.fake.resets(), 2);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_device_that_says_that_it_has_failed_is_reset() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &[buffer.segment(0, 0, 512)]);
    world.run();
    world.fake.decide(|_| Treatment::Done);
    // It does not reset itself at once: requests wait meanwhile.
    world.fake.never_reset(true);
    world.fake.fail();
    world.wait(Duration::from_millis(100));
    let late = [buffer.segment(1, 0, 512)];
    assert_eq!(disk.hand(2, write(8), &late), Submitted::Busy);
    assert_eq!(disk.collect(), 0);
    let wakes = disk.wakes.count();
    world.fake.never_reset(false);
    world.wait(Duration::from_secs(10));
    assert!(disk.wakes.count() > wakes, "it may try again");
    disk.collect();
    disk.ask(2, write(8), &late);
    world.run();
    disk.collect();
    disk.done.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(disk.done, [(1, Ok(())), (2, Ok(()))]);
    disk.done.clear();
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_device_that_vanishes_fails_everything_and_nothing_else() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    disk.collect();
    world.run();
    world.fake.vanish();
    world.wait(Duration::from_secs(60));
    assert_eq!(disk.collect(), 1);
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Err(IoError::Medium));
    assert!(disk.close());
    assert!(world.lines().contains("given up: "), "{}", world.lines());
    let refused = world.try_open("virtio:04:00.0").err().expect("refused");
    assert!(refused.contains("not there any more"), "{refused}");
    drop((disk, buffer));
    world.sim.assert_no_violations();
}

#[test]
fn pages_stay_until_a_device_that_does_not_reset_itself_may_access_no_memory() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Lost);
    disk.ask(1, read(0), &buffer.whole(512));
    disk.collect();
    world.run();
    world.fake.never_reset(true);
    assert!(!disk.close());
    world.wait(Duration::from_secs(29));
    assert!(world.fake.function().is_master());
    assert!(!disk.close(), "the device may write there");
    world.wait(Duration::from_secs(30));
    assert!(!world.fake.function().is_master());
    assert!(disk.close());
    drop((disk, buffer));
    world.sim.assert_no_violations();
}

#[test]
fn a_stall_of_minutes_costs_the_requests_of_that_time_alone() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Lost);
    let began = world.sim.now();
    let mut tag = 0;
    while world.sim.now().since(began) < Duration::from_secs(600) {
        let taken = disk.hand(tag, write(0), &buffer.whole(512));
        assert_eq!(taken, Submitted::Pending, "{}", world.lines());
        disk.queue.flush_submissions();
        while disk.collect() == 0 {
            world.wait(Duration::from_secs(1));
        }
        assert_eq!(disk.done.pop(), Some((tag, Err(IoError::Medium))));
        tag += 1;
    }
    world.fake.decide(|_| Treatment::Done);
    assert_eq!(disk.does(write(0), &buffer.whole(512)), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_device_that_was_given_up_is_tried_again_every_minute() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Lost);
    disk.ask(1, write(0), &buffer.whole(512));
    world.run();
    world.fake.refuse_features(true);
    world.fake.fail();
    world.wait(Duration::from_secs(60));
    disk.collect();
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    let refused = world.try_open("virtio:04:00.0").err().expect("refused");
    assert!(refused.contains("FEATURES_OK"), "{refused}");
    // What is asked of it fails at once, also while it is tried again.
    for tag in 0..600 {
        let answer = disk.hand(tag, read(0), &buffer.whole(512));
        assert_eq!(answer, Submitted::Done(Err(IoError::Medium)));
        world.wait(Duration::from_millis(997));
    }
    let seen = world.fake.seen().len();
    world.fake.decide(|_| Treatment::Done);
    world.fake.refuse_features(false);
    world.wait(Duration::from_secs(70));
    assert_eq!(world.fake.seen().len(), seen, "what has failed stays so");
    assert_eq!(disk.does(write(0), &buffer.whole(512)), Ok(()));
    // It is the same disk, which its guest has alone.
    let other = world.try_open("virtio:04:00.0").err().expect("refused");
    assert!(other.contains("is open for writing"), "{other}");
    drop((disk, buffer));
    drop(world.open("virtio:04:00.0"));
    world.end();
}

#[test]
fn a_device_that_recovers_never_is_given_up() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Misnamed);
    disk.ask(1, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(5));
    for tag in 2..8 {
        disk.collect();
        if disk.hand(tag, read(0), &buffer.whole(512)) == Submitted::Pending {
            disk.queue.flush_submissions();
        }
        world.wait(Duration::from_secs(5));
    }
    assert!(world.lines().contains("given up: "), "{}", world.lines());
    disk.collect();
    assert!(
        disk.done
            .iter()
            .all(|(_, outcome)| *outcome == Err(IoError::Medium))
    );
    assert!(!disk.done.is_empty());
    drop((disk, buffer));
    world.end();
}
