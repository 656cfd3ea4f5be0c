//! Packets that say that a connection is over, and that its server has not sent.

use bulkhead_net_testing::world::{Mangle, TestStream, World, end_of, exchange, pattern};
use bulkhead_net_testing::{ADDRESS, Frame, MAC, SECOND};
use bulkhead_stream::Ended;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const OWN: Ipv4Address = Ipv4Address::new(10, 0, 0, 7);

/// A packet without data.
#[derive(Clone, Copy)]
struct Forgery {
    from: (Ipv4Address, u16),
    to: u16,
    control: TcpControl,
    number: TcpSeqNumber,
    acknowledges: Option<TcpSeqNumber>,
}

impl Forgery {
    /// Has the network deliver the packet to the domain.
    fn send(&self, world: &World) {
        let frame = self.frame();
        world.back.borrow_mut().to_frontend.push_back(frame);
        world.run();
    }

    fn frame(&self) -> Frame {
        let tcp = TcpRepr {
            src_port: self.from.1,
            dst_port: self.to,
            control: self.control,
            seq_number: self.number,
            ack_number: self.acknowledges,
            window_len: 1000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let ip = Ipv4Repr {
            src_addr: self.from.0,
            dst_addr: OWN,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let ethernet = EthernetRepr {
            src_addr: MAC,
            dst_addr: EthernetAddress([0, 0x16, 0x3e, 0, 0, 7]),
            ethertype: EthernetProtocol::Ipv4,
        };
        let sums = ChecksumCapabilities::default();
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &sums);
        let ends = (self.from.0.into(), OWN.into());
        tcp.emit(
            &mut TcpPacket::new_unchecked(packet.payload_mut()),
            &ends.0,
            &ends.1,
            &sums,
        );
        Frame {
            bytes,
            ..Frame::default()
        }
    }
}

/// Returns a function that calls `look` with each packet of a connection that the domain sends.
fn looking(mut look: impl FnMut(&TcpPacket<&[u8]>) + 'static) -> Mangle {
    Box::new(move |frame| {
        let ethernet = EthernetFrame::new_unchecked(&frame.bytes[..]);
        if ethernet.ethertype() == EthernetProtocol::Ipv4 {
            let ip = Ipv4Packet::new_unchecked(ethernet.payload());
            if ip.next_header() == IpProtocol::Tcp {
                look(&TcpPacket::new_unchecked(ip.payload()));
            }
        }
        vec![frame]
    })
}

/// Connects to a server, and returns the packet by which it would end the connection in order.
fn connected(world: &World, port: u16) -> (TestStream, Forgery) {
    let seen = Rc::new(Cell::new(None));
    let last = seen.clone();
    *world.mangle_sent.borrow_mut() = Some(looking(move |tcp| {
        let ends = tcp.ack().then(|| (tcp.src_port(), tcp.ack_number()));
        last.set(ends.or(last.get()));
    }));
    let stream = world.connect(&format!("10.0.0.2:{port}"));
    let back = if port == 7 { 1000 } else { 0 };
    let exchanged = world.within(MINUTE, exchange(stream, pattern(1000), back));
    let (_, stream) = exchanged.expect("in time").expect("the stream goes on");
    world.wait(Duration::from_secs(1));
    *world.mangle_sent.borrow_mut() = None;
    let (to, number) = seen.get().expect("it has acknowledged");
    let ends = Forgery {
        from: (ADDRESS, port),
        to,
        control: TcpControl::Rst,
        number,
        acknowledges: None,
    };
    (stream, ends)
}

#[test]
fn a_reset_ends_a_stream_only_if_it_has_the_very_next_number() {
    for (after, ends) in [(0, true), (1, false), (1000, false), (60_000, false)] {
        let world = World::new(false);
        let (stream, reset) = connected(&world, 7);
        let forged = Forgery {
            number: reset.number + after,
            ..reset
        };
        forged.send(&world);
        if ends {
            let ended = world.within(MINUTE, end_of(stream));
            assert_eq!(ended, Some(Ended::Reset), "{after}");
        } else {
            let exchanged = world.within(MINUTE, exchange(stream, pattern(5000), 5000));
            let (_, stream) = exchanged.expect("echoed").expect("the stream goes on");
            drop(stream);
        }
        world.end();
    }
}

#[test]
fn a_server_that_has_lost_a_connection_ends_it_although_packets_of_its_are_missing() {
    let world = World::new(false);
    let (stream, _) = connected(&world, 7);
    // The first of its packets is lost, as often as it is sent; those behind it arrive.
    let lost = Cell::new(None);
    *world.mangle.borrow_mut() = Some(Box::new(move |frame| {
        if frame.bytes.len() < 1000 {
            return vec![frame];
        }
        let number = TcpPacket::new_unchecked(&frame.bytes[14 + 20..]).seq_number();
        lost.set(lost.get().or(Some(number)));
        if lost.get() == Some(number) {
            return Vec::new();
        }
        vec![frame]
    }));
    let exchanging = world.start(exchange(stream, pattern(50_000), 50_000));
    world.wait(Duration::from_millis(5));
    assert!(exchanging.borrow().is_none());
    // Its reset is lost as well.
    *world.mangle.borrow_mut() = Some(Box::new(|_| Vec::new()));
    world.peer.borrow_mut().reset();
    world.run();
    *world.mangle.borrow_mut() = None;
    world.wait(MINUTE / 2);
    let ended = exchanging.take().expect("it ends").map(drop);
    assert_eq!(ended, Err(Ended::Reset));
    world.end();
}

#[test]
fn what_others_send_does_not_hide_that_a_server_has_a_connection() {
    for control in [TcpControl::Rst, TcpControl::Fin] {
        for from in [(SECOND, 9), (ADDRESS, 8)] {
            let world = World::new(false);
            let (stream, reset) = connected(&world, 9);
            let forged = Forgery {
                from,
                control,
                acknowledges: Some(TcpSeqNumber(0)),
                ..reset
            };
            forged.send(&world);
            // The server is not told that the connection was given up, and accepts one at a time.
            *world.mangle_sent.borrow_mut() = Some(Box::new(|_| Vec::new()));
            drop(stream);
            world.wait(Duration::from_secs(1));
            *world.mangle_sent.borrow_mut() = None;
            let again = world.try_connect("10.0.0.2:9");
            assert!(again.is_ok(), "{control:?} {from:?}: {:?}", again.err());
            drop(again);
            world.end();
        }
    }
}
