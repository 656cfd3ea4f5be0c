//! Requests of all shapes, served.

use bulkhead_images::{DataAccess, IoError, Op, Sector, SectorSize, Submitted};
use bulkhead_nvme::command::nvm::opcode;
use bulkhead_nvme_testing::world::{Buffer, World, discard, pattern, read, write};
use bulkhead_nvme_testing::{Config, FakeNamespace};

fn config(shift: u32, blocks: usize) -> Config {
    Config {
        namespaces: vec![FakeNamespace::new(1, shift, blocks)],
        ..Config::default()
    }
}

#[test]
fn what_is_written_is_read_in_both_sizes_of_blocks() {
    for (shift, size) in [(9, SectorSize::B512), (12, SectorSize::B4096)] {
        let world = World::started(config(shift, 4 << (20 - shift)));
        let mut disk = world.open("nvme:03:00.0");
        let geometry = disk.device.geometry();
        assert_eq!(
            (geometry.sectors, geometry.sector_size),
            (Sector(8192), size)
        );
        assert!(geometry.flush && !geometry.read_only);
        let caps = disk.queue.caps();
        assert_eq!((caps.access, caps.bytes), (DataAccess::Dma, 512 << 10));
        assert_eq!(caps.alignment, size.bytes());
        let (from, to) = (Buffer::new(&world, 128), Buffer::new(&world, 128));
        for (number, len) in [4096, 8192, 12288, 65536, 512 << 10]
            .into_iter()
            .enumerate()
        {
            let data = pattern(number as u8, len);
            from.fill(&data);
            let sector = 16 * number as u64 + 8;
            assert_eq!(disk.does(write(sector), &from.whole(len)), Ok(()), "{len}");
            assert_eq!(disk.does(read(sector), &to.whole(len)), Ok(()));
            assert!(to.bytes(0, len) == data, "{len} bytes");
            let start = sector as usize * 512;
            assert!(world.fake.bytes(1)[start..start + len] == data);
        }
        // One command each: every page but the ends was used from end to end.
        assert_eq!(world.fake.seen().len(), 10);
        drop((disk, from, to));
        world.end();
    }
}

/// A list of segments: where each is in its page, and its bytes.
type Shape = [(usize, usize)];

#[test]
fn what_one_command_cannot_name_is_served_by_several() {
    let shapes: [(&Shape, usize); 6] = [
        (&[(512, 3584), (0, 512)], 1),
        (&[(0, 2048), (0, 2048)], 2),
        (&[(512, 512), (1024, 512), (0, 512)], 3),
        (&[(0, 4096), (2048, 2048), (0, 4096), (0, 512), (0, 512)], 3),
        (&[(1024, 3072), (0, 4096), (0, 4096), (0, 1024)], 1),
        (&[(3584, 512), (3584, 512), (3584, 512)], 3),
    ];
    let world = World::started(config(9, 4096));
    let mut disk = world.open("nvme:03:00.0");
    let (from, to) = (Buffer::new(&world, 8), Buffer::new(&world, 8));
    from.fill(&pattern(3, 8 * 4096));
    for (number, (shape, commands)) in shapes.into_iter().enumerate() {
        let segments = |buffer: &Buffer<'_>| -> Vec<_> {
            let parts = shape.iter().enumerate();
            parts
                .map(|(page, (offset, len))| buffer.segment(page, *offset, *len))
                .collect()
        };
        let before = world.fake.seen().len();
        let sector = 100 * number as u64;
        assert_eq!(disk.does(write(sector), &segments(&from)), Ok(()));
        assert_eq!(world.fake.seen().len() - before, commands, "{shape:?}");
        assert_eq!(disk.does(read(sector), &segments(&to)), Ok(()));
        for (page, (offset, len)) in shape.iter().enumerate() {
            let start = page * 4096 + offset;
            assert!(
                to.bytes(start, *len) == from.bytes(start, *len),
                "{shape:?}, page {page}"
            );
        }
    }
    assert!(
        world.lines().contains("22 of them parts of requests"),
        "{}",
        world.lines()
    );
    drop((disk, from, to));
    world.end();
}

#[test]
fn a_request_of_more_parts_than_there_are_commands_is_served() {
    let world = World::started(config(9, 4096));
    let mut disk = world.open("nvme:03:00.0");
    let (from, to) = (Buffer::new(&world, 256), Buffer::new(&world, 256));
    from.fill(&pattern(9, 256 * 4096));
    let segments = |buffer: &Buffer<'_>| -> Vec<_> {
        (0..256)
            .map(|page| buffer.segment(page, 512, 512))
            .collect()
    };
    assert_eq!(disk.does(write(64), &segments(&from)), Ok(()));
    assert_eq!(world.fake.seen().len(), 256);
    assert_eq!(disk.does(read(64), &segments(&to)), Ok(()));
    for page in 0..256 {
        assert!(
            to.bytes(page * 4096 + 512, 512) == from.bytes(page * 4096 + 512, 512),
            "{page}"
        );
    }
    drop((disk, from, to));
    world.end();
}

#[test]
fn requests_that_cannot_be_are_refused_before_the_controller_sees_them() {
    let world = World::started(config(12, 64));
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 2);
    let page = buffer.whole(4096);
    assert_eq!(disk.does(read(512), &page), Err(IoError::OutOfRange));
    assert_eq!(disk.does(read(u64::MAX), &page), Err(IoError::OutOfRange));
    assert_eq!(
        disk.does(read(u64::MAX / 512), &page),
        Err(IoError::OutOfRange)
    );
    assert_eq!(disk.does(read(4), &page), Err(IoError::Misaligned));
    assert_eq!(
        disk.does(read(8), &buffer.whole(512)),
        Err(IoError::Misaligned)
    );
    let halves = [buffer.segment(0, 0, 2048), buffer.segment(1, 0, 2048)];
    assert_eq!(disk.does(write(8), &halves), Err(IoError::Misaligned));
    assert_eq!(disk.does(discard(504, 16), &[]), Err(IoError::OutOfRange));
    let secure = Op::Discard {
        sector: Sector(0),
        count: Sector(8),
        secure: true,
    };
    assert_eq!(disk.does(secure, &[]), Err(IoError::NotSupported));
    assert_eq!(world.fake.seen(), []);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_cache_is_flushed_and_without_one_there_is_nothing_to_do() {
    let opcodes = |world: &World| -> Vec<u8> {
        world
            .fake
            .seen()
            .iter()
            .map(|command| command.opcode())
            .collect()
    };
    for (cache, expected) in [(true, vec![opcode::FLUSH]), (false, vec![])] {
        let world = World::started(Config {
            cache,
            ..Config::default()
        });
        let mut disk = world.open("nvme:03:00.0");
        assert!(disk.device.geometry().flush);
        assert_eq!(disk.does(Op::Flush, &[]), Ok(()));
        assert_eq!(opcodes(&world), expected);
        drop(disk);
        world.end();
    }
}

#[test]
fn data_is_forgotten_in_the_way_that_the_controller_knows() {
    let ways = [
        (true, true, Some(opcode::DATASET_MANAGEMENT)),
        (true, false, Some(opcode::DATASET_MANAGEMENT)),
        (false, true, Some(opcode::WRITE_ZEROES)),
        (false, false, None),
    ];
    for (deallocates, writes_zeroes, expected) in ways {
        let mut namespace = FakeNamespace::new(1, 9, 4096);
        namespace.bytes.fill(0xaa);
        let world = World::started(Config {
            namespaces: vec![namespace],
            deallocates,
            writes_zeroes,
            ..Config::default()
        });
        let mut disk = world.open("nvme:03:00.0");
        let limits = disk.device.geometry().discard;
        assert_eq!(limits.is_some(), expected.is_some());
        let Some(expected) = expected else {
            assert_eq!(disk.does(discard(8, 16), &[]), Err(IoError::NotSupported));
            continue;
        };
        assert_eq!(limits.map(|limits| limits.secure), Some(false));
        assert_eq!(disk.does(discard(8, 16), &[]), Ok(()));
        assert_eq!(world.fake.seen()[0].opcode(), expected);
        let bytes = world.fake.bytes(1);
        assert!(bytes[8 * 512..24 * 512].iter().all(|byte| *byte == 0));
        assert!(
            bytes[7 * 512..8 * 512]
                .iter()
                .chain(&bytes[24 * 512..])
                .all(|byte| *byte == 0xaa)
        );
        drop(disk);
        world.end();
    }
}

#[test]
fn a_discard_of_more_than_a_command_can_name_takes_several() {
    let world = World::started(Config {
        namespaces: vec![FakeNamespace::new(1, 9, 200_000)],
        deallocates: false,
        most_pages: 0,
        ..Config::default()
    });
    let mut disk = world.open("nvme:03:00.0");
    assert_eq!(disk.does(discard(0, 200_000), &[]), Ok(()));
    let blocks: Vec<u32> = world
        .fake
        .seen()
        .iter()
        .map(|command| (command.dword(12) & 0xffff) + 1)
        .collect();
    assert_eq!(blocks, [65_536, 65_536, 65_536, 3392]);
    drop(disk);
    world.end();
}

#[test]
fn a_write_protected_namespace_can_only_be_read() {
    let mut namespace = FakeNamespace::new(1, 9, 64);
    namespace.read_only = true;
    let world = World::started(Config {
        namespaces: vec![namespace],
        ..Config::default()
    });
    let refused = world.try_open("nvme:03:00.0").err().expect("refused");
    assert!(refused.contains("read"), "{refused}");
    assert!(
        world.lines().contains("64 sectors of 512, read-only"),
        "{}",
        world.lines()
    );
    world.end();
}

#[test]
fn nothing_is_taken_that_has_no_bus_address() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    // SAFETY: it is refused.
    let nowhere =
        unsafe { bulkhead_images::IoSegment::new(std::ptr::NonNull::dangling(), 512, None) };
    let submitted = disk.hand(1, read(0), &[nowhere]);
    assert_eq!(submitted, Submitted::Done(Err(IoError::Medium)));
    assert_eq!(world.fake.seen(), []);
    drop(disk);
    world.end();
}

#[test]
fn a_write_past_the_cache_outlives_it() {
    let world = World::started(config(9, 4096));
    let mut disk = world.open("nvme:03:00.0");
    assert!(disk.queue.caps().fua);
    let from = Buffer::new(&world, 128);
    // One command, then several.
    for (sector, len) in [(0, 4096), (1000, 96 << 10)] {
        from.fill(&pattern(sector as u8 + 1, len));
        let before = world.fake.seen().len();
        let fua = Op::Write {
            sector: Sector(sector),
            fua: true,
        };
        let shape: Vec<_> = match len {
            4096 => from.whole(len),
            // Half pages: no command can name two of them.
            _ => (0..len / 2048)
                .map(|page| from.segment(page, 0, 2048))
                .collect(),
        };
        assert_eq!(disk.does(write(sector + 300), &shape), Ok(()));
        assert_eq!(disk.does(fua, &shape), Ok(()));
        let seen = world.fake.seen();
        let (cached, durable) = seen[before..].split_at((seen.len() - before) / 2);
        assert!(cached.iter().all(|command| command.dword(12) >> 30 == 0));
        assert!(durable.iter().all(|command| command.dword(12) >> 30 == 1));
        assert_eq!(durable.len() > 1, len > 4096);
        let written = world.fake.bytes(1);
        world.fake.lose_cache();
        let kept = world.fake.bytes(1);
        let at = |sector: u64| sector as usize * 512..sector as usize * 512 + len;
        assert!(kept[at(sector)] == written[at(sector)], "past the cache");
        assert!(
            kept[at(sector + 300)].iter().all(|byte| *byte == 0),
            "in the cache"
        );
    }
    drop((disk, from));
    world.end();
}

#[test]
fn without_a_cache_no_write_asks_to_go_past_it() {
    let world = World::started(Config {
        cache: false,
        ..config(9, 4096)
    });
    let mut disk = world.open("nvme:03:00.0");
    let from = Buffer::new(&world, 1);
    from.fill(&pattern(1, 4096));
    let fua = Op::Write {
        sector: Sector(8),
        fua: true,
    };
    assert_eq!(disk.does(fua, &from.whole(4096)), Ok(()));
    assert_eq!(world.fake.seen()[0].dword(12) >> 30, 0);
    let written = world.fake.bytes(1);
    world.fake.lose_cache();
    assert!(world.fake.bytes(1) == written);
    drop((disk, from));
    world.end();
}
