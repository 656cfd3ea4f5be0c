//! The size of the driver domain's memory: the effects of `xl mem-set` and `maxmem=`.

use bulkhead_blkback_testkit::{Bystander, Guest, IMAGE_SIZE, SECTORS, Setup, World, content};
use bulkhead_ring::blkif::{BlkifSector, Discard, Operation, Request, Status};

const TARGET: &str = "memory/target";

/// Makes a driver domain that may have a mebibyte more than it has, when the toolstack wants that.
fn world() -> World {
    World::with(Setup {
        memory_later: 256,
        reservation: true,
        ..Setup::default()
    })
}

/// Sets the domain's limit and writes the target, as `xl mem-set` does.
fn mem_set(world: &World, pages: usize) {
    world.storage.set_memory_limit(pages);
    want(world, pages);
}

fn want(world: &World, pages: usize) {
    world.write(&world.own_path(TARGET), &(pages * 4).to_string());
}

fn grow(world: &World, request: &str) -> String {
    world.write(&world.own_path("data/grow"), request);
    world
        .read(&world.own_path("data/grow-answer"))
        .expect("there is an answer")
}

fn nothing_left(world: &World) {
    for node in [TARGET, "data/grow", "data/grow-answer"] {
        world.sim.store().remove(&world.own_path(node));
    }
    world.run();
    world.nothing_left();
}

/// Returns the log lines about the target.
fn told(world: &World, level: &str) -> Vec<String> {
    let lines = world.journal().into_iter();
    lines
        .filter(|line| line.starts_with(level) && line.contains(TARGET))
        .collect()
}

#[test]
fn memory_that_is_not_there_yet_is_not_used_before_the_toolstack_gives_it() {
    let world = world();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let owned = world.storage.memory_pages();
    let refused = grow(&world, "disk0 640K");
    assert!(
        refused.contains("bytes of memory in one piece"),
        "{refused}"
    );
    assert!(disk.read(0, 256) == content(0, IMAGE_SIZE));

    mem_set(&world, owned + 256);
    assert_eq!(world.storage.memory_pages(), owned + 256);
    let grown = grow(&world, "disk0 640K");
    assert_eq!(grown, "image ram:disk0 grew from 131072 to 655360 bytes");
    let data = vec![7; 64 << 10];
    disk.write(SECTORS + 512, &data);
    assert!(disk.read(SECTORS + 512, 128) == data);
    assert!(told(&world, "WARN").is_empty());
    other.io();
    disk.detach();
    other.leave();
    nothing_left(&world);
}

#[test]
fn memory_that_nobody_uses_goes_back_and_comes_again() {
    let world = world();
    let owned = world.storage.memory_pages();
    mem_set(&world, owned + 256);
    for _ in 0..3 {
        mem_set(&world, owned + 8);
        assert_eq!(world.storage.memory_pages(), owned + 8);
        assert_eq!(world.storage.stats().pages_released_uncleared, 0);
        mem_set(&world, owned + 256);
        assert_eq!(world.storage.memory_pages(), owned + 256);
    }
    assert!(told(&world, "WARN").is_empty());
    nothing_left(&world);
}

#[test]
fn what_is_in_use_stays_whatever_is_wanted_and_the_log_says_so_once() {
    let world = World::with(Setup {
        images: vec![("disk0".into(), content(0, 4 << 20))],
        reservation: true,
        ..Setup::default()
    });
    let mut other = Guest::new(&world).attach("xvda", "ram:disk0").connected();
    let owned = world.storage.memory_pages();
    for _ in 0..3 {
        mem_set(&world, 0);
    }
    let left = world.storage.memory_pages();
    assert!((1024..owned).contains(&left), "{left} of {owned}");
    let lines = told(&world, "WARN");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("the rest is in use"), "{lines:?}");
    assert!(other.read(0, 256) == content(0, 4 << 20)[..256 * 512]);
    other.write(0, &[3; 4096]);
    other.detach();
    mem_set(&world, owned);
    assert_eq!(world.storage.memory_pages(), owned);
    nothing_left(&world);
}

#[test]
fn a_target_that_cannot_be_reached_is_followed_as_far_as_it_can_be() {
    for (limit, wanted, why) in [
        (100, 1000, "Xen has no more for it"),
        (1000, 1000, "it cannot have more than it was created with"),
    ] {
        let world = World::with(Setup {
            memory_later: 200,
            reservation: true,
            ..Setup::default()
        });
        let owned = world.storage.memory_pages();
        world.storage.set_memory_limit(owned + limit);
        want(&world, owned + wanted);
        let now = world.storage.memory_pages();
        assert_eq!(now, owned + limit.min(200));
        let lines = told(&world, "WARN");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(why), "{lines:?}");
        nothing_left(&world);
    }
}

#[test]
fn a_target_that_is_none_changes_nothing() {
    let world = world();
    let owned = world.storage.memory_pages();
    for text in ["", "much", "-1", "99999999999999999999"] {
        world.write(&world.own_path(TARGET), text);
    }
    assert_eq!(world.storage.memory_pages(), owned);
    let lines = told(&world, "ERROR");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("'much' is not a number"))
    );
    nothing_left(&world);
}

#[test]
fn what_guests_discarded_is_missed_by_nobody() {
    let world = World::with(Setup {
        images: vec![("disk0".into(), content(0, 4 << 20))],
        ..Setup::giving_back()
    });
    let owned = world.storage.memory_pages();
    let mut disk = Guest::new(&world).attach("xvda", "ram:disk0").connected();
    let id = disk.link().new_id();
    let discard = Discard {
        sector: BlkifSector(0),
        count: 8192,
        secure: false,
    };
    let request = Request::of(id, Operation::Discard(discard));
    disk.link().push(&request, Vec::new());
    assert_eq!(disk.answer().status, Status::Okay);
    let left = world.storage.memory_pages();
    assert!(left + 1000 < owned);
    for target in [owned, left] {
        want(&world, target);
        assert_eq!(world.storage.memory_pages(), left);
        assert!(told(&world, "WARN").is_empty(), "{target}");
    }
    disk.write(0, &[7; 4096]);
    disk.detach();
    nothing_left(&world);
}
