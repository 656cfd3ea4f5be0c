//! The Ethernet addresses of hosts in the network, which are asked for.

use bulkhead_net_testing::world::{BUFFERS, TestStream, World, exchange, pattern, states};
use bulkhead_net_testing::{Frame, Record};
use bulkhead_stream::{AddressChoice, ConnectError, Endpoint};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Ipv4Address,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// A time in which anything is done that nobody waits for.
const AT_ONCE: Duration = Duration::from_millis(300);

/// Returns the question of a host in the network for the domain's address.
fn question(host: u8) -> Frame {
    let from = EthernetAddress([2, 0, 0, 0, 1, host]);
    let frame = EthernetRepr {
        src_addr: from,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: from,
        source_protocol_addr: Ipv4Address::new(10, 0, 0, host),
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: Ipv4Address::new(10, 0, 0, 7),
    };
    let mut bytes = vec![0; frame.buffer_len() + question.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.emit(&mut ethernet);
    question.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
    Frame {
        bytes,
        ..Frame::default()
    }
}

/// Returns the host that a frame asks for, if it asks for one.
fn asked_for(frame: &Frame) -> Option<Ipv4Address> {
    let ethernet = EthernetFrame::new_checked(&frame.bytes[..]).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    let packet = ArpPacket::new_checked(ethernet.payload()).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    Some(target_protocol_addr)
}

/// Notes the hosts that the domain asks for from now on.
fn note_questions(world: &World) -> Rc<RefCell<Vec<Ipv4Address>>> {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let noted = asked.clone();
    *world.mangle_sent.borrow_mut() = Some(Box::new(move |frame| {
        noted.borrow_mut().extend(asked_for(&frame));
        vec![frame]
    }));
    asked
}

type Opened = Rc<RefCell<Option<Result<TestStream, ConnectError>>>>;

/// Begins to connect to each of the servers.
fn begin(world: &World, servers: &[&str]) -> Vec<Opened> {
    let open = |server: &&str| {
        let server = Endpoint::parse(server, 7).expect("an endpoint");
        let net = world.net.clone();
        world.start(async move { net.open(&server, &AddressChoice::default(), BUFFERS).await })
    };
    servers.iter().map(open).collect()
}

/// Takes the streams, which are all connected.
fn connected(opened: Vec<Opened>) -> Vec<TestStream> {
    let all = opened.into_iter().map(|one| one.take());
    all.map(|one| one.expect("connected in time").expect("connected"))
        .collect()
}

/// The addresses of the host, each of which is another server's for the domain.
const SERVERS: [&str; 3] = ["10.0.0.2:7", "10.0.0.4:9", "[fd00::2]:7"];

#[test]
fn servers_at_several_addresses_are_connected_to_at_once() {
    let world = World::new(true);
    let opened = begin(&world, &SERVERS);
    world.wait(AT_ONCE);
    drop(connected(opened));
    world.end();
}

#[test]
fn servers_are_found_at_once_after_the_backend_was_restarted() {
    let world = World::new(true);
    let opened = begin(&world, &SERVERS);
    world.wait(4 * MINUTE / 60);
    let streams = connected(opened);
    world.back.borrow().set_state(&world.sim, "5");
    world.wait(Duration::from_millis(50));
    assert_eq!(world.states(), states("4", "4"));
    let exchanging: Vec<_> = streams
        .into_iter()
        .zip(SERVERS)
        .map(|(stream, server)| {
            // Port 9 sends nothing back, and takes everything.
            let (len, back) = if server.ends_with('7') {
                (5000, 5000)
            } else {
                (60_000, 0)
            };
            world.start(exchange(stream, pattern(len), back))
        })
        .collect();
    world.wait(AT_ONCE);
    for one in exchanging {
        let (_, stream) = one.take().expect("in time").expect("the stream goes on");
        drop(stream);
    }
    assert_eq!(world.peer.borrow().taken.len(), 60_000);
    world.end();
}

#[test]
fn a_question_that_is_lost_is_asked_again_for_all_servers() {
    let world = World::new(true);
    *world.mangle_sent.borrow_mut() = Some(Box::new(|_| Vec::new()));
    let opened = begin(&world, &SERVERS);
    world.wait(Duration::from_millis(10));
    *world.mangle_sent.borrow_mut() = None;
    world.wait(Duration::from_secs(1) + AT_ONCE);
    drop(connected(opened));
    world.end();
}

#[test]
fn hosts_that_do_not_answer_are_asked_for_a_bounded_number_of_times() {
    let world = World::new(true);
    let asked = note_questions(&world);
    let names: Vec<_> = (100..250).map(|host| format!("10.0.0.{host}:7")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let opened = begin(&world, &names);
    world.wait(Duration::from_millis(10));
    let first = asked.borrow().len();
    assert!((60..=70).contains(&first), "{first} questions at first");
    world.wait(MINUTE);
    assert!(opened.iter().all(|one| one.borrow().is_some()));
    let all = asked.borrow().len();
    assert!(all < 600, "{all} questions");
    // Nobody asks any more.
    world.wait(MINUTE);
    assert_eq!(asked.borrow().len(), all);
    drop(opened);
    world.end();
}

#[test]
fn a_gateway_and_a_name_server_are_asked_for_while_another_host_is() {
    let world = World::with(
        true,
        &["ip=10.0.0.7/24", "gateway=10.0.0.1", "dns=10.0.0.4"],
    );
    world.names.borrow_mut().records.insert(
        "storage".into(),
        vec![Record::Address([10, 0, 0, 2].into())],
    );
    let asked = note_questions(&world);
    let opened = begin(&world, &["10.0.0.3:7", "10.1.0.2:7", "storage:7"]);
    world.wait(AT_ONCE);
    let asked = asked.borrow();
    for host in [1, 2, 3, 4] {
        assert!(
            asked.contains(&Ipv4Address::new(10, 0, 0, host)),
            "{asked:?}"
        );
    }
    let stream = opened[2].take().expect("connected in time");
    drop(stream.expect("connected"));
    drop(asked);
    world.wait(MINUTE);
    world.end();
}

#[test]
fn hosts_that_ask_for_the_domain_do_not_hold_up_a_stream() {
    let world = World::new(true);
    let mut stream = world.connect("10.0.0.2:7");
    let begun = world.sim.now();
    for _ in 0..3 {
        for host in 20..60 {
            let question = question(host);
            world.back.borrow_mut().to_frontend.push_back(question);
            world.run();
        }
        let exchanged = world.within(MINUTE, exchange(stream, pattern(5000), 5000));
        (_, stream) = exchanged.expect("echoed").expect("the stream goes on");
    }
    assert!(world.sim.now().since(begun) < AT_ONCE);
    drop(stream);
    world.end();
}
