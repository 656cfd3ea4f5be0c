//! A xenstored that refuses for the moment: no disk is lost, whatever it says and whenever.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, IMAGE_SIZE, World, content};
use bulkhead_xen::abi::xs_wire::{MessageType, Refusal};
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// The refusals that say nothing about a node that the toolstack or the guest wrote.
const PASSING: [Refusal; 7] = [
    Refusal::OutOfMemory,
    Refusal::Again,
    Refusal::Invalid,
    Refusal::Io,
    Refusal::TooBig,
    Refusal::Busy,
    Refusal::NotImplemented,
];

/// A time in which any refused request is tried again.
const AGAIN: Duration = Duration::from_secs(6);

/// Refuses `count` of the driver domain's reads of nodes whose path ends in `node`.
fn refuse_reads(world: &World, node: &'static str, mut count: usize, refusal: Refusal) {
    world.sim.store().faults.refuse = Some(Box::new(move |_, kind, path| {
        let meant = kind == MessageType::READ && path.ends_with(node);
        if !meant || count == 0 {
            return None;
        }
        count -= 1;
        Some(refusal)
    }));
}

/// Refuses one request, the one after `others` others.
fn refuse_after(world: &World, mut others: usize, refusal: Refusal) {
    world.sim.store().faults.refuse = Some(Box::new(move |_, _, _| {
        let now = others == 0;
        others = others.wrapping_sub(1);
        now.then_some(refusal)
    }));
}

fn obey(world: &World) {
    world.sim.store().faults.refuse = None;
}

/// Has the driver domain look at the disk.
fn nudge(disk: &Frontend<'_>) {
    disk.write_node("nudge", "1");
    disk.remove_node("nudge");
    disk.world.run();
}

#[test]
fn a_read_that_is_refused_says_nothing_about_a_connected_disk() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let rest = content(0, IMAGE_SIZE);
    for (round, refusal) in PASSING
        .into_iter()
        .chain([Refusal::QuotaExceeded])
        .enumerate()
    {
        for node in [
            "/state",
            "backend/vbd/1/51712/state",
            "/online",
            "/statistics",
            "device/vbd/51712/state",
        ] {
            refuse_reads(&world, node, 1 + round % 3, refusal);
            nudge(&disk);
            let state = disk.backend();
            assert_eq!(state, Some(XenbusState::Connected), "{refusal} at {node}");
            disk.write(round as u64, &[round as u8; 512]);
            world.wait(AGAIN);
            obey(&world);
            assert!(disk.read(round as u64, 1) == [round as u8; 512]);
            assert_eq!(disk.backend(), Some(XenbusState::Connected));
        }
    }
    // No request of before was carried out again.
    assert!(disk.read(8, 200) == rest[8 * 512..208 * 512]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn the_image_of_a_connected_disk_is_not_given_away_while_xenstored_refuses() {
    let world = World::new();
    let guests = [Guest::new(&world), Guest::new(&world)];
    let mut disk = guests[0].attach("xvda", "ram:disk0").connected();
    refuse_reads(
        &world,
        "device/vbd/51712/state",
        usize::MAX,
        Refusal::OutOfMemory,
    );
    nudge(&disk);
    world.wait(Duration::from_secs(20));
    let second = guests[1].attach("xvdb", "ram:disk0");
    let problem = second.problem().expect("it has a writer");
    assert!(problem.contains("open for writing"), "{problem}");
    disk.write(0, &[1; 512]);
    obey(&world);
    world.wait(AGAIN);
    assert!(disk.read(0, 1) == [1; 512]);
    second.finish_detach();
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_disk_lives_whatever_one_request_of_it_is_refused() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for refusal in PASSING {
        for others in 0..70 {
            let disk = guest.attach_unseen("xvda", &Disk::new("ram:disk0"));
            refuse_after(&world, others, refusal);
            world.wait(AGAIN);
            let mut disk = disk.connected_after(AGAIN);
            assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
            disk.request_detach();
            world.wait(AGAIN);
            disk.go(XenbusState::Closing);
            disk.go(XenbusState::Closed);
            world.wait(AGAIN * 3);
            obey(&world);
            assert_eq!(disk.backend(), None, "{refusal} after {others}");
            disk.take_down();
            disk.finish_detach();
        }
        other.io();
    }
    other.leave();
    world.nothing_left();
}
