//! Requests of all shapes, served.

use bulkhead_images::{Access, DataAccess, IoError, Op, Sector, SectorSize, Submitted, Tag};
use bulkhead_nbd_testing::world::{Buffer, Disk, World, discard, pattern, read, write};
use bulkhead_nbd_testing::{Config, FakeExport, Treatment};

#[test]
fn what_is_written_is_read() {
    // Whatever the network lends at a time, and the kinds of replies.
    for (piece, room, structured, holes) in [
        (1 << 20, 1 << 20, true, false),
        (1 << 20, 1 << 20, false, false),
        (1, 29, true, true),
        (7, 4096, false, false),
        (4097, 60_000, true, true),
    ] {
        let world = World::new(Config {
            piece,
            room,
            structured,
            holes,
            ..Config::default()
        });
        let mut disk = world.open("nbd:10.0.0.2/disk");
        let geometry = disk.device.geometry();
        assert_eq!(geometry.sectors, Sector(2048));
        assert_eq!(geometry.sector_size, SectorSize::B512);
        assert!(geometry.flush && !geometry.read_only);
        let caps = disk.queue.caps();
        assert_eq!(
            (caps.depth, caps.segments, caps.bytes, caps.access),
            (32, 32, 128 << 10, DataAccess::Mapped)
        );
        let (from, to) = (Buffer::new(&world, 32), Buffer::new(&world, 32));
        for (number, len) in [512, 4096, 12288, 65536, 128 << 10].into_iter().enumerate() {
            let data = pattern(number as u8, len);
            from.fill(&data);
            let sector = 300 * number as u64 + 8;
            assert_eq!(disk.does(write(sector), &from.whole(len)), Ok(()), "{len}");
            assert_eq!(disk.does(read(sector), &to.whole(len)), Ok(()));
            assert!(to.bytes(0, len) == data, "{len} bytes by {piece}");
            let start = sector as usize * 512;
            assert!(world.server.bytes("disk")[start..start + len] == data);
            assert_eq!(disk.does(discard(sector, len as u64 / 512), &[]), Ok(()));
            assert_eq!(disk.does(read(sector), &to.whole(len)), Ok(()));
            assert!(to.bytes(0, len).iter().all(|byte| *byte == 0));
        }
        assert_eq!(disk.does(Op::Flush, &[]), Ok(()));
        let kinds: Vec<u16> = world.server.seen().iter().map(|seen| seen.kind).collect();
        assert_eq!(kinds, [[1, 0, 4, 0].repeat(5), vec![3]].concat());
        drop((disk, from, to));
        world.end();
    }
}

#[test]
fn a_write_that_is_to_be_durable_says_so_where_the_server_knows_that() {
    const SEND_FUA: u16 = 1 << 3;
    for knows in [true, false] {
        let mut export = FakeExport::new("disk", 1 << 20);
        assert!(export.flags & SEND_FUA != 0);
        export.flags &= if knows { u16::MAX } else { !SEND_FUA };
        let world = World::new(Config {
            exports: vec![export],
            ..Config::default()
        });
        let mut disk = world.open("nbd:10.0.0.2/disk");
        assert_eq!(disk.queue.caps().fua, knows);
        let from = Buffer::new(&world, 1);
        let fua = Op::Write {
            sector: Sector(8),
            fua: knows,
        };
        assert_eq!(disk.does(write(0), &from.whole(512)), Ok(()));
        assert_eq!(disk.does(fua, &from.whole(512)), Ok(()));
        let seen = world.server.seen();
        let flagged: Vec<bool> = seen.iter().map(|seen| seen.fua).collect();
        assert_eq!(flagged, [false, knows]);
        drop((disk, from));
        world.end();
    }
}

#[test]
fn segments_of_all_shapes_are_one_command() {
    let world = World::new(Config {
        piece: 100,
        ..Config::default()
    });
    let mut disk = world.open("nbd:10.0.0.2/disk");
    let (from, to) = (Buffer::new(&world, 4), Buffer::new(&world, 4));
    let data = pattern(3, 4 * 4096);
    from.fill(&data);
    // Parts of sectors, as frontends with sectors of 512 bytes never send: together they are whole.
    let segments = |buffer: &Buffer<'_>| {
        [(0, 100, 300), (1, 0, 212), (2, 4000, 96), (3, 1, 416)]
            .map(|(page, offset, len)| buffer.segment(page, offset, len))
    };
    let expected: Vec<u8> = [(100, 300), (4096, 212), (12192, 96), (12289, 416)]
        .into_iter()
        .flat_map(|(start, len)| data[start..start + len].to_vec())
        .collect();
    assert_eq!(disk.does(write(5), &segments(&from)), Ok(()));
    assert!(world.server.bytes("disk")[2560..2560 + 1024] == expected);
    assert_eq!(disk.does(read(5), &segments(&to)), Ok(()));
    assert!(to.bytes(100, 300) == data[100..400] && to.bytes(12289, 416) == data[12289..12705]);
    // Nothing beside them was touched.
    assert!(to.bytes(0, 100).iter().all(|byte| *byte == 0));
    assert!(to.bytes(12705, 100).iter().all(|byte| *byte == 0));
    assert_eq!(world.server.seen().len(), 2);
    drop((disk, from, to));
    world.end();
}

#[test]
fn replies_may_come_in_any_order() {
    let world = World::new(Config::default());
    let mut disk = world.open("nbd:10.0.0.2/disk");
    let buffers: Vec<_> = (0..32).map(|_| Buffer::new(&world, 1)).collect();
    for (tag, buffer) in buffers.iter().enumerate() {
        buffer.fill(&pattern(tag as u8, 4096));
        disk.ask(tag, write(8 * tag as u64), &buffer.whole(4096));
    }
    assert_eq!(disk.completed().len(), 32);
    world.server.decide(|_| Treatment::Held);
    for (tag, buffer) in buffers.iter().enumerate() {
        buffer.fill(&[0; 4096]);
        disk.ask(tag, read(8 * tag as u64), &buffer.whole(4096));
    }
    assert_eq!(disk.completed(), []);
    assert_eq!(world.server.held().len(), 32, "all at once");
    let full = disk.hand(99, read(0), &buffers[0].whole(512));
    assert_eq!(full, Submitted::Busy);
    let wakes = disk.wakes.count();
    world.server.finish_reversed();
    let done: Vec<_> = (0..32).map(|tag| (tag, Ok(()))).collect();
    assert_eq!(disk.completed(), done);
    assert!(disk.wakes.count() > wakes);
    for (tag, buffer) in buffers.iter().enumerate() {
        assert!(buffer.bytes(0, 4096) == pattern(tag as u8, 4096));
    }
    drop((disk, buffers));
    world.end();
}

#[test]
fn a_batch_is_sent_when_it_ends() {
    let world = World::new(Config::default());
    let mut disk = world.open("nbd:10.0.0.2/disk");
    let buffer = Buffer::new(&world, 1);
    for tag in 0..3 {
        let handed = disk.hand(tag, read(0), &buffer.whole(512));
        assert_eq!(handed, Submitted::Pending);
    }
    world.run();
    assert_eq!(world.server.seen().len(), 0);
    disk.queue.flush_submissions();
    disk.collect();
    assert_eq!(disk.completed().len(), 3);
    drop((disk, buffer));
    world.end();
}

#[test]
fn what_cannot_be_is_refused_before_it_is_sent() {
    let read_only = FakeExport {
        flags: 0b110_1111,
        ..FakeExport::new("fixed", 1 << 20)
    };
    let plain = FakeExport {
        flags: 1,
        ..FakeExport::new("plain", 1 << 20)
    };
    let large = FakeExport {
        sizes: Some([4096, 65536, 8192]),
        ..FakeExport::new("large", (1 << 20) + 4095)
    };
    let world = World::new(Config {
        exports: vec![FakeExport::new("disk", 1000), read_only, plain, large],
        ..Config::default()
    });
    let buffer = Buffer::new(&world, 4);
    let mut disk = world.open("nbd:10.0.0.2/disk");
    assert_eq!(disk.device.geometry().sectors, Sector(1), "whole sectors");
    let sector = buffer.whole(512);
    for (op, segments, error) in [
        (read(1), &sector, IoError::OutOfRange),
        (write(1), &sector, IoError::OutOfRange),
        (read(u64::MAX), &sector, IoError::OutOfRange),
        (read(u64::MAX / 512), &sector, IoError::OutOfRange),
        (discard(0, 2), &vec![], IoError::OutOfRange),
        (discard(1, u64::MAX), &vec![], IoError::OutOfRange),
        (read(0), &buffer.whole(511), IoError::Misaligned),
    ] {
        assert_eq!(disk.does(op, segments), Err(error), "{op:?}");
    }
    let secure = Op::Discard {
        sector: Sector(0),
        count: Sector(1),
        secure: true,
    };
    assert_eq!(disk.does(secure, &[]), Err(IoError::NotSupported));
    assert_eq!(disk.does(discard(0, 0), &[]), Ok(()), "nothing to do");
    drop(disk);

    let refused = world.try_open("nbd:10.0.0.2/fixed", Access::ReadWrite);
    assert!(refused.is_err(), "it cannot be written to");
    let fixed = world.try_open("nbd:10.0.0.2/fixed", Access::ReadOnly);
    let mut fixed = Disk::new(&world, fixed.expect("read-only"), 0, 4);
    let geometry = fixed.device.geometry();
    assert!(geometry.read_only && geometry.discard.is_none());
    assert_eq!(fixed.does(write(0), &sector), Err(IoError::ReadOnly));
    assert_eq!(fixed.does(discard(0, 1), &[]), Err(IoError::ReadOnly));
    assert_eq!(fixed.does(read(0), &sector), Ok(()));
    drop(fixed);

    let mut plain = world.open("nbd:10.0.0.2/plain");
    let geometry = plain.device.geometry();
    assert!(!geometry.flush && geometry.discard.is_none());
    assert_eq!(plain.does(Op::Flush, &[]), Err(IoError::NotSupported));
    assert_eq!(plain.does(discard(0, 1), &[]), Err(IoError::NotSupported));
    drop(plain);

    let mut large = world.open("nbd:10.0.0.2/large");
    let geometry = large.device.geometry();
    assert_eq!(geometry.sectors, Sector(2048));
    assert_eq!(geometry.sector_size, SectorSize::B4096);
    assert_eq!(large.queue.caps().bytes, 8192);
    assert_eq!(large.does(read(0), &sector), Err(IoError::Misaligned));
    assert_eq!(large.does(read(8), &buffer.whole(8192)), Ok(()));
    assert!(world.server.seen().iter().all(|seen| seen.kind == 0));
    drop((large, buffer));
    world.end();
}

#[test]
fn a_server_that_only_writes_zeroes_forgets_by_that() {
    let export = FakeExport {
        flags: 0b100_0101,
        ..FakeExport::new("disk", 1 << 20)
    };
    let world = World::new(Config {
        exports: vec![export],
        ..Config::default()
    });
    let mut disk = world.open("nbd:10.0.0.2/disk");
    assert_eq!(disk.does(discard(8, 16), &[]), Ok(()));
    let [seen] = world.server.seen()[..] else {
        panic!("one command");
    };
    assert_eq!((seen.kind, seen.offset, seen.len), (6, 4096, 8192));
    drop(disk);
    world.end();
}

#[test]
fn a_large_discard_is_several_commands_one_after_another() {
    let world = World::new(Config::default());
    // Larger than the memory of the test: the size is forged, and nothing is done.
    let bytes = (5_u64 << 30) + 512;
    world.server.forge(move |number, message| {
        if number == 2 {
            message[22..30].copy_from_slice(&bytes.to_be_bytes());
        }
    });
    world.server.decide(|_| Treatment::Failed(0));
    let mut disk = world.open("nbd:10.0.0.2/disk");
    assert_eq!(disk.device.geometry().sectors.bytes(), Some(bytes));
    assert_eq!(disk.does(discard(1, (5 << 30) / 512), &[]), Ok(()));
    let seen: Vec<_> = world
        .server
        .seen()
        .iter()
        .map(|it| (it.offset, it.len))
        .collect();
    let expected: Vec<_> = (0..5).map(|part| (512 + (part << 30), 1 << 30)).collect();
    assert_eq!(seen, expected);
    // It is not gone on with after a failure.
    world
        .server
        .decide(|seen| Treatment::Failed(if seen.offset > 1 << 30 { 5 } else { 0 }));
    let failed = disk.does(discard(1, (5 << 30) / 512), &[]);
    assert_eq!(failed, Err(IoError::Medium));
    assert_eq!(world.server.seen().len(), 7);
    drop(disk);
    world.end();
}

#[test]
fn errors_fail_their_requests_alone() {
    for structured in [false, true] {
        let world = World::new(Config {
            structured,
            ..Config::default()
        });
        let mut disk = world.open("nbd:10.0.0.2/disk");
        let buffer = Buffer::new(&world, 1);
        let segments = || buffer.whole(4096);
        for (error, outcome) in [
            (5, IoError::Medium),
            (1, IoError::Medium),
            (28, IoError::Medium),
            (95, IoError::Medium),
            (0x8000_0001, IoError::Medium),
        ] {
            world.server.decide(move |_| Treatment::Failed(error));
            assert_eq!(disk.does(read(0), &segments()), Err(outcome), "{error}");
            assert_eq!(disk.does(write(0), &segments()), Err(outcome));
            // A guest that is told that there is no flush would never flush again.
            assert_eq!(disk.does(Op::Flush, &[]), Err(outcome));
            let forgotten = match error {
                95 => IoError::NotSupported,
                _ => outcome,
            };
            assert_eq!(disk.does(discard(0, 8), &[]), Err(forgotten));
        }
        world.server.decide(|_| Treatment::Done);
        assert_eq!(disk.does(read(0), &segments()), Ok(()));
        assert!(world.lines().contains(" 20 failed"), "{}", world.lines());
        assert_eq!(world.server.connections(), (1, 1));
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn a_write_that_is_refused_before_its_data_was_sent_fails_alone() {
    let world = World::new(Config {
        room: 1000,
        refuses_writes_early: Some(28),
        ..Config::default()
    });
    let mut disk = world.open("nbd:10.0.0.2/disk");
    let buffer = Buffer::new(&world, 32);
    // The server drains what it refused.
    world.server.change(|config| config.room = 200_000);
    disk.ask(1, write(0), &buffer.whole(128 << 10));
    disk.ask(2, read(0), &buffer.whole(512));
    assert_eq!(disk.completed(), [(1, Err(IoError::Medium)), (2, Ok(()))]);
    drop((disk, buffer));
    world.end();
}

#[test]
fn two_queues_on_two_vcpus_share_a_line_or_have_one_each() {
    for several in [false, true] {
        let export = FakeExport {
            flags: 0b110_1101 | u16::from(several) << 8,
            ..FakeExport::new("disk", 1 << 20)
        };
        let world = World::new(Config {
            exports: vec![export],
            ..Config::default()
        });
        let device = world.try_open("nbd:10.0.0.2/disk", Access::ReadWrite);
        let device = device.expect("opened");
        let mut disks = [0, 1].map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8));
        let buffer = Buffer::new(&world, 1);
        for disk in &mut disks {
            for tag in 0..8 {
                disk.ask(tag, write(tag as u64), &buffer.whole(512));
            }
        }
        for disk in &mut disks {
            assert_eq!(disk.completed().len(), 8);
        }
        let lines = if several { 2 } else { 1 };
        assert_eq!(world.server.connections(), (lines, lines));
        let mut used: Vec<_> = world
            .server
            .seen()
            .iter()
            .map(|seen| seen.connection)
            .collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), lines);
        drop((disks, device, buffer));
        world.end();
    }
}

#[test]
fn a_server_that_takes_fewer_connections_than_it_says_is_served_by_those() {
    let export = FakeExport {
        flags: 0b1_0110_1101,
        ..FakeExport::new("disk", 1 << 20)
    };
    let world = World::new(Config {
        exports: vec![export],
        most_connections: 1,
        ..Config::default()
    });
    let device = world.try_open("nbd:10.0.0.2/disk", Access::ReadWrite);
    let device = device.expect("opened");
    let buffer = Buffer::new(&world, 1);
    for vcpu in [0, 1] {
        let mut disk = Disk::new(&world, device.clone(), vcpu, 8);
        assert_eq!(disk.does(write(1), &buffer.whole(512)), Ok(()));
        world.wait(std::time::Duration::from_secs(60));
        assert!(
            world.lines().contains(": connected, 2048"),
            "{}",
            world.lines()
        );
    }
    assert_eq!(world.server.connections(), (1, 1));
    // Once there is a second connection, it is used.
    world.server.change(|config| config.most_connections = 2);
    world.wait(std::time::Duration::from_secs(60));
    let mut disk = Disk::new(&world, device.clone(), 1, 8);
    assert_eq!(disk.does(write(1), &buffer.whole(512)), Ok(()));
    let last = world.server.seen().pop().map(|seen| seen.connection);
    assert_eq!(last, Some(1));
    drop((disk, device, buffer));
    world.end();
}

#[test]
fn requests_are_given_up_before_they_are_sent_and_end_as_usual_after() {
    let world = World::new(Config::default());
    let mut disk = world.open("nbd:10.0.0.2/disk");
    let buffer = Buffer::new(&world, 1);
    world.server.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &buffer.whole(512));
    world.run();
    let handed = disk.hand(2, write(1), &buffer.whole(512));
    assert_eq!(handed, Submitted::Pending);
    disk.queue.cancel(Tag(2));
    disk.queue.cancel(Tag(1));
    disk.queue.cancel(Tag(77));
    assert_eq!(disk.completed(), [(2, Err(IoError::Cancelled))]);
    world.server.finish(0);
    assert_eq!(disk.completed(), [(1, Ok(()))]);
    assert_eq!(world.server.seen().len(), 1);
    drop((disk, buffer));
    world.end();
}
