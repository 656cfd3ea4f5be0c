//! Addresses that a DHCP server gives.

use bulkhead_net_testing::world::{World, end_of, exchange, pattern, states};
use bulkhead_net_testing::{ADDRESS, Datagram, Lease};
use bulkhead_stream::{ConnectError, Ended};
use smoltcp::wire::{
    DhcpMessageType, EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Address,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const SERVER: &str = "10.0.0.2:7";

/// Returns a machine that gets its address from a DHCP server, if one answers.
fn world(answers: bool) -> World {
    let world = World::with(true, &["ip=dhcp"]);
    world.dhcp.borrow_mut().answers = answers;
    world
}

fn addresses(world: &World) -> String {
    let own = world.net.list()[0].addresses();
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    own.join(",")
}

fn asked(world: &World, kind: DhcpMessageType) -> usize {
    world.dhcp.borrow().asked_for(kind)
}

#[test]
fn a_server_gives_an_address_and_it_is_renewed() {
    let world = world(true);
    world.wait(5 * SECOND);
    assert_eq!(addresses(&world), "10.0.0.7/24");
    let stream = world.connect(SERVER);
    assert_eq!(asked(&world, DhcpMessageType::Request), 1);
    world.wait(Duration::from_secs(7200));
    // After half of the hour each time, of the server alone.
    assert_eq!(
        asked(&world, DhcpMessageType::Discover),
        2,
        "one without an answer"
    );
    let renewed = world.dhcp.borrow().asked.clone();
    let own = Ipv4Address::new(10, 0, 0, 7);
    assert!(
        (4..=5).contains(&asked(&world, DhcpMessageType::Request)),
        "{renewed:?}"
    );
    assert!(
        renewed[3..]
            .iter()
            .all(|asked| *asked == (DhcpMessageType::Request, own))
    );
    let exchanged = world.within(SECOND, exchange(stream, pattern(5000), 5000));
    assert!(exchanged.expect("echoed").is_ok());
    world.end();
}

#[test]
fn a_server_that_comes_later_is_found() {
    let world = world(false);
    world.wait(Duration::from_secs(60));
    assert!((10..=20).contains(&asked(&world, DhcpMessageType::Discover)));
    let refused = world.try_connect(SERVER).map(drop);
    assert_eq!(refused, Err(ConnectError::NoLease));
    let refused = world.try_connect("storage").map(drop);
    assert_eq!(refused, Err(ConnectError::NoLease));
    let line = world.lines();
    assert!(
        line.contains(" up, without an address of a DHCP server,"),
        "{line}"
    );
    world.dhcp.borrow_mut().answers = true;
    world.wait(5 * SECOND);
    assert_eq!(addresses(&world), "10.0.0.7/24");
    assert!(
        world.lines().contains(" up, addresses=10.0.0.7/24"),
        "{}",
        world.lines()
    );
    drop(world.connect(SERVER));
    world.end();
}

#[test]
fn an_address_that_is_given_no_longer_ends_its_streams() {
    let world = world(true);
    world.dhcp.borrow_mut().lease.seconds = Some(600);
    world.wait(5 * SECOND);
    let stream = world.connect(SERVER);
    world.dhcp.borrow_mut().answers = false;
    world.wait(Duration::from_secs(590));
    assert_eq!(
        addresses(&world),
        "10.0.0.7/24",
        "it is its own for ten minutes"
    );
    let ended = world.start(end_of(stream));
    assert!(ended.borrow().is_none());
    world.wait(Duration::from_secs(20));
    assert_eq!(addresses(&world), "");
    assert_eq!(ended.take(), Some(Ended::AddressLost));
    assert_eq!(
        world.try_connect(SERVER).map(drop),
        Err(ConnectError::NoLease)
    );
    world.dhcp.borrow_mut().answers = true;
    world.wait(5 * SECOND);
    drop(world.connect(SERVER));
    world.end();
}

#[test]
fn a_server_that_gives_another_address_ends_the_streams_from_the_old_one() {
    let world = world(true);
    world.wait(5 * SECOND);
    let ended = world.start(end_of(world.connect(SERVER)));
    world.dhcp.borrow_mut().lease.address = Ipv4Address::new(10, 0, 0, 9);
    world.wait(Duration::from_secs(1790));
    assert!(ended.borrow().is_none());
    world.wait(Duration::from_secs(20));
    assert_eq!(addresses(&world), "10.0.0.9/24");
    assert_eq!(ended.take(), Some(Ended::AddressLost));
    drop(world.connect(SERVER));
    world.end();
}

#[test]
fn a_refusal_begins_anew() {
    let world = world(true);
    world.dhcp.borrow_mut().refuses = true;
    world.wait(Duration::from_secs(20));
    assert_eq!(addresses(&world), "");
    let tries = asked(&world, DhcpMessageType::Request);
    assert!((1..=20).contains(&tries), "{tries} requests in 20 seconds");
    world.dhcp.borrow_mut().refuses = false;
    world.wait(5 * SECOND);
    assert_eq!(addresses(&world), "10.0.0.7/24");
    // The same for an address that it had.
    let ended = world.start(end_of(world.connect(SERVER)));
    world.dhcp.borrow_mut().refuses = true;
    world.wait(Duration::from_secs(1805));
    assert_eq!(addresses(&world), "");
    assert_eq!(ended.take(), Some(Ended::AddressLost));
    world.end();
}

#[test]
fn an_address_outlasts_the_backend() {
    let world = world(true);
    world.wait(5 * SECOND);
    let stream = world.connect(SERVER);
    world.dhcp.borrow_mut().answers = false;
    world.back.borrow().set_state(&world.sim, "5");
    world.wait(5 * SECOND);
    assert_eq!(world.states(), states("4", "4"));
    assert_eq!(addresses(&world), "10.0.0.7/24");
    let exchanged = world.within(10 * SECOND, exchange(stream, pattern(5000), 5000));
    assert!(exchanged.expect("echoed").is_ok());
    world.end();
}

#[test]
fn what_a_server_gives_is_checked() {
    type Change = fn(&mut Lease);
    let address = |a, b, c, d| Some(Ipv4Address::new(a, b, c, d));
    let of_no_use: [(&str, Change); 9] = [
        ("everybody's", |lease| {
            lease.address = Ipv4Address::BROADCAST
        }),
        ("nobody's", |lease| lease.address = Ipv4Address::UNSPECIFIED),
        ("a group's", |lease| {
            lease.address = Ipv4Address::new(224, 0, 0, 1)
        }),
        ("its own", |lease| {
            lease.address = Ipv4Address::new(127, 0, 0, 1)
        }),
        ("reserved", |lease| {
            lease.address = Ipv4Address::new(240, 0, 0, 1)
        }),
        ("the network's", |lease| {
            lease.address = Ipv4Address::new(10, 0, 0, 0)
        }),
        ("all of the network's", |lease| {
            lease.address = Ipv4Address::new(10, 0, 0, 255)
        }),
        ("without a mask", |lease| lease.mask = None),
        ("of everything", |lease| {
            lease.mask = Some(Ipv4Address::UNSPECIFIED)
        }),
    ];
    for (what, change) in of_no_use {
        let world = world(true);
        change(&mut world.dhcp.borrow_mut().lease);
        world.wait(Duration::from_secs(60));
        assert_eq!(addresses(&world), "", "{what}");
        assert!(asked(&world, DhcpMessageType::Discover) < 30, "{what}");
        world.end();
    }
    let world = world(true);
    let odd = address(255, 0, 255, 0);
    world.dhcp.borrow_mut().lease.mask = odd;
    world.wait(5 * SECOND);
    assert_eq!(addresses(&world), "", "a mask with a hole");
    world.end();
    // What is wrong beside a good address is left out.
    let world = self::world(true);
    world.dhcp.borrow_mut().lease = Lease {
        router: address(255, 255, 255, 255),
        name_servers: vec![Ipv4Address::UNSPECIFIED, Ipv4Address::new(127, 0, 0, 1)],
        renewal: [Some(u32::MAX), Some(0)],
        seconds: Some(u32::MAX),
        ..Lease::default()
    };
    world.wait(5 * SECOND);
    assert_eq!(addresses(&world), "10.0.0.7/24");
    assert_eq!(
        world.try_connect("10.1.0.2:7").map(drop),
        Err(ConnectError::Unreachable)
    );
    assert_eq!(
        world.try_connect("storage").map(drop),
        Err(ConnectError::NoNameServer)
    );
    drop(world.connect(SERVER));
    world.end();
}

#[test]
fn a_server_cannot_keep_the_domain_busy() {
    for (seconds, renewal) in [
        (0, [None, None]),
        (1, [Some(0), Some(0)]),
        (1_000_000, [Some(0), Some(1)]),
        (u32::MAX, [Some(0), Some(1)]),
    ] {
        let world = world(true);
        world.dhcp.borrow_mut().lease.seconds = Some(seconds);
        world.dhcp.borrow_mut().lease.renewal = renewal;
        world.wait(Duration::from_secs(100));
        let asked = world.dhcp.borrow().asked.len();
        assert!(
            asked < 500,
            "{asked} questions in 100 seconds for {seconds}, {renewal:?}"
        );
        world.end();
    }
}

#[test]
fn answers_that_make_no_sense_are_not_believed() {
    type Forgery = fn(&mut Vec<u8>);
    let forgeries: [(&str, Forgery); 6] = [
        ("cut off", |bytes| bytes.truncate(200)),
        ("without options", |bytes| bytes.truncate(240)),
        ("nothing", Vec::clear),
        ("an option that is longer than the packet", |bytes| {
            bytes[241] = 255
        }),
        ("another transaction", |bytes| bytes[4] ^= 1),
        ("another client's", |bytes| bytes[33] ^= 1),
    ];
    for (what, forgery) in forgeries {
        let world = world(true);
        world.dhcp.borrow_mut().forge(forgery);
        world.wait(Duration::from_secs(20));
        assert_eq!(addresses(&world), "", "{what}");
        world.dhcp.borrow_mut().forge(|_| {});
        world.wait(5 * SECOND);
        assert_eq!(addresses(&world), "10.0.0.7/24", "{what}");
        world.end();
    }
}

/// Has other hosts send that many forged answers, to a question that was not asked.
fn send_forgeries(world: &World, count: u32) {
    let own = EthernetAddress([0, 0x16, 0x3e, 0, 0, 7]);
    let mut payload = vec![0; 300];
    payload[..3].copy_from_slice(&[2, 1, 6]);
    payload[28..34].copy_from_slice(own.as_bytes());
    for number in 0..count {
        payload[4..8].copy_from_slice(&number.to_be_bytes());
        let forgery = Datagram {
            from: EthernetAddress([2, 0, 0, 0, 0, 9]),
            source: (Ipv4Address::new(10, 0, 0, 9), 67),
            destination: (Ipv4Address::new(10, 0, 0, 7), 68),
            payload: payload.clone(),
        };
        let mut back = world.back.borrow_mut();
        back.to_frontend.push_back(forgery.frame(own));
    }
    world.run();
}

#[test]
fn forged_answers_keep_the_servers_own_from_nobody() {
    let world = World::with(true, &["ip=dhcp"]);
    world.dhcp.borrow_mut().lease.seconds = Some(600);
    world.dhcp.borrow_mut().answers = true;
    let stream = {
        // Also the first address comes.
        for _ in 0..50 {
            send_forgeries(&world, 20);
            world.wait(SECOND / 10);
        }
        assert_eq!(addresses(&world), "10.0.0.7/24");
        world.connect(SERVER)
    };
    let ended = world.start(end_of(stream));
    // The address is renewed after five minutes, and would be lost after ten.
    for _ in 0..700 {
        send_forgeries(&world, 20);
        world.wait(SECOND);
        assert_eq!(addresses(&world), "10.0.0.7/24");
    }
    assert!(ended.borrow().is_none());
    assert_eq!(asked(&world, DhcpMessageType::Discover), 2);
    world.end();
}

/// Returns the hosts in the network for which the domain asks when it connects to a server elsewhere.
fn ways_to_elsewhere(words: &[&str], router: [u8; 4]) -> Vec<Ipv4Address> {
    let world = World::with(true, words);
    world.dhcp.borrow_mut().lease.router = Some(router.into());
    world.dhcp.borrow_mut().answers = true;
    world.wait(5 * SECOND);
    let asked = Rc::new(RefCell::new(Vec::new()));
    let noted = asked.clone();
    *world.mangle_sent.borrow_mut() = Some(Box::new(move |frame| {
        let ethernet = EthernetFrame::new_unchecked(&frame.bytes[..]);
        if ethernet.ethertype() == EthernetProtocol::Arp {
            let target: [u8; 4] = ethernet.payload()[24..28].try_into().expect("four");
            noted.borrow_mut().push(Ipv4Address::from(target));
        }
        vec![frame]
    }));
    let refused = world.try_connect("10.1.0.2:7").map(drop);
    assert_eq!(refused, Err(ConnectError::TimedOut));
    world.end();
    let mut asked = asked.take();
    asked.retain(|host| *host != ADDRESS);
    asked.dedup();
    asked
}

#[test]
fn the_operators_gateway_is_used_before_that_of_a_server() {
    let server = Ipv4Address::new(10, 0, 0, 1);
    let own = Ipv4Address::new(10, 0, 0, 9);
    let found = ways_to_elsewhere(&["ip=dhcp"], server.octets());
    assert_eq!(found, [server]);
    let found = ways_to_elsewhere(&["ip=dhcp", "gateway=10.0.0.9"], server.octets());
    assert_eq!(found, [own]);
    // One for the other kind of addresses says nothing of these.
    let found = ways_to_elsewhere(&["ip=dhcp", "gateway=fd00::1"], server.octets());
    assert_eq!(found, [server]);
}
