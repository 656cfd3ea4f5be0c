//! Commands that take too long, controllers that fail, and controllers that vanish.

use super::namespaces::refuse;
use bulkhead_images::{IoError, Submitted};
use bulkhead_nvme::command::admin::opcode;
use bulkhead_nvme::command::{Command, Status};
use bulkhead_nvme_testing::world::{Buffer, NAME, World, discard, pattern, read, write};
use bulkhead_nvme_testing::{Config, FakeNamespace, Treatment};
use std::sync::Arc;
use std::time::Duration;

fn count(world: &World, opcode: u8) -> usize {
    let seen = world.fake.admin_seen();
    seen.iter()
        .filter(|command| command.opcode() == opcode)
        .count()
}

#[test]
fn a_command_that_takes_too_long_is_aborted_and_fails() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &[buffer.segment(0, 0, 512)]);
    disk.collect();
    world.wait(Duration::from_secs(20));
    disk.ask(2, read(8), &[buffer.segment(1, 0, 512)]);
    assert_eq!((disk.collect(), count(&world, opcode::ABORT)), (0, 0));
    world.wait(Duration::from_secs(13));
    assert_eq!((disk.collect(), count(&world, opcode::ABORT)), (1, 1));
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    world.fake.finish(0);
    world.run();
    assert_eq!(disk.collect(), 1);
    assert_eq!(disk.done.pop(), Some((2, Ok(()))));
    assert!(world.lines().contains(" 0 resets"), "{}", world.lines());
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_controller_that_ignores_aborts_is_reset_and_everything_is_asked_again() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 256);
    let data = pattern(1, 256 * 4096);
    buffer.fill(&data);
    world.fake.decide(|_| Treatment::Lost);
    for tag in 0..8 {
        disk.ask(tag, write(8 * tag as u64), &[buffer.segment(tag, 0, 4096)]);
    }
    // One in parts, some of which have not been sent.
    let segments: Vec<_> = (8..208).map(|page| buffer.segment(page, 0, 512)).collect();
    disk.ask(8, write(64), &segments);
    disk.collect();
    world.run();
    assert_eq!(world.fake.seen().len(), 63);
    world.fake.decide(|_| Treatment::Done);
    world.wait(Duration::from_secs(40));
    disk.collect();
    let mut tags: Vec<_> = disk.done.drain(..).collect();
    tags.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(tags, (0..9).map(|tag| (tag, Ok(()))).collect::<Vec<_>>());
    let bytes = world.fake.bytes(1);
    assert!(bytes[..8 * 4096] == data[..8 * 4096]);
    for page in 8..208 {
        let start = 64 * 512 + (page - 8) * 512;
        assert!(
            bytes[start..start + 512] == data[page * 4096..page * 4096 + 512],
            "{page}"
        );
    }
    assert!(world.lines().contains(" 1 resets"), "{}", world.lines());
    drop((disk, buffer));
    world.end();
}

/// In its place, a namespace with another name in the world, and one with larger blocks: a command that was sent again would
/// move more bytes than before, through what lists of addresses have held earlier.
#[test]
fn what_a_namespace_was_asked_is_not_asked_of_the_one_in_its_place_after_a_reset() {
    for (shift, renamed) in [(9, true), (12, false)] {
        let world = World::started(Config::default());
        let mut disk = world.open("nvme:03:00.0");
        let buffer = Buffer::new(&world, 256);
        buffer.fill(&[7; 256 * 4096]);
        world.fake.decide(|_| Treatment::Lost);
        disk.ask(0, write(0), &[buffer.segment(0, 0, 4096)]);
        disk.ask(1, read(8), &[buffer.segment(1, 0, 4096)]);
        disk.ask(2, discard(64, 8), &[]);
        // One in parts, some of which have not been sent.
        let segments: Vec<_> = (8..208).map(|page| buffer.segment(page, 0, 512)).collect();
        disk.ask(3, write(64), &segments);
        disk.collect();
        world.run();
        let asked = world.fake.seen().len();
        assert_eq!(asked, 63);
        world.fake.change(|config| {
            config.namespaces[0] = FakeNamespace::new(1, shift, 4096);
            config.forge = Arc::new(move |command: &Command, data: &mut [u8]| {
                if command.opcode() == opcode::IDENTIFY && command.dword(10) == 0 {
                    data[104] = if renamed { 9 } else { data[104] };
                }
            });
        });
        world.fake.decide(|_| Treatment::Done);
        world.fake.fail();
        world.wait(Duration::from_secs(3));
        disk.collect();
        disk.done.sort_unstable_by_key(|(tag, _)| *tag);
        let failed: Vec<_> = (0..4).map(|tag| (tag, Err(IoError::Medium))).collect();
        assert_eq!(disk.done, failed, "blocks of 2^{shift} bytes");
        assert_eq!(world.fake.seen().len(), asked, "nothing was asked again");
        assert!(world.fake.bytes(1).iter().all(|byte| *byte == 0));
        assert!(world.lines().contains(" 1 resets"), "{}", world.lines());
        drop(disk);
        let mut new = world.open("nvme:03:00.0");
        assert_eq!(new.does(write(0), &buffer.whole(4096)), Ok(()));
        drop((new, buffer));
        world.end();
    }
}

#[test]
fn what_a_namespace_was_asked_waits_until_it_is_described_after_a_reset() {
    // As it was; with larger blocks, so that it is another one; and not for as long as anybody waits.
    for (refusals, shift, goes_on) in [(3, 9, true), (3, 12, false), (1000, 9, false)] {
        let world = World::started(Config::default());
        let mut disk = world.open("nvme:03:00.0");
        let buffer = Buffer::new(&world, 2);
        world.fake.decide(|_| Treatment::Lost);
        disk.ask(1, write(0), &[buffer.segment(0, 0, 512)]);
        world.run();
        assert_eq!(world.fake.seen().len(), 1);
        world
            .fake
            .change(|config| config.namespaces[0] = FakeNamespace::new(1, shift, 4096));
        refuse(&world, 1, refusals, Status::NAMESPACE_NOT_READY);
        world.fake.decide(|_| Treatment::Done);
        world.fake.fail();
        world.wait(Duration::from_secs(1));
        let handed = disk.hand(2, read(0), &[buffer.segment(1, 0, 512)]);
        assert_ne!(handed, Submitted::Done(Ok(())));
        disk.queue.flush_submissions();
        world.wait(Duration::from_secs(12));
        disk.collect();
        let outcome = if goes_on {
            Ok(())
        } else {
            Err(IoError::Medium)
        };
        assert!(disk.done.contains(&(1, outcome)), "{refusals}, {shift}");
        let seen = world.fake.seen().len();
        assert_eq!(seen > 1, goes_on, "{refusals}, {shift}: {seen}");
        assert!(world.lines().contains(" 1 resets"), "{}", world.lines());
        // Whatever is there later can be opened.
        refuse(&world, 1, 0, Status::NAMESPACE_NOT_READY);
        world.wait(Duration::from_secs(6));
        drop(disk);
        let mut new = world.open("nvme:03:00.0");
        assert_eq!(new.does(read(0), &buffer.whole(4096)), Ok(()));
        drop((new, buffer));
        world.end();
    }
}

#[test]
fn a_request_that_stops_the_controller_again_and_again_fails() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|command| match command.dword(10) {
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
    assert!(world.lines().contains(" 2 resets"), "{}", world.lines());
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_controller_that_says_that_it_has_failed_is_reset() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.fail();
    disk.ask(1, write(0), &buffer.whole(512));
    disk.collect();
    world.wait(Duration::from_secs(3));
    assert_eq!(disk.collect(), 1);
    assert_eq!(disk.done.pop(), Some((1, Ok(()))));
    drop((disk, buffer));
    world.end();
}

#[test]
fn requests_wait_while_the_controller_is_reset() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|_| Treatment::Misnamed);
    world.fake.never_start(true);
    disk.ask(1, write(0), &[buffer.segment(0, 0, 512)]);
    disk.collect();
    world.wait(Duration::from_millis(100));
    let late = disk.hand(2, write(8), &[buffer.segment(1, 0, 512)]);
    assert_eq!(late, Submitted::Busy);
    assert_eq!(disk.collect(), 0);
    let wakes = disk.wakes.count();
    world.fake.decide(|_| Treatment::Done);
    world.fake.never_start(false);
    world.wait(Duration::from_secs(20));
    assert!(disk.wakes.count() > wakes, "it may try again");
    disk.collect();
    disk.ask(2, write(8), &[buffer.segment(1, 0, 512)]);
    world.run();
    disk.collect();
    disk.done.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(disk.done, [(1, Ok(())), (2, Ok(()))]);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_stall_of_minutes_costs_the_requests_of_that_time_alone() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
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
fn a_controller_that_was_given_up_is_tried_again_every_minute() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Lost);
    disk.ask(1, write(0), &buffer.whole(512));
    world.run();
    world.fake.never_start(true);
    world.fake.fail();
    world.wait(Duration::from_secs(60));
    disk.collect();
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    let refused = world.try_open("nvme:03:00.0").err().expect("refused");
    assert!(refused.contains("does not become ready"), "{refused}");
    // What is asked of it fails at once, also while it is tried again.
    for tag in 0..600 {
        let answer = disk.hand(tag, read(0), &buffer.whole(512));
        assert_eq!(answer, Submitted::Done(Err(IoError::Medium)));
        world.wait(Duration::from_millis(997));
    }
    let seen = world.fake.seen().len();
    world.fake.decide(|_| Treatment::Done);
    world.fake.never_start(false);
    world.wait(Duration::from_secs(70));
    assert_eq!(world.fake.seen().len(), seen, "what has failed stays so");
    assert_eq!(disk.does(write(0), &buffer.whole(512)), Ok(()));
    // It is the same disk, which its guest has alone.
    let other = world.try_open("nvme:03:00.0").err().expect("refused");
    assert!(other.contains("is open for writing"), "{other}");
    drop((disk, buffer));
    drop(world.open("nvme:03:00.0"));
    world.end();
}

#[test]
fn a_controller_that_stops_late_lets_go_of_its_memory_and_works_again() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Lost);
    disk.ask(1, write(0), &buffer.whole(512));
    world.run();
    world.fake.never_stop(true);
    world.fake.stay_master(true);
    world.fake.fail();
    world.wait(Duration::from_secs(30));
    assert_eq!(disk.collect(), 0, "it may still read there");
    assert!(world.lines().contains("given up: "), "{}", world.lines());
    world.fake.never_stop(false);
    world.fake.decide(|_| Treatment::Done);
    world.wait(Duration::from_secs(70));
    assert_eq!(disk.collect(), 1);
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    world.fake.stay_master(false);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_controller_that_vanishes_fails_everything_and_nothing_else() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    disk.collect();
    world.run();
    world.fake.vanish();
    world.wait(Duration::from_secs(30));
    assert_eq!(disk.collect(), 1);
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Err(IoError::Medium));
    assert!(disk.close());
    assert!(world.lines().contains("given up: "), "{}", world.lines());
    drop((disk, buffer));
    let controllers = world.controllers.clone();
    let gone = world.within(Duration::from_secs(30), async move {
        controllers.give_up(NAME).await;
    });
    assert_eq!(gone, Some(()));
    assert!(world.controllers.list().is_empty());
    world.sim.assert_no_violations();
}

#[test]
fn pages_of_a_controller_that_does_not_stop_are_held() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Lost);
    disk.ask(1, read(0), &buffer.whole(512));
    disk.collect();
    world.run();
    // It does not stop, but its configuration says that it may access no memory: then it has none.
    world.fake.never_stop(true);
    assert!(!disk.close());
    world.wait(Duration::from_secs(33));
    assert_eq!(world.fake.state(), (true, true));
    assert!(!disk.close());
    world.wait(Duration::from_secs(60));
    assert_eq!(world.fake.state(), (true, false));
    assert!(disk.close());
    drop((disk, buffer));
    world.sim.assert_no_violations();
}
