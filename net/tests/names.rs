//! Servers that have names.

use bulkhead_net_testing::world::BUFFERS;
use bulkhead_net_testing::world::World;
use bulkhead_net_testing::{AnswerKind, Record};
use bulkhead_stream::{AddressChoice, ConnectError, Endpoint};
use futures_util::future::join;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const WORDS: [&str; 2] = ["ip=10.0.0.7/24,fd00::7/64", "dns=10.0.0.2"];

fn world() -> World {
    World::with(true, &WORDS)
}

fn refused(world: &World, server: &str) -> Option<ConnectError> {
    world.try_connect(server).err()
}

#[test]
fn a_name_is_asked_for_at_each_connection() {
    let world = world();
    world
        .names
        .borrow_mut()
        .set("storage.example", &["10.0.0.2"]);
    drop(world.connect("Storage.example:7"));
    assert_eq!(world.names.borrow().asked.len(), 1);
    // It has moved.
    world
        .names
        .borrow_mut()
        .set("storage.example", &["10.0.0.3"]);
    assert_eq!(
        refused(&world, "storage.example:7"),
        Some(ConnectError::TimedOut)
    );
    world
        .names
        .borrow_mut()
        .set("storage.example", &["10.0.0.4"]);
    drop(world.connect("storage.example:7"));
    assert_eq!(world.names.borrow().asked.len(), 3);
    world.end();
}

#[test]
fn an_alias_leads_to_an_address() {
    let world = world();
    let alias = |name: &str| vec![Record::Alias(name.to_string())];
    {
        let mut names = world.names.borrow_mut();
        names
            .records
            .insert("a.example".to_string(), alias("B.Example"));
        names
            .records
            .insert("b.example".to_string(), alias("c.other.example"));
        names.set("c.other.example", &["10.0.0.2"]);
        names
            .records
            .insert("nowhere".to_string(), alias("d.example"));
    }
    drop(world.connect("a.example:7"));
    assert_eq!(refused(&world, "nowhere:7"), Some(ConnectError::NoAddress));
    world.end();
}

#[test]
fn each_of_several_addresses_is_tried() {
    let world = world();
    world
        .names
        .borrow_mut()
        .set("storage", &["10.0.0.3", "10.1.0.2", "10.0.0.4"]);
    drop(world.connect("storage:7"));
    // The first one is not there, and the second one cannot be reached.
    world
        .names
        .borrow_mut()
        .set("storage", &["10.0.0.3", "10.1.0.2"]);
    assert_eq!(refused(&world, "storage:7"), Some(ConnectError::TimedOut));
    world.names.borrow_mut().set("storage", &["10.1.0.2"]);
    assert_eq!(
        refused(&world, "storage:7"),
        Some(ConnectError::Unreachable)
    );
    world.end();
}

#[test]
fn a_caller_that_gives_up_gets_to_the_next_address() {
    let world = world();
    world
        .names
        .borrow_mut()
        .set("storage", &["10.0.0.3", "10.0.0.4"]);
    let server = |text: &str| Endpoint::parse(text, 7).expect("an endpoint");
    let choices = [(); 2].map(|()| Rc::new(AddressChoice::default()));
    let connect = |server: Endpoint, choice: &Rc<AddressChoice>| {
        let (net, choice) = (world.net.clone(), choice.clone());
        async move { net.open(&server, &choice, BUFFERS).await.is_ok() }
    };
    let connected = Rc::new(Cell::new(false));
    for _ in 0..2 {
        // Another caller, whose server is not there, tries as often.
        let other = connect(server("10.0.0.9:7"), &choices[1]);
        let connecting = connect(server("storage:7"), &choices[0]);
        let told = connected.clone();
        let both = join(async move { told.set(connecting.await) }, other);
        let ended = world.within(Duration::from_secs(5), both);
        assert_eq!(ended, None, "the other one is never there");
    }
    assert!(connected.get());
    world.end();
}

#[test]
fn an_address_of_ipv6_is_found_where_there_is_no_other() {
    let world = world();
    world.names.borrow_mut().set("six", &["fd00::2"]);
    world
        .names
        .borrow_mut()
        .set("both", &["10.1.0.2", "fd00::2"]);
    drop(world.connect("six:7"));
    drop(world.connect("both:7"));
    world.end();
}

#[test]
fn a_name_that_is_not_there_is_refused_at_once() {
    let world = world();
    world.names.borrow_mut().set("empty", &[]);
    let begun = world.sim.now();
    let long = format!("{}.example:7", "a".repeat(64));
    for name in ["nobody:7", "empty:7", "a..b:7", &long] {
        assert_eq!(
            refused(&world, name),
            Some(ConnectError::NoAddress),
            "{name}"
        );
    }
    assert!(world.sim.now().since(begun) < Duration::from_secs(1));
    world.end();
}

#[test]
fn a_name_server_that_is_silent_is_told_and_the_next_one_is_asked() {
    let world = World::with(true, &["ip=10.0.0.7/24", "dns=10.0.0.2,10.0.0.4"]);
    world.names.borrow_mut().set("storage", &["10.0.0.2"]);
    world.names.borrow_mut().silent_at = vec!["10.0.0.2".parse().expect("an address")];
    let begun = world.sim.now();
    drop(world.connect("storage:7"));
    assert!(world.sim.now().since(begun) < Duration::from_secs(5));
    // From now on it is the first one.
    let begun = world.sim.now();
    drop(world.connect("storage:7"));
    assert!(world.sim.now().since(begun) < Duration::from_secs(1));
    world.names.borrow_mut().answer_kind = AnswerKind::Silent;
    let begun = world.sim.now();
    assert_eq!(
        refused(&world, "storage:7"),
        Some(ConnectError::NameServerSilent)
    );
    assert!(world.sim.now().since(begun) < Duration::from_secs(8));
    world.end();
    let world = World::with(true, &["ip=10.0.0.7/24", "dns=10.1.0.2"]);
    assert_eq!(
        refused(&world, "storage:7"),
        Some(ConnectError::NameServerSilent)
    );
    world.end();
    let world = World::with(true, &["ip=10.0.0.7/24"]);
    assert_eq!(
        refused(&world, "storage:7"),
        Some(ConnectError::NoNameServer)
    );
    world.end();
}

#[test]
fn connections_at_the_same_time_ask_the_next_name_server_too() {
    for count in 2..5 {
        let world = World::with(true, &["ip=10.0.0.7/24", "dns=10.0.0.2,10.0.0.4"]);
        world.names.borrow_mut().set("storage", &["10.0.0.2"]);
        world.names.borrow_mut().silent_at = vec!["10.0.0.2".parse().expect("an address")];
        let connecting: Vec<_> = (0..count)
            .map(|_| {
                let net = world.net.clone();
                world.start(async move {
                    let server = Endpoint::parse("storage:9", 7).expect("an endpoint");
                    let choice = AddressChoice::default();
                    let stream = net.open(&server, &choice, BUFFERS).await;
                    // One of them is enough for the server.
                    !matches!(stream.err(), Some(ConnectError::NameServerSilent))
                })
            })
            .collect();
        world.wait(Duration::from_secs(20));
        for one in connecting {
            assert_eq!(*one.borrow(), Some(true), "{count} at once");
        }
        world.end();
    }
}

#[test]
fn an_answer_from_where_nobody_was_asked_is_not_believed() {
    let world = world();
    world.names.borrow_mut().set("storage", &["10.0.0.2"]);
    for (address, port) in [("10.0.0.9", 53), ("10.0.0.9", 5353), ("10.0.0.2", 5353)] {
        let address = address.parse().expect("an address");
        world.names.borrow_mut().answers_from = Some((address, port));
        assert_eq!(
            refused(&world, "storage:7"),
            Some(ConnectError::NameServerSilent),
            "{address}:{port}"
        );
    }
    world.names.borrow_mut().answers_from = None;
    drop(world.connect("storage:7"));
    world.end();
}

#[test]
fn the_numbers_of_questions_are_random() {
    let numbers = |random: fn() -> u64| {
        let world = World::with_random(false, &WORDS, random);
        world.names.borrow_mut().set("storage", &["10.0.0.2"]);
        drop(world.connect("storage:7"));
        world.wait(Duration::from_millis(1));
        drop(world.connect("storage:7"));
        let numbers = world.names.borrow().numbers.clone();
        world.end();
        numbers
    };
    let [zeros, ones] = [numbers(|| 0), numbers(|| !0)];
    assert_eq!(zeros.len(), 2);
    // Those of a machine without a source of random numbers are no constants.
    assert_ne!(zeros[0], zeros[1]);
    for (zero, one) in zeros.iter().zip(&ones) {
        // No bit of a number is known from the time alone, and the ports differ.
        assert_eq!(zero.0, !one.0);
        assert_ne!(zero.1, one.1);
    }
}

#[test]
fn a_name_server_that_cannot_tell_is_followed_by_the_next_one() {
    let at = |text: &str| text.parse().expect("an address");
    for code in [1, 2, 4, 5] {
        let world = World::with(true, &["ip=10.0.0.7/24", "dns=10.0.0.2,10.0.0.4"]);
        world.names.borrow_mut().set("storage", &["10.0.0.2"]);
        world.names.borrow_mut().fails_at = vec![(at("10.0.0.2"), code)];
        drop(world.connect("storage:7"));
        world
            .names
            .borrow_mut()
            .fails_at
            .push((at("10.0.0.4"), code));
        assert_eq!(
            refused(&world, "storage:7"),
            Some(ConnectError::NameServerFails),
            "{code}"
        );
        // What is known for sure is not asked for again.
        world.names.borrow_mut().fails_at.clear();
        let before = world.names.borrow().asked.len();
        assert_eq!(refused(&world, "nobody:7"), Some(ConnectError::NoAddress));
        assert_eq!(world.names.borrow().asked.len() - before, 2);
        world.end();
    }
}

#[test]
fn a_name_server_that_violates_the_protocol_gives_no_address() {
    for answer_kind in [
        AnswerKind::OtherName,
        AnswerKind::OtherQuestion,
        AnswerKind::Loop,
        AnswerKind::Short,
        AnswerKind::Cut(0),
        AnswerKind::Cut(11),
        AnswerKind::Cut(20),
        AnswerKind::Cut(40),
    ] {
        let world = world();
        world.names.borrow_mut().set("storage", &["10.0.0.2"]);
        world.names.borrow_mut().answer_kind = answer_kind;
        let error = refused(&world, "storage:7");
        let told = matches!(
            error,
            Some(ConnectError::NoAddress | ConnectError::NameServerSilent)
        );
        assert!(told, "{answer_kind:?}: {error:?}");
        world.names.borrow_mut().answer_kind = AnswerKind::InOrder;
        drop(world.connect("storage:7"));
        world.end();
    }
    let world = world();
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "255.255.255.255",
        "224.0.0.1",
        "::1",
        "ff02::1",
    ] {
        world.names.borrow_mut().set("storage", &[address]);
        assert_eq!(
            refused(&world, "storage:7"),
            Some(ConnectError::NoAddress),
            "{address}"
        );
    }
    world.end();
}
