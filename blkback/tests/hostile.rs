//! Frontends and a xenstore that change things at the worst moment.

use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, PATHS, Style, World, content,
};
use bulkhead_ring::blkif::Status;
use bulkhead_xen_sim::xenstore::{owned_by, toolstack};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// Takes the disk away by force, as libxl does, whatever happened to it.
fn force_away(mut disk: Frontend<'_>) {
    let world = disk.world;
    world.run();
    toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
    world.wait_for_removal();
    assert!(disk.vbd.backend_gone(&world.sim.store()));
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.run();
    if disk.is_prepared() {
        disk.take_down();
    }
}

#[test]
fn nodes_that_vanish_between_two_reads() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let style = Style {
        ring_pages: 2,
        persistent: true,
        ..Style::default()
    };
    for node in [
        "ring-ref0",
        "ring-ref1",
        "ring-page-order",
        "event-channel",
        "protocol",
        "feature-persistent",
        "state",
    ] {
        for turns in 0..25 {
            let mut disk = guest.attach("xvda", "ram:disk0").styled(style);
            disk.prepare();
            disk.publish();
            disk.say(XenbusState::Initialised);
            world.slowly(turns);
            disk.remove_node(node);
            force_away(disk);
        }
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn nodes_of_the_backends_directory_that_vanish_between_two_reads() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for node in [
        "frontend",
        "params",
        "mode",
        "online",
        "device-type",
        "state",
    ] {
        for turns in 0..40 {
            let mut disk = guest.attach_unseen("xvda", &toolstack::Disk::new("ram:disk0"));
            disk.prepare();
            disk.publish();
            disk.say(XenbusState::Initialised);
            world.slowly(turns);
            world.sim.store().remove(&disk.backend_path(node));
            world.run();
            // Whatever became of it, libxl can take it away.
            toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
            world.wait_for_removal();
            assert_eq!(disk.backend(), None, "{node} at {turns}");
            disk.take_down();
        }
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn nodes_that_are_closed_to_the_backend_between_two_reads() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for node in ["", "/ring-ref", "/state"] {
        for turns in 0..25 {
            let mut disk = guest.attach("xvda", "ram:disk0");
            disk.prepare();
            disk.publish();
            disk.say(XenbusState::Initialised);
            world.slowly(turns);
            let path = disk.vbd.frontend_path() + node;
            let id = guest.domain.id();
            let mut store = world.sim.store();
            let closed = store
                .as_domain(id)
                .set_permissions(&path, &owned_by(id, &[]));
            closed.expect("a guest decides who reads its nodes");
            drop(store);
            force_away(disk);
        }
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn the_backends_directory_vanishes_at_every_point() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for turns in 0..60 {
        let mut disk = guest.attach_unseen("xvda", &toolstack::Disk::new("ram:disk0"));
        disk.prepare();
        disk.publish();
        disk.say(XenbusState::Initialised);
        world.slowly(turns);
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        world.wait_for_removal();
        assert_eq!(disk.backend(), None, "nobody makes it again");
        disk.take_down();
        if turns % 10 == 0 {
            other.io();
        }
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn grants_revoked_before_their_sweep() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for number in 0..10 {
        disk.link().push_read(number * 8, 8);
    }
    let revoked: Vec<_> = disk.link().data_refs().into_iter().step_by(2).collect();
    for gref in &revoked {
        guest.domain.revoke(*gref);
    }
    let answers = disk.exchange();
    let failed = answers.iter().filter(|a| a.status == Status::Error).count();
    assert_eq!((answers.len(), failed), (10, 5));
    other.io();
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn grants_revoked_in_mid_request() {
    for (path, persistent) in PATHS {
        let (world, late) = World::with_late_disks_on(path);
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let style = Style::persistent(persistent);
        let mut disk = guest.attach("xvdd", "ram:disk0").styled(style).connected();
        let image = content(0, IMAGE_SIZE);
        for number in 0..10 {
            disk.link().push_read(number * 8, 8);
        }
        disk.exchange();
        // What is mapped stays mapped, whatever the guest's table says.
        for gref in disk.link().data_refs() {
            guest.domain.revoke(gref);
        }
        for gref in disk.link().ring_refs() {
            guest.domain.revoke(gref);
        }
        late.last().release_backwards();
        world.run();
        let answers = disk.link().collect();
        assert_eq!(answers.len(), 10, "{path:?}");
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
        let read = |number: usize| image[number * 4096..][..4096].to_vec();
        let expected: Vec<_> = (0..10).rev().map(read).collect();
        let got: Vec<_> = answers.into_iter().map(|answer| answer.data).collect();
        assert!(got == expected, "{path:?}");
        assert_eq!(late.last().held(), 0);
        other.io();
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn a_storm_of_watch_events_drowns_nobody() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for round in 0..200 {
        for number in 0..50 {
            disk.write_node(&format!("rubbish-{number}"), round.to_string());
            disk.say(XenbusState::Connected);
        }
        world.sim.store().fire_spuriously(world.storage.id());
        world.step(false);
        world.step(true);
        if round % 20 == 0 {
            other.io();
        }
    }
    other.io();
    assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_xenstored_that_is_slow_and_full_of_conflicts_loses_no_disk() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    {
        let mut store = world.sim.store();
        store.faults.requests_per_step = Some(1);
        store.faults.reverse_replies = true;
    }
    for round in 0..10 {
        let guests: Vec<_> = (0..5).map(|_| Guest::with_memory(&world, 128)).collect();
        world.sim.store().faults.conflicts = 40;
        let mut disks = Vec::new();
        for (number, guest) in guests.iter().enumerate() {
            let disk = toolstack::Disk::new(&format!("ram:disk{number}"));
            disks.push(guest.attach_unseen("xvda", &disk));
            world.slowly(round);
        }
        world.run();
        for disk in &mut disks {
            assert_eq!(disk.backend(), Some(XenbusState::InitWait));
            disk.prepare();
            disk.publish();
            disk.say(XenbusState::Initialised);
            world.slowly(round);
        }
        world.sim.store().faults.conflicts = 40;
        world.run();
        for (number, disk) in disks.iter_mut().enumerate() {
            assert_eq!(disk.backend(), Some(XenbusState::Connected));
            disk.go(XenbusState::Connected);
            let read = disk.read(200, 8);
            assert!(read == content(number as u64, IMAGE_SIZE)[200 * 512..208 * 512]);
            toolstack::request_detach(&mut world.sim.store(), &disk.vbd);
            disk.say(XenbusState::Closing);
        }
        world.slowly(round);
        world.sim.store().faults.conflicts = 40;
        for disk in &mut disks {
            disk.say(XenbusState::Closed);
        }
        world.wait(Duration::from_millis(20));
        other.io();
        for mut disk in disks {
            disk.take_down();
            disk.finish_detach();
        }
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn a_store_without_room_for_more_nodes_costs_the_new_disk_alone() {
    without_room_for_more_nodes(&World::new(), "ENOSPC");
}

#[test]
fn an_oxenstored_without_room_for_more_nodes_costs_the_new_disk_alone() {
    let world = World::new();
    world.sim.store().become_oxenstored();
    without_room_for_more_nodes(&world, "EQUOTA");
}

fn without_room_for_more_nodes(world: &World, word: &str) {
    let mut other = Bystander::new(world);
    let guest = Guest::new(world);
    let owned = world.sim.store().node_count(world.storage.id());
    world.sim.store().quotas.nodes = owned + 14;
    let disk = guest.attach("xvda", "ram:disk0");
    other.io();
    let refused = |line: &String| line.starts_with("ERROR") && line.contains(word);
    assert!(
        world.journal().iter().any(refused),
        "{:#?}",
        world.journal()
    );
    world.wait_for_removal();
    assert_eq!(disk.backend(), None);
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.sim.store().quotas.nodes = 1000;
    guest.attach("xvda", "ram:disk0").connected().detach();
    other.leave();
    world.nothing_left();
}
