//! Backends of the driver domain's own disks that go and come back, and say other things of the disk than before.

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

/// What a backend says of its disk, with another value of one node.
fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let others = DISK.iter().filter(|(other, _)| *other != name);
    others.copied().chain([(name, value)]).collect()
}

/// The lines about the disk in the log.
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
