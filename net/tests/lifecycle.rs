//! Backends that come and go.

use bulkhead_net_testing::world::{World, end_of, exchange, pattern, states};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn an_interface_is_shown_with_its_link_and_addresses() {
    let world = World::new(true);
    let line = world.lines();
    for part in [
        "network vif0, up, ",
        "10.0.0.7/24,fd00::7/64,fe80::216:3eff:fe00:7/64",
        " streams=0 connections=1 ",
    ] {
        assert!(line.contains(part), "{line}");
    }
    world.end();
}

#[test]
fn a_stream_goes_on_over_a_backend_that_was_restarted() {
    let world = World::new(true);
    let stream = world.connect("10.0.0.2:7");
    let bytes = pattern(20_000);
    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), bytes.len()));
    let (_, stream) = exchanged.expect("echoed").expect("the stream goes on");

    world.back.borrow().set_state(&world.sim, "5");
    world.wait(Duration::from_secs(5));
    assert_eq!(world.states(), states("4", "4"));
    assert!(
        world.lines().contains(" connections=2 "),
        "{}",
        world.lines()
    );

    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), bytes.len()));
    let (received, stream) = exchanged.expect("echoed").expect("the stream goes on");
    assert!(received == bytes);
    drop(stream);
    world.end();
}

#[test]
fn a_stream_goes_on_after_a_link_was_silent_for_half_a_minute() {
    let world = World::new(true);
    let stream = world.connect("10.0.0.2:7");
    world.back.borrow_mut().stalled = true;
    let bytes = pattern(20_000);
    let exchanged = world.start(exchange(stream, bytes.clone(), bytes.len()));
    world.wait(MINUTE / 2);
    assert!(exchanged.borrow().is_none(), "nothing comes back meanwhile");
    world.back.borrow_mut().stalled = false;
    world.wait(MINUTE / 2);
    let exchanged = exchanged.take().expect("echoed");
    let (received, stream) = exchanged.expect("the stream goes on");
    assert!(received == bytes);
    drop(stream);
    world.end();
}

#[test]
fn a_backend_that_writes_its_state_all_the_time_has_it_read_at_a_bounded_rate() {
    let world = World::new(true);
    let sent = || world.sim.store().request_count(world.domain.id());
    let before = sent();
    // For half a minute.
    for _ in 0..3000 {
        world.back.borrow().set_state(&world.sim, "4");
        world.wait(Duration::from_millis(10));
    }
    let messages = sent() - before;
    assert!(messages < 3000, "{messages}");
    // It is listened to.
    world.back.borrow().set_state(&world.sim, "5");
    world.wait(Duration::from_secs(5));
    assert_eq!(world.states(), states("4", "4"));
    assert!(
        world.lines().contains(" connections=2 "),
        "{}",
        world.lines()
    );
    world.end();
}

#[test]
fn a_backend_that_comes_and_goes_all_the_time_is_connected_to_at_a_bounded_rate() {
    let world = World::new(true);
    // For ten minutes.
    for _ in 0..600 {
        if world.states() == states("4", "4") {
            world.back.borrow().set_state(&world.sim, "5");
        }
        world.wait(Duration::from_secs(1));
    }
    let lines = world.lines();
    let (_, counted) = lines.split_once(" connections=").expect("a count");
    let connections = counted.split(' ').next().and_then(|text| text.parse().ok());
    let connections: u32 = connections.expect("a number");
    assert!((16..=40).contains(&connections), "{lines}");
    // One that is taken away meanwhile is let go of at once.
    world.back.borrow().request_detach(&world.sim);
    world.back.borrow().finish_detach(&world.sim);
    world.wait(Duration::from_secs(1));
    assert!(world.net.list().is_empty(), "{}", world.lines());
    world.sim.assert_no_violations();
}

#[test]
fn an_interface_that_is_taken_away_ends_its_streams_and_may_come_back() {
    let world = World::new(true);
    let stream = world.connect("10.0.0.2:7");
    world.back.borrow().request_detach(&world.sim);
    world.wait(Duration::from_secs(1));
    world.back.borrow().finish_detach(&world.sim);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.within(MINUTE, end_of(stream)), Some(Ended::NoNetwork));
    let refused = world.try_connect("10.0.0.2:7").map(drop);
    assert_eq!(refused, Err(ConnectError::NoNetwork));

    let backend = world.backend.id();
    world.back.borrow().attach(&mut world.sim.store(), backend);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.states(), states("4", "4"));
    let stream = world.connect("10.0.0.2:7");
    let exchanged = world.within(MINUTE, exchange(stream, pattern(10), 10));
    assert!(exchanged.expect("echoed").is_ok());
    world.end();
}
