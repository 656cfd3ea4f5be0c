//! TCP over an interface.

use bulkhead_net_testing::world::{World, end_of, exchange, pattern};
use bulkhead_stream::{ConnectError, Ended, Stream};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

fn echo(world: &World, server: &str, len: usize) {
    let stream = world.connect(server);
    let bytes = pattern(len);
    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), len));
    let exchanged = exchanged.unwrap_or_else(|| panic!("not echoed: {}", world.lines()));
    let (received, mut stream) = exchanged.expect("the stream goes on");
    assert!(received == bytes, "other bytes came back");
    stream.close();
    assert_eq!(world.within(MINUTE, end_of(stream)), Some(Ended::Closed));
}

#[test]
fn a_stream_carries_bytes_both_ways_with_all_offloads() {
    for server in ["10.0.0.2:7", "[fd00::2]:7"] {
        let world = World::new(true);
        echo(&world, server, 300_000);
        let counts = world.net.list()[0].counts();
        assert_eq!((counts.damaged, counts.refused), (0, 0), "{server}");
        // Large packets go both ways, where the stack makes them.
        if server.starts_with('1') {
            assert!(world.back.borrow().segmented > 0);
            assert!(counts.received < 200, "{counts:?}");
        }
        world.end();
    }
}

#[test]
fn a_stream_carries_bytes_both_ways_without_any_offload() {
    for server in ["10.0.0.2:7", "[fd00::2]:7"] {
        let world = World::new(false);
        echo(&world, server, 300_000);
        assert_eq!(world.back.borrow().segmented, 0);
        let counts = world.net.list()[0].counts();
        assert_eq!((counts.damaged, counts.refused), (0, 0), "{server}");
        world.end();
    }
}

#[test]
fn a_damaged_packet_is_not_believed() {
    let world = World::new(false);
    let stream = world.connect("10.0.0.2:7");
    world.damage.replace(Some(1000));
    let bytes = pattern(50_000);
    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), bytes.len()));
    let (received, _) = exchanged.expect("sent again").expect("the stream goes on");
    assert!(received == bytes, "damaged bytes were delivered");
    assert_eq!(world.net.list()[0].counts().damaged, 1);
}

#[test]
fn a_server_that_takes_nothing_holds_up_its_own_stream_alone() {
    let world = World::new(true);
    world.peer.borrow_mut().stalled = true;
    let (stuck, other) = (world.connect("10.0.0.2:9"), world.connect("10.0.0.2:7"));
    let bytes = pattern(1 << 20);
    let exchanged = world.within(MINUTE / 4, exchange(stuck, bytes.clone(), 0));
    assert!(exchanged.is_none(), "a mebibyte does not fit the buffers");
    let pages = world.domain.pages_in_use();
    let exchanged = world.within(MINUTE, exchange(other, bytes[..9999].to_vec(), 9999));
    assert!(exchanged.expect("echoed").is_ok());
    assert!(world.domain.pages_in_use() <= pages);
}

#[test]
fn what_was_filled_is_delivered_after_the_stream_was_closed_and_dropped() {
    let world = World::new(true);
    let stream = world.connect("10.0.0.2:9");
    let bytes = pattern(60_000);
    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), 0));
    let (_, mut stream) = exchanged.expect("it fits").expect("the stream goes on");
    stream.close();
    drop(stream);
    world.wait(Duration::from_secs(2));
    assert!(world.peer.borrow().taken == bytes);
    assert!(world.lines().contains(" streams=0 "), "{}", world.lines());
    world.end();
}

#[test]
fn the_reason_why_there_is_no_stream_is_told() {
    let world = World::new(true);
    for (server, reason) in [
        ("10.0.0.2:11", ConnectError::Refused),
        ("10.0.0.3:7", ConnectError::TimedOut),
        ("10.1.0.2:7", ConnectError::Unreachable),
        ("[fd01::2]:7", ConnectError::Unreachable),
        ("host", ConnectError::NoNameServer),
    ] {
        let refused = world.try_connect(server).map(drop);
        assert_eq!(refused, Err(reason), "{server}");
    }
    assert!(world.lines().contains(" streams=0 "), "{}", world.lines());
    world.end();
}

#[test]
fn a_server_that_resets_ends_the_stream() {
    let world = World::new(true);
    let mut stream = world.connect("10.0.0.2:7");
    world.peer.borrow_mut().reset();
    world.run();
    assert_eq!(stream.send(&mut |_| 0), Err(Ended::Reset));
    assert_eq!(world.within(MINUTE, end_of(stream)), Some(Ended::Reset));
}
