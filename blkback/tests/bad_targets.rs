//! Disks that the toolstack should not have asked for: `xl` fails at once and is told why, and
//! every other guest goes on.

use bulkhead_blkback_testkit::{Bystander, Guest, Setup, World, content};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};

/// Attaches a disk that cannot be served, beside a guest that notices nothing. Returns the error.
fn refused(world: &World, disk: &Disk) -> String {
    let mut other = Bystander::new(world);
    let guest = Guest::new(world);
    let frontend = guest.attach_as("xvda", disk);
    other.io();
    let problem = frontend.problem().expect("the error node says why");
    let logged = |line: &String| line.starts_with("ERROR") && line.contains(&problem);
    assert!(world.journal().iter().any(logged), "so does the log");
    world.wait_for_removal();
    assert_eq!(frontend.backend(), None, "so libxl gives up at once");
    toolstack::finish_detach(&mut world.sim.store(), &frontend.vbd);
    // The guest may have another disk under the same name.
    let mut disk = guest.attach("xvda", "ram:disk1").connected();
    disk.read(0, 8);
    disk.detach();
    other.leave();
    world.nothing_left();
    problem
}

#[test]
fn an_unknown_image() {
    let problem = refused(&World::new(), &Disk::new("ram:nothing"));
    assert!(problem.starts_with("no image nothing, there are: disk0, disk1"));
}

#[test]
fn a_malformed_target() {
    for (target, expected) in [
        ("/dev/sda", "unknown store '/dev/sda', expected ram:NAME"),
        ("", "the disk names no target=, expected ram:NAME"),
        ("ram:", "'ram:' needs an image name, expected ram:NAME"),
        (
            "ram:disk0,sector-size=1000",
            "'1000' is not a valid sector size, expected 512 or 4096",
        ),
        (
            "ram:disk0,speed=high",
            "unknown option 'speed=high', expected ",
        ),
        ("null:many", "'many' is not a valid size, expected"),
    ] {
        let problem = refused(&World::new(), &Disk::new(target));
        assert!(problem.starts_with(expected), "{target:?}: {problem}");
    }
}

#[test]
fn an_image_that_somebody_else_writes() {
    let problem = refused(&World::new(), &Disk::new("ram:disk5"));
    assert!(problem.starts_with("image disk5 is open for writing by vbd"));
}

#[test]
fn an_image_whose_size_is_no_multiple_of_512() {
    let mut setup = Setup::default();
    let (odd, empty) = (content(9, 1000), Vec::new());
    setup.images.push(("odd".into(), odd));
    setup.images.push(("empty".into(), empty));
    let world = World::with(setup);
    let problem = refused(&world, &Disk::new("ram:odd"));
    assert_eq!(
        problem,
        "image odd has 1000 bytes, which is not a multiple of 512"
    );
    let problem = refused(&world, &Disk::new("ram:empty"));
    assert_eq!(problem, "image empty is empty");
}

#[test]
fn a_damaged_archive() {
    let setup = Setup {
        // The second header.
        damage: Some(512 + bulkhead_blkback_testkit::IMAGE_SIZE),
        ..Setup::default()
    };
    let world = World::with(setup);
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    let problem = disk.problem().expect("the error node says why");
    assert!(
        problem.starts_with("the ramdisk cannot be read: "),
        "{problem}"
    );
    world.wait_for_removal();
    assert_eq!(disk.backend(), None);
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    // What does not need the archive is served.
    guest.attach("xvda", "null:1M").connected().detach();
    world.nothing_left();
}

#[test]
fn nodes_that_the_toolstack_left_out() {
    let world = World::new();
    for (node, expected) in [
        ("frontend", "the toolstack wrote no frontend"),
        ("frontend-id", "the toolstack wrote no frontend-id"),
        ("mode", "the toolstack wrote no mode"),
        ("params", "the disk names no target="),
    ] {
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let disk = guest.attach_unseen("xvda", &Disk::new("ram:disk0"));
        let path = format!("{}/{node}", disk.vbd.backend_path());
        world.sim.store().remove(&path);
        world.run();
        let problem = disk.problem().expect("the error node says why");
        assert!(problem.starts_with(expected), "{problem}");
        world.wait_for_removal();
        assert_eq!(disk.backend(), None);
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        other.io();
        other.leave();
    }
    world.nothing_left();
}

#[test]
fn a_frontend_that_is_not_the_one_of_the_directory() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let victim = Guest::new(&world);
    let (id, victims) = (guest.domain.id(), victim.domain.id());
    let own = format!("/local/domain/{id}/device/vbd/51712");
    for (node, value) in [
        (
            "frontend",
            format!("/local/domain/{victims}/device/vbd/51712"),
        ),
        ("frontend", format!("/local/domain/{id}/device/vbd/51728")),
        ("frontend", format!("/local/domain/{id}/device/vif/51712")),
        ("frontend", format!("{own}/0")),
        ("frontend", format!("{own}/")),
        ("frontend", format!("/local/domain/{id}/data")),
        ("frontend", "device/vbd/51712".into()),
        ("frontend", "\u{1d}".repeat(1000)),
        ("frontend-id", victims.to_string()),
        ("frontend-id", "0".into()),
        ("frontend-id", format!("{id}0")),
        ("frontend-id", "rubbish".into()),
    ] {
        let disk = guest.attach_unseen("xvda", &Disk::new("ram:disk0"));
        let path = format!("{}/{node}", disk.vbd.backend_path());
        world.sim.store().write(&path, &value);
        let (watches, id) = (
            world.sim.store().watch_count(world.storage.id()),
            id.to_string(),
        );
        world.run();
        let problem = disk.problem().expect("the error node says why");
        let expected = if node == "frontend" { &own } else { &id };
        assert!(
            problem.starts_with(&format!("the toolstack's {node} is"))
                && problem.ends_with(&format!(", expected {expected}"))
                && problem.len() < 160,
            "{problem}"
        );
        let watched = world.sim.store().watch_count(world.storage.id());
        assert_eq!(watched, watches, "nobody else's directory is watched");
        world.wait_for_removal();
        assert_eq!(disk.backend(), None, "so libxl gives up at once");
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        other.io();
    }
    guest.attach("xvda", "ram:disk0").connected().detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn refusals_without_end_leave_room_for_the_next_disk() {
    // xenstored lets a domain own a thousand nodes, and the numbers of guests never come again.
    let world = World::new();
    for _ in 0..400 {
        let guest = Guest::with_memory(&world, 8);
        let disk = guest.attach("xvda", "ram:nothing");
        assert!(disk.problem().is_some());
        guest.destroy(vec![disk]);
    }
    let guest = Guest::new(&world);
    guest.attach("xvda", "ram:disk0").connected().detach();
    world.nothing_left();
}

#[test]
fn directories_that_are_no_disks() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let root = format!("/local/domain/{}/backend/vbd", world.storage.id());
    for path in [
        "x/51712",
        "9/x",
        "9/-1",
        "32752/51712",
        "99999/51712",
        "9/51712/0",
    ] {
        world
            .sim
            .store()
            .write(&format!("{root}/{path}/state"), "1");
        world.run();
        other.io();
    }
    for directory in ["x", "9", "32752", "99999"] {
        world.sim.store().remove(&format!("{root}/{directory}"));
    }
    other.leave();
    world.nothing_left();
}
