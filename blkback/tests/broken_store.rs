//! A xenstored that sends nonsense, refuses what the whole backend needs, or is gone: connected disks do
//! without it.

use bulkhead_blkback::control::{ShutdownRequest, shutdown_requested};
use bulkhead_blkback_testkit::{Bystander, Guest, IMAGE_SIZE, World, content};
use bulkhead_ring::{Index, RingMemory, SharedPages};
use bulkhead_xen::abi::xs_wire::{Header, MessageType, Refusal, RequestId, TransactionId};
use bulkhead_xenbus::XenbusState;
use bulkhead_xenbus::retry::persist;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

fn message(kind: u32, request: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        message_type: MessageType(kind),
        request: RequestId(request),
        transaction: TransactionId::NONE,
        length: payload.len() as u32,
    };
    [&header.to_bytes()[..], payload].concat()
}

/// Returns the number of log lines with this text.
fn lines_with(world: &World, text: &str) -> usize {
    let lines = world.journal();
    lines.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn messages_that_make_no_sense_are_skipped() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for round in 0..20 {
        for rubbish in [
            message(MessageType::WATCH_EVENT.0, 0, b"backend/vbd"),
            message(MessageType::WATCH_EVENT.0, 0, b"a//b\0\xff\0"),
            message(MessageType::READ.0, 1_000_000, b"4"),
            message(99, 0, b"?"),
        ] {
            world.sim.store().inject(world.storage.id(), &rubbish);
        }
        world.run();
        other.io();
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        disk.write(round, &[round as u8; 512]);
        disk.detach();
    }
    let told = lines_with(&world, "skipped");
    assert!((4..=10).contains(&told), "{told} lines");
    assert_eq!(lines_with(&world, "further messages of this kind"), 1);
    other.leave();
    world.nothing_left();
}

#[test]
fn a_watch_event_that_was_spoiled_is_made_up_for() {
    let world = World::new();
    let guest = Guest::new(&world);
    // Of the attach, only events that nobody can read arrive.
    world.sim.store().faults.mangle = Some(Box::new(|_, bytes| {
        if bytes[0] == MessageType::WATCH_EVENT.0 as u8 {
            bytes[Header::SIZE] = b'!';
        }
    }));
    let disk = guest.attach("xvda", "ram:disk0");
    assert_eq!(disk.backend(), Some(XenbusState::InitWait));
    world.sim.store().faults.mangle = None;
    disk.connected().detach();
    world.nothing_left();
}

#[test]
fn a_listing_that_is_refused_is_asked_for_again() {
    for refusal in [
        Refusal::TooBig,
        Refusal::AccessDenied,
        Refusal::OutOfMemory,
        Refusal::Io,
    ] {
        let world = World::new();
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let before = lines_with(&world, "cannot be listed");
        world.sim.store().faults.refuse = Some(Box::new(move |_, kind, _| {
            let listing = [MessageType::DIRECTORY, MessageType::DIRECTORY_PART];
            listing.contains(&kind).then_some(refusal)
        }));
        // The events of the attach are lost in one that says no more than that something has changed.
        world.sim.store().faults.mangle = Some(Box::new(|_, bytes| {
            if bytes[0] == MessageType::WATCH_EVENT.0 as u8 {
                bytes[Header::SIZE] = b'!';
            }
        }));
        let disk = guest.attach("xvda", "ram:disk0");
        world.sim.store().faults.mangle = None;
        world.wait(Duration::from_secs(30));
        assert_eq!(disk.backend(), Some(XenbusState::Initialising));
        assert_eq!(lines_with(&world, "cannot be listed"), before + 1);
        other.io();
        // Those whose events say who they are need no listing.
        guest.attach("xvdb", "ram:disk1").connected().detach();
        world.sim.store().faults.refuse = None;
        world.wait(Duration::from_secs(2));
        disk.connected().detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn connected_disks_are_served_when_xenstore_is_gone() {
    let world = World::new();
    let guests = [Guest::new(&world), Guest::new(&world)];
    let mut disk = guests[0].attach("xvda", "ram:disk0").connected();
    let offered = guests[1].attach("xvda", "ram:disk1");
    let mut closed = guests[1].attach("xvdb", "ram:disk2").connected();
    closed.close();
    world.end_xenstore();
    for round in 0..20 {
        disk.write(round, &[round as u8; 512]);
        world.wait(Duration::from_secs(1));
        assert!(disk.read(round, 1) == [round as u8; 512]);
    }
    assert!(disk.read(40, 8) == content(0, IMAGE_SIZE)[40 * 512..48 * 512]);
    assert_eq!(lines_with(&world, "1 connected disk(s) are served on"), 1);
    assert!(
        lines_with(&world, "to be tried again") < 3,
        "{:#?}",
        world.journal()
    );
    assert_eq!(offered.backend(), Some(XenbusState::InitWait));
    // Nobody but its frontend can end it now.
    let link = disk.link();
    // SAFETY: domain memory stays mapped as long as the machine.
    let ring = unsafe { SharedPages::new(link.memory, 1) }.unwrap();
    ring.store(Index::RequestProducer, 1 << 20);
    link.notify();
    world.run();
    assert_eq!(world.storage.live_mappings(), 0);
    assert_eq!(world.backend.services.statistics.disks(), []);
}

#[test]
fn requests_of_the_operator_outlive_refusals() {
    let world = World::with_discards();
    let seen: Rc<Cell<Option<ShutdownRequest>>> = Rc::default();
    let (shown, backend) = (seen.clone(), world.backend.clone());
    world.spawn(async move {
        let waiting = async || shutdown_requested(&backend.services.store).await;
        let request = persist(&backend.services.handle, "shutdown requests", waiting).await;
        shown.set(request.ok());
    });
    world.run();
    for refusal in [Refusal::OutOfMemory, Refusal::AccessDenied, Refusal::TooBig] {
        world.sim.store().faults.refuse = Some(Box::new(move |_, _, path| {
            let theirs = path.ends_with("data/grow") || path.ends_with("control/shutdown");
            theirs.then_some(refusal)
        }));
        world.write(&world.own_path("data/grow"), "nothing 1M");
        world.write(&world.own_path("control/shutdown"), "suspend");
        world.wait(Duration::from_secs(10));
        world.sim.store().faults.refuse = None;
        world.wait(Duration::from_secs(2));
        for node in ["data/grow", "control/shutdown"] {
            let asked = world.read(&world.own_path(node));
            assert_eq!(asked.as_deref(), Some(""), "{node} was seen: {refusal}");
        }
        let answer = world.read(&world.own_path("data/grow-answer")).unwrap();
        assert!(answer.contains("no image nothing"), "{answer}");
        world.write(&world.own_path("data/grow-answer"), "");
    }
    assert_eq!(seen.get(), None);
    world.write(&world.own_path("control/shutdown"), "poweroff");
    assert_eq!(seen.get(), Some(ShutdownRequest::Poweroff));
}
