//! Backends of the driver domain's own disks that lie: whatever they do affects the users of that disk alone.

use crate::scripted_backend::{DISK, OFFER, ScriptedBackend, THERE_AND_BACK};
use crate::silent_stores::close;
use bulkhead_blkback_testkit::{Frontend, Guest, IMAGE_SIZE, Lower, Setup, World, content};
use bulkhead_blkfront::UNSENT_TIMEOUT;
use bulkhead_ring::blkif::{Opcode, Operation, RequestId, Response, Status};
use bulkhead_xen::abi::xs_wire::{MessageType, Refusal};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

fn world() -> World {
    World::with(Setup {
        own_disks: true,
        ..Setup::default()
    })
}

/// Returns another disk of the driver domain's own, whose backend behaves.
fn bystander<'w>(world: &'w World, lower: &Lower<'w>) -> Frontend<'w> {
    lower.attach("xvdb", &Disk::new("ram:good"));
    Guest::new(world).attach("xvda", "vbd:xvdb").connected()
}

fn is_served(disk: &mut Frontend<'_>) {
    disk.link().push_read(8, 8);
    disk.link().kick();
    disk.world.wait(THERE_AND_BACK);
    let answers = disk.link().collect();
    assert!(answers[0].data == content(90, IMAGE_SIZE)[8 * 512..][..4096]);
}

fn images() -> Vec<(String, Vec<u8>)> {
    vec![("good".to_string(), content(90, IMAGE_SIZE))]
}

/// Returns a guest's disk on that of a backend, with requests.
fn ask<'w>(world: &'w World, requests: usize) -> Frontend<'w> {
    let mut disk = Guest::new(world).attach("xvda", "vbd:xvda").connected();
    for _ in 0..requests {
        disk.link().push_read(0, 8);
    }
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    assert_eq!(disk.link().collect(), []);
    disk
}

#[test]
fn a_backend_that_answers_well_is_believed() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut disk = ask(&world, 2);
    let (first, second) = (backend.take(), backend.take());
    backend.answer(&second.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    backend.answer(&first.response(Status::Error));
    assert_eq!(disk.link().collect()[0].status, Status::Error);
    // An error of the disk is no lie.
    assert_eq!(backend.frontend(), Some(XenbusState::Connected));
}

/// This backend takes no indirect requests: a large request is three of them. Each of the first two responses
/// completes nothing.
#[test]
fn parts_of_a_request_that_are_answered_one_after_another_complete_it() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let guest = Guest::with_memory(&world, 4096);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    disk.link().push_write(0, &[5; 32 * 4096]);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    for _ in 0..3 {
        assert_eq!(disk.link().collect(), []);
        let part = backend.take();
        backend.answer_as_asked(&part.response(Status::Okay));
    }
    assert_eq!(disk.link().collect().len(), 1);
}

/// The response that comes first is for nobody any more.
#[test]
fn a_response_to_a_guest_that_is_gone_does_not_hide_the_next_ones() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda,shared=yes").connected();
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let first = backend.take();
    let vbd = disk.vbd.clone();
    world.sim.destroy_domain(guest.domain.id());
    toolstack::force_detach(&mut world.sim.store(), &vbd);
    // Its request is given up, as far as the guest is concerned.
    world.wait(Duration::from_secs(5));
    toolstack::finish_detach(&mut world.sim.store(), &vbd);
    toolstack::remove_domain(&mut world.sim.store(), vbd.frontend);
    let mut disk = Guest::new(&world)
        .attach("xvda", "vbd:xvda,shared=yes")
        .connected();
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    assert_eq!(disk.link().collect(), []);
    let second = backend.take();
    backend.answer_as_asked(&first.response(Status::Okay));
    assert_eq!(disk.link().collect(), []);
    backend.answer_as_asked(&second.response(Status::Okay));
    assert_eq!(disk.link().collect().len(), 1);
}

/// The reader of partition tables does not look at the ring again once it has the last sector that it wants.
#[test]
fn a_response_to_the_reader_of_tables_does_not_hide_the_next_ones() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut disk = Guest::new(&world)
        .attach("xvda", "vbd:xvda,shared=yes")
        .connected();
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let first = backend.take();
    let refused = Guest::new(&world).attach("xvdb", "vbd:xvda/x,shared=yes");
    world.wait(THERE_AND_BACK);
    let mut reads = 0;
    while let Some(read) = backend.take_next() {
        backend.answer_as_asked(&read.response(Status::Okay));
        reads += 1;
    }
    assert!(reads > 0, "{:#?}", world.journal());
    let problem = refused.problem().expect("no such partition");
    assert!(problem.contains("no GUID partition table"), "{problem}");
    assert_eq!(disk.link().collect(), []);
    backend.answer_as_asked(&first.response(Status::Okay));
    assert_eq!(disk.link().collect().len(), 1);
}

#[test]
fn each_violation_costs_that_disk_alone() {
    type Act = fn(&mut ScriptedBackend<'_>);
    let violations: [(&str, Act); 6] = [
        ("answered request 77, which it was not asked", |backend| {
            let request = backend.take();
            let response = request.response(Status::Okay);
            let id = RequestId(77);
            backend.answer(&Response { id, ..response });
        }),
        ("answered request 18446744073709551615, which", |backend| {
            let response = backend.take().response(Status::Okay);
            let id = RequestId(u64::MAX);
            backend.answer(&Response { id, ..response });
        }),
        ("which it was not asked", |backend| {
            let (first, _) = (backend.take(), backend.take());
            backend.answer(&first.response(Status::Okay));
            backend.answer(&first.response(Status::Okay));
        }),
        ("answered WRITE where it was asked for READ", |backend| {
            let response = backend.take().response(Status::Okay);
            let operation = Opcode::WRITE;
            backend.answer(&Response {
                operation,
                ..response
            });
        }),
        ("answered with status 7", |backend| {
            let response = backend.take().response(Status::Other(7));
            backend.answer(&response);
        }),
        ("ring overrun: producer index 0x3", |backend| {
            backend.produce(3)
        }),
    ];
    for (reason, violate) in violations {
        let world = world();
        let lower = Lower::new(&world, &images());
        let mut other = bystander(&world, &lower);
        let mut backend = ScriptedBackend::new(&world, &DISK);
        let mut disk = ask(&world, 2);
        violate(&mut backend);
        let journal = world.journal();
        let told = |line: &&String| line.contains("disk xvda: given up") && line.contains(reason);
        assert_eq!(
            journal.iter().filter(told).count(),
            1,
            "{reason}: {journal:#?}"
        );
        let answers = disk.link().collect();
        let failed = answers
            .iter()
            .filter(|answer| answer.status == Status::Error);
        assert!(failed.count() >= 1, "{reason}");
        assert_eq!(disk.link().outstanding(), 0, "{reason}");
        assert_eq!(backend.frontend(), Some(XenbusState::Closed), "{reason}");
        // What is asked later fails at once.
        disk.link().push_read(0, 1);
        disk.link().kick();
        world.wait(THERE_AND_BACK);
        assert_eq!(disk.link().collect()[0].status, Status::Error);
        let refused = Guest::new(&world).attach("xvdc", "vbd:xvda");
        let problem = refused.problem().expect("refused");
        assert!(
            problem.contains("was given up") && problem.contains(reason),
            "{problem}"
        );
        is_served(&mut other);
        // It still has the ring mapped. Nothing of that memory is used for another disk.
        disk.detach();
        other.detach();
        assert!(world.storage.grants_in_use() >= 4);
        world.no_mistakes();
    }
}

#[test]
fn a_backend_that_says_nonsense_of_its_disk_is_not_connected_to() {
    for (nodes, reason) in [
        (
            &[("sectors", "many")][..],
            "the backend's sectors is \"many\"",
        ),
        (&[("sectors", "0")], "the backend's sectors is \"0\""),
        (&[], "the backend published no sectors"),
        (
            &[("sectors", "8"), ("sector-size", "1000")],
            "the backend's sector-size is \"1000\"",
        ),
    ] {
        let world = world();
        let lower = Lower::new(&world, &images());
        let mut other = bystander(&world, &lower);
        let backend = ScriptedBackend::new(&world, nodes);
        assert_eq!(backend.frontend(), Some(XenbusState::Closed));
        let refused = Guest::new(&world).attach("xvdc", "vbd:xvda");
        let problem = refused.problem().expect("refused");
        assert!(problem.contains(reason), "{problem}");
        is_served(&mut other);
        world.no_mistakes();
    }
}

#[test]
fn a_disk_that_connects_late_and_says_nothing_is_refused_before_libxl_gives_up() {
    let world = world();
    let disk = Guest::new(&world).attach("xvda", "vbd:xvda/root");
    world.wait(Duration::from_secs(5));
    let backend = ScriptedBackend::new(&world, &DISK);
    assert_eq!(backend.frontend(), Some(XenbusState::Connected));
    assert_eq!(disk.problem(), None);
    // Nine of the ten seconds.
    world.wait(Duration::from_secs(4));
    let problem = disk.problem().expect("refused");
    assert!(problem.contains("does not answer"), "{problem}");
    world.no_mistakes();
}

#[test]
fn memory_that_a_backend_does_not_let_go_of_is_not_used_again() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut disk = ask(&world, 1);
    backend.say(&[], XenbusState::Closing);
    world.wait(Duration::from_secs(5));
    assert_eq!(backend.frontend(), Some(XenbusState::Closed));
    let said = |line: &String| line.contains("does not let go of our memory");
    assert!(world.journal().iter().any(said), "{:#?}", world.journal());
    // It lets go, and may come back.
    backend.ring = None;
    backend.say(&[], XenbusState::Closed);
    world.wait(Duration::from_secs(60));
    assert_eq!(backend.frontend(), Some(XenbusState::Initialising));
    backend.say(&OFFER, XenbusState::InitWait);
    assert_eq!(backend.frontend(), Some(XenbusState::Initialised));
    assert_eq!(disk.link().outstanding(), 1);
    world.no_mistakes();
}

#[test]
fn requests_do_not_wait_for_ever_for_a_backend_that_keeps_our_memory() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut disk = ask(&world, 1);
    let Operation::Transfer(transfer) = backend.take().operation else {
        panic!("a read");
    };
    let data = transfer.segments[0].gref();
    let data = backend.region.map_pages(world.storage.id(), &[data]);
    let data = data.expect("room").expect("granted");
    backend.say(&[], XenbusState::Closing);
    world.wait(UNSENT_TIMEOUT + Duration::from_secs(2));
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 1, "{:#?}", world.journal());
    assert_eq!(answers[0].status, Status::Error);
    // Later ones do not wait that long.
    for round in 0..200 {
        disk.link().push_write(0, &[round; 32 * 512]);
        disk.link().kick();
        world.wait(THERE_AND_BACK);
        let answers = disk.link().collect();
        assert_eq!(answers.len(), 1, "{round}: {:#?}", world.journal());
        assert_eq!(answers[0].status, Status::Error);
    }
    let said = |line: &String| line.contains("does not let go of our memory");
    assert!(world.journal().iter().any(said), "{:#?}", world.journal());
    // It lets go, and comes back.
    drop(data);
    backend.ring = None;
    backend.say(&[], XenbusState::Closed);
    world.wait(Duration::from_secs(60));
    backend.say(&OFFER, XenbusState::InitWait);
    backend.connect();
    backend.say(&DISK, XenbusState::Connected);
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    let request = backend.take();
    backend.answer(&request.response(Status::Okay));
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    // A guest is detached within the ten seconds of libxl, whatever the backend keeps.
    backend.say(&[], XenbusState::Closing);
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    disk.request_detach();
    close(&mut disk);
    // It may still execute the request that it finds on the ring: the disk is not given back before.
    assert!(disk.domain.grants_in_use() > 0);
    backend.ring = None;
    world.wait(Duration::from_secs(60));
    disk.take_down();
    disk.finish_detach();
    world.no_mistakes();
}

#[test]
fn a_backend_that_has_our_memory_is_not_begun_with_again_if_xenstored_fails_meanwhile() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut disk = ask(&world, 1);
    world.sim.store().faults.refuse = Some(Box::new(|_, kind, path| {
        let refused = kind == MessageType::WRITE && path.starts_with("device/vbd/");
        refused.then_some(Refusal::OutOfMemory)
    }));
    backend.say(&[], XenbusState::Closed);
    assert_eq!(backend.frontend(), Some(XenbusState::Connected));
    world.sim.store().faults.refuse = None;
    world.wait(Duration::from_secs(5));
    assert_eq!(backend.frontend(), Some(XenbusState::Closed));
    backend.ring = None;
    world.wait(Duration::from_secs(60));
    assert_eq!(backend.frontend(), Some(XenbusState::Initialising));
    assert_eq!(disk.link().outstanding(), 1);
    world.no_mistakes();
}

#[test]
fn a_disk_that_is_attached_in_the_place_of_one_that_was_given_up_is_served() {
    let world = world();
    let lower = Lower::new(&world, &images());
    let backend = ScriptedBackend::new(&world, &DISK);
    let mut old = ask(&world, 1);
    {
        let mut backend = backend;
        backend.produce(1000);
        assert_eq!(old.link().collect()[0].status, Status::Error);
        toolstack::force_detach(&mut world.sim.store(), &backend.vbd);
        backend.ring = None;
        world.sim.destroy_domain(backend.domain.id());
        toolstack::remove_domain(&mut world.sim.store(), backend.domain.id());
    }
    world.wait(Duration::from_secs(5));
    lower.attach("xvda", &Disk::new("ram:good"));
    // A guest still has what is left of the other one.
    let mut new = Guest::new(&world).attach("xvda", "vbd:xvda").connected();
    is_served(&mut new);
    old.link().push_read(0, 1);
    old.link().kick();
    world.wait(THERE_AND_BACK);
    assert_eq!(old.link().collect()[0].status, Status::Error);
    old.detach();
    is_served(&mut new);
    new.detach();
    world.no_mistakes();
}

/// Linux's driver, unbound and bound again, goes on with the rings that it finds.
#[test]
fn a_backend_that_starts_anew_may_go_on_with_the_rings_it_finds() {
    let world = world();
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let mut disk = ask(&world, 1);
    let request = backend.take();
    backend.say(&[], XenbusState::InitWait);
    world.wait(Duration::from_secs(2));
    assert_eq!(backend.frontend(), Some(XenbusState::Connected));
    backend.say(&[], XenbusState::Connected);
    backend.answer(&request.response(Status::Okay));
    assert_eq!(disk.link().collect().len(), 1);
    // One that does not is told to begin again.
    backend.say(&[], XenbusState::InitWait);
    world.wait(Duration::from_secs(6));
    assert_eq!(backend.frontend(), Some(XenbusState::Closed));
}

/// Linux's backend looks whether its requests have ended when its frontend closes, and does not look again by itself.
#[cfg(feature = "recover")]
#[test]
fn a_backend_that_was_at_work_when_its_frontend_closed_after_a_crash_is_told_again() {
    let world = World::with(Setup {
        own_disks: true,
        recover: true,
        ..Setup::default()
    });
    let mut backend = ScriptedBackend::new(&world, &DISK);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    let asked = disk.link().push_write(3, &[7; 512]);
    disk.link().kick();
    world.run();
    backend.take();
    world.crash_after(0, 0);
    world.restart();
    // It does not answer in time for its ring to be gone on with.
    world.wait(Duration::from_millis(250));
    for _ in 0..3 {
        assert_eq!(backend.frontend(), Some(XenbusState::Closed));
        // Its request has not ended, and it keeps the ring.
        backend.say(&[], XenbusState::Closed);
        assert_eq!(backend.frontend(), Some(XenbusState::Initialising));
        backend.say(&[], XenbusState::InitWait);
        world.wait(Duration::from_millis(900));
    }
    backend.ring = None;
    backend.say(&[], XenbusState::Closed);
    assert_eq!(backend.frontend(), Some(XenbusState::Initialising));
    backend.say(&[], XenbusState::InitWait);
    assert_eq!(backend.frontend(), Some(XenbusState::Initialised));
    backend.connect();
    backend.say(&DISK, XenbusState::Connected);
    let again = backend.take();
    backend.answer(&again.response(Status::Okay));
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].id, asked);
    assert_eq!(answers[0].status, Status::Okay);
}
