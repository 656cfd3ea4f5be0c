//! The number of messages to xenstored. xenstored serves an unprivileged domain some hundreds of requests a second, and
//! it has one connection for the disks of all guests: each waits for the requests that the others cause.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, Style, World};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

const NAMES: [&str; 8] = [
    "xvda", "xvdb", "xvdc", "xvdd", "xvde", "xvdf", "xvdg", "xvdh",
];

/// Returns the number of messages that the driver domain sends during `scene`.
fn messages(world: &World, scene: impl FnOnce()) -> u64 {
    world.run();
    let sent = || world.sim.store().request_count(world.storage.id());
    let before = sent();
    scene();
    world.run();
    sent() - before
}

/// Returns the style of a frontend with as large rings, and as many of them, as it is offered.
fn large() -> Style {
    Style {
        queues: 4,
        ring_pages: 16,
        ..Style::default()
    }
}

#[test]
fn what_a_disks_life_takes() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut attached = None;
    let attach = messages(&world, || attached = Some(guest.attach("xvda", "null:1G")));
    let mut disk = attached.expect("it was attached");
    let connect = messages(&world, || assert!(disk.try_connect()));
    let close = messages(&world, || {
        disk.go(XenbusState::Closing);
        disk.go(XenbusState::Closed);
    });
    disk.take_down();
    let again = messages(&world, || disk.go(XenbusState::Initialising));
    let reconnect = messages(&world, || assert!(disk.try_connect()));
    println!(
        "attach {attach}, connect {connect}, close {close}, offered again {again}, connected again {reconnect}"
    );
    assert!(attach <= 40 && connect <= 30 && close <= 20);
    assert!(again <= 10 && reconnect <= 20);
    disk.detach();
}

#[test]
fn a_guests_writes_take_few_messages() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disks: Vec<Frontend<'_>> = NAMES
        .map(|name| guest.attach(name, "null:1G").connected())
        .into();
    // What is of no interest is not looked at.
    let rubbish = messages(&world, || {
        for number in 0..50 {
            disks[0].write_node(&format!("rubbish-{number}"), "x");
            disks[0].write_node("feature-persistent", "x");
            world.run();
        }
    });
    assert_eq!(rubbish, 0);
    // A state that changes nothing is looked at, of that one disk.
    let state = messages(&world, || {
        for _ in 0..10 {
            disks[3].go(XenbusState::Connected);
        }
    });
    assert!(state <= 10, "{state} messages for ten writes of a state");
    disks.drain(..).for_each(|disk| disk.detach());
    world.nothing_left();
}

#[test]
fn a_guest_that_starts_over_takes_few_messages() {
    let world = World::new();
    let guest = Guest::with_memory(&world, 4096);
    let mut disk = guest.attach("xvda", "null:1G").styled(large()).connected();
    disk.close();
    disk.go(XenbusState::Initialising);
    disk.prepare();
    disk.publish();
    // All of its rings are to be read: 4 queues of 16 pages and an event channel each, and what they
    // have in common.
    let rings = 4 * 17 + 5;
    let took = messages(&world, || {
        disk.go(XenbusState::Initialised);
        disk.go(XenbusState::Connected);
    });
    assert!(took <= rings + 12, "{took} messages");
    disk.close();
    let took = messages(&world, || disk.go(XenbusState::Initialising));
    assert!(took <= 10, "{took} messages to be offered again");
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_guest_that_starts_over_without_end_has_its_share_of_xenstored() {
    let world = World::new();
    let other = Bystander::new(&world);
    let loud = Guest::with_memory(&world, 4096);
    let mut disk = loud.attach("xvda", "null:1G").styled(large());
    disk.prepare();
    disk.publish();
    let second = || {
        messages(&world, || {
            // As often as it can: two writes for each time.
            for _ in 0..100 {
                disk.say(XenbusState::Initialising);
                world.wait(Duration::from_millis(5));
                disk.say(XenbusState::Initialised);
                world.wait(Duration::from_millis(5));
            }
        })
    };
    let first = second();
    let later: Vec<u64> = (0..10).map(|_| second()).collect();
    println!("{first} messages in the first second, then {later:?}");
    assert!(
        later.iter().sum::<u64>() <= 10 * 60,
        "{first}, then {later:?}"
    );
    // Meanwhile, others attach as fast as ever.
    let quiet = Guest::new(&world);
    disk.say(XenbusState::Initialising);
    quiet.attach("xvda", "ram:disk0").connected().detach();
    other.leave();
    // And it is detached in time, whatever it has done: libxl waits for ten seconds.
    toolstack::request_detach(&mut world.sim.store(), &disk.vbd);
    disk.say(XenbusState::Closing);
    world.wait(Duration::from_secs(4));
    disk.say(XenbusState::Closed);
    world.wait(Duration::from_secs(4));
    assert!(disk.vbd.backend_gone(&world.sim.store()));
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    disk.take_down();
    world.nothing_left();
}

#[test]
fn a_guest_that_writes_its_state_without_end_has_its_share_of_xenstored() {
    let world = World::new();
    let guest = Guest::new(&world);
    let disks = NAMES.map(|name| guest.attach(name, "null:1G").connected());
    let second = || {
        messages(&world, || {
            for _ in 0..25 {
                for disk in &disks {
                    disk.say(XenbusState::Connected);
                }
                world.wait(Duration::from_millis(40));
            }
        })
    };
    for _ in 0..10 {
        second();
    }
    let later: Vec<u64> = (0..10).map(|_| second()).collect();
    assert!(later.iter().sum::<u64>() <= 10 * 60, "{later:?}");
    for disk in disks {
        guest_leaves(disk);
    }
    world.nothing_left();
}

#[test]
fn a_guest_whose_devices_are_not_served_has_its_share_of_xenstored_too() {
    let world = World::new();
    let guest = Guest::new(&world);
    let devices = NAMES.map(|name| guest.attach_to("qdisk", name, &Disk::new("qcow2:ram:disk0")));
    let second = || {
        messages(&world, || {
            for _ in 0..25 {
                for device in &devices {
                    device.say(XenbusState::Connected);
                }
                world.wait(Duration::from_millis(40));
            }
        })
    };
    for _ in 0..10 {
        second();
    }
    let later: Vec<u64> = (0..10).map(|_| second()).collect();
    assert!(later.iter().sum::<u64>() <= 10 * 60, "{later:?}");
    // It is detached all the same.
    for device in devices {
        toolstack::request_detach(&mut world.sim.store(), &device.vbd);
        world.wait(Duration::from_secs(8));
        assert!(device.vbd.backend_gone(&world.sim.store()));
        device.finish_detach();
    }
    world.nothing_left();
}

/// Detaches a disk of a guest that may have to wait for its turn.
fn guest_leaves(mut disk: Frontend<'_>) {
    let world = disk.world;
    disk.request_detach();
    disk.say(XenbusState::Closing);
    world.wait(Duration::from_secs(4));
    disk.say(XenbusState::Closed);
    world.wait(Duration::from_secs(4));
    disk.take_down();
    disk.finish_detach();
}
