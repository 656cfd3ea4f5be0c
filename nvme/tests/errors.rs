//! Commands that fail, and controllers that lie.

use bulkhead_images::IoError;
use bulkhead_nvme::command::Status;
use bulkhead_nvme_testing::world::{Buffer, World, read, write};
use bulkhead_nvme_testing::{Config, Treatment};
use std::time::Duration;

#[test]
fn a_command_that_fails_for_good_fails_its_request_alone() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    for (status, expected) in [
        (Status::UNRECOVERED_READ, IoError::Medium),
        (Status::LBA_OUT_OF_RANGE, IoError::OutOfRange),
        (Status::WRITE_PROTECTED, IoError::ReadOnly),
        (Status::INVALID_OPCODE, IoError::NotSupported),
        (Status::new(0x7ff), IoError::Medium),
    ] {
        world
            .fake
            .decide(move |_| Treatment::Failed(status.for_good()));
        let before = world.fake.seen().len();
        assert_eq!(
            disk.does(read(0), &buffer.whole(512)),
            Err(expected),
            "{status}"
        );
        assert_eq!(world.fake.seen().len(), before + 1, "it is not tried again");
        world.fake.decide(|_| Treatment::Done);
        assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    }
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_command_that_may_succeed_is_sent_again_but_not_for_ever() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    let mut left = 3;
    world.fake.decide(move |_| {
        left -= 1;
        match left {
            0.. => Treatment::Failed(Status::INTERRUPTED),
            _ => Treatment::Done,
        }
    });
    assert_eq!(disk.does(write(0), &buffer.whole(512)), Ok(()));
    assert_eq!(world.fake.seen().len(), 4);
    world
        .fake
        .decide(|_| Treatment::Failed(Status::INTERRUPTED));
    assert_eq!(
        disk.does(write(0), &buffer.whole(512)),
        Err(IoError::Medium)
    );
    assert_eq!(world.fake.seen().len(), 8);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_part_that_fails_fails_the_request_once() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 256);
    let segments: Vec<_> = (0..256).map(|page| buffer.segment(page, 0, 512)).collect();
    world.fake.decide(|command| match command.dword(10) {
        5 => Treatment::Failed(Status::UNRECOVERED_READ.for_good()),
        _ => Treatment::Done,
    });
    assert_eq!(disk.does(read(0), &segments), Err(IoError::Medium));
    let seen = world.fake.seen().len();
    assert!(
        seen < 256,
        "{seen} commands: after the failure no more are sent"
    );
    world.fake.decide(|_| Treatment::Done);
    assert_eq!(disk.does(read(0), &segments), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_controller_that_violates_the_protocol_is_reset_and_its_commands_are_sent_again() {
    for violation in [Treatment::Misnamed, Treatment::Twice] {
        let world = World::started(Config::default());
        let mut disk = world.open("nvme:03:00.0");
        let buffer = Buffer::new(&world, 8);
        let mut violations = 1;
        world.fake.decide(move |command| {
            violations -= 1;
            match (command.dword(10), violations) {
                (_, 0) => violation,
                _ => Treatment::Held,
            }
        });
        for tag in 0..8 {
            disk.ask(tag, write(tag as u64), &[buffer.segment(tag, 0, 512)]);
        }
        disk.collect();
        world.run();
        world.fake.decide(|_| Treatment::Done);
        world.wait(Duration::from_secs(1));
        disk.collect();
        let mut tags: Vec<_> = disk.done.drain(..).collect();
        tags.sort_unstable_by_key(|(tag, _)| *tag);
        let expected: Vec<_> = (0..8).map(|tag| (tag, Ok(()))).collect();
        assert_eq!(tags, expected, "{violation:?}");
        assert!(world.lines().contains(" 1 resets"), "{}", world.lines());
        assert_eq!(
            disk.does(read(0), &buffer.whole(4096)),
            Ok(()),
            "{violation:?}"
        );
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn a_completion_of_the_past_is_a_violation_too() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    let old = world.fake.seen()[0];
    // The slot is used anew when the old command completes again.
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(1), &buffer.whole(512));
    world.run();
    world.fake.complete(1, &old, Status::SUCCESS);
    assert_eq!(disk.collect(), 0, "that was another command");
    world.fake.decide(|_| Treatment::Done);
    world.wait(Duration::from_secs(1));
    assert_eq!(disk.collect(), 1);
    assert_eq!(disk.done.pop(), Some((1, Ok(()))));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_controller_that_goes_on_violating_the_protocol_is_given_up() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Misnamed);
    disk.ask(1, write(0), &buffer.whole(512));
    disk.collect();
    world.wait(Duration::from_secs(60));
    disk.collect();
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    // Its request was sent too often; the next ones cost the controller.
    for tag in 2..8 {
        let segments = buffer.whole(512);
        if disk.hand(tag, write(0), &segments) == bulkhead_images::Submitted::Pending {
            disk.queue.flush_submissions();
        }
        world.wait(Duration::from_secs(5));
        disk.collect();
    }
    assert!(world.lines().contains("given up"), "{}", world.lines());
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Err(IoError::Medium));
    let refused = world.try_open("nvme:03:00.0").err().expect("refused");
    assert!(
        refused.contains("was given up: it does not keep to the protocol"),
        "{refused}"
    );
    drop((disk, buffer));
    world.end();
}
