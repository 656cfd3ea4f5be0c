//! Queues that are closed while the controller has their pages, and requests that are given up.

use bulkhead_images::{IoError, Tag};
use bulkhead_nvme_testing::world::{Buffer, Disk, World, read, write};
use bulkhead_nvme_testing::{Config, Treatment};
use std::time::Duration;

#[test]
fn a_queue_is_closed_once_the_controller_has_none_of_its_pages() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 2);
    // Not even an abort is heard of.
    world.fake.decide(|_| Treatment::Lost);
    disk.ask(1, read(0), &[buffer.segment(0, 0, 512)]);
    disk.ask(2, write(8), &[buffer.segment(1, 0, 512)]);
    world.run();
    assert!(!disk.close());
    world.wait(Duration::from_secs(20));
    assert!(!disk.close(), "the controller may still write to them");
    let wakes = disk.wakes.count();
    // It is reset in the end: it has nothing after that.
    world.wait(Duration::from_secs(20));
    assert!(disk.wakes.count() > wakes);
    assert!(disk.close());
    assert!(world.lines().contains(" 1 resets"), "{}", world.lines());
    assert_eq!(
        world.fake.seen().len(),
        2,
        "nobody waits for them: they are not sent again"
    );
    drop((disk, buffer));
    world.end();
}

#[test]
fn an_abort_closes_a_queue_at_once() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    world.run();
    assert!(!disk.close());
    world.run();
    assert!(disk.close());
    assert_eq!(world.fake.held(), []);
    world.fake.decide(|_| Treatment::Done);
    let mut next = Disk::new(&world, disk.device.clone(), 0, 32);
    assert_eq!(next.does(read(0), &buffer.whole(512)), Ok(()));
    drop((disk, next, buffer));
    world.end();
}

#[test]
fn the_end_of_a_queue_does_not_concern_those_that_are_opened_meanwhile() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let device = disk.device.clone();
    let buffer = Buffer::new(&world, 3);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &[buffer.segment(0, 0, 512)]);
    world.run();
    assert!(!disk.close());
    world.run();
    // The controller has given the command up, but the queue was not polled since.
    let mut second = Disk::new(&world, device.clone(), 0, 32);
    second.ask(2, write(8), &[buffer.segment(1, 0, 512)]);
    assert!(disk.close());
    let mut third = Disk::new(&world, device, 0, 32);
    third.ask(3, write(16), &[buffer.segment(2, 0, 512)]);
    drop(disk);
    world.run();
    assert_eq!(world.fake.held().len(), 2, "none of them is given up");
    world.fake.finish(0);
    world.fake.finish(0);
    world.run();
    second.collect();
    third.collect();
    assert_eq!(
        (&second.done[..], &third.done[..]),
        (&[(2, Ok(()))][..], &[(3, Ok(()))][..])
    );
    drop((second, third, buffer));
    world.end();
}

#[test]
fn a_queue_that_is_dropped_leaves_its_commands_to_the_controller() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let device = disk.device.clone();
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|_| Treatment::Lost);
    disk.ask(1, read(0), &[buffer.segment(0, 0, 512)]);
    world.run();
    drop(disk);
    world.fake.decide(|_| Treatment::Done);
    let mut next = Disk::new(&world, device, 0, 32);
    assert_eq!(next.does(read(0), &[buffer.segment(1, 0, 512)]), Ok(()));
    world.wait(Duration::from_secs(60));
    assert_eq!(next.does(read(0), &[buffer.segment(1, 0, 512)]), Ok(()));
    drop((next, buffer));
    world.end();
}

#[test]
fn requests_that_are_given_up_complete_as_such() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 4);
    world.fake.decide(|_| Treatment::Held);
    for tag in 0..4 {
        disk.ask(tag, read(tag as u64), &[buffer.segment(tag, 0, 512)]);
    }
    world.run();
    disk.queue.cancel(Tag(2));
    disk.queue.cancel(Tag(99));
    world.run();
    disk.collect();
    assert_eq!(disk.done.pop(), Some((2, Err(IoError::Cancelled))));
    world.fake.finish(0);
    disk.queue.cancel_all();
    world.run();
    disk.collect();
    disk.done.sort_unstable_by_key(|(tag, _)| *tag);
    let cancelled = Err(IoError::Cancelled);
    assert_eq!(disk.done, [(0, Ok(())), (1, cancelled), (3, cancelled)]);
    disk.done.clear();
    world.fake.decide(|_| Treatment::Done);
    assert_eq!(disk.does(read(0), &buffer.whole(4096)), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_request_in_parts_that_is_given_up_completes_once() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 200);
    let segments: Vec<_> = (0..200).map(|page| buffer.segment(page, 0, 512)).collect();
    world.fake.decide(|_| Treatment::Held);
    disk.ask(5, write(0), &segments);
    disk.collect();
    world.run();
    assert_eq!(world.fake.held().len(), 63);
    disk.queue.cancel(Tag(5));
    world.run();
    disk.collect();
    assert_eq!(disk.done, [(5, Err(IoError::Cancelled))]);
    disk.done.clear();
    assert_eq!((world.fake.held().len(), world.fake.seen().len()), (0, 63));
    world.fake.decide(|_| Treatment::Done);
    assert_eq!(disk.does(write(0), &segments), Ok(()));
    drop((disk, buffer));
    world.end();
}
