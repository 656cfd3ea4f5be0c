//! Replies: structured ones in all shapes, and servers that lie. A lie costs the export, and nothing else.

use bulkhead_images::IoError;
use bulkhead_nbd_testing::world::{Buffer, Disk, World, pattern, read, write};
use bulkhead_nbd_testing::{Config, FakeServer, Part, Seen, Treatment};

const DISK: &str = "nbd:10.0.0.2/disk";

fn filled(server: &FakeServer) -> Vec<u8> {
    let data = pattern(9, 1 << 20);
    let kept = data.clone();
    server.change(|config| config.exports[0].bytes = kept);
    data
}

#[test]
fn a_read_may_come_in_parts_of_any_order_and_kind() {
    for piece in [1, 5, 1 << 20] {
        let world = World::new(Config {
            piece,
            ..Config::default()
        });
        let data = filled(&world.server);
        let mut disk = world.open(DISK);
        let buffer = Buffer::new(&world, 3);
        buffer.fill(&[0xff; 3 * 4096]);
        world.server.decide(|_| {
            Treatment::Parts(vec![
                Part::Data(4096 + 9000, 3288),
                Part::Data(4096, 1),
                Part::Hole(4097, 8999),
                Part::None,
            ])
        });
        assert_eq!(disk.does(read(8), &buffer.whole(12288)), Ok(()));
        let bytes = buffer.bytes(0, 12288);
        assert_eq!(bytes[0], data[4096]);
        assert!(bytes[1..9000].iter().all(|byte| *byte == 0));
        assert!(bytes[9000..] == data[4096 + 9000..4096 + 12288]);
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn an_error_within_a_read_fails_it_alone() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 2);
    for parts in [
        vec![Part::Data(0, 4096), Part::ErrorAt(5, 4096), Part::None],
        vec![Part::ErrorAt(5, 0), Part::Data(4096, 4096)],
        vec![Part::Error(5)],
        vec![Part::Error(5), Part::Error(28), Part::None],
        vec![Part::Raw(
            0x8077,
            [&[0, 0, 0, 9, 0, 1][..], b"x and more"].concat(),
        )],
        // It has sent everything, and takes it back.
        vec![Part::Data(0, 8192), Part::Error(5)],
    ] {
        let reply = parts.clone();
        world
            .server
            .decide(move |_| Treatment::Parts(reply.clone()));
        let outcome = disk.does(read(0), &buffer.whole(8192));
        assert_eq!(outcome, Err(IoError::Medium), "{parts:?}");
    }
    world.server.decide(|_| Treatment::Done);
    assert_eq!(disk.does(read(0), &buffer.whole(8192)), Ok(()));
    assert_eq!(world.server.connections(), (1, 1));
    drop((disk, buffer));
    world.end();
}

#[test]
fn other_commands_may_be_answered_by_structured_replies_too() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world.server.decide(|_| Treatment::Parts(vec![Part::None]));
    assert_eq!(disk.does(write(0), &buffer.whole(512)), Ok(()));
    world
        .server
        .decide(|_| Treatment::Parts(vec![Part::Error(28)]));
    let failed = disk.does(write(0), &buffer.whole(512));
    assert_eq!(failed, Err(IoError::Medium));
    drop((disk, buffer));
    world.end();
}

/// Has a server answer a read of two pages from 4096 on, beside other requests, by a reply that breaks the protocol.
fn violate(
    structured: bool,
    mut treatment: impl FnMut(&Seen) -> Treatment + 'static,
    reason: &str,
) {
    let world = World::new(Config {
        structured,
        ..Config::default()
    });
    let data = filled(&world.server);
    let mut disk = world.open(DISK);
    let device = disk.device.clone();
    let mut second = Disk::new(&world, device.clone(), 1, 4);
    let mut other = world.open("nbd:10.0.0.3/disk");
    let buffers: Vec<_> = (0..5).map(|_| Buffer::new(&world, 2)).collect();
    world.server.decide(move |seen| match seen.kind {
        0 if seen.len == 8192 => treatment(seen),
        _ => Treatment::Held,
    });
    second.ask(1, write(100), &buffers[3].whole(4096));
    disk.ask(1, write(200), &buffers[1].whole(4096));
    disk.ask(2, read(200), &buffers[2].whole(512));
    disk.ask(3, read(8), &buffers[0].whole(8192));
    let failed = |tags: &[usize]| -> Vec<_> {
        tags.iter()
            .map(|tag| (*tag, Err(IoError::Medium)))
            .collect()
    };
    let done = disk.completed();
    // The read itself may have been served before the lie.
    let served = done.contains(&(3, Ok(())));
    assert_eq!(done[..2], failed(&[1, 2]), "{reason}");
    if served {
        assert!(buffers[0].bytes(0, 8192) == data[4096..4096 + 8192]);
    }
    assert_eq!(done.len(), 3, "{reason}");
    assert_eq!(second.completed(), failed(&[1]));
    let lines = world.lines();
    assert!(
        lines.contains("given up: the server breaks the protocol: ") && lines.contains(reason),
        "{reason}: {lines}"
    );
    // What is asked now fails at once; the other server's disk is not touched.
    let sector = || buffers[4].whole(512);
    assert_eq!(disk.does(read(0), &sector()), Err(IoError::Medium));
    assert_eq!(other.does(write(3), &sector()), Ok(()));
    assert_eq!(world.server.connections(), (1, 0), "it was hung up on");
    assert!(disk.close() && second.close());
    // Another guest's use of it is a new one.
    world.server.decide(|_| Treatment::Done);
    let mut again = world.open(DISK);
    assert_eq!(again.does(read(0), &sector()), Ok(()));
    drop((disk, second, other, again, device, buffers));
    world.end();
}

#[test]
fn simple_replies_that_violate_the_protocol_cost_the_export() {
    violate(
        false,
        |_| Treatment::Misnamed(1 << 48),
        "which it does not have",
    );
    violate(
        false,
        |_| Treatment::Misnamed(1 << 32),
        "which it does not have",
    );
    violate(
        false,
        |_| Treatment::Misnamed(3 << 33),
        "which it does not have",
    );
    violate(false, |_| Treatment::Misnamed(1), "which it does not have");
    violate(
        false,
        |_| Treatment::Misnamed(u64::MAX),
        "which it does not have",
    );
    violate(false, |_| Treatment::Twice, "which it does not have");
    violate(
        false,
        |_| Treatment::Raw(vec![0; 16]),
        "a reply begins with 0x00000000",
    );
    // A structured reply where none were agreed to.
    violate(
        false,
        |_| Treatment::Parts(vec![Part::None]),
        "a reply begins with 0x668e33ef",
    );
}

#[test]
fn structured_replies_that_violate_the_protocol_cost_the_export() {
    let parts: [(Vec<Part>, &str); 25] = [
        (vec![Part::None], "less data than was asked for"),
        (vec![Part::Data(4096, 8191)], "less data than was asked for"),
        (vec![Part::Data(4096, 4096), Part::None], "less data"),
        (vec![Part::Data(4096, 8193)], "8193 bytes from 4096 on"),
        (vec![Part::Data(4095, 10)], "10 bytes from 4095 on"),
        (vec![Part::Data(12288, 1)], "1 bytes from 12288 on"),
        (
            vec![Part::Data(u64::MAX, 2)],
            "2 bytes from 18446744073709551615 on",
        ),
        (vec![Part::Hole(4096, 0)], "0 bytes from 4096 on"),
        (
            vec![Part::Hole(4096, u32::MAX)],
            "4294967295 bytes from 4096",
        ),
        (vec![Part::Hole(0, 512)], "512 bytes from 0 on"),
        (
            vec![Part::Data(4096, 8192), Part::Data(4096, 1)],
            "the same data of a read twice",
        ),
        (
            vec![Part::Data(4096, 4097), Part::Hole(8192, 4096)],
            "the same data of a read twice",
        ),
        // As many bytes as were asked for.
        (
            vec![Part::Data(4096, 4096), Part::Data(4096, 4096), Part::None],
            "the same data of a read twice",
        ),
        (
            vec![
                Part::Data(8192, 4096),
                Part::Hole(4096, 4095),
                Part::Hole(8192, 1),
            ],
            "the same data of a read twice",
        ),
        (
            (0..9).map(|it| Part::Data(4096 + 2 * it, 1)).collect(),
            "in more than 8 pieces that are apart",
        ),
        (
            vec![Part::None, Part::Data(4096, 8192)],
            "a part None that cannot",
        ),
        (vec![Part::Raw(0, vec![0])], "a part None of 1 bytes"),
        (vec![Part::Raw(1, vec![0; 8])], "a part Data of 8 bytes"),
        (vec![Part::Raw(2, vec![0; 13])], "a part Hole of 13 bytes"),
        (
            vec![Part::Raw(5, vec![0; 20])],
            "a part Other(5) of 20 bytes",
        ),
        (
            vec![Part::Raw(0x8001, vec![0; 5])],
            "a part Error of 5 bytes",
        ),
        (
            vec![Part::Raw(0x8002, vec![0; 13])],
            "a part ErrorAt of 13 bytes",
        ),
        (
            vec![Part::Raw(0x8001, vec![1; 6 + 4096 + 9])],
            "a part Error of 4111 bytes",
        ),
        (vec![Part::Error(0)], "an error that is none"),
        (
            vec![Part::Raw(0x8001, vec![0, 0, 0, 5, 0, 1])],
            "an error that is none",
        ),
    ];
    for (parts, reason) in parts {
        violate(true, move |_| Treatment::Parts(parts.clone()), reason);
    }
    violate(
        true,
        |_| Treatment::Parts(vec![Part::Error(5); 17]),
        "errors without an end",
    );
    violate(true, |_| Treatment::Twice, "which it does not have");
    violate(
        true,
        |_| Treatment::Misnamed(1 << 32),
        "which it does not have",
    );
    let simple = |seen: &Seen| {
        let mut bytes = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
        bytes.extend(seen.cookie.to_be_bytes());
        Treatment::Raw(bytes)
    };
    violate(true, simple, "a simple reply to a read");
}

#[test]
fn a_server_that_speaks_unasked_is_given_up() {
    let world = World::new(Config::default());
    let disk = world.open(DISK);
    world.server.send(b"hello");
    world.run();
    assert!(world.lines().contains("a reply begins with 0x68656c6c"));
    drop(disk);
    world.end();
}

#[test]
fn a_write_is_not_done_before_its_data_was_sent() {
    let world = World::new(Config {
        room: 1000,
        refuses_writes_early: Some(0),
        ..Config::default()
    });
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 32);
    disk.ask(1, write(0), &buffer.whole(128 << 10));
    assert_eq!(disk.completed(), [(1, Err(IoError::Medium))]);
    assert!(world.lines().contains("of which it has only a part"));
    drop((disk, buffer));
    world.end();
}
