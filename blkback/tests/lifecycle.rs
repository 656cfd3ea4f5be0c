//! Every turn of a disk's life that the toolstack, the guest or the driver domain can take.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, IMAGE_SIZE, Link, World, content};
use bulkhead_xen::abi::xs_wire::MessageType;
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn a_frontend_closes_and_comes_back() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    disk.write(0, &[1; 512]);
    for _ in 0..5 {
        disk.close();
        assert_eq!(disk.backend(), Some(XenbusState::Closed));
        assert_eq!(world.storage.live_mappings(), 0);
        disk.go(XenbusState::Initialising);
        disk.connect();
        assert!(disk.read(0, 1) == [1; 512]);
    }
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_guest_that_starts_over_without_closing_is_served_again() {
    // As after kexec: the old ring is still there, but nobody uses it.
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    disk.write(0, &[1; 512]);
    let old = disk.forget().pop().unwrap();
    disk.go(XenbusState::Initialising);
    assert_eq!(disk.backend(), Some(XenbusState::InitWait));
    assert_eq!(world.storage.live_mappings(), 0, "the old ring is given up");
    old.take_down();
    disk.connect();
    assert!(disk.read(0, 1) == [1; 512]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_frontend_that_closes_with_requests_on_the_ring_gets_its_answers() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for number in 0..20 {
        disk.link().push_write(number, &[number as u8; 512]);
    }
    disk.link().kick();
    disk.say(XenbusState::Closing);
    world.run();
    assert_eq!(disk.link().collect().len(), 20);
    disk.go(XenbusState::Closed);
    disk.take_down();
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_disk_is_detached_before_anyone_connected() {
    let world = World::new();
    let guest = Guest::new(&world);
    guest.attach("xvda", "ram:disk0").detach();
    world.nothing_left();
    // Not even the driver domain has seen the attach when the detach comes.
    let disk = guest.attach_unseen("xvda", &Disk::new("ram:disk0"));
    disk.request_detach();
    disk.finish_detach();
    world.nothing_left();
}

#[test]
fn a_disk_is_attached_and_detached_a_hundred_times_beside_another() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for round in 0..100_u8 {
        let mut disk = guest.attach("xvdb", "ram:disk0").connected();
        disk.write(u64::from(round), &[round; 512]);
        disk.detach();
        other.io();
    }
    let mut disk = guest.attach("xvdb", "ram:disk0").connected();
    for round in 0..100_u8 {
        assert!(disk.read(u64::from(round), 1) == [round; 512]);
    }
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_guest_is_destroyed_in_mid_write() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    for round in 0..30 {
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        for number in 0..32 {
            disk.link().push_write(number * 8, &[round; 4096]);
        }
        disk.link().kick();
        if round % 2 == 0 {
            world.step(true);
        }
        guest.destroy(vec![disk]);
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn a_destroyed_guests_image_is_free_at_once() {
    let world = World::new();
    let first = Guest::new(&world);
    let disk = first.attach("xvda", "ram:disk0").connected();
    world.sim.destroy_domain(first.domain.id());
    toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
    world.run();
    let second = Guest::new(&world);
    let mut next = second.attach("xvda", "ram:disk0").connected();
    next.write(0, &[2; 512]);
    next.detach();
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.nothing_left();
}

/// Takes a disk from a guest that lives on, as `xl block-detach --force` does: the guest is not asked. Linux's
/// frontend waits for all of its requests before it lets go of the rings.
fn taken_by_force<'w>(world: &'w World, guest: &Guest<'w>) -> Frontend<'w> {
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    disk.write(0, &[1; 4096]);
    toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
    world.run();
    disk
}

#[test]
fn a_frontend_whose_disk_is_taken_by_force_gets_all_answers() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = taken_by_force(&world, &guest);
    for number in 1..10 {
        world.wait(Duration::from_millis(100));
        disk.write(number * 8, &[number as u8; 4096]);
    }
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    disk.link().let_go();
    world.wait(Duration::from_millis(50));
    assert_eq!(disk.backend(), Some(XenbusState::Closed), "it has let go");
    disk.take_down();
    disk.finish_detach();
    world.nothing_left();
}

#[test]
fn a_frontend_that_is_silent_after_its_disk_was_taken_by_force_is_not_waited_for() {
    let world = World::new();
    let guest = Guest::new(&world);
    // As a guest that `xl destroy` has paused.
    let mut disk = taken_by_force(&world, &guest);
    world.wait(Duration::from_millis(400));
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    disk.take_down();
    disk.finish_detach();
    world.nothing_left();
}

#[test]
fn a_frontend_that_does_not_let_go_of_a_disk_taken_by_force_keeps_it_for_a_bounded_time() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut other = Bystander::new(&world);
    let mut disk = taken_by_force(&world, &guest);
    let start = world.sim.now();
    while disk.backend() == Some(XenbusState::Closing) {
        assert!(
            world.sim.now() < start + Duration::from_secs(5),
            "libxl waits for ten seconds"
        );
        disk.link().push_write(8, &[2; 4096]);
        disk.exchange();
        other.io();
        world.wait(Duration::from_millis(10));
    }
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    disk.take_down();
    disk.finish_detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn the_same_device_is_attached_again_before_the_old_one_is_gone() {
    let world = World::new();
    let guest = Guest::new(&world);
    for steps in 0..40 {
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
        for _ in 0..steps {
            world.step(false);
            world.step(true);
        }
        // libxl has given up waiting and makes all directories anew.
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        let old = disk.forget();
        let mut disk = guest.attach("xvda", "ram:disk1");
        world.wait_for_removal();
        disk.connect();
        let image = content(1, IMAGE_SIZE);
        assert!(disk.read(0, 8) == image[..4096], "the old image");
        old.into_iter().for_each(Link::take_down);
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_second_writer_is_refused_and_told_who_has_it() {
    let world = World::new();
    let mut first = Bystander::new(&world);
    let guest = Guest::new(&world);
    for disk in [Disk::new("ram:disk5"), Disk::read_only("ram:disk5")] {
        let refused = guest.attach_as("xvda", &disk);
        let problem = refused.problem().unwrap();
        assert!(problem.contains("open for writing by vbd"), "{problem}");
        world.wait_for_removal();
        assert_eq!(refused.backend(), None, "libxl gives up at once");
        toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
        first.io();
    }
    first.leave();
    guest.attach("xvda", "ram:disk5").connected().detach();
    world.nothing_left();
}

#[test]
fn a_writer_is_refused_while_there_are_readers() {
    let world = World::new();
    let guests = [Guest::new(&world), Guest::new(&world)];
    let reader = guests[0].attach_read_only("xvda", "ram:disk0").connected();
    let writer = guests[1].attach("xvda", "ram:disk0");
    let problem = writer.problem().unwrap();
    assert!(problem.contains("open for reading by vbd"), "{problem}");
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &writer.vbd);
    reader.detach();
    world.nothing_left();
}

#[test]
fn two_domains_that_say_so_write_one_image() {
    // As an HVM guest and the stub domain of its device model: libxl gives both every disk of the guest.
    let world = World::new();
    let other = Bystander::new(&world);
    let domains = [Guest::new(&world), Guest::new(&world)];
    let [mut first, mut second] = [&domains[0], &domains[1]]
        .map(|one| one.attach("xvda", "ram:disk0,shared=yes").connected());
    first.write(0, &[1; 512]);
    second.write(8, &[2; 512]);
    assert!(second.read(0, 1) == [1; 512]);
    assert!(first.read(8, 1) == [2; 512]);
    let alone = Guest::new(&world);
    let refused = alone.attach("xvda", "ram:disk0");
    let problem = refused.problem().unwrap();
    assert!(
        problem.contains("open for writing by vbd") && problem.contains("shared=yes"),
        "{problem}"
    );
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
    // The guest ends in the middle of it, and its stub domain does not notice.
    first.link().push_write(0, &[3; 4096]);
    let [guest, _stub_domain] = domains;
    guest.destroy(vec![first]);
    assert!(second.read(8, 1) == [2; 512]);
    second.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn the_driver_domain_ends_while_guests_are_attached() {
    let world = World::new();
    let guests = [Guest::new(&world), Guest::new(&world)];
    let mut disks = vec![
        guests[0].attach("xvda", "ram:disk0").connected(),
        guests[1].attach("xvda", "ram:disk1").connected(),
        guests[1].attach("xvdb", "ram:disk2"),
    ];
    disks[0].link().push_write(0, &[3; 512]);
    disks[0].link().kick();
    let closed = Rc::new(Cell::new(false));
    let (done, backend) = (closed.clone(), world.backend.clone());
    world.spawn(async move {
        backend.close().await;
        done.set(true);
    });
    world.wait(Duration::from_secs(20));
    assert!(closed.get(), "the driver domain waits for something");
    assert_eq!(world.backend.disks(), 0);
    assert_eq!(disks[0].link().collect().len(), 1, "in flight, so served");
    for disk in &mut disks {
        assert_eq!(disk.backend(), Some(XenbusState::Closed));
        disk.take_down();
    }
    assert_eq!(world.storage.live_mappings(), 0);
    // Nobody is served any more.
    let late = guests[0].attach("xvdc", "ram:disk3");
    assert_eq!(late.backend(), Some(XenbusState::Initialising));
    for disk in disks.iter().chain([&late]) {
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    }
    world.nothing_left();
}

#[test]
fn an_ending_driver_domain_serves_a_frontend_until_it_has_let_go() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let closed = Rc::new(Cell::new(false));
    let (done, backend) = (closed.clone(), world.backend.clone());
    world.spawn(async move {
        backend.close().await;
        done.set(true);
    });
    world.wait(Duration::from_millis(200));
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    assert!(!closed.get(), "the frontend has not heard of it yet");
    disk.write(0, &[3; 512]);
    disk.go(XenbusState::Closing);
    disk.write(8, &[4; 512]);
    disk.link().push_write(16, &[5; 512]);
    disk.link().kick();
    disk.say(XenbusState::Closed);
    world.wait(Duration::from_millis(200));
    assert!(closed.get(), "nobody is left to wait for");
    assert_eq!(disk.link().collect().len(), 1, "on the ring, so served");
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    disk.take_down();
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.nothing_left();
}

#[test]
fn an_ending_driver_domain_knows_what_it_has_written_before_the_event_of_it() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    // The events of what is written from now on tell of other nodes.
    world.sim.store().faults.mangle = Some(Box::new(|_, bytes| {
        let state = bytes.windows(7).position(|part| part == b"/state\0");
        if let Some(at) = state.filter(|_| bytes[0] == MessageType::WATCH_EVENT.0 as u8) {
            bytes[at + 1] = b'S';
        }
    }));
    let backend = world.backend.clone();
    world.spawn(async move { backend.close().await });
    world.wait(Duration::from_millis(10));
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    disk.write(0, &[3; 512]);
    world.sim.store().faults.mangle = None;
    disk.go(XenbusState::Closed);
    world.wait(Duration::from_millis(200));
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    disk.take_down();
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.nothing_left();
}

#[test]
fn a_guest_attached_before_the_driver_domain_serves_is_found() {
    // The watch fires once as soon as it is set: what was there before counts as changed.
    let world = World::new();
    let guest = Guest::new(&world);
    world.sim.store().faults.stalled = true;
    let disk = guest.attach_unseen("xvda", &Disk::new("ram:disk0"));
    world.run();
    world.sim.store().faults.stalled = false;
    world.sim.store().fire_spuriously(world.storage.id());
    world.run();
    disk.connected().detach();
    world.nothing_left();
}

#[test]
fn a_frontend_that_begins_to_close_and_starts_over_before_it_connects_is_served() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0");
    disk.go(XenbusState::Closing);
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    disk.go(XenbusState::Initialising);
    disk.connect();
    disk.read(0, 8);
    disk.detach();
    world.nothing_left();
}
