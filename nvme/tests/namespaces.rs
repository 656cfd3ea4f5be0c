//! Namespaces: their names, their growth, and what becomes of them.

use bulkhead_images::{IoError, Sector};
use bulkhead_nvme::command::admin::opcode;
use bulkhead_nvme::command::{Command, Status};
use bulkhead_nvme_testing::world::{Buffer, Disk, NAME, World, read, write};
use bulkhead_nvme_testing::{Config, FakeNamespace, Treatment};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

/// The event of a namespace that has changed.
const CHANGED: u32 = 0x0004_0002;

fn two() -> Config {
    Config {
        namespaces: vec![FakeNamespace::new(1, 9, 64), FakeNamespace::new(2, 12, 64)],
        ..Config::default()
    }
}

#[test]
fn namespaces_are_named_by_their_numbers_and_the_first_by_the_controller() {
    let world = World::started(two());
    let sectors = |target: &str| {
        let opened = world.try_open(target);
        opened.map(|device| device.geometry().sectors)
    };
    assert_eq!(sectors("nvme:03:00.0"), Ok(Sector(64)));
    assert_eq!(sectors("nvme:03:00.0/n1"), Ok(Sector(64)));
    assert_eq!(sectors("nvme:0000:03:00.0/n2"), Ok(Sector(512)));
    let refused = |target: &str| sectors(target).expect_err("refused");
    assert_eq!(
        refused("nvme:03:00.0/n3"),
        "the controller 03:00.0 has no such namespace, there are: n1, n2"
    );
    assert_eq!(
        refused("nvme:03:00.0/n2/root"),
        "there is no nvme:03:00.0/n2/root: its disk has no GUID partition table"
    );
    assert_eq!(
        refused("nvme:03:00.0/n02"),
        "there is no nvme:03:00.0/n02: its disk has no GUID partition table"
    );
    assert_eq!(
        refused("nvme:"),
        "'nvme:' names no disk, expected nvme:03:00.0"
    );
    assert_eq!(
        refused("nvme:03:00.0,sector-size=512"),
        "nvme: shows a disk as it is, expected it without sector-size="
    );
    let lines = world.lines();
    for expected in [
        "nvme:03:00.0: Fake NVMe Ctrl, serial fake0, firmware 1.0, 2 queue pair(s)",
        "nvme:03:00.0: 38 degrees, 100 % spare, 2 % used",
        "nvme:03:00.0/n2: 512 sectors of 4096, open 0 time(s)",
    ] {
        assert!(lines.contains(expected), "{expected} is not in\n{lines}");
    }
    world.end();
}

#[test]
fn one_namespace_is_nobody_elses_and_the_other_is_free() {
    let world = World::started(two());
    let mut first = world.open("nvme:03:00.0");
    let refused = world.try_open("nvme:03:00.0/n1").err().expect("refused");
    assert!(
        refused.contains("open for writing by domain 5, xvda"),
        "{refused}"
    );
    let mut second = world.open("nvme:03:00.0/n2");
    let buffer = Buffer::new(&world, 1);
    buffer.fill(&[7; 4096]);
    assert_eq!(second.does(write(8), &buffer.whole(4096)), Ok(()));
    assert_eq!(first.does(read(8), &buffer.whole(4096)), Ok(()));
    assert!(world.fake.bytes(1).iter().all(|byte| *byte == 0));
    assert!(
        world.fake.bytes(2)[4096..8192]
            .iter()
            .all(|byte| *byte == 7)
    );
    drop((first, second, buffer));
    world.end();
}

#[test]
fn growth_is_told_to_users_and_served() {
    let world = World::started(two());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    let waker = Waker::from(disk.wakes.clone());
    disk.device.on_change(&waker);
    assert_eq!(
        disk.does(read(64), &buffer.whole(512)),
        Err(IoError::OutOfRange)
    );
    for (round, blocks) in [100, 200].into_iter().enumerate() {
        world
            .fake
            .change(|config| config.namespaces[0].bytes.resize(blocks * 512, 1));
        let wakes = disk.wakes.count();
        assert!(
            world.fake.report(CHANGED),
            "the driver wants to hear of it, {round}"
        );
        world.wait(Duration::from_millis(100));
        assert_eq!(disk.wakes.count(), wakes + 1, "{round}");
        assert_eq!(disk.device.geometry().sectors, Sector(blocks as u64));
        disk.device.on_change(&waker);
        assert_eq!(
            disk.does(read(blocks as u64 - 1), &buffer.whole(512)),
            Ok(())
        );
    }
    drop((disk, buffer));
    world.end();
}

#[test]
fn the_first_128_namespaces_are_served() {
    let namespaces = (1..=129).map(|id| FakeNamespace::new(id, 9, 8)).collect();
    let world = World::started(Config {
        namespaces,
        ..Config::default()
    });
    assert!(world.try_open("nvme:03:00.0/n128").is_ok());
    let last = world.try_open("nvme:03:00.0/n129");
    let refused = last.map(drop).expect_err("refused");
    assert!(refused.contains("has no such namespace"), "{refused}");
    world.end();
}

#[test]
fn a_namespace_that_is_removed_or_replaced_fails_and_a_new_one_is_found() {
    let world = World::started(two());
    let mut first = world.open("nvme:03:00.0/n1");
    let mut second = world.open("nvme:03:00.0/n2");
    let buffer = Buffer::new(&world, 1);
    world.fake.change(|config| {
        config.namespaces.remove(0);
        // The same number, but with other blocks.
        config.namespaces[0] = FakeNamespace::new(2, 9, 128);
        config.namespaces.push(FakeNamespace::new(7, 9, 32));
    });
    assert!(world.fake.report(CHANGED));
    world.wait(Duration::from_millis(100));
    for disk in [&mut first, &mut second] {
        assert_eq!(
            disk.does(read(0), &buffer.whole(4096)),
            Err(IoError::Medium)
        );
    }
    let mut new = world.open("nvme:03:00.0/n7");
    assert_eq!(new.does(read(31), &buffer.whole(512)), Ok(()));
    drop((first, second));
    // The first one is another now.
    let again = world.try_open("nvme:03:00.0").expect("opened");
    assert_eq!(again.geometry().sectors, Sector(128));
    drop((new, again, buffer));
    world.end();
}

/// What the controller has by then is its to do; the rest of a request in parts, and a command that it did not get to, are
/// not sent any more.
#[test]
fn nothing_more_is_asked_of_a_namespace_in_the_place_of_another_one() {
    let world = World::started(two());
    let mut disk = world.open("nvme:03:00.0/n1");
    let buffer = Buffer::new(&world, 256);
    world.fake.decide(|_| Treatment::Held);
    let segments: Vec<_> = (0..64).map(|page| buffer.segment(page, 0, 512)).collect();
    disk.ask(1, write(0), &segments);
    disk.collect();
    world.run();
    let asked = world.fake.seen().len();
    assert_eq!(asked, 63);
    world
        .fake
        .change(|config| config.namespaces[0] = FakeNamespace::new(1, 12, 64));
    assert!(world.fake.report(CHANGED));
    world.wait(Duration::from_millis(100));
    let (queue, first) = world.fake.held()[0];
    world.fake.complete(queue, &first, Status::INTERRUPTED);
    world.run();
    disk.collect();
    assert_eq!(world.fake.seen().len(), asked);
    world.fake.decide(|_| Treatment::Done);
    world.fake.fail();
    world.wait(Duration::from_secs(3));
    disk.collect();
    assert_eq!(disk.done, [(1, Err(IoError::Medium))]);
    assert_eq!(world.fake.seen().len(), asked);
    drop((disk, buffer));
    world.end();
}

/// Has the controller refuse to describe a namespace as often as said, with that status.
pub fn refuse(world: &World, id: u32, mut times: usize, status: Status) {
    world.fake.decide_admin(move |command| {
        let of_namespace = command.opcode() == opcode::IDENTIFY
            && (command.dword(10), command.namespace().0) == (0, id);
        if of_namespace && times > 0 {
            times -= 1;
            return Treatment::Failed(status);
        }
        Treatment::Done
    });
}

#[test]
fn a_namespace_that_is_not_described_for_the_moment_is_served_on() {
    let world = World::started(two());
    let mut disk = world.open("nvme:03:00.0/n1");
    let buffer = Buffer::new(&world, 1);
    // Another one has changed.
    refuse(&world, 1, 1, Status::NAMESPACE_NOT_READY);
    assert!(world.fake.report(CHANGED));
    world.wait(Duration::from_millis(100));
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    // It is looked at again after a while, without a further event.
    world
        .fake
        .change(|config| config.namespaces[0].bytes.resize(100 * 512, 0));
    world.wait(Duration::from_secs(6));
    assert_eq!(disk.device.geometry().sectors, Sector(100));
    // The same after a reset.
    refuse(&world, 1, 3, Status::INTERRUPTED);
    world.fake.fail();
    world.wait(Duration::from_secs(3));
    disk.ask(1, read(0), &buffer.whole(512));
    world.wait(Duration::from_secs(3));
    disk.collect();
    assert_eq!(disk.done.pop(), Some((1, Ok(()))));
    // One of which there is nothing to be had any more is not.
    refuse(&world, 1, 1, Status::INVALID_NAMESPACE.for_good());
    assert!(world.fake.report(CHANGED));
    world.wait(Duration::from_millis(100));
    let failed = disk.does(read(0), &buffer.whole(512));
    assert_eq!(failed, Err(IoError::Medium));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_namespace_that_is_not_described_at_first_is_found_later() {
    let world = World::new(two());
    refuse(&world, 2, 1, Status::NAMESPACE_NOT_READY);
    world.controllers.add(world.fake.function(NAME));
    world.wait(Duration::from_millis(100));
    let refused = world.try_open("nvme:03:00.0/n2").err().expect("refused");
    assert!(refused.contains("the namespace is not ready"), "{refused}");
    world.wait(Duration::from_secs(6));
    assert!(world.try_open("nvme:03:00.0/n2").is_ok());
    world.end();
}

#[test]
fn a_namespace_whose_name_in_the_world_has_changed_is_another_one() {
    // Its NGUID, and its EUI64: some have the one, some the other.
    for place in [104, 120] {
        let world = World::started(two());
        let named = |value: u8| {
            world.fake.change(|config| {
                config.forge = Arc::new(move |command: &Command, data: &mut [u8]| {
                    let of_namespace = command.opcode() == opcode::IDENTIFY
                        && (command.dword(10), command.namespace().0) == (0, 1);
                    if of_namespace {
                        data[place] = value;
                    }
                });
            });
            assert!(world.fake.report(CHANGED));
            world.wait(Duration::from_millis(100));
        };
        named(1);
        let mut disk = world.open("nvme:03:00.0/n1");
        let buffer = Buffer::new(&world, 1);
        named(1);
        assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
        named(2);
        let failed = disk.does(read(0), &buffer.whole(512));
        assert_eq!(failed, Err(IoError::Medium), "{place}");
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn a_namespace_that_is_named_otherwise_now_is_still_its_users_alone() {
    let world = World::started(Config {
        namespaces: vec![FakeNamespace::new(1, 9, 64), FakeNamespace::new(2, 9, 64)],
        ..Config::default()
    });
    let mut disk = world.open("nvme:03:00.0/n2");
    let buffer = Buffer::new(&world, 1);
    let refused = |name: &str| {
        let refused = world.try_open(name).err().expect("it has a writer");
        assert!(refused.contains(" is open for "), "{name}: {refused}");
    };
    refused("nvme:03:00.0/n2");
    // The first one is called as the controller, and that is this one now.
    world
        .fake
        .change(|config| drop(config.namespaces.remove(0)));
    assert!(world.fake.report(CHANGED));
    world.wait(Duration::from_millis(100));
    refused("nvme:03:00.0");
    refused("nvme:03:00.0/n2");
    assert_eq!(disk.does(write(0), &buffer.whole(512)), Ok(()));
    // Another one comes before it.
    let first = FakeNamespace::new(1, 9, 32);
    world
        .fake
        .change(|config| config.namespaces.insert(0, first));
    assert!(world.fake.report(CHANGED));
    world.wait(Duration::from_millis(100));
    refused("nvme:03:00.0/n2");
    let other = world.try_open("nvme:03:00.0").expect("nobody has it");
    assert_eq!(other.geometry().sectors, Sector(32));
    drop((disk, other));
    let again = world.try_open("nvme:03:00.0/n2").expect("it is free");
    assert_eq!(again.geometry().sectors, Sector(64));
    drop((again, buffer));
    world.end();
}

#[test]
fn namespaces_that_cannot_be_served_say_why() {
    let world = World::started(Config {
        namespaces: vec![FakeNamespace::new(3, 9, 64), FakeNamespace::new(4, 10, 64)],
        ..Config::default()
    });
    assert!(
        world.try_open("nvme:03:00.0").is_ok(),
        "the first one that there is"
    );
    let refused = world.try_open("nvme:03:00.0/n4").err().expect("refused");
    assert_eq!(
        refused,
        "the namespace 03:00.0/n4 cannot be served: it is formatted with blocks of 2^10 bytes, \
         expected 512 or 4096"
    );
    world.end();
}

#[test]
fn a_controller_without_lists_of_namespaces_has_them_counted() {
    let world = World::started(Config {
        lists: false,
        ..two()
    });
    assert!(world.try_open("nvme:03:00.0").is_ok());
    assert!(world.try_open("nvme:03:00.0/n2").is_ok());
    assert!(world.try_open("nvme:03:00.0/n3").is_err());
    world.end();
}

#[test]
fn a_hostile_list_of_namespaces_costs_little() {
    fn forge(command: &Command, data: &mut [u8]) {
        if command.opcode() == opcode::IDENTIFY && command.dword(10) == 2 {
            let after = command.namespace().0;
            for (index, entry) in data.chunks_mut(4).enumerate() {
                entry.copy_from_slice(&(after + 1 + index as u32).to_le_bytes());
            }
        }
    }
    let world = World::started(Config {
        forge: Arc::new(forge),
        ..two()
    });
    assert!(world.try_open("nvme:03:00.0").is_ok());
    let identified = world.fake.admin_seen();
    let identified = identified
        .iter()
        .filter(|command| command.opcode() == opcode::IDENTIFY);
    assert!(identified.count() <= 140);
    world.end();
}

#[test]
fn users_of_one_namespace_that_share_it_are_all_told() {
    let world = World::started(two());
    let devices = [0, 1].map(|_| world.try_open("nvme:03:00.0,shared=yes").expect("shared"));
    let disks = devices.map(|device| {
        let disk = Disk::new(&world, device, 0, 8);
        disk.device.on_change(&Waker::from(disk.wakes.clone()));
        disk
    });
    world
        .fake
        .change(|config| config.namespaces[0].bytes.resize(100 * 512, 0));
    assert!(world.fake.report(CHANGED));
    world.wait(Duration::from_millis(100));
    for disk in &disks {
        assert_eq!(
            (disk.wakes.count(), disk.device.geometry().sectors),
            (1, Sector(100))
        );
    }
    drop(disks);
    world.end();
}

#[test]
fn a_namespace_of_two_controllers_is_used_through_one_of_them() {
    let world = World::new(two());
    let second = world.add(two());
    world.controllers.add(world.fake.function(NAME));
    world.controllers.add(second.function("0000:04:00.0"));
    world.wait(Duration::from_millis(100));
    let held = world.open("nvme:03:00.0");
    let refused = world.try_open("nvme:04:00.0").err().expect("refused");
    assert!(
        refused.contains("it is in use as nvme:03:00.0"),
        "{refused}"
    );
    let refused = world.try_open("nvme:04:00.0/root").err().expect("refused");
    assert!(
        refused.contains("it is in use as nvme:03:00.0"),
        "{refused}"
    );
    let other = world.open("nvme:04:00.0/n2");
    let refused = world.try_open("nvme:03:00.0/n2").err().expect("refused");
    assert!(
        refused.contains("it is in use as nvme:04:00.0/n2"),
        "{refused}"
    );
    drop((held, other));
    drop(world.open("nvme:04:00.0"));
    // Whoever reads its tables does not use it.
    world.fake.decide(|_| Treatment::Lost);
    assert!(world.try_open("nvme:03:00.0/root").is_err());
    drop(world.open("nvme:04:00.0"));
    world.wait(Duration::from_secs(60));
    // One without such a name may be any.
    let nameless = |config: &mut Config| {
        config.forge = Arc::new(|command: &Command, data: &mut [u8]| {
            if command.opcode() == opcode::IDENTIFY && command.dword(10) == 0 {
                data[104] = 0;
            }
        });
    };
    for fake in [&world.fake, &second] {
        fake.change(nameless);
        assert!(fake.report(CHANGED));
    }
    world.wait(Duration::from_millis(100));
    let both = [world.open("nvme:03:00.0"), world.open("nvme:04:00.0")];
    drop(both);
    world.end();
}

#[test]
fn two_drives_whose_namespaces_have_the_same_name_are_both_used() {
    let world = World::new(two());
    let second = world.add(Config {
        serial: "fake1",
        ..two()
    });
    world.controllers.add(world.fake.function(NAME));
    world.controllers.add(second.function("0000:04:00.0"));
    world.wait(Duration::from_millis(100));
    let both = [world.open("nvme:03:00.0"), world.open("nvme:04:00.0")];
    drop(both);
    world.end();
}
