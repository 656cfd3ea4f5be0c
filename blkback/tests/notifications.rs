//! Frontends that notify the backend more often than they have anything to say.

use bulkhead_blkback_testkit::{Bystander, Guest, IMAGE_SIZE, World, content};
use std::time::Duration;

/// The longest that a queue is not looked at.
const LONGEST: Duration = Duration::from_millis(8);

#[test]
fn notifications_without_requests_cost_less_and_less() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let image = content(0, IMAGE_SIZE);
    world.run();
    let before = world.storage.stats().block_calls;
    for round in 0..10_000 {
        disk.link().notify();
        world.run();
        world.wait(Duration::from_micros(10));
        // No time passes while others are served.
        if round % 1000 == 0 {
            let sleeps = world.storage.stats().block_calls;
            other.io();
            assert!(world.storage.stats().block_calls - sleeps < 100);
        }
    }
    let woken = world.storage.stats().block_calls - before;
    assert!(woken < 1000, "the vCPU was woken {woken} times");
    // Its requests are served nevertheless, if not at once,
    disk.link().push_read(8, 8);
    disk.link().kick();
    world.wait(LONGEST);
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 1, "served within {LONGEST:?}");
    assert!(answers[0].data == image[4096..][..4096]);
    // and then it is as any other.
    assert!(disk.read(16, 8) == image[8192..][..4096]);
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_frontend_with_a_request_for_each_few_notifications_never_waits() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let image = content(0, IMAGE_SIZE);
    for _ in 0..200 {
        for _ in 0..5 {
            disk.link().notify();
            world.run();
        }
        // No time passes.
        assert!(disk.read(8, 8) == image[4096..][..4096]);
    }
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_disk_whose_guest_notifies_without_end_is_detached_at_once() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for _ in 0..100 {
        disk.link().notify();
        world.run();
        world.wait(Duration::from_micros(1));
    }
    // No time passes until it is closed.
    disk.detach();
    world.nothing_left();
}
