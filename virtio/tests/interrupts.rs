//! Notifications, interrupts, and devices that have few of them.

use bulkhead_dma_testing::{Buffer, Disk, read, write};
use bulkhead_virtio_testing::{Config, Treatment, World};
use std::time::Duration;
use virtio_spec::blk::F;

/// Configurations with every kind of interrupt, and with and without an event index.
fn all() -> Vec<Config> {
    let usual = Config::default();
    let mut all = Vec::new();
    for features in [usual.features, usual.features - F::EVENT_IDX] {
        for (messages, line) in [
            (Some(5), true),
            (Some(2), true),
            (Some(1), true),
            (None, true),
            (None, false),
        ] {
            all.push(Config {
                features,
                messages,
                line,
                ..usual.clone()
            });
        }
    }
    all
}

#[test]
fn requests_complete_however_a_device_interrupts() {
    for config in all() {
        let what = (config.messages, config.line, config.features);
        let world = World::new(config);
        let device = world.try_open("virtio:04:00.0").expect("opened");
        let buffer = Buffer::new(&world, 8);
        let mut disks: Vec<_> = (0..2)
            .map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8))
            .collect();
        // More than the indices have numbers for would take long; more than the queue has entries is enough.
        for round in 0..100 {
            for disk in &mut disks {
                for tag in 0..4 {
                    disk.ask(tag, write(round), &[buffer.segment(tag, 0, 512)]);
                }
                assert_eq!(disk.collect(), 0);
            }
            // Nobody looks: the interrupt wakes the tasks.
            let wakes: usize = disks.iter().map(|disk| disk.wakes.count()).sum();
            world.wait(Duration::from_millis(5));
            let now: usize = disks.iter().map(|disk| disk.wakes.count()).sum();
            assert!(now > wakes, "{what:?}: nobody is woken");
            for disk in &mut disks {
                disk.collect();
                assert_eq!(disk.done.len(), 4, "{what:?}");
                disk.done.clear();
            }
        }
        drop((disks, buffer, device));
        world.end();
    }
}

#[test]
fn a_batch_is_one_notification_and_at_most_one_interrupt() {
    for features in [
        Config::default().features,
        Config::default().features - F::EVENT_IDX,
    ] {
        let world = World::new(Config {
            features,
            ..Config::default()
        });
        let mut disk = world.open("virtio:04:00.0");
        let buffer = Buffer::new(&world, 32);
        let before = world.fake.signals();
        for tag in 0..32 {
            let handed = disk.hand(tag, read(0), &[buffer.segment(tag, 0, 512)]);
            assert_eq!(handed, bulkhead_images::Submitted::Pending);
        }
        disk.queue.flush_submissions();
        world.run();
        assert_eq!(disk.collect(), 32);
        let after = world.fake.signals();
        assert_eq!(after.0 - before.0, 1);
        // Without an event index, all that comes before the first is looked at interrupts.
        if features.contains(F::EVENT_IDX) {
            assert_eq!(after.1 - before.1, 1);
            let shown = format!("{} notifications, {} interrupts", after.0, after.1);
            assert!(world.lines().contains(&shown), "{shown}: {}", world.lines());
        }
        disk.done.clear();
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn a_device_that_is_at_work_is_not_notified_again() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 4);
    let before = world.fake.signals().0;
    // It does not look before all are there.
    for tag in 0..4 {
        disk.ask(tag, read(0), &[buffer.segment(tag, 0, 512)]);
    }
    assert_eq!(world.fake.signals().0 - before, 1);
    world.run();
    assert_eq!(disk.collect(), 4);
    // It has looked: it wants to be notified of the next one.
    disk.ask(4, read(0), &[buffer.segment(0, 0, 512)]);
    assert_eq!(world.fake.signals().0 - before, 2);
    world.run();
    assert_eq!(disk.collect(), 1);
    disk.done.clear();
    drop((disk, buffer));
    world.end();
}

#[test]
fn each_vcpu_has_a_queue_of_its_own() {
    for (queues, used) in [(4, [0, 1]), (1, [0, 0])] {
        let world = World::new(Config {
            queues,
            ..Config::default()
        });
        let device = world.try_open("virtio:04:00.0").expect("opened");
        let buffer = Buffer::new(&world, 1);
        for vcpu in [0, 1] {
            let mut disk = Disk::new(&world, device.clone(), vcpu, 8);
            assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
        }
        let seen: Vec<u16> = world.fake.seen().iter().map(|one| one.queue).collect();
        assert_eq!(seen, used);
        drop((device, buffer));
        world.end();
    }
}

#[test]
fn a_guest_that_floods_the_queue_leaves_room_for_others() {
    let world = World::new(Config::default());
    let device = world.try_open("virtio:04:00.0").expect("opened");
    let mut greedy = Disk::new(&world, device.clone(), 0, 64);
    let mut modest = Disk::new(&world, device.clone(), 0, 8);
    let buffer = Buffer::new(&world, 65);
    world.fake.decide(|_| Treatment::Held);
    for tag in 0..64 {
        greedy.ask(tag, read(0), &[buffer.segment(tag, 0, 512)]);
    }
    let one = [buffer.segment(64, 0, 512)];
    assert_eq!(
        modest.hand(1, read(0), &one),
        bulkhead_images::Submitted::Busy
    );
    assert_eq!((modest.collect(), greedy.collect()), (0, 0));
    world.run();
    world.fake.finish(0);
    world.run();
    // The slot that is free now is for the one that has waited.
    assert_eq!(greedy.collect(), 1);
    let again = greedy.hand(64, read(0), &[buffer.segment(0, 0, 512)]);
    assert_eq!(again, bulkhead_images::Submitted::Busy);
    modest.collect();
    modest.ask(1, read(0), &one);
    world.run();
    world.fake.finish_reversed();
    world.run();
    assert_eq!((greedy.collect(), modest.collect()), (63, 1));
    greedy.done.clear();
    modest.done.clear();
    drop((greedy, modest, device, buffer));
    world.end();
}
