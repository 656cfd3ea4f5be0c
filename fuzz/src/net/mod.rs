//! A network backend that does as the script says, and a network in which packets are changed.

mod changes;

use crate::heap;
use bulkhead_blkback_testkit::Script;
use bulkhead_net_testing::world::{World, exchange, pattern};
use bulkhead_net_testing::{AnswerKind, Frame, Lease, MAC, Offered};
use bulkhead_stream::{AddressChoice, ConnectError, Endpoint};
use changes::{changed, changes, mend};
use smoltcp::wire::Ipv4Address;
use std::time::Duration;

/// The address of the interface, which the backend has chosen.
const OWN_MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0, 0, 7];

/// Command lines of the driver domain, as words.
const WORDS: [&[&str]; 4] = [
    &["ip=10.0.0.7/24,fd00::7/64", "dns=10.0.0.2"],
    &["ip=dhcp,fd00::7/64"],
    &["ip=10.0.0.7/24,fd00::7/64", "dns=10.0.0.2", "net-queues=3"],
    &["ip=dhcp,fd00::7/64", "net-queues=4"],
];

/// Values of the backend's node `multi-queue-max-queues`, valid and not.
const QUEUES: [&str; 6] = ["2", "8", "1", "0", "4294967296", "many"];

/// The most packets that one command of a script makes up.
const PACKETS: usize = 8;

/// The most connections at a time.
const CONNECTIONS: usize = 6;

/// Fuzzes the network frontend and stack. The input is a script for a backend and for a network.
///
/// # Panics
/// If the driver domain sends a malformed packet, if it gives an interface up whose backend has kept to the protocol,
/// if an interface that was not given up does not carry data once the network is in order, or if anything of it is left
/// in the end.
pub fn net(script: &[u8]) {
    let _heap = heap::limited(24 << 20);
    let mut script = Script::new(script);
    let (offload, words) = (script.below(2) == 0, script.pick(&WORDS));
    let offered = Offered {
        parts: offload,
        offload,
        queues: Some(QUEUES[0]),
    };
    let world = World::of(offered, words, || 0);
    world.names.borrow_mut().set("storage", &["10.0.0.2"]);
    world.dhcp.borrow_mut().answers = true;
    let (mut connecting, mut has_violated) = (Vec::new(), false);
    while !script.is_empty() {
        match script.below(18) {
            0 => world.wait(Duration::from_millis(script.number() % 5000)),
            1 => world.wait(Duration::from_secs(script.number() % 100)),
            2 => world.run(),
            3 | 4 => connect(&world, &mut connecting, &mut script),
            5..8 => mangle(&world, &mut script),
            8..11 => inject(&world, &mut script),
            11 => has_violated |= violate(&world, &mut script),
            12 => {
                let mut back = world.back.borrow_mut();
                back.stalled = !back.stalled;
            }
            13 => serve(&world, &mut script),
            14 => world.back.borrow().set_state(&world.sim, "5"),
            16 => {
                let mut back = world.back.borrow_mut();
                (back.scatters, back.violates_in) = (script.below(2) == 0, script.below(4));
            }
            17 => {
                let mut back = world.back.borrow_mut();
                back.offer_queues(&world.sim, script.pick(&QUEUES));
                back.takes_queues = 8 - script.below(8);
            }
            _ => world.peer.borrow_mut().reset(),
        }
    }
    end(world, connecting, has_violated);
}

/// A connection and its transfer: `Some` once it has ended, or failed.
type Connecting = std::rc::Rc<std::cell::RefCell<Option<()>>>;

fn connect(world: &World, connecting: &mut Vec<Connecting>, script: &mut Script<'_>) {
    connecting.retain(|one| one.borrow().is_none());
    if connecting.len() == CONNECTIONS {
        return world.run();
    }
    let server = script.pick(&[
        "10.0.0.2:7",
        "storage:7",
        "[fd00::2]:7",
        "10.0.0.2:11",
        "nobody:7",
    ]);
    let server = Endpoint::parse(server, 7).expect("an endpoint");
    let bytes = pattern(script.number() as usize % 40_000);
    let net = world.net.clone();
    connecting.push(world.start(async move {
        let buffers = bulkhead_net_testing::world::BUFFERS;
        if let Ok(stream) = net.open(&server, &AddressChoice::default(), buffers).await {
            let expected = bytes.len();
            let _ = exchange(stream, bytes, expected).await;
        }
    }));
}

/// Changes some of the packets that the domain receives from now on.
fn mangle(world: &World, script: &mut Script<'_>) {
    let (skipped, mut count) = (script.below(4), script.below(20));
    let changes = changes(script);
    let mut number = 0;
    *world.mangle.borrow_mut() = Some(Box::new(move |frame| {
        number += 1;
        if number <= skipped || count == 0 {
            return vec![frame];
        }
        count -= 1;
        changed(frame, &changes)
    }));
}

/// Sends packets to the domain that the script makes up.
fn inject(world: &World, script: &mut Script<'_>) {
    for _ in 0..=script.below(PACKETS) {
        let mut bytes = [OWN_MAC, MAC.0].concat();
        let headers: &[u8] = script.pick(&[
            // ARP: 10.0.0.2 is elsewhere.
            &[
                8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9, 10, 0, 0, 2, 0, 0x16, 0x3e, 0, 0,
                7, 10, 0, 0, 7,
            ],
            // IPv4: ICMP, TCP, UDP of DHCP, UDP of DNS, IGMP, a fragment, one with options.
            &[
                8, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 7, 8, 0,
            ],
            &[
                8, 0, 0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 7, 0, 7,
                0xc0, 1,
            ],
            &[
                8, 0, 0x45, 0, 1, 44, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 255, 255, 255, 255, 0,
                67, 0, 68, 1, 24,
            ],
            &[
                8, 0, 0x45, 0, 0, 80, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 7, 0, 53,
                0xc0, 1, 0, 60,
            ],
            &[
                8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, 2, 224, 0, 0, 1, 0x11, 0,
            ],
            &[
                8, 0, 0x45, 0, 0, 60, 0, 9, 0x20, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 7,
            ],
            &[
                8, 0, 0x4f, 0, 0, 120, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 7, 7, 39, 4,
            ],
            // IPv6: ICMP, TCP, hop-by-hop options, a fragment.
            &[
                0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 0, 2, 0xfd, 0,
            ],
            &[
                0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 6, 64, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 2, 0xfd, 0,
            ],
            &[
                0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 0, 64, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 2, 0xfd, 0,
            ],
            &[
                0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 44, 64, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 2, 0xfd, 0,
            ],
            &[],
        ]);
        bytes.extend(headers);
        if headers.starts_with(&[0x86, 0xdd]) {
            // The rest of the domain's address.
            bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        }
        let own = script.below(40);
        bytes.extend((0..own).map(|_| script.byte()));
        bytes.resize(bytes.len() + script.below(200), 0);
        let mut frame = Frame {
            bytes,
            ..Frame::default()
        };
        mend(&mut frame.bytes);
        let frames = changed(frame, &changes(script));
        world.back.borrow_mut().to_frontend.extend(frames);
    }
    world.run();
}

/// Has the backend put responses or indices into the rings that may break the protocol. Returns whether the domain may
/// give the interface up for it.
fn violate(world: &World, script: &mut Script<'_>) -> bool {
    let mut back = world.back.borrow_mut();
    if !back.is_connected() {
        return false;
    }
    match script.below(3) {
        0 => {
            let one = |script: &mut Script<'_>| {
                let id = (script.below(4) == 0).then(|| script.number() as u16);
                let offset = (script.number() as u16).to_ne_bytes();
                let flags = u16::from(script.byte() & 31).to_ne_bytes();
                let status = (script.number() as u16).to_ne_bytes();
                let bytes = [offset, flags, status].concat();
                (id, bytes.try_into().expect("six bytes"))
            };
            let all: Vec<_> = (0..=script.below(30)).map(|_| one(script)).collect();
            back.answer(&all);
        }
        1 => {
            let one =
                |script: &mut Script<'_>| (script.number() as u16, script.pick(&[0, -1, 1, -2]));
            let all: Vec<_> = (0..=script.below(8)).map(|_| one(script)).collect();
            back.answer_sent(&all);
        }
        _ => {
            let sends = script.below(2) == 0;
            back.set_index(sends, script.number() as u32);
        }
    }
    drop(back);
    world.run();
    true
}

/// Changes what the servers of DHCP and DNS answer.
fn serve(world: &World, script: &mut Script<'_>) {
    if script.below(2) == 0 {
        let answer_kind = script.pick(&[
            AnswerKind::InOrder,
            AnswerKind::Silent,
            AnswerKind::OtherName,
            AnswerKind::OtherQuestion,
            AnswerKind::Loop,
            AnswerKind::Short,
            AnswerKind::Cut(30),
        ]);
        world.names.borrow_mut().answer_kind = answer_kind;
        return;
    }
    let mut dhcp = world.dhcp.borrow_mut();
    (dhcp.answers, dhcp.refuses) = (script.below(4) != 0, script.below(4) == 0);
    let address = |script: &mut Script<'_>| Ipv4Address::from_bits(script.number() as u32);
    let some = |script: &mut Script<'_>| (script.below(2) == 0).then(|| script.number() as u32);
    dhcp.lease = Lease {
        address: match script.below(2) {
            0 => address(script),
            _ => Ipv4Address::new(10, 0, 0, 7 + script.byte() % 3),
        },
        mask: match script.below(2) {
            0 => Some(address(script)),
            _ => Some(Ipv4Address::new(255, 255, 255, 0)),
        },
        router: (script.below(2) == 0).then(|| address(script)),
        name_servers: (0..script.below(4)).map(|_| address(script)).collect(),
        seconds: some(script),
        renewal: [some(script), some(script)],
    };
}

/// Puts backend and network in order, and checks that an interface that was not given up carries data.
fn end(world: World, connecting: Vec<Connecting>, has_violated: bool) {
    *world.mangle.borrow_mut() = None;
    {
        let mut back = world.back.borrow_mut();
        (back.stalled, back.takes_queues) = (false, 8);
    }
    world.names.borrow_mut().answer_kind = AnswerKind::InOrder;
    {
        let mut dhcp = world.dhcp.borrow_mut();
        (dhcp.answers, dhcp.refuses, dhcp.lease) = (true, false, Lease::default());
    }
    if !world.back.borrow().is_connected() {
        // Closing: has the domain start over with new rings.
        world.back.borrow().set_state(&world.sim, "5");
    }
    // Long enough that the stack drops forged neighbour entries, and gives up connections that make no progress.
    world.wait(Duration::from_secs(200));
    for one in &connecting {
        assert!(
            one.borrow().is_some(),
            "a connection neither ends nor goes on: {}",
            world.lines()
        );
    }
    // The server may not know that the domain has given up connections, since the packet that says so may have been
    // lost. It serves two at a time, and so no others until these are reset.
    world.peer.borrow_mut().reset();
    let line = world.lines();
    if line.contains("given up") {
        assert!(has_violated, "{line}");
        assert_eq!(
            world.try_connect("10.0.0.2:7").err(),
            Some(ConnectError::NoNetwork)
        );
    } else if line.contains("=10.0.0.7/24") || line.contains(",10.0.0.7/24") {
        let stream = world.connect("10.0.0.2:7");
        let bytes = pattern(3000);
        let exchanged = world.within(
            Duration::from_secs(60),
            exchange(stream, bytes.clone(), 3000),
        );
        let (received, _) = exchanged.expect("echoed").expect("the stream goes on");
        assert!(received == bytes, "other bytes came back");
    }
    world.end();
}
