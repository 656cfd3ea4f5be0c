//! TCP over an interface.

use bulkhead_net::Repeats;
use bulkhead_net_testing::world::{World, end_of, exchange, pattern};
use bulkhead_net_testing::{ADDRESS, Datagram, MAC};
use bulkhead_stream::{AddressChoice, Buffers, ConnectError, Ended, Endpoint, Stream};
use smoltcp::wire::{EthernetAddress, Ipv4Address, TcpPacket};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};
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
fn a_server_learns_of_room_when_a_full_buffer_is_emptied_in_whatever_bites() {
    for bite in [700, 30_000, 100_000] {
        let world = World::new(true);
        let stream = world.connect("10.0.0.2:7");
        let bytes = pattern(150_000);
        let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), 0));
        let (_, mut stream) = exchanged.expect("it fits").expect("the stream goes on");
        world.wait(Duration::from_millis(10));
        let (start, mut received) = (world.sim.now(), Vec::new());
        while received.len() < bytes.len() {
            let taken = stream.receive(&mut |arrived| {
                let part = arrived.len().min(bite);
                received.extend_from_slice(&arrived[..part]);
                part
            });
            stream.push();
            world.run();
            if taken == Ok(0) {
                world.wait(Duration::from_millis(1));
            }
        }
        assert!(received == bytes);
        // Nobody has to ask whether there is room.
        let waited = world.sim.now().since(start);
        assert!(waited < Duration::from_millis(5), "{bite}: {waited:?}");
        drop(stream);
        world.end();
    }
}

/// Each notification may wake the domain, which costs more than a packet.
#[test]
fn a_backend_does_not_notify_of_what_it_has_taken() {
    let world = World::new(true);
    let mut stream = world.connect("10.0.0.2:9");
    world.wait(Duration::from_secs(1));
    let before = world.back.borrow().notifications;
    let counts = || world.net.list()[0].counts();
    let first = counts();
    for _ in 0..100 {
        // They are acknowledged later, some at a time.
        assert_eq!(stream.send(&mut |_| 10), Ok(10));
        stream.push();
        world.run();
    }
    world.wait(Duration::from_secs(1));
    let last = counts();
    assert!(last.sent >= first.sent + 100, "{last:?}");
    let received = (last.received - first.received) as usize;
    let notifications = world.back.borrow().notifications - before;
    assert!(
        notifications <= received,
        "{notifications} notifications for {received} packets"
    );
    drop(stream);
    world.end();
}

#[test]
fn packets_arrive_however_the_backend_divides_them() {
    for (most, offset) in [
        (1000, 0),
        (1000, 3096),
        (20, 4076),
        (4000, 96),
        (4095, 1),
        (16, 0),
    ] {
        let world = World::new(true);
        world.back.borrow_mut().part = (most, offset);
        // A packet is to have fewer parts than the ring has slots.
        let len = if most < 100 { 3000 } else { 300_000 };
        echo(&world, "10.0.0.2:7", len);
        let counts = world.net.list()[0].counts();
        assert_eq!((counts.damaged, counts.refused), (0, 0), "{most} {offset}");
        world.end();
    }
}

#[test]
fn packets_arrive_in_a_page_that_the_backend_keeps() {
    let world = World::new(true);
    world.back.borrow_mut().keeps_page = true;
    echo(&world, "10.0.0.2:7", 300_000);
    let counts = world.net.list()[0].counts();
    assert_eq!((counts.damaged, counts.refused), (0, 0), "{counts:?}");
    assert!(world.back.borrow_mut().let_go());
    world.end();
}

/// A server that is not told that the last packet has come sends the end of it again.
#[test]
fn a_packet_is_acknowledged_before_its_sender_repeats_it() {
    let world = World::new(true);
    let stream = world.connect("10.0.0.2:7");
    let bytes = pattern(4000);
    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), bytes.len()));
    let (received, _stream) = exchanged.expect("echoed").expect("the stream goes on");
    assert!(received == bytes);
    let sent = || world.net.list()[0].counts().sent;
    let before = sent();
    world.wait(Duration::from_millis(2));
    assert_eq!(sent(), before + 1);
    world.wait(Duration::from_millis(20));
    assert_eq!(sent(), before + 1, "there is one acknowledgement");
}

/// A server that is not told that a packet came twice takes one for lost, and sends less at a time from then on.
#[test]
fn a_server_is_told_what_came_twice() {
    for (server, header) in [("10.0.0.2:7", 14 + 20), ("[fd00::2]:7", 14 + 40)] {
        let world = World::new(false);
        let stream = world.connect(server);
        let twice = Rc::new(RefCell::new(Vec::new()));
        let doubled = twice.clone();
        *world.mangle.borrow_mut() = Some(Box::new(move |frame| {
            if frame.bytes.len() < 1000 {
                return vec![frame];
            }
            let tcp = TcpPacket::new_unchecked(&frame.bytes[header..]);
            let first = tcp.seq_number();
            let end = first + tcp.payload().len();
            doubled.borrow_mut().push((first.0 as u32, end.0 as u32));
            vec![frame.clone(), frame]
        }));
        let told = Rc::new(RefCell::new(Vec::new()));
        let ranges = told.clone();
        *world.mangle_sent.borrow_mut() = Some(Box::new(move |frame| {
            // The host behind the backend checks the checksums, and drops what is not sound.
            let tcp = TcpPacket::new_checked(&frame.bytes[header..]).expect("a TCP packet");
            let tells = tcp.selective_ack_ranges().expect("sound options");
            ranges.borrow_mut().extend(tells.into_iter().flatten());
            vec![frame]
        }));
        let bytes = pattern(4000);
        let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), bytes.len()));
        let (received, _stream) = exchanged.expect("echoed").expect("the stream goes on");
        assert!(received == bytes);
        world.wait(Duration::from_millis(20));
        assert!(!twice.borrow().is_empty(), "nothing came twice");
        assert_eq!(*told.borrow(), *twice.borrow());
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
    let counts = world.net.list()[0].counts();
    assert_eq!(counts.damaged, 1);
    assert_eq!(counts.repeats.retransmitted, 0, "{counts:?}");
    assert!(counts.repeats.repeated > 0, "{counts:?}");
}

/// Exchanges bytes over a network that loses each packet for which `is_lost` returns true: packets to the domain, or
/// from it. Returns the number of lost packets, and of those that either end has sent again.
fn exchange_with_losses(to_domain: bool, is_lost: fn(usize) -> bool) -> (usize, Repeats) {
    let world = World::new(false);
    let stream = world.connect("10.0.0.2:7");
    let (lost, seen) = (Rc::new(Cell::new(0)), Cell::new(0));
    let losing = lost.clone();
    let lose: bulkhead_net_testing::world::Mangle = Box::new(move |frame| {
        // Of those with bytes of the stream, which are all of the largest.
        if frame.bytes.len() < 1000 {
            return vec![frame];
        }
        seen.set(seen.get() + 1);
        match is_lost(seen.get()) {
            true => losing.set(losing.get() + 1),
            false => return vec![frame],
        }
        Vec::new()
    });
    match to_domain {
        true => *world.mangle.borrow_mut() = Some(lose),
        false => *world.mangle_sent.borrow_mut() = Some(lose),
    }
    let bytes = pattern(200_000);
    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), bytes.len()));
    let (received, stream) = exchanged.expect("echoed").expect("the stream goes on");
    assert!(received == bytes);
    let Repeats {
        retransmitted,
        repeated,
    } = world.net.list()[0].counts().repeats;
    let line = world.lines();
    let shown = format!(" retransmitted={retransmitted} repeated={repeated} ");
    assert!(line.contains(&shown), "{line}");
    let repeats = world.net.list()[0].counts().repeats;
    drop(stream);
    world.end();
    (lost.get(), repeats)
}

#[test]
fn what_the_network_loses_is_sent_again_and_counted() {
    for to_domain in [false, true] {
        let (lost, repeats) = exchange_with_losses(to_domain, |_| false);
        assert_eq!((lost, repeats), (0, Repeats::default()));
        let (lost, repeats) = exchange_with_losses(to_domain, |seen| seen % 10 == 5);
        assert!(lost > 5, "{lost}");
        let (again, others) = match to_domain {
            true => (repeats.repeated, repeats.retransmitted),
            false => (repeats.retransmitted, repeats.repeated),
        };
        // The last one that is lost, if any, shows by its number, too.
        assert!(again as usize >= lost, "{lost} lost: {repeats:?}");
        assert_eq!(others, 0, "{repeats:?}");
    }
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
fn a_backend_that_takes_nothing_for_a_while_does_not_keep_the_domain_busy() {
    let world = World::new(true);
    let stream = world.connect("10.0.0.2:7");
    world.back.borrow_mut().takes_nothing = true;
    // Each is answered: nothing listens on the port. The answers fill the ring, and what comes then has to wait.
    let unwanted = Datagram {
        from: MAC,
        source: (ADDRESS, 4000),
        destination: (Ipv4Address::new(10, 0, 0, 7), 4000),
        payload: vec![7; 100],
    };
    let own = EthernetAddress([0, 0x16, 0x3e, 0, 0, 7]);
    for _ in 0..200 {
        let frame = unwanted.frame(own);
        world.back.borrow_mut().to_frontend.push_back(frame);
    }
    world.run();
    let received = world.net.list()[0].counts().received;
    assert!((100..200).contains(&received), "{received}");
    world.wait(Duration::from_secs(1));
    assert_eq!(world.net.list()[0].counts().received, received);
    // Nothing of it is lost.
    world.back.borrow_mut().takes_nothing = false;
    world.run();
    assert!(world.net.list()[0].counts().received >= 200);
    let bytes = pattern(20_000);
    let exchanged = world.within(MINUTE, exchange(stream, bytes.clone(), bytes.len()));
    let (echoed, stream) = exchanged.expect("echoed").expect("the stream goes on");
    assert!(echoed == bytes);
    drop(stream);
    world.end();
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

#[test]
fn a_connection_gets_no_port_of_one_that_is_there() {
    let world = World::new(true);
    let first = world.connect("10.0.0.2:7");
    // As many as there are ports (RFC 6335, 6), less one; each is given up at once.
    let server = Endpoint::parse("10.0.0.2:11", 7).expect("an endpoint");
    let buffers = Buffers {
        receive: 0,
        send: 0,
    };
    let choice = AddressChoice::default();
    for _ in 1..1 << 14 {
        let begun = pin!(world.net.open(&server, &choice, buffers))
            .poll(&mut Context::from_waker(Waker::noop()));
        assert!(begun.is_pending());
    }
    let second = world.connect("10.0.0.2:7");
    for stream in [first, second] {
        let exchanged = world.within(MINUTE, exchange(stream, pattern(5000), 5000));
        let (received, _) = exchanged.expect("echoed").expect("the stream goes on");
        assert!(received == pattern(5000));
    }
    world.end();
}

/// Returns the port of a domain's first connection and the number of its first byte, with that source of random numbers.
fn first_numbers(random: fn() -> u64) -> (u16, u32) {
    let world = World::with_random(false, &["ip=10.0.0.7/24"], random);
    let found = Rc::new(Cell::new(None));
    let seen = found.clone();
    // Ethernet, IPv4 without options, TCP: the answer to the first packet of a connection has the flags SYN and ACK.
    *world.mangle.borrow_mut() = Some(Box::new(move |frame| {
        let bytes = &frame.bytes;
        if bytes.len() >= 54 && bytes[12..14] == [8, 0] && bytes[23] == 6 && bytes[47] == 0x12 {
            let port = u16::from_be_bytes([bytes[36], bytes[37]]);
            let acknowledged = [bytes[42], bytes[43], bytes[44], bytes[45]];
            seen.set(Some((
                port,
                u32::from_be_bytes(acknowledged).wrapping_sub(1),
            )));
        }
        vec![frame]
    }));
    drop(world.connect("10.0.0.2:7"));
    world.end();
    found.get().expect("a connection")
}

#[test]
fn ports_and_numbers_of_connections_come_of_random_numbers() {
    let same = first_numbers(|| 0);
    assert_eq!(first_numbers(|| 0), same, "the machine has one time alone");
    let other = first_numbers(|| 0x1234_5678_9abc_def1);
    assert_ne!(other.0, same.0);
    assert_ne!(other.1, same.1);
}
