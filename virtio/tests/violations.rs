//! Devices that say what is not true: nothing of it is believed, and nothing that they say harms anyone else.

use bulkhead_dma_testing::{Buffer, read, write};
use bulkhead_images::IoError;
use bulkhead_virtio_testing::{Config, Treatment, World};
use std::time::Duration;
use virtio_spec::blk::F;

/// Has one request meet with a fate, and all later ones be done.
fn once(world: &World, treatment: Treatment) {
    let mut next = Some(treatment);
    world
        .fake
        .decide(move |_| next.take().unwrap_or(Treatment::Done));
}

#[test]
fn what_breaks_the_protocol_has_the_device_reset_and_asked_again() {
    for treatment in [Treatment::Misnamed, Treatment::TooLong] {
        let world = World::new(Config::default());
        let mut disk = world.open("virtio:04:00.0");
        let buffer = Buffer::new(&world, 2);
        once(&world, treatment);
        disk.ask(1, write(0), &[buffer.segment(0, 0, 512)]);
        disk.ask(2, write(8), &[buffer.segment(1, 0, 512)]);
        world.wait(Duration::from_secs(1));
        disk.collect();
        world.wait(Duration::from_secs(1));
        disk.collect();
        disk.done.sort_unstable_by_key(|(tag, _)| *tag);
        assert_eq!(disk.done, [(1, Ok(())), (2, Ok(()))], "{treatment:?}");
        assert_eq!(world.fake.resets(), 1, "{treatment:?}");
        assert!(world.lines().contains(" 1 resets"), "{}", world.lines());
        disk.done.clear();
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn a_request_that_is_used_twice_completes_once() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    once(&world, Treatment::Twice);
    disk.ask(1, write(0), &buffer.whole(512));
    world.wait(Duration::from_secs(1));
    disk.collect();
    assert_eq!(disk.done, [(1, Ok(()))]);
    world.wait(Duration::from_secs(1));
    assert_eq!((world.fake.resets(), disk.collect()), (1, 0));
    disk.done.clear();
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn an_index_that_jumps_is_not_followed() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    world.run();
    world.fake.decide(|_| Treatment::Done);
    for (by, resets) in [(2, 1), (0x8000, 2)] {
        world.fake.jump(0, by);
        world.wait(Duration::from_secs(1));
        assert_eq!(world.fake.resets(), resets, "{by}");
        assert_eq!(disk.collect(), usize::from(resets == 1));
    }
    assert_eq!(disk.done.pop(), Some((1, Ok(()))));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_request_that_was_never_asked_is_not_completed() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    world.run();
    for head in [5, 64, u32::MAX] {
        world.fake.violate(0, head, 1);
        world.wait(Duration::from_secs(1));
        assert_eq!(disk.collect(), 0, "{head}");
    }
    world.fake.decide(|_| Treatment::Done);
    world.fake.finish_reversed();
    world.run();
    disk.collect();
    assert_eq!(disk.done.pop(), Some((1, Ok(()))));
    assert_eq!(world.fake.resets(), 3);
    drop((disk, buffer));
    world.end();
}

#[test]
fn outcomes_are_told_apart() {
    let world = World::new(Config::default());
    let mut disk = world.open("virtio:04:00.0");
    let buffer = Buffer::new(&world, 1);
    for (treatment, outcome) in [
        (Treatment::Failed(1), Err(IoError::Medium)),
        (Treatment::Failed(2), Err(IoError::NotSupported)),
        (Treatment::Failed(77), Err(IoError::Medium)),
        (Treatment::NoOutcome, Err(IoError::Medium)),
        (Treatment::Done, Ok(())),
    ] {
        once(&world, treatment);
        assert_eq!(
            disk.does(read(0), &buffer.whole(512)),
            outcome,
            "{treatment:?}"
        );
    }
    assert!(world.lines().contains(" 4 failed"), "{}", world.lines());
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_device_that_describes_nonsense_is_refused() {
    let usual = Config::default();
    let cases = [
        (
            Config {
                features: usual.features - F::ACCESS_PLATFORM,
                ..usual.clone()
            },
            "bypass the IOMMU",
        ),
        (
            Config {
                features: usual.features - F::VERSION_1,
                ..usual.clone()
            },
            "legacy",
        ),
        (
            Config {
                id: 0x1001,
                is_modern: false,
                ..usual.clone()
            },
            "disable-legacy=on",
        ),
        (
            Config {
                block: 1024,
                ..usual.clone()
            },
            "blocks have 1024 bytes",
        ),
        (
            Config {
                forged: vec![(7, 0xff)],
                ..usual.clone()
            },
            "impossible",
        ),
        (
            Config {
                features: usual.features | F::SIZE_MAX,
                ..usual.clone()
            },
            "segments of at most 0 bytes",
        ),
        (
            Config {
                entries: 0,
                ..usual.clone()
            },
            "only 0 entries",
        ),
        (
            Config {
                entries: 2,
                ..usual.clone()
            },
            "only 2 entries",
        ),
    ];
    for (config, reason) in cases {
        let world = World::new(config);
        let refused = world.try_open("virtio:04:00.0").err().expect("refused");
        assert!(refused.contains(reason), "{refused}");
        world.end();
    }
}
