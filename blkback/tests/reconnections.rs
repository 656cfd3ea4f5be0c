//! Backends of the driver domain's own disks that go and come back, and say other things of the disk than before.

use crate::liar::{DISK, Liar, OFFER};
use bulkhead_blkback_testkit::{Frontend, Guest, Setup, World};
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
