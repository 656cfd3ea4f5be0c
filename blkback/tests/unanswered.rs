//! Backends of the driver domain's own disks that have requests of guests that are gone: they may do them late.

use crate::scripted_backend::{DISK, ScriptedBackend, THERE_AND_BACK};
use crate::silent_stores::{cannot_connect_again, close};
use bulkhead_blkback_testkit::{Frontend, Guest, Setup, World};
use bulkhead_ring::blkif::{Operation, Request, Status};
use bulkhead_xen_sim::xenstore::toolstack::{self, Vbd};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

fn world() -> World {
    World::with(Setup {
        own_disks: true,
        ..Setup::default()
    })
}

/// Destroys a guest, and has its disk detached.
fn destroy(world: &World, guest: &Guest<'_>, vbd: &Vbd) {
    world.sim.destroy_domain(guest.domain.id());
    toolstack::force_detach(&mut world.sim.store(), vbd);
    world.wait(Duration::from_secs(5));
    toolstack::finish_detach(&mut world.sim.store(), vbd);
    toolstack::remove_domain(&mut world.sim.store(), vbd.frontend);
}

/// Returns a guest's request that the backend has.
fn ask<'w>(
    disk: &mut Frontend<'w>,
    backend: &mut ScriptedBackend<'w>,
    push: impl Fn(&mut Frontend<'w>),
) -> Request {
    push(disk);
    disk.link().kick();
    disk.world.wait(THERE_AND_BACK);
    backend.take()
}

fn write(disk: &mut Frontend<'_>) {
    disk.link().push_write(0, &[1; 4096]);
}

/// The backend could do the first guest's write after the second one's.
#[test]
fn a_disk_is_not_given_to_another_guest_while_its_backend_has_a_write() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    let first = ask(&mut disk, &mut backend, write);
    destroy(&world, &guest, &disk.vbd);
    let refused = Guest::new(&world).attach("xvda", "vbd:xvda");
    let problem = refused.problem().expect("the backend has a write");
    assert!(problem.contains("open for writing by vbd"), "{problem}");
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
    backend.answer(&first.response(Status::Okay));
    let mut disk = Guest::new(&world).attach("xvda", "vbd:xvda").connected();
    let second = ask(&mut disk, &mut backend, write);
    backend.answer(&second.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    disk.detach();
    world.no_mistakes();
}

#[test]
fn a_frontend_does_not_connect_again_before_its_backend_has_answered() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let guest = Guest::with_memory(&world, 4096);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    let first = ask(&mut disk, &mut backend, write);
    close(&mut disk);
    let granted = world.storage.grants_in_use();
    for _ in 0..10 {
        cannot_connect_again(&mut disk);
        disk.go(XenbusState::Closed);
    }
    assert_eq!(world.storage.grants_in_use(), granted);
    backend.answer(&first.response(Status::Okay));
    disk.forget();
    disk.go(XenbusState::Initialising);
    disk.connect();
    // The memory of before is used again.
    assert_eq!(world.storage.grants_in_use(), granted);
    disk.detach();
    world.no_mistakes();
}

/// One whose memory the backend keeps, though it has closed, is one of those.
#[test]
fn a_frontend_does_not_connect_again_before_a_backend_that_is_gone_has_let_go() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let guest = Guest::with_memory(&world, 4096);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    let first = ask(&mut disk, &mut backend, write);
    let Operation::Transfer(transfer) = first.operation else {
        panic!("a write");
    };
    let data = [transfer.segments[0].gref()];
    let data = backend.region.map_pages(world.storage.id(), &data);
    let data = data.expect("room").expect("granted");
    backend.ring = None;
    backend.say(&[], XenbusState::Closed);
    world.wait(Duration::from_secs(1));
    close(&mut disk);
    cannot_connect_again(&mut disk);
    drop(data);
    world.wait(Duration::from_secs(60));
    let let_go = |line: &String| line.contains("the store has let go of its requests");
    assert!(world.journal().iter().any(let_go), "{:#?}", world.journal());
    world.no_mistakes();
}

/// The disk connects, and its backend answers nothing.
#[test]
fn tables_of_a_silent_disk_take_memory_once() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let try_once = || {
        let refused = Guest::new(&world).attach("xvda", "vbd:xvda/root");
        world.wait(Duration::from_secs(9));
        let problem = refused.problem().expect("refused");
        world.wait_for_removal();
        toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
        problem
    };
    let problem = try_once();
    assert!(problem.contains("does not answer"), "{problem}");
    let granted = world.storage.grants_in_use();
    for _ in 0..10 {
        let problem = try_once();
        assert!(
            problem.contains("has not answered what it was asked before"),
            "{problem}"
        );
    }
    assert_eq!(world.storage.grants_in_use(), granted);
    // It answers, and can be detached.
    let read = backend.take();
    assert!(backend.take_next().is_none());
    backend.answer(&read.response(Status::Okay));
    toolstack::request_detach(&mut world.sim.store(), &backend.vbd);
    backend.say(&[], XenbusState::Closing);
    assert_eq!(backend.frontend(), Some(XenbusState::Closed));
    world.no_mistakes();
}
