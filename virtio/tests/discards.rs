//! Discards of more than a device does in good time.

use bulkhead_dma_testing::{Buffer, Disk, discard, read};
use bulkhead_images::{IoError, Submitted};
use bulkhead_virtio_testing::{Config, F, T, Treatment, World};
use std::time::Duration;

/// A device that says that it has 8 GiB, and that it forgets as much as can be said at a time.
fn large(features: F) -> Config {
    Config {
        features,
        discards: u32::MAX,
        zeroes: u32::MAX,
        // The fourth byte of the capacity.
        forged: vec![(3, 1)],
        ..Config::default()
    }
}

#[test]
fn a_device_has_a_gibibyte_of_a_discard_at_a_time() {
    let features = Config::default().features;
    for (features, kind) in [
        (features, T::Discard),
        (features - F::DISCARD, T::WriteZeroes),
    ] {
        let world = World::new(large(features));
        let mut disk = world.open("virtio:04:00.0");
        world.fake.decide(|_| Treatment::Held);
        disk.ask(1, discard(0, 7 << 20), &[]);
        for number in 0..4 {
            world.run();
            assert_eq!(disk.collect(), 0);
            let held = world.fake.held();
            assert_eq!(held.len(), 1, "one after another");
            assert_eq!(held[0].kind, u32::from(kind));
            let count = [2 << 20, 2 << 20, 2 << 20, 1 << 20][number];
            let range = world.fake.range(&held[0]);
            assert_eq!(range, ((number as u64) << 21, count));
            world.fake.answer(0, 0);
        }
        world.run();
        assert_eq!(disk.collect(), 1);
        assert_eq!(disk.done.pop(), Some((1, Ok(()))));
        drop(disk);
        world.end();
    }
}

#[test]
fn discards_that_take_too_long_cost_nobody_else_the_device() {
    let world = World::new(large(Config::default().features));
    let mut guest = world.open("virtio:04:00.0");
    let mut other = Disk::new(&world, guest.device.clone(), 0, 8);
    let buffer = Buffer::new(&world, 1);
    world
        .fake
        .decide(|request| match request.kind == u32::from(T::Discard) {
            true => Treatment::Lost,
            false => Treatment::Done,
        });
    for tag in 0..4 {
        let before = world.sim.now();
        let taken = guest.hand(tag, discard(0, 1 << 23), &[]);
        assert_eq!(taken, Submitted::Pending, "it is served");
        guest.queue.flush_submissions();
        while guest.collect() == 0 {
            world.wait(Duration::from_secs(1));
            let waited = world.sim.now().since(before);
            assert!(waited < Duration::from_secs(100), "two resets");
        }
        assert_eq!(guest.done.pop(), Some((tag, Err(IoError::Medium))));
        assert_eq!(other.does(read(0), &buffer.whole(512)), Ok(()));
    }
    assert_eq!(world.fake.resets(), 8);
    drop((guest, other, buffer));
    world.end();
}
