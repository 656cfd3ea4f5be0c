//! A store that does not answer, or not in time: its disks close, and the driver domain ends, in bounded time.

use super::stores::finish;
#[cfg(feature = "recover")]
use bulkhead_blkback_testkit::Setup;
use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, World};
use bulkhead_images::Caps;
use bulkhead_ring::blkif::Status;
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn what_a_store_takes_too_long_for_by_its_own_account_is_given_up() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut other = Bystander::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0");
    late.last().cancel_what_is_given_up();
    late.last().limit(Caps {
        timeout: Some(Duration::from_secs(30)),
        ..Caps::UNLIMITED
    });
    disk.connect();
    // It was idle for longer than that before.
    world.wait(Duration::from_secs(60));
    disk.link().push_read(0, 8);
    disk.link().push_read(8, 8);
    assert_eq!(disk.exchange(), []);
    world.wait(Duration::from_secs(20));
    // One is answered: it lives.
    late.last().release(0);
    world.wait(Duration::from_secs(20));
    assert_eq!(disk.link().collect().len(), 1);
    other.io();
    world.wait(Duration::from_secs(15));
    let answers = disk.link().collect();
    assert_eq!(answers[0].status, Status::Error);
    assert!(logged(&world, "has not answered 1 request(s) in time"));
    // It is served on.
    disk.link().push_read(0, 8);
    disk.exchange();
    assert_eq!(finish(&world, &late.last(), &mut disk), [Status::Okay]);
    disk.detach();
    other.leave();
    world.nothing_left();
}

fn logged(world: &World, text: &str) -> bool {
    world.journal().iter().any(|line| line.contains(text))
}

/// Returns a disk with requests that its store never answers.
fn stuck<'w>(guest: &Guest<'w>) -> Frontend<'w> {
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    for number in 0..5 {
        disk.link().push_read(number * 8, 8);
    }
    assert_eq!(disk.exchange(), []);
    disk
}

#[test]
fn a_detach_from_a_store_that_never_answers_takes_a_bounded_time() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut other = Bystander::new(&world);
    let mut disk = stuck(&guest);
    late.last().cancel_what_is_given_up();
    disk.request_detach();
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    world.wait(Duration::from_secs(5));
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    other.io();
    // libxl waits for ten seconds.
    world.wait(Duration::from_secs(3));
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    assert!(logged(&world, "has not answered 5 request(s) for 6 s"));
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 5);
    assert!(answers.iter().all(|answer| answer.status == Status::Error));
    disk.take_down();
    disk.finish_detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_store_that_cannot_give_up_lets_go_when_it_is_closed() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = stuck(&guest);
    disk.request_detach();
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    world.wait(Duration::from_secs(9));
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    assert_eq!(late.last().held(), 0);
    assert_eq!(disk.link().collect().len(), 5, "answered with errors");
    disk.take_down();
    disk.finish_detach();
    world.nothing_left();
}

#[test]
fn pages_that_a_store_does_not_let_go_of_stay_mapped_until_it_does() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut other = Bystander::new(&world);
    let mut disk = stuck(&guest);
    let store = late.last();
    store.hold_on();
    disk.request_detach();
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    world.wait(Duration::from_secs(9));
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    assert!(logged(&world, "does not let go of 5 request(s)"));
    assert!(disk.domain.grants_in_use() >= 5, "it may still write there");
    other.io();
    // Whoever wants the image meanwhile is told who has it.
    let refused = guest.attach("xvdf", "ram:disk0");
    let problem = refused.problem().expect("the image is in use");
    assert!(problem.contains("open for writing by vbd"), "{problem}");
    world.wait_for_removal();
    assert_eq!(refused.backend(), None);
    toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
    // The simulated Xen would fault if these were unmapped.
    store.release_backwards();
    world.run();
    assert!(logged(&world, "the store has let go of its requests"));
    assert_eq!(disk.domain.grants_in_use(), 0);
    drop(store);
    disk.take_down();
    disk.finish_detach();
    other.leave();
    world.nothing_left();
}

#[cfg(feature = "recover")]
#[test]
fn after_a_crash_a_disk_is_served_whose_predecessors_store_had_not_let_go() {
    let (world, late) = World::with_late_disks_and(Setup {
        recover: true,
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let mut first = stuck(&guest);
    late.last().hold_on();
    first.request_detach();
    first.go(XenbusState::Closing);
    first.go(XenbusState::Closed);
    world.wait(Duration::from_secs(9));
    assert_eq!(first.backend(), Some(XenbusState::Closed));
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &first.vbd);
    // Another image takes its number.
    let mut disk = guest.attach("xvdd", "ram:disk1").connected();
    world.crash_after(0, 0);
    world.restart();
    world.wait(Duration::from_millis(50));
    assert_eq!(disk.backend(), Some(XenbusState::Connected));
    disk.link().push_read(0, 8);
    disk.exchange();
    assert_eq!(finish(&world, &late.last(), &mut disk), [Status::Okay]);
    first.take_down();
}

/// Closes a disk, whose store does not let go of its requests.
pub fn close(disk: &mut Frontend<'_>) {
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    disk.world.wait(Duration::from_secs(9));
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
}

/// Has the frontend of such a disk begin anew, which is refused.
pub fn cannot_connect_again(disk: &mut Frontend<'_>) {
    disk.forget();
    disk.go(XenbusState::Initialising);
    assert!(!disk.try_connect());
    let problem = disk.problem().expect("refused");
    assert!(problem.contains("still holds requests"), "{problem}");
}

#[test]
fn a_frontend_does_not_connect_again_before_the_store_has_let_go() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = stuck(&guest);
    late.last().hold_on();
    close(&mut disk);
    cannot_connect_again(&mut disk);
    disk.go(XenbusState::Closed);
    late.last().release_backwards();
    world.run();
    disk.forget();
    disk.go(XenbusState::Initialising);
    disk.connect();
    disk.link().push_read(0, 8);
    disk.exchange();
    assert_eq!(finish(&world, &late.last(), &mut disk), [Status::Okay]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn the_driver_domain_ends_though_a_store_never_answers() {
    for holds_on in [false, true] {
        let (world, late) = World::with_late_disks();
        let guest = Guest::new(&world);
        let mut disk = stuck(&guest);
        if holds_on {
            late.last().hold_on();
        }
        let closed = Rc::new(Cell::new(false));
        let (done, backend) = (closed.clone(), world.backend.clone());
        world.spawn(async move {
            backend.close().await;
            done.set(true);
        });
        world.wait(Duration::from_secs(8));
        assert!(closed.get());
        assert_eq!(logged(&world, "does not let go of 5 request(s)"), holds_on);
        assert_eq!(disk.domain.grants_in_use() > 0, holds_on);
        late.last().release_backwards();
        world.run();
        disk.link().collect();
        disk.take_down();
    }
}

#[test]
fn a_guest_that_is_gone_is_not_waited_for_by_a_store_that_never_answers() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let disk = stuck(&guest);
    late.last().hold_on();
    let (id, store) = (guest.domain.id(), late.last());
    world.sim.destroy_domain(id);
    toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
    world.wait(Duration::from_secs(6));
    assert!(disk.vbd.backend_gone(&world.sim.store()));
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    assert!(logged(&world, "does not let go of 5 request(s)"));
    assert!(!world.sim.is_fully_gone(id), "the store may write there");
    store.release_backwards();
    world.run();
    assert!(world.sim.is_fully_gone(id));
    drop(store);
    world.late.forget(&disk.vbd);
    drop(late);
    world.nothing_left();
}

#[test]
fn a_store_that_opens_no_queue_refuses_the_connection() {
    for (reason, expected) in [
        (
            Some("no route to the server"),
            "the store cannot be used: no route to the server",
        ),
        (None, "the store cannot be used: it does not answer"),
    ] {
        let (world, late) = World::with_late_disks();
        let guest = Guest::new(&world);
        let mut other = Bystander::new(&world);
        let mut disk = guest.attach("xvdd", "ram:disk0");
        late.last().refuse_to_open(reason);
        disk.prepare();
        disk.publish();
        disk.go(XenbusState::Initialised);
        other.io();
        world.wait(Duration::from_secs(11));
        assert_eq!(disk.problem().as_deref(), Some(expected));
        assert_eq!(disk.backend(), Some(XenbusState::Closing));
        disk.close();
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn a_detach_does_not_wait_for_a_queue_that_is_being_opened() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0");
    late.last().refuse_to_open(None);
    disk.prepare();
    disk.publish();
    disk.go(XenbusState::Initialised);
    let id = guest.domain.id();
    world.sim.destroy_domain(id);
    world.wait(Duration::from_secs(11));
    world.destroy(id, &[&disk.vbd]);
    world.nothing_left();
}
