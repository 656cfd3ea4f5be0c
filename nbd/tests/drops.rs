//! Connections that drop or stall, and servers that come back: guests see the delay, and nothing else.

use bulkhead_images::{IoError, Op};
use bulkhead_nbd_testing::world::{Buffer, World, discard, pattern, read, write};
use bulkhead_nbd_testing::{Config, FakeExport, Reach, Treatment};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

const DISK: &str = "nbd:10.0.0.2/disk";
const DOWN: Reach = Reach::Fails(ConnectError::Refused);

#[test]
fn a_connection_that_drops_at_any_byte_delays_requests_alone() {
    // Behind the handshake: 28 bytes of a command and 1000 of data, or 16 of a reply.
    for structured in [false, true] {
        let handshake = if structured { 90 } else { 95 };
        let sent = 4 + 16 + 16 + 4 + 4 + 2 + 4;
        for (to_client, from_client) in (0..700)
            .step_by(if cfg!(miri) { 97 } else { 3 })
            .flat_map(|at| [(Some(handshake + at), None), (None, Some(sent + at))])
        {
            let world = World::new(Config {
                structured,
                ..Config::default()
            });
            world.server.cut_after(to_client, from_client);
            let mut disk = world.open(DISK);
            let (from, to) = (Buffer::new(&world, 1), Buffer::new(&world, 1));
            let data = pattern(7, 512);
            from.fill(&data);
            disk.ask(1, write(2), &from.whole(512));
            world.run();
            world.server.cut_after(None, None);
            world.wait(Duration::from_secs(40));
            assert_eq!(disk.completed(), [(1, Ok(()))]);
            world.server.cut_after(to_client, from_client);
            disk.ask(2, read(2), &to.whole(512));
            disk.ask(3, Op::Flush, &[]);
            disk.ask(4, discard(9, 1), &[]);
            world.run();
            world.server.cut_after(None, None);
            world.wait(Duration::from_secs(40));
            assert_eq!(disk.completed(), [(2, Ok(())), (3, Ok(())), (4, Ok(()))]);
            assert!(to.bytes(0, 512) == data);
            drop((disk, from, to));
            world.end();
        }
    }
}

#[test]
fn everything_outstanding_is_asked_again_in_its_order() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffers: Vec<_> = (0..20).map(|_| Buffer::new(&world, 1)).collect();
    world.server.decide(|_| Treatment::Held);
    for (tag, buffer) in buffers.iter().enumerate() {
        buffer.fill(&pattern(tag as u8, 4096));
        disk.ask(tag, write(8 * tag as u64), &buffer.whole(4096));
    }
    disk.ask(20, Op::Flush, &[]);
    disk.ask(21, discard(1000, 8), &[]);
    assert_eq!(disk.completed(), []);
    world.server.finish(5);
    assert_eq!(disk.completed(), [(5, Ok(()))]);
    let before = world.server.seen();
    world.server.change(|config| config.reach = DOWN);
    world.server.drop_all(Ended::Reset);
    world.wait(Duration::from_secs(30));
    assert_eq!(disk.completed(), [], "guests wait");
    assert!(world.lines().contains("not connected"), "{}", world.lines());
    disk.ask(22, write(500), &buffers[0].whole(512));
    world.wait(Duration::from_secs(600));
    world.server.change(|config| config.reach = Reach::Connects);
    world.server.decide(|_| Treatment::Done);
    world.wait(Duration::from_secs(31));
    let done = disk.completed();
    assert_eq!(done.len(), 22);
    assert!(done.iter().all(|(_, outcome)| *outcome == Ok(())));
    let work = |seen: &bulkhead_nbd_testing::Seen| (seen.kind, seen.offset, seen.len);
    let mut expected: Vec<_> = before.iter().map(work).collect();
    expected.remove(5);
    expected.push((1, 256_000, 512));
    let again: Vec<_> = world.server.seen()[before.len()..]
        .iter()
        .map(work)
        .collect();
    assert_eq!(again, expected);
    let cookies: Vec<_> = world.server.seen().iter().map(|seen| seen.cookie).collect();
    let mut once = cookies.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(
        once.len(),
        cookies.len(),
        "no command has another one's cookie"
    );
    drop((disk, buffers));
    world.end();
}

#[test]
fn a_server_that_stops_answering_is_connected_to_again() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world.server.decide(|_| Treatment::Lost);
    disk.ask(1, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(29));
    assert_eq!(world.server.connections(), (1, 1));
    world.wait(Duration::from_secs(2));
    assert_eq!(world.server.connections(), (2, 1));
    assert_eq!(world.server.seen().len(), 2, "it was asked again");
    // One that is slow, and not gone, has twice the time each time.
    world.wait(Duration::from_secs(58));
    assert_eq!(world.server.connections(), (2, 1));
    world.wait(Duration::from_secs(5));
    assert_eq!(world.server.connections(), (3, 1));
    world.server.decide(|_| Treatment::Done);
    world.server.drop_all(Ended::Closed);
    world.wait(Duration::from_secs(10));
    assert_eq!(disk.completed(), [(1, Ok(()))]);
    // Without anything to wait for, nothing is noticed, and no timer runs.
    world.wait(Duration::from_secs(20));
    assert_eq!(world.next_deadline(), None);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_server_that_does_not_read_is_connected_to_again() {
    let world = World::new(Config {
        room: 4096,
        ..Config::default()
    });
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 32);
    buffer.fill(&pattern(1, 32 * 4096));
    world.server.change(|config| config.is_deaf = true);
    disk.ask(1, write(0), &buffer.whole(128 << 10));
    world.wait(Duration::from_secs(31));
    assert_eq!(world.server.connections().0, 2);
    world.server.change(|config| {
        config.is_deaf = false;
        config.room = 200_000;
    });
    world.wait(Duration::from_secs(90));
    assert_eq!(disk.completed(), [(1, Ok(()))]);
    assert!(world.server.bytes("disk")[..128 << 10] == pattern(1, 128 << 10));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_server_that_says_that_it_shuts_down_is_asked_again_later() {
    for structured in [false, true] {
        let world = World::new(Config {
            structured,
            ..Config::default()
        });
        let mut disk = world.open(DISK);
        let buffer = Buffer::new(&world, 1);
        world.server.change(|config| config.reach = DOWN);
        world.server.decide(|_| Treatment::Failed(108));
        disk.ask(1, read(0), &buffer.whole(512));
        disk.ask(2, write(0), &buffer.whole(512));
        world.wait(Duration::from_secs(5));
        assert_eq!(disk.completed(), []);
        assert!(world.lines().contains("shutting down") || world.lines().contains("refuses"));
        world.server.decide(|_| Treatment::Done);
        world.server.change(|config| config.reach = Reach::Connects);
        world.wait(Duration::from_secs(31));
        assert_eq!(disk.completed(), [(1, Ok(())), (2, Ok(()))]);
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn another_export_in_the_old_ones_place_is_refused() {
    type Change = fn(&mut FakeExport);
    let changes: [(Change, &str); 8] = [
        (
            |it| it.bytes.truncate(1 << 19),
            "it has 1024 sectors, and had 2048",
        ),
        (
            |it| it.bytes.resize(1 << 21, 0),
            "it has 4096 sectors, and had 2048",
        ),
        (
            |it| it.canonical = Some("other".into()),
            "it is called 'other', and was 'disk'",
        ),
        (
            |it| it.canonical = Some("\u{1b}[2J".repeat(2000)),
            r"it is called '\u{1b}[2J\u{1b}[2J\u{1b}[2J\u{1b}[2J\u{1b}[2J\u{1b}[2J\u{1b}[2J', and was 'disk'",
        ),
        (
            |it| it.sizes = Some([4096, 4096, 1 << 20]),
            "requests of other sizes",
        ),
        (
            |it| it.sizes = Some([1, 4096, 65536]),
            "requests of other sizes",
        ),
        (|it| it.flags |= 2, "it cannot do what it could"),
        (|it| it.flags &= !4, "it cannot do what it could"),
    ];
    for (change, reason) in changes {
        let export = FakeExport {
            canonical: Some("disk".into()),
            ..FakeExport::new("disk", 1 << 20)
        };
        let world = World::new(Config {
            exports: vec![export],
            ..Config::default()
        });
        let mut disk = world.open(DISK);
        let buffer = Buffer::new(&world, 1);
        world.server.decide(|_| Treatment::Held);
        disk.ask(1, write(0), &buffer.whole(512));
        world.run();
        let seen = world.server.seen().len();
        world.server.change(|config| change(&mut config.exports[0]));
        world.server.drop_all(Ended::Reset);
        world.wait(Duration::from_secs(5));
        assert_eq!(disk.completed(), [(1, Err(IoError::Medium))], "{reason}");
        assert!(
            world.lines().contains(reason),
            "{reason}: {}",
            world.lines()
        );
        assert_eq!(world.server.seen().len(), seen, "nothing was sent to it");
        assert_eq!(disk.does(read(0), &buffer.whole(512)), Err(IoError::Medium));
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn a_server_that_has_lost_the_export_for_now_is_waited_for() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world
        .server
        .change(|config| config.exports[0].name = "gone".into());
    world.server.drop_all(Ended::Closed);
    disk.ask(1, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(60));
    assert_eq!(disk.completed(), []);
    let lines = world.lines();
    assert!(
        lines.contains("no export 'disk', there are: gone"),
        "{lines}"
    );
    world
        .server
        .change(|config| config.exports[0].name = "disk".into());
    world.wait(Duration::from_secs(31));
    assert_eq!(disk.completed(), [(1, Ok(()))]);
    drop((disk, buffer));
    world.end();
}

#[test]
fn attempts_become_fewer_while_the_server_is_gone() {
    let world = World::new(Config::default());
    let disk = world.open(DISK);
    // It accepts, and hangs up at once: that is no success.
    world.server.cut_after(Some(0), None);
    world.server.drop_all(Ended::Reset);
    world.wait(Duration::from_secs(60));
    let early = world.server.connections().0;
    world.wait(Duration::from_secs(600));
    let later = world.server.connections().0 - early;
    assert!((6..=10).contains(&early), "{early}");
    assert!((19..=21).contains(&later), "{later}");
    // Nor is a handshake without a request that is answered.
    world.server.cut_after(Some(95), None);
    world.wait(Duration::from_secs(600));
    world.server.drop_all(Ended::Reset);
    let before = world.server.connections().0;
    world.server.cut_after(None, None);
    drop(disk);
    assert!(before - early - later <= 21);
    world.end();
}

#[test]
fn a_server_that_hangs_up_after_each_answer_is_connected_to_less_and_less_often() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    let (mut asks, mut answers) = (true, 0);
    for _ in 0..600 {
        if asks {
            disk.ask(1, read(0), &buffer.whole(512));
        }
        world.wait(Duration::from_millis(100));
        asks = !disk.completed().is_empty();
        if asks {
            answers += 1;
            world.server.drop_all(Ended::Reset);
        }
    }
    assert!((10..=16).contains(&answers), "{answers} in a minute");
    // One that has gone on for a while is connected to again at once.
    world.wait(Duration::from_secs(40));
    disk.completed();
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    let before = world.server.connections().0;
    world.server.drop_all(Ended::Reset);
    world.wait(Duration::from_millis(1));
    assert_eq!(world.server.connections(), (before + 1, 1));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_request_that_nobody_waits_for_is_not_asked_again() {
    let world = World::new(Config::default());
    let mut disk = world.open(DISK);
    let buffer = Buffer::new(&world, 1);
    world.server.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &buffer.whole(512));
    disk.ask(2, write(1), &buffer.whole(512));
    world.run();
    disk.queue.cancel(bulkhead_images::Tag(1));
    world.server.decide(|_| Treatment::Done);
    world.server.drop_all(Ended::Reset);
    world.wait(Duration::from_secs(5));
    assert_eq!(
        disk.completed(),
        [(1, Err(IoError::Cancelled)), (2, Ok(()))]
    );
    let offsets: Vec<_> = world.server.seen().iter().map(|seen| seen.offset).collect();
    assert_eq!(offsets, [0, 512, 512]);
    drop((disk, buffer));
    world.end();
}
