//! How a device starts, grows, is taken away, and is stopped when the domain ends.

use bulkhead_dma_testing::{Buffer, read, write};
use bulkhead_images::{IoError, Sector};
use bulkhead_virtio_testing::{Config, Treatment, World};
use std::time::Duration;
use virtio_spec::DeviceStatus;
use virtio_spec::blk::F;

#[test]
fn a_device_starts_with_the_features_that_are_used() {
    let world = World::new(Config {
        features: Config::default().features | F::CONFIG_WCE | F::GEOMETRY | F::RING_PACKED,
        ..Config::default()
    });
    let expected = DeviceStatus::ACKNOWLEDGE
        | DeviceStatus::DRIVER
        | DeviceStatus::FEATURES_OK
        | DeviceStatus::DRIVER_OK;
    assert_eq!(world.fake.state(), expected);
    let usual = Config::default().features.bits().to_ne() as u64;
    assert_eq!(world.fake.accepted(), usual);
    assert_eq!(
        world.lines(),
        "virtio:04:00.0: 4096 sectors of 512, with a cache, 2 queue(s), open 0 time(s)\n\
         virtio:04:00.0: 0 requests, 0 failed, 0 notifications, 0 interrupts, 0 resets"
    );
    world.end();
}

#[test]
fn a_device_that_refuses_features_is_given_up() {
    let world = World::new(Config::default());
    world.fake.refuse_features(true);
    world.fake.fail();
    world.wait(Duration::from_secs(30));
    let refused = world.try_open("virtio:04:00.0").err().expect("refused");
    assert!(refused.contains("FEATURES_OK"), "{refused}");
    world.end();
}

#[test]
fn a_disk_that_grows_is_larger_for_its_users() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    assert_eq!(
        disk.does(read(4096), &buffer.whole(512)),
        Err(IoError::OutOfRange)
    );
    let waker = std::task::Waker::from(disk.wakes.clone());
    disk.device.on_change(&waker);
    let wakes = disk.wakes.count();
    world.fake.change(|config| config.bytes.resize(4 << 20, 7));
    world.wait(Duration::from_millis(100));
    assert_eq!(disk.wakes.count(), wakes + 1);
    assert_eq!(disk.device.geometry().sectors, Sector(8192));
    assert_eq!(disk.does(read(8191), &buffer.whole(512)), Ok(()));
    assert_eq!(buffer.bytes(0, 512), [7; 512]);
    assert_eq!(world.fake.resets(), 0);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_device_that_changes_its_size_all_the_time_is_followed_at_a_bounded_rate() {
    let world = World::new(Config::default());
    let disk = world.open("virtio:04:00.0");
    let mut told = 0;
    let mut before = disk.device.geometry().sectors;
    // For three minutes.
    for sectors in 4097..4457 {
        world
            .fake
            .change(|config| config.bytes.resize(sectors * 512, 7));
        world.wait(Duration::from_millis(500));
        let now = disk.device.geometry().sectors;
        told += usize::from(core::mem::replace(&mut before, now) != now);
    }
    assert!((16..=24).contains(&told), "{told}");
    // The last one is what counts.
    world.wait(Duration::from_secs(60));
    assert_eq!(disk.device.geometry().sectors, Sector(4456));
    drop(disk);
    world.end();
}

#[test]
fn another_disk_after_a_reset_is_not_written_to() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &buffer.whole(4096));
    world.run();
    world.fake.decide(|_| Treatment::Done);
    world.fake.change(|config| config.block = 4096);
    world.fake.fail();
    world.wait(Duration::from_secs(30));
    assert_eq!(disk.collect(), 1);
    assert_eq!(disk.done.pop(), Some((1, Err(IoError::Medium))));
    assert!(world.lines().contains("another disk"), "{}", world.lines());
    assert_eq!(world.fake.seen().len(), 1);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_function_that_is_in_use_is_kept_until_it_is_not() {
    let world = World::new(Config::default());
    let disk = world.open("virtio:04:00.0");
    world.detach();
    assert!(
        world.lines().contains("open 1 time(s)"),
        "{}",
        world.lines()
    );
    drop(disk);
    world.wait(Duration::from_secs(1));
    let function = world.fake.function();
    assert!(world.sim.finish_detach(&world.domain, function));
    assert_eq!(world.lines(), "");
    assert!(!function.is_master());
}

#[test]
fn a_target_that_names_no_device_is_explained() {
    let world = World::new(Config::default());
    let missing = world.try_open("virtio:05:00.0").err().expect("refused");
    assert!(
        missing.contains("no virtio device 05:00.0, there are: 04:00.0"),
        "{missing}"
    );
    drop(world.open("virtio:0000:04:00.0"));
    world.end();
}

#[test]
fn a_device_is_stopped_when_the_domain_ends() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    world.run();
    let stopped = world.stop_devices(false);
    assert_eq!((stopped.stopped, stopped.running), (1, 0));
    assert!(world.fake.state().is_empty());
    // It is not started again.
    world.wait(Duration::from_secs(60));
    assert!(world.fake.state().is_empty());
    disk.collect();
    drop((disk, buffer));
}

#[test]
fn a_device_that_may_still_be_at_work_is_told_again_when_the_domain_ends() {
    let world = World::new(Config::default());
    world.fake.never_reset(true);
    // Not even pciback takes its access to memory away.
    let id = world.domain.id();
    world
        .sim
        .pciback(id, |faults| faults.errors.extend([-5; 8]));
    let devices = world.devices.clone();
    let closed = world.within(
        Duration::from_secs(60),
        async move { devices.close().await },
    );
    assert_eq!(closed, Some(()));
    let stopped = world.stop_devices(false);
    assert_eq!((stopped.stopped, stopped.running), (0, 1));
    world.fake.never_reset(false);
}
