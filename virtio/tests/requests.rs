//! Requests that a device does as it should.

use bulkhead_dma_testing::{Buffer, discard, pattern, read, write};
use bulkhead_images::{IoError, Op, Sector, SectorSize, Submitted};
use bulkhead_virtio_testing::{Config, Treatment, World};
use bulkhead_xen::PAGE_SIZE;
use virtio_spec::blk::{F, T};

#[test]
fn what_was_written_is_read_again() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 64);
    let data = pattern(3, 16 * PAGE_SIZE);
    buffer.fill(&data);
    assert_eq!(disk.does(write(40), &buffer.whole(data.len())), Ok(()));
    assert_eq!(world.fake.bytes()[40 * 512..40 * 512 + data.len()], data);
    // Segments that neither begin nor end with a page.
    let pieces: Vec<_> = (32..48)
        .map(|page| buffer.segment(page, 512, 1024))
        .collect();
    assert_eq!(disk.does(read(40), &pieces), Ok(()));
    for (index, page) in (32..48).enumerate() {
        let got = buffer.bytes(page * PAGE_SIZE + 512, 1024);
        assert!(got == data[index * 1024..index * 1024 + 1024], "{page}");
    }
    let seen = world.fake.seen();
    let kinds: Vec<_> = seen
        .iter()
        .map(|one| (one.kind, one.sector, one.segments()))
        .collect();
    assert_eq!(kinds, [(T::Out.into(), 40, 16), (T::In.into(), 40, 16)]);
    drop((disk, buffer));
    world.end();
}

#[test]
fn the_largest_request_is_one_chain() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let caps = disk.queue.caps();
    // With its header and its outcome it is as long as the queue.
    assert_eq!((caps.segments, caps.bytes), (62, 62 * PAGE_SIZE));
    let buffer = Buffer::new(&world, caps.segments);
    buffer.fill(&pattern(9, caps.bytes));
    assert_eq!(disk.does(write(0), &buffer.whole(caps.bytes)), Ok(()));
    assert_eq!(world.fake.seen()[0].segments(), caps.segments);
    assert!(world.fake.bytes()[..caps.bytes] == pattern(9, caps.bytes));
    drop((disk, buffer));
    world.end();
}

#[test]
fn all_slots_are_used_and_the_next_request_waits() {
    let world = World::new(Config::default());
    let device = world.try_open("virtio:04:00.0").expect("opened");
    let mut disk = bulkhead_dma_testing::Disk::new(&world, device, 0, 1000);
    let depth = disk.queue.caps().depth;
    assert_eq!(depth, 64);
    let buffer = Buffer::new(&world, depth + 1);
    world.fake.decide(|_| Treatment::Held);
    for tag in 0..depth {
        disk.ask(tag, read(tag as u64), &[buffer.segment(tag, 0, 512)]);
    }
    let last = [buffer.segment(depth, 0, 512)];
    assert_eq!(disk.hand(depth, read(0), &last), Submitted::Busy);
    disk.collect();
    world.run();
    assert_eq!(world.fake.held().len(), depth);
    world.fake.finish_reversed();
    world.run();
    assert_eq!(disk.collect(), depth);
    let tags: Vec<usize> = disk.done.drain(..).map(|(tag, _)| tag).collect();
    assert_eq!(
        tags,
        (0..depth).rev().collect::<Vec<_>>(),
        "in the device's order"
    );
    world.fake.decide(|_| Treatment::Done);
    assert_eq!(disk.does(read(0), &last), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn flushes_reach_a_device_with_a_cache_alone() {
    for features in [
        Config::default().features,
        Config::default().features - F::FLUSH,
    ] {
        let world = World::new(Config {
            features,
            ..Config::default()
        });
        let mut disk = world.open("virtio:04:00.0");
        assert!(disk.device.geometry().flush);
        assert_eq!(disk.does(Op::Flush, &[]), Ok(()));
        let flushes = features.contains(F::FLUSH);
        let seen = world.fake.seen();
        assert_eq!(seen.len(), usize::from(flushes));
        assert!(seen.iter().all(|one| one.kind == u32::from(T::Flush)));
        drop(disk);
        world.end();
    }
}

#[test]
fn a_discard_goes_on_until_all_of_it_is_done() {
    let without = Config::default().features - F::DISCARD;
    for (features, kind) in [
        (Config::default().features, T::Discard),
        (without, T::WriteZeroes),
    ] {
        let world = World::new(Config {
            features,
            bytes: vec![7; 1 << 20],
            discards: 100,
            zeroes: 100,
            ..Config::default()
        });
        let mut disk = world.open("virtio:04:00.0");
        let limits = disk.device.geometry().discard.expect("it discards");
        assert_eq!((limits.granularity, limits.secure), (Sector(1), false));
        assert_eq!(disk.does(discard(10, 350), &[]), Ok(()));
        let seen = world.fake.seen();
        assert_eq!(seen.len(), 4);
        assert!(seen.iter().all(|one| one.kind == u32::from(kind)));
        let bytes = world.fake.bytes();
        assert!(bytes[10 * 512..360 * 512].iter().all(|byte| *byte == 0));
        assert_eq!((bytes[10 * 512 - 1], bytes[360 * 512]), (7, 7));
        // A part that fails is the last one.
        let mut left = 1;
        world.fake.decide(move |_| match left {
            0 => Treatment::Failed(1),
            _ => {
                left -= 1;
                Treatment::Done
            }
        });
        assert_eq!(disk.does(discard(500, 300), &[]), Err(IoError::Medium));
        assert_eq!(world.fake.seen().len(), 6);
        drop(disk);
        world.end();
    }
}

#[test]
fn a_device_that_forgets_nothing_is_not_asked_to() {
    let world = World::new(Config {
        features: Config::default().features - (F::DISCARD | F::WRITE_ZEROES),
        ..Config::default()
    });
    let mut disk = world.open("virtio:04:00.0");
    assert_eq!(disk.device.geometry().discard, None);
    assert_eq!(disk.does(discard(0, 8), &[]), Err(IoError::NotSupported));
    assert_eq!(world.fake.seen(), []);
    drop(disk);
    world.end();
}

#[test]
fn blocks_of_4096_bytes_are_served_whole() {
    let world = World::new(Config {
        block: 4096,
        ..Config::default()
    });
    let mut disk = world.open("virtio:04:00.0");
    let geometry = disk.device.geometry();
    assert_eq!(geometry.sector_size, SectorSize::B4096);
    assert_eq!(disk.queue.caps().alignment, 4096);
    let buffer = Buffer::new(&world, 2);
    let misaligned = disk.does(read(1), &[buffer.segment(0, 0, 4096)]);
    assert_eq!(misaligned, Err(IoError::Misaligned));
    let short = disk.does(read(8), &[buffer.segment(0, 0, 512)]);
    assert_eq!(short, Err(IoError::Misaligned));
    buffer.fill(&pattern(1, 4096));
    assert_eq!(disk.does(write(16), &[buffer.segment(0, 0, 4096)]), Ok(()));
    assert!(world.fake.bytes()[2 * 4096..3 * 4096] == pattern(1, 4096));
    drop((disk, buffer));
    world.end();
}

#[test]
fn physical_blocks_are_shown() {
    let world = World::new(Config {
        physical: 3,
        ..Config::default()
    });
    let disk = world.open("virtio:04:00.0");
    let geometry = disk.device.geometry();
    let sizes = (geometry.sector_size, geometry.physical_sector_size);
    assert_eq!(sizes, (SectorSize::B512, SectorSize::B4096));
    drop(disk);
    world.end();
}

#[test]
fn nothing_past_the_end_reaches_the_device() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    let end = disk.device.geometry().sectors.0;
    for sector in [end, end - 1, u64::MAX, u64::MAX / 512] {
        let refused = disk.does(read(sector), &[buffer.segment(0, 0, 1024)]);
        assert_eq!(refused, Err(IoError::OutOfRange), "{sector}");
    }
    let refused = disk.does(discard(end - 1, u64::MAX / 512), &[]);
    assert_eq!(refused, Err(IoError::OutOfRange));
    assert_eq!(world.fake.seen(), []);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_device_that_is_read_only_is_not_written_to() {
    let world = World::new(Config {
        features: Config::default().features | F::RO,
        ..Config::default()
    });
    let refused = world.try_open("virtio:04:00.0").err().expect("refused");
    assert!(refused.contains("read"), "{refused}");
    assert!(world.lines().contains("read-only"), "{}", world.lines());
    world.end();
}

#[test]
fn a_device_without_indirect_tables_is_served_with_short_requests() {
    let world = World::new(Config {
        features: Config::default().features - F::INDIRECT_DESC,
        ..Config::default()
    });
    let mut disk = world.open("virtio:04:00.0");
    let caps = disk.queue.caps();
    assert_eq!((caps.segments, caps.depth), (8, 6));
    let buffer = Buffer::new(&world, 8 * caps.depth);
    let data = pattern(5, 8 * PAGE_SIZE * caps.depth);
    buffer.fill(&data);
    world.fake.decide(|_| Treatment::Held);
    for tag in 0..caps.depth {
        let segments: Vec<_> = (0..8)
            .map(|page| buffer.segment(8 * tag + page, 0, PAGE_SIZE))
            .collect();
        disk.ask(tag, write(64 * tag as u64), &segments);
    }
    world.run();
    world.fake.finish_reversed();
    world.run();
    assert_eq!(disk.collect(), caps.depth);
    assert!(disk.done.drain(..).all(|(_, outcome)| outcome == Ok(())));
    assert!(world.fake.bytes()[..data.len()] == data);
    world.fake.decide(|_| Treatment::Done);
    assert_eq!(disk.does(discard(0, 64), &[]), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_free_slot_goes_to_the_next_queue_if_the_first_does_not_want_it_any_more() {
    // One request at a time.
    let world = World::new(Config {
        entries: 4,
        features: Config::default().features - F::INDIRECT_DESC,
        ..Config::default()
    });
    let device = world.try_open("virtio:04:00.0").expect("opened");
    let buffer = Buffer::new(&world, 1);
    let segment = [buffer.segment(0, 0, 512)];
    for closes in [true, false] {
        let mut disks =
            [0, 1, 2, 3].map(|_| bulkhead_dma_testing::Disk::new(&world, device.clone(), 0, 8));
        world.fake.decide(|_| Treatment::Held);
        let [first, rest @ ..] = &mut disks;
        first.ask(0, read(0), &segment);
        for disk in rest.iter_mut() {
            assert_eq!(disk.hand(0, read(0), &segment), Submitted::Busy);
            assert_eq!(disk.collect(), 0);
        }
        world.run();
        world.fake.finish(0);
        world.run();
        assert_eq!(first.collect(), 1);
        // Each is told once the one before has nothing to ask for any more.
        for number in 0..3 {
            let (now, later) = rest[number..].split_first_mut().expect("one");
            assert_eq!(now.wakes.count(), 1, "{number}");
            assert!(later.iter().all(|disk| disk.wakes.count() == 0), "{number}");
            if number < 2 && closes {
                assert!(now.close());
            } else if number < 2 {
                assert_eq!(now.collect(), 0);
            }
        }
        world.fake.decide(|_| Treatment::Done);
        rest[2].ask(0, read(0), &segment);
        world.run();
        assert_eq!(rest[2].collect(), 1);
        disks.iter_mut().for_each(|disk| assert!(disk.close()));
    }
    drop((device, buffer));
    world.end();
}

#[test]
fn the_end_of_a_queue_does_not_concern_those_that_are_opened_meanwhile() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let device = disk.device.clone();
    let open = || bulkhead_dma_testing::Disk::new(&world, device.clone(), 0, 32);
    let buffer = Buffer::new(&world, 3);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &[buffer.segment(0, 0, 512)]);
    world.run();
    assert!(!disk.close());
    world.fake.finish(0);
    world.run();
    // The device has none of its requests, but the queue was not polled since.
    let mut second = open();
    second.ask(2, write(8), &[buffer.segment(1, 0, 512)]);
    assert!(disk.close());
    let mut third = open();
    third.ask(3, write(16), &[buffer.segment(2, 0, 512)]);
    drop(disk);
    world.run();
    world.fake.finish_reversed();
    world.run();
    second.collect();
    third.collect();
    assert_eq!(
        (&second.done[..], &third.done[..]),
        (&[(2, Ok(()))][..], &[(3, Ok(()))][..])
    );
    drop((second, third, device, buffer));
    world.end();
}
