//! Backends of the driver domain's own disks that keep a ring mapped when its frontend has closed, and execute later
//! what they have found on it: a number of a grant there must not stand for another page by then.

use crate::scripted_backend::{DISK, OFFER, ScriptedBackend, THERE_AND_BACK, page_of};
use bulkhead_blkback_testkit::{Frontend, Guest, Setup, World};
use bulkhead_ring::blkif::{Request, Status};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

fn world() -> World {
    World::with(Setup {
        own_disks: true,
        grant_entries: 4096,
        ..Setup::default()
    })
}

/// A guest's disk, with a read that the backend has.
fn ask<'w>(
    guest: &Guest<'w>,
    name: &str,
    target: &str,
    backend: &mut ScriptedBackend<'_>,
) -> (Frontend<'w>, Request) {
    let mut disk = guest.attach(name, target).connected();
    disk.link().push_read(0, 8);
    disk.link().kick();
    disk.world.wait(THERE_AND_BACK);
    (disk, backend.take())
}

/// Has the backend's domain do the read now, if it still can.
fn execute(world: &World, backend: &ScriptedBackend<'_>, read: &Request) {
    let page = backend
        .region
        .map_pages(world.storage.id(), &[page_of(read)])
        .expect("room");
    if let Ok(page) = page {
        // SAFETY: one page, mapped until it is dropped.
        unsafe { page.base().write_bytes(0xee, 4096) };
    }
}

/// Has the other disk of that domain serve reads, while the old one is done.
fn is_untouched(guest: &Guest<'_>, backend: &ScriptedBackend<'_>, late: &Request) {
    let world = guest.world;
    let mut other = backend.beside("xvdb", &DISK);
    let (mut disk, first) = ask(guest, "xvdb", "vbd:xvdb", &mut other);
    execute(world, backend, late);
    let mut read = Some(first);
    while let Some(asked) = read {
        other.answer(&asked.response(Status::Okay));
        read = other.take_next();
    }
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 1, "{:#?}", world.journal());
    assert_eq!(answers[0].status, Status::Okay);
    assert!(answers[0].data == [0; 4096], "of another disk");
    disk.detach();
}

#[test]
fn what_is_on_a_ring_that_a_backend_keeps_names_no_page_of_another_disk() {
    let world = world();
    let guest = Guest::with_memory(&world, 4096);
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let (mut disk, late) = ask(&guest, "xvda", "vbd:xvda", &mut backend);
    backend.say(&[], XenbusState::Closing);
    world.wait(Duration::from_secs(1));
    assert_eq!(backend.frontend(), Some(XenbusState::Closed));
    is_untouched(&guest, &backend, &late);
    // Once it has let go of the ring, the disk is served again.
    backend.ring = None;
    backend.say(&[], XenbusState::Closed);
    world.wait(Duration::from_secs(5));
    backend.say(&OFFER, XenbusState::InitWait);
    backend.connect();
    backend.say(&DISK, XenbusState::Connected);
    world.wait(THERE_AND_BACK);
    let again = backend.take();
    backend.answer(&again.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    disk.detach();
    world.no_mistakes();
}

#[test]
fn what_is_on_the_ring_of_a_disk_that_was_given_up_names_no_page_of_another_disk() {
    // Whether the guest or the toolstack is done with the disk first.
    for guest_first in [true, false] {
        let world = world();
        let guest = Guest::with_memory(&world, 4096);
        let mut backend = ScriptedBackend::new(&world, &DISK);
        let (mut disk, late) = ask(&guest, "xvda", "vbd:xvda", &mut backend);
        backend.produce(1000);
        assert_eq!(disk.link().collect()[0].status, Status::Error);
        assert_eq!(backend.frontend(), Some(XenbusState::Closed));
        let detach = || {
            toolstack::force_detach(&mut world.sim.store(), &backend.vbd);
            world.wait(Duration::from_secs(5));
        };
        if guest_first {
            disk.detach();
            detach();
        } else {
            detach();
            disk.detach();
        }
        is_untouched(&guest, &backend, &late);
        world.no_mistakes();
    }
}

#[test]
fn memory_of_a_disk_that_was_given_up_is_used_again_if_the_backend_has_let_go_of_the_ring() {
    let world = world();
    let guest = Guest::with_memory(&world, 4096);
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let (mut disk, _) = ask(&guest, "xvda", "vbd:xvda", &mut backend);
    backend.produce(1000);
    assert_eq!(disk.link().collect()[0].status, Status::Error);
    toolstack::force_detach(&mut world.sim.store(), &backend.vbd);
    world.wait(Duration::from_secs(5));
    backend.ring = None;
    disk.detach();
    assert_eq!(world.storage.grants_for(backend.domain.id()), 0);
    world.no_mistakes();
}

#[test]
fn a_queue_that_is_opened_while_a_backend_keeps_a_ring_is_not_granted_to_it() {
    let world = world();
    let guest = Guest::with_memory(&world, 4096);
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let (disk, _) = ask(&guest, "xvda", "vbd:xvda,shared=yes", &mut backend);
    let other = guest.attach("xvdb", "vbd:xvda,shared=yes");
    backend.say(&[], XenbusState::Closing);
    world.wait(Duration::from_secs(1));
    let domain = backend.domain.id();
    let granted = || world.storage.grants_for(domain);
    let before = granted();
    let mut other = other.connected();
    assert_eq!(granted(), before);
    backend.ring = None;
    backend.say(&[], XenbusState::Closed);
    world.wait(Duration::from_secs(5));
    backend.say(&OFFER, XenbusState::InitWait);
    backend.connect();
    backend.say(&DISK, XenbusState::Connected);
    other.link().push_read(0, 8);
    other.link().kick();
    world.wait(THERE_AND_BACK);
    for _ in 0..2 {
        let read = backend.take();
        backend.answer(&read.response(Status::Okay));
    }
    assert_eq!(other.link().collect()[0].status, Status::Okay);
    other.detach();
    disk.detach();
    world.no_mistakes();
}
