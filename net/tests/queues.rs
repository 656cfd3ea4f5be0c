//! Interfaces with several queues.

use bulkhead_net_testing::Violation;
use bulkhead_net_testing::world::{TestStream, World, exchange, pattern};
use bulkhead_stream::Stream;
use bulkhead_xen::Reservation;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Sends bytes on all streams at the same time, and expects them back.
fn echo(world: &World, streams: Vec<TestStream>, len: usize) -> Vec<TestStream> {
    let bytes = pattern(len);
    let sent = |stream| world.start(exchange(stream, bytes.clone(), len));
    let all: Vec<_> = streams.into_iter().map(sent).collect();
    world.wait(MINUTE);
    let one = |result: std::rc::Rc<std::cell::RefCell<Option<Result<_, _>>>>| {
        let exchanged = result.take();
        let exchanged = exchanged.unwrap_or_else(|| panic!("not echoed: {}", world.lines()));
        let (received, stream): (Vec<u8>, _) = exchanged.expect("the stream goes on");
        assert!(received == bytes, "other bytes came back");
        stream
    };
    all.into_iter().map(one).collect()
}

/// Connects twice: the connections have ports that follow each other.
fn two_streams(world: &World) -> Vec<TestStream> {
    vec![world.connect("10.0.0.2:7"), world.connect("[fd00::2]:7")]
}

fn node(world: &World, name: &str) -> Option<String> {
    world.back.borrow().frontend_node(&world.sim, name)
}

/// Returns the value that the operator's line has for a key.
fn shown(world: &World, key: &str) -> Option<u64> {
    let line = world.lines();
    let mut words = line.split_whitespace();
    let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    value.map(|value| value.parse().expect("a number"))
}

#[test]
fn two_queues_carry_two_streams() {
    let world = World::with_queues("4", &["net-queues=2"]);
    assert_eq!(world.back.borrow().queues(), 2);
    assert_eq!(node(&world, "multi-queue-num-queues").as_deref(), Some("2"));
    assert!(node(&world, "queue-1/event-channel").is_some());
    assert_eq!(node(&world, "tx-ring-ref"), None);

    let streams = echo(&world, two_streams(&world), 200_000);
    assert_eq!(world.back.borrow().queues_in_use(), 2);
    let counts = world.net.list()[0].counts();
    assert_eq!((counts.damaged, counts.refused), (0, 0));
    let sum = |what: &str| -> u64 {
        let one = |queue| shown(&world, &format!("queue-{queue}-{what}")).expect("it is shown");
        let both = [one(0), one(1)];
        assert!(
            both.iter().all(|packets| *packets > 10),
            "{}",
            world.lines()
        );
        both.iter().sum()
    };
    assert_eq!(sum("sent"), counts.sent);
    assert_eq!(sum("received"), counts.received);
    drop(streams);
    world.end();
}

#[test]
fn one_queue_is_what_every_backend_knows() {
    let one = |world: World| {
        assert_eq!(world.back.borrow().queues(), 1);
        assert!(node(&world, "tx-ring-ref").is_some());
        assert_eq!(node(&world, "queue-0/tx-ring-ref"), None);
        drop(echo(&world, two_streams(&world), 20_000));
        assert_eq!(shown(&world, "queue-0-sent"), None, "it is the interface's");
        world.end();
    };
    one(World::with(
        true,
        &["ip=10.0.0.7/24,fd00::7/64", "net-queues=4"],
    ));
    for most in ["0", "1", "-1", "", "rubbish", "99999999999"] {
        one(World::with_queues(most, &["net-queues=4"]));
    }
    one(World::with_queues("8", &[]));
}

#[test]
fn a_backend_that_takes_any_number_of_queues_gets_as_many_as_are_wanted() {
    for (most, wanted, queues) in [
        ("4294967295", "net-queues=4", 4),
        ("3", "net-queues=4", 3),
        ("8", "net-queues=3", 3),
    ] {
        let world = World::with_queues(most, &[wanted]);
        assert_eq!(world.back.borrow().queues(), queues, "{most}");
        drop(echo(&world, two_streams(&world), 20_000));
        assert_eq!(world.back.borrow().queues_in_use(), 2, "{most}");
        world.end();
    }
}

#[test]
fn streams_go_on_over_a_backend_that_comes_back_with_another_number_of_queues() {
    let world = World::with_queues("2", &["net-queues=4"]);
    let mut streams = two_streams(&world);
    for (most, queues) in [("1", 1), ("4", 4), ("0", 1), ("3", 3), ("rubbish", 1)] {
        world.back.borrow_mut().offer_queues(&world.sim, most);
        world.back.borrow().set_state(&world.sim, "5");
        world.wait(Duration::from_secs(5));
        assert_eq!(world.back.borrow().queues(), queues, "{most}");
        streams = echo(&world, streams, 50_000);
    }
    drop(streams);
    world.end();
}

#[test]
fn a_backend_that_takes_fewer_queues_than_it_says_is_asked_again_later() {
    let world = World::with_queues("4", &["net-queues=4"]);
    let streams = two_streams(&world);
    world.back.borrow_mut().takes_queues = 1;
    world.back.borrow().set_state(&world.sim, "5");
    world.wait(Duration::from_secs(10));
    let line = world.lines();
    assert!(line.contains("network vif0, down, "), "{line}");
    world.back.borrow_mut().offer_queues(&world.sim, "1");
    world.wait(MINUTE / 4);
    assert_eq!(world.back.borrow().queues(), 1);
    drop(echo(&world, streams, 50_000));
    world.end();
}

#[test]
fn packets_of_a_stream_may_come_by_any_queue() {
    let world = World::with_queues("4", &["net-queues=4"]);
    world.back.borrow_mut().scatters = true;
    drop(echo(&world, two_streams(&world), 300_000));
    for queue in 0..4 {
        let received = shown(&world, &format!("queue-{queue}-received"));
        assert!(received > Some(10), "{}", world.lines());
    }
    world.end();
}

#[test]
fn without_memory_for_more_there_is_one_queue() {
    let world = World::with_queues("1", &["net-queues=4"]);
    let streams = two_streams(&world);
    let hypervisor = world.domain.hypervisor();
    while hypervisor.allocate_to_grant(200).is_some() {}
    world.back.borrow_mut().offer_queues(&world.sim, "4");
    world.back.borrow().set_state(&world.sim, "5");
    world.wait(Duration::from_secs(5));
    assert_eq!(world.back.borrow().queues(), 1);
    drop(echo(&world, streams, 50_000));
    world.end();
}

#[test]
fn a_breach_of_the_protocol_in_any_queue_is_noticed() {
    for (violation, reason) in [
        (Violation::RxIndex, "producer index 0x186a0"),
        (Violation::RxEndless, "longer than any packet"),
        // The first queue sends from that page.
        (Violation::TxId(0), "answered request 0, which"),
        (
            Violation::TxNull,
            "answered details of a packet that had none",
        ),
    ] {
        let world = World::with_queues("2", &["net-queues=2"]);
        let mut streams = two_streams(&world);
        // The one in the first queue sends first.
        let before = shown(&world, "queue-0-sent");
        assert_eq!(streams[0].send(&mut |_| 10), Ok(10));
        streams[0].push();
        world.run();
        if shown(&world, "queue-0-sent") == before {
            streams.swap(0, 1);
        }
        world.wait(Duration::from_secs(1));
        world.back.borrow_mut().stalled = true;
        for stream in &mut streams {
            assert_eq!(stream.send(&mut |_| 10), Ok(10));
            stream.push();
            world.run();
        }
        world.back.borrow_mut().violates_in = 1;
        world.back.borrow_mut().violate(violation);
        world.run();
        let line = world.lines();
        assert!(line.contains(", given up: "), "{violation:?}: {line}");
        assert!(line.contains(reason), "{violation:?}: {line}");
        world.back.borrow_mut().stalled = false;
        drop(streams);
        world.end();
    }
}
