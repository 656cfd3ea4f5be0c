//! Backends of the driver domain's own disks that go and come back, and describe the disk differently than before.

use crate::scripted_backend::{DISK, OFFER, ScriptedBackend, THERE_AND_BACK};
use bulkhead_blkback_testkit::{Frontend, Guest, Setup, Style, World};
use bulkhead_blkfront::UNSENT_TIMEOUT;
use bulkhead_ring::blkif::{Operation, Request, Status, TransferKind};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// What a backend with large rings offers, and one with the smallest.
const LARGE: [(&str, &str); 2] = [
    ("max-ring-page-order", "4"),
    ("multi-queue-max-queues", "8"),
];
const SMALL: [(&str, &str); 2] = [
    ("max-ring-page-order", "0"),
    ("multi-queue-max-queues", "1"),
];

fn world(vcpus: u32) -> World {
    World::with(Setup {
        own_disks: true,
        vcpus,
        ..Setup::default()
    })
}

/// Returns the nodes by which a backend describes its disk, with another value of one of them.
fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let others = DISK.iter().filter(|(other, _)| *other != name);
    others.copied().chain([(name, value)]).collect()
}

/// Returns the log lines about the disk.
fn lines(world: &World) -> Vec<String> {
    let mut lines = world.journal();
    lines.retain(|line| line.contains("disk xvda: "));
    lines
}

fn guest<'w>(world: &'w World) -> Frontend<'w> {
    Guest::new(world).attach("xvda", "vbd:xvda").connected()
}

fn shown(world: &World) -> String {
    world.write(&world.own_path("data/show"), "all");
    world.wait(Duration::from_millis(50));
    let answer = world.read(&world.own_path("data/show-answer"));
    answer.expect("there is an answer")
}

#[test]
fn names_of_other_disks_are_told_in_part_and_escaped() {
    let world = world(1);
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let _disk = guest(&world);
    let name = format!("\n[0.0] all is well\u{1b}[2J{}", "x".repeat(3000));
    backend.offer_again(&OFFER);
    backend.connect();
    backend.say(&with("params", &name), XenbusState::Connected);
    let lines = lines(&world);
    let told = lines
        .iter()
        .find(|line| line.contains("another disk was attached"));
    let told = told.unwrap_or_else(|| panic!("{lines:#?}"));
    let shown = shown(&world);
    let shown = shown
        .lines()
        .find(|line| line.contains("another disk was attached"));
    for line in [told, shown.expect("shown")] {
        assert!(line.contains("all is well"), "{line}");
        assert!(
            !line.contains(char::is_control) && line.len() < 400,
            "{line:?}"
        );
    }
    world.no_mistakes();
}

#[test]
fn what_becomes_of_requests_to_a_silent_backend_is_told_as_it_is() {
    let world = world(1);
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut disk = guest(&world);
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let read = backend.take();
    world.wait(UNSENT_TIMEOUT + Duration::from_secs(2));
    let journal = world.journal();
    let told = |line: &&String| line.contains("has not answered 1 request(s) in time: ");
    let told: Vec<_> = journal.iter().filter(told).collect();
    assert_eq!(told.len(), 1, "{journal:#?}");
    assert!(told[0].ends_with("the rest is waited for"), "{told:?}");
    // So it is.
    assert_eq!(disk.link().collect(), []);
    backend.answer(&read.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
}

#[test]
fn a_backend_that_comes_and_goes_all_the_time_is_connected_to_at_a_bounded_rate() {
    let world = world(1);
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let _disk = guest(&world);
    let mut connections = 0;
    // For three minutes.
    for _ in 0..360 {
        backend.offer_again(&OFFER);
        if backend.frontend() == Some(XenbusState::Initialised) {
            backend.connect();
            backend.say(&DISK, XenbusState::Connected);
            connections += u32::from(backend.frontend() == Some(XenbusState::Connected));
        }
        world.wait(Duration::from_millis(300));
    }
    // Sixteen at once, and one in half a minute.
    assert!((16..=24).contains(&connections), "{connections}");
    let lines = lines(&world);
    assert!(lines.len() < 60, "{} lines: {lines:#?}", lines.len());
    // It is not shut out.
    world.wait(Duration::from_secs(60));
    assert_eq!(backend.frontend(), Some(XenbusState::Initialised));
    world.no_mistakes();
}

#[test]
fn a_backend_that_changes_its_size_all_the_time_is_followed_at_a_bounded_rate() {
    let world = world(1);
    let backend = ScriptedBackend::new(&world, &DISK);
    let disk = guest(&world);
    // For three minutes.
    for sectors in 257..617 {
        let sectors = format!("{sectors}");
        backend.say(&[("sectors", &sectors)], XenbusState::Connected);
        world.wait(Duration::from_millis(500));
    }
    let lines = lines(&world);
    let told = lines.iter().filter(|line| line.contains(": now ")).count();
    assert!((16..=24).contains(&told), "{told}: {lines:#?}");
    // The last one is what counts.
    world.wait(Duration::from_secs(60));
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("616"));
    world.no_mistakes();
}

#[test]
fn a_backend_that_writes_its_state_all_the_time_has_it_read_at_a_bounded_rate() {
    let world = world(1);
    let backend = ScriptedBackend::new(&world, &DISK);
    let sent = || world.sim.store().request_count(world.storage.id());
    let before = sent();
    // For half a minute.
    for _ in 0..3000 {
        backend.say(&[("info", "0")], XenbusState::Connected);
        world.wait(Duration::from_millis(10));
    }
    let messages = sent() - before;
    assert!(messages < 3000, "{messages}");
    // It is listened to.
    backend.say(&[], XenbusState::Closing);
    world.wait(Duration::from_secs(5));
    assert_eq!(backend.frontend(), Some(XenbusState::Closed));
}

#[test]
fn a_backend_with_smaller_limits_than_the_one_before_it_is_told_nothing_of_the_old_rings() {
    let world = world(2);
    let mut backend = ScriptedBackend::offering(&world, &LARGE);
    // The largest rings, and one for each vCPU.
    assert_eq!(backend.published("ring-page-order").as_deref(), Some("4"));
    assert_eq!(
        backend.published("multi-queue-num-queues").as_deref(),
        Some("2")
    );
    for queue in 0..2 {
        assert!(
            backend
                .published(&format!("queue-{queue}/event-channel"))
                .is_some()
        );
        assert!(
            backend
                .published(&format!("queue-{queue}/ring-ref15"))
                .is_some()
        );
        assert_eq!(
            backend.published(&format!("queue-{queue}/ring-ref16")),
            None
        );
    }
    assert_eq!(backend.published("queue-2/event-channel"), None);
    backend.connect();
    backend.say(&DISK, XenbusState::Connected);
    assert_eq!(backend.frontend(), Some(XenbusState::Connected));
    backend.offer_again(&SMALL);
    assert_eq!(backend.frontend(), Some(XenbusState::Initialised));
    assert_eq!(backend.published("ring-page-order"), None);
    assert_eq!(backend.published("multi-queue-num-queues"), None);
    backend.connect();
    backend.say(&DISK, XenbusState::Connected);
    let mut disk = guest(&world);
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let read = backend.take();
    backend.answer(&read.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    world.no_mistakes();
}

#[test]
fn nonsense_that_a_connected_backend_says_is_told() {
    let world = world(1);
    let backend = ScriptedBackend::new(&world, &DISK);
    let disk = guest(&world);
    for _ in 0..2 {
        backend.say(&[("sectors", "many")], XenbusState::Connected);
    }
    let lines = lines(&world);
    let told = |line: &&String| line.contains("the backend's sectors is \"many\"");
    assert_eq!(lines.iter().filter(told).count(), 1, "{lines:#?}");
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("256"));
    assert_eq!(backend.frontend(), Some(XenbusState::Connected));
}

/// The backend is connected, and says these things of its disk.
fn connect(backend: &mut ScriptedBackend<'_>, nodes: &[(&str, &str)]) {
    assert_eq!(backend.frontend(), Some(XenbusState::Initialised));
    backend.connect();
    backend.say(nodes, XenbusState::Connected);
    assert_eq!(backend.frontend(), Some(XenbusState::Connected));
}

/// Has both queues of a guest ask for a write, a barrier and another write. Returns the number of requests.
fn ask_on_both(disk: &mut Frontend<'_>) -> usize {
    for queue in 0..2 {
        let link = disk.queue(queue);
        let sector = queue as u64 * 64;
        link.push_write(sector, &[1; 512]);
        link.push_transfer(TransferKind::WriteBarrier, sector + 8, 1, &[2; 512]);
        link.push_write(sector + 16, &[3; 512]);
        link.kick();
    }
    disk.world.wait(THERE_AND_BACK);
    6
}

/// The answers to a guest's requests on all its queues, all of which are good.
fn good_answers(disk: &mut Frontend<'_>) -> usize {
    let answers: Vec<_> = disk.queues().flat_map(|link| link.collect()).collect();
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    answers.len()
}

/// The sector that a request is for; `None` for a flush.
fn sector(request: &Request) -> Option<u64> {
    match &request.operation {
        Operation::Transfer(transfer) => Some(transfer.sector.0),
        Operation::Flush => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_queues_were_asked_that_a_backend_does_not_take_any_more_is_asked_on_the_others() {
    let world = world(2);
    let mut backend = ScriptedBackend::offering(&world, &LARGE);
    connect(&mut backend, &DISK);
    let style = Style {
        queues: 2,
        ..Style::default()
    };
    let disk = Guest::new(&world).attach("xvda", "vbd:xvda");
    let mut disk = disk.styled(style).connected();
    let asked = ask_on_both(&mut disk);
    // The other queue's is on a ring that nobody looks at.
    let first = sector(&backend.take());
    assert_eq!(backend.take_next(), None);

    backend.offer_again(&SMALL);
    assert_eq!(backend.published("multi-queue-num-queues"), None);
    connect(&mut backend, &DISK);
    assert!(!shown(&world).contains("given up"), "{:#?}", lines(&world));
    // Both have their first write on the ring, and hold back what is behind it.
    let again = [backend.take(), backend.take()];
    assert_eq!(backend.take_next(), None);
    assert!(again.iter().any(|request| sector(request) == first));
    let mut order: Vec<_> = again.iter().map(sector).collect();
    again
        .iter()
        .for_each(|request| backend.answer(&request.response(Status::Okay)));
    while let Some(request) = backend.take_next() {
        order.push(sector(&request));
        backend.answer(&request.response(Status::Okay));
    }
    for queue in 0..2 {
        let at = |sector: u64| {
            let sector = Some(queue * 64 + sector);
            let mut places = order.iter().enumerate().filter(|(_, it)| **it == sector);
            let (place, _) = places
                .next()
                .unwrap_or_else(|| panic!("{sector:?}: {order:?}"));
            assert_eq!(places.next(), None, "{sector:?} twice: {order:?}");
            place
        };
        let (before, barrier, after) = (at(0), at(8), at(16));
        for (one, other) in [(before, barrier), (barrier, after)] {
            assert!(order[one..=other].contains(&None), "no flush: {order:?}");
        }
    }
    world.wait(THERE_AND_BACK);
    assert_eq!(good_answers(&mut disk), asked);

    // One that takes more again has a ring for each.
    backend.offer_again(&LARGE);
    assert_eq!(
        backend.published("multi-queue-num-queues").as_deref(),
        Some("2")
    );
    connect(&mut backend, &DISK);
    ask_on_both(&mut disk);
    backend.take();
    assert_eq!(backend.take_next(), None, "of the other queue");
    // And so on.
    backend.offer_again(&SMALL);
    connect(&mut backend, &DISK);
    while let Some(request) = backend.take_next() {
        backend.answer(&request.response(Status::Okay));
    }
    world.wait(THERE_AND_BACK);
    assert_eq!(good_answers(&mut disk), asked);
    world.no_mistakes();
}

#[test]
fn requests_are_cut_for_a_backend_with_a_smaller_ring_and_without_indirect_requests() {
    let world = world(1);
    let mut backend = ScriptedBackend::offering(&world, &LARGE);
    let indirect = [&DISK[..], &[("feature-max-indirect-segments", "32")]].concat();
    connect(&mut backend, &indirect);
    let mut disk = Guest::new(&world).attach("xvda", "vbd:xvda").connected();
    const READS: u64 = 12;
    const SECTORS: u64 = 256;
    for _ in 0..READS {
        disk.link().push_read(0, SECTORS as usize);
    }
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let first = backend.take();
    assert!(
        matches!(first.operation, Operation::Indirect(_)),
        "{first:?}"
    );

    backend.offer_again(&SMALL);
    assert_eq!(backend.published("ring-page-order"), None);
    let direct = [&DISK[..], &[("feature-max-indirect-segments", "0")]].concat();
    connect(&mut backend, &direct);
    // As many as the ring has slots.
    let mut asked: Vec<_> = core::iter::from_fn(|| backend.take_next()).collect();
    assert_eq!(asked.len(), 32);
    let mut sectors = 0;
    while let Some(request) = asked.pop().or_else(|| backend.take_next()) {
        let Operation::Transfer(transfer) = &request.operation else {
            panic!("{request:?}");
        };
        let segments = transfer.segments;
        sectors += segments
            .iter()
            .map(|it| u64::from(it.sectors()))
            .sum::<u64>();
        backend.answer(&request.response(Status::Okay));
    }
    assert_eq!(sectors, READS * SECTORS);
    world.wait(THERE_AND_BACK);
    assert_eq!(good_answers(&mut disk) as u64, READS);
    world.no_mistakes();
}

/// The toolstack detaches the disk, whose backend follows, and attaches that of another one.
fn replaced<'w>(world: &'w World, mut backend: ScriptedBackend<'w>) -> ScriptedBackend<'w> {
    toolstack::request_detach(&mut world.sim.store(), &backend.vbd);
    world.wait(Duration::from_secs(1));
    assert_eq!(backend.frontend(), Some(XenbusState::Closed));
    backend.ring = None;
    backend.say(&[], XenbusState::Closed);
    world.wait(Duration::from_secs(1));
    toolstack::finish_detach(&mut world.sim.store(), &backend.vbd);
    world.run();
    let other = ScriptedBackend::offering(world, &OFFER);
    world.wait(Duration::from_secs(1));
    other
}

#[test]
fn a_disk_is_detached_at_once_whose_backend_came_and_went_too_often() {
    let world = world(1);
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut offers = 0;
    while backend.frontend() != Some(XenbusState::Closed) {
        offers += 1;
        assert!(offers < 40, "its connections are not bounded");
        backend.offer_again(&OFFER);
        if backend.frontend() == Some(XenbusState::Initialised) {
            connect(&mut backend, &DISK);
        }
    }
    let mut other = replaced(&world, backend);
    connect(&mut other, &DISK);
    world.no_mistakes();
}

#[test]
fn a_disk_is_detached_at_once_whose_size_changed_too_often() {
    let world = world(1);
    let backend = ScriptedBackend::new(&world, &DISK);
    for sectors in 257..280 {
        let sectors = format!("{sectors}");
        backend.say(&[("sectors", &sectors)], XenbusState::Connected);
        world.wait(Duration::from_secs(1));
    }
    let told = |line: &String| line.contains(": now ");
    assert!(lines(&world).into_iter().filter(told).count() < 20);
    let mut other = replaced(&world, backend);
    connect(&mut other, &DISK);
    world.no_mistakes();
}
