//! Backends of the driver domain's own disks that go and come back, and describe the disk differently than before.

use crate::liar::{DISK, Liar, OFFER, THERE_AND_BACK};
use bulkhead_blkback_testkit::{Frontend, Guest, Setup, World};
use bulkhead_blkfront::PATIENCE;
use bulkhead_ring::blkif::Status;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

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
    let mut liar = Liar::new(&world, &DISK);
    let _disk = guest(&world);
    let name = format!("\n[0.0] all is well\u{1b}[2J{}", "x".repeat(3000));
    liar.offer_again(&OFFER);
    liar.connect();
    liar.say(&with("params", &name), XenbusState::Connected);
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
    let mut liar = Liar::new(&world, &DISK);
    let mut disk = guest(&world);
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let read = liar.take();
    world.wait(PATIENCE + Duration::from_secs(2));
    let journal = world.journal();
    let told = |line: &&String| line.contains("has not answered 1 request(s) in time: ");
    let told: Vec<_> = journal.iter().filter(told).collect();
    assert_eq!(told.len(), 1, "{journal:#?}");
    assert!(told[0].ends_with("the rest is waited for"), "{told:?}");
    // So it is.
    assert_eq!(disk.link().collect(), []);
    liar.answer(&read.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
}

#[test]
fn a_backend_that_comes_and_goes_all_the_time_is_connected_to_at_a_bounded_rate() {
    let world = world(1);
    let mut liar = Liar::new(&world, &DISK);
    let _disk = guest(&world);
    let mut connections = 0;
    // For three minutes.
    for _ in 0..360 {
        liar.offer_again(&OFFER);
        if liar.frontend() == Some(XenbusState::Initialised) {
            liar.connect();
            liar.say(&DISK, XenbusState::Connected);
            connections += u32::from(liar.frontend() == Some(XenbusState::Connected));
        }
        world.wait(Duration::from_millis(300));
    }
    // Sixteen at once, and one in half a minute.
    assert!((16..=24).contains(&connections), "{connections}");
    let lines = lines(&world);
    assert!(lines.len() < 60, "{} lines: {lines:#?}", lines.len());
    // It is not shut out.
    world.wait(Duration::from_secs(60));
    assert_eq!(liar.frontend(), Some(XenbusState::Initialised));
    world.no_mistakes();
}

#[test]
fn a_backend_that_changes_its_size_all_the_time_is_followed_at_a_bounded_rate() {
    let world = world(1);
    let liar = Liar::new(&world, &DISK);
    let disk = guest(&world);
    // For three minutes.
    for sectors in 257..617 {
        let sectors = format!("{sectors}");
        liar.say(&[("sectors", &sectors)], XenbusState::Connected);
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
    let liar = Liar::new(&world, &DISK);
    let sent = || world.sim.store().request_count(world.storage.id());
    let before = sent();
    // For half a minute.
    for _ in 0..3000 {
        liar.say(&[("info", "0")], XenbusState::Connected);
        world.wait(Duration::from_millis(10));
    }
    let messages = sent() - before;
    assert!(messages < 3000, "{messages}");
    // It is listened to.
    liar.say(&[], XenbusState::Closing);
    world.wait(Duration::from_secs(5));
    assert_eq!(liar.frontend(), Some(XenbusState::Closed));
}

#[test]
fn a_backend_with_smaller_limits_than_the_one_before_it_is_told_nothing_of_the_old_rings() {
    let world = world(2);
    let large = [
        ("max-ring-page-order", "4"),
        ("multi-queue-max-queues", "8"),
    ];
    let small = [
        ("max-ring-page-order", "0"),
        ("multi-queue-max-queues", "1"),
    ];
    let mut liar = Liar::offering(&world, &large);
    // The largest rings, and one for each vCPU.
    assert_eq!(liar.published("ring-page-order").as_deref(), Some("4"));
    assert_eq!(
        liar.published("multi-queue-num-queues").as_deref(),
        Some("2")
    );
    for queue in 0..2 {
        assert!(
            liar.published(&format!("queue-{queue}/event-channel"))
                .is_some()
        );
        assert!(
            liar.published(&format!("queue-{queue}/ring-ref15"))
                .is_some()
        );
        assert_eq!(liar.published(&format!("queue-{queue}/ring-ref16")), None);
    }
    assert_eq!(liar.published("queue-2/event-channel"), None);
    liar.connect();
    liar.say(&DISK, XenbusState::Connected);
    assert_eq!(liar.frontend(), Some(XenbusState::Connected));
    liar.offer_again(&small);
    assert_eq!(liar.frontend(), Some(XenbusState::Initialised));
    assert_eq!(liar.published("ring-page-order"), None);
    assert_eq!(liar.published("multi-queue-num-queues"), None);
    liar.connect();
    liar.say(&DISK, XenbusState::Connected);
    let mut disk = guest(&world);
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let read = liar.take();
    liar.answer(&read.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    world.no_mistakes();
}

#[test]
fn nonsense_that_a_connected_backend_says_is_told() {
    let world = world(1);
    let liar = Liar::new(&world, &DISK);
    let disk = guest(&world);
    for _ in 0..2 {
        liar.say(&[("sectors", "many")], XenbusState::Connected);
    }
    let lines = lines(&world);
    let told = |line: &&String| line.contains("the backend's sectors is \"many\"");
    assert_eq!(lines.iter().filter(told).count(), 1, "{lines:#?}");
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("256"));
    assert_eq!(liar.frontend(), Some(XenbusState::Connected));
}
