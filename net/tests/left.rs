//! Connections that were given up, at a server that was not told and accepts one at a time.

use bulkhead_net_testing::Frame;
use bulkhead_net_testing::world::{TestStream, World, end_of, exchange};
use bulkhead_stream::{Ended, Stream};
use smoltcp::wire::{EthernetFrame, Ipv4Packet, TcpPacket};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// The server, which accepts one connection at a time, or two.
const SERVER: &str = "10.0.0.2:9";
const LARGER_SERVER: &str = "10.0.0.2:7";
const MINUTE: Duration = Duration::from_secs(60);

fn connected(world: &World, server: &str) -> TestStream {
    let stream = world.connect(server);
    let exchanged = world.within(MINUTE, exchange(stream, vec![1; 1000], 0));
    let (_, stream) = exchanged.expect("it is taken").expect("it goes on");
    world.wait(Duration::from_millis(100));
    stream
}

/// Lets go of a stream while no packet arrives anywhere, for that time.
fn leave_in_the_dark(world: &World, stream: TestStream, span: Duration) {
    *world.mangle_sent.borrow_mut() = Some(Box::new(|_| Vec::new()));
    drop(stream);
    world.run();
    world.wait(span);
    *world.mangle_sent.borrow_mut() = None;
}

#[test]
fn a_connection_that_was_given_up_while_the_way_was_away_is_ended_before_the_next() {
    for span in [0, 1, 30, 600].map(Duration::from_secs) {
        for closes in [false, true] {
            let world = World::new(false);
            let mut stream = connected(&world, SERVER);
            if closes {
                *world.mangle_sent.borrow_mut() = Some(Box::new(|_| Vec::new()));
                stream.close();
            }
            leave_in_the_dark(&world, stream, span);
            // One that is closed in order is told again for a minute.
            if !closes || span > MINUTE {
                let again = world.try_connect(SERVER);
                assert!(again.is_ok(), "{span:?}, {closes}: {:?}", again.err());
                drop(again);
            }
            world.end();
        }
    }
}

#[test]
fn a_connection_that_ended_because_the_way_was_away_is_ended_before_the_next() {
    let world = World::new(false);
    let stream = connected(&world, SERVER);
    *world.mangle_sent.borrow_mut() = Some(Box::new(|_| Vec::new()));
    let ended = world.within(5 * MINUTE, end_of(stream));
    assert_eq!(ended, Some(Ended::Reset));
    // The next ones are not answered.
    assert!(world.try_connect(SERVER).is_err());
    assert!(world.try_connect(SERVER).is_err());
    *world.mangle_sent.borrow_mut() = None;
    let again = world.try_connect(SERVER);
    assert!(again.is_ok(), "{:?} {}", again.err(), world.lines());
    world.end();
}

fn asks_for_a_connection(frame: &Frame) -> bool {
    let ethernet = EthernetFrame::new_unchecked(&frame.bytes[..]);
    let Ok(ip) = Ipv4Packet::new_checked(ethernet.payload()) else {
        return false;
    };
    TcpPacket::new_checked(ip.payload()).is_ok_and(|tcp| tcp.syn())
}

#[test]
fn a_server_that_knows_that_a_connection_is_over_is_not_asked_for_it() {
    let world = World::new(false);
    let asked = Rc::new(Cell::new(0));
    let counted = asked.clone();
    *world.mangle_sent.borrow_mut() = Some(Box::new(move |frame| {
        counted.set(counted.get() + usize::from(asks_for_a_connection(&frame)));
        vec![frame]
    }));
    for round in 1..10 {
        let mut stream = connected(&world, LARGER_SERVER);
        assert_eq!(asked.get(), round);
        match round % 2 {
            0 => stream.close(),
            _ => world.peer.borrow_mut().reset(),
        }
        world.wait(Duration::from_secs(1));
        drop(stream);
        world.wait(Duration::from_secs(1));
    }
    // One that was told of, and may not have heard it, is: once.
    drop(connected(&world, LARGER_SERVER));
    world.wait(Duration::from_secs(1));
    let stream = connected(&world, LARGER_SERVER);
    assert_eq!(asked.get(), 12);
    drop(stream);
    world.end();
}
