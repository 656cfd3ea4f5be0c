//! The requests that reach the backend of a disk of the driver domain's own, as that backend sees them.

use crate::scripted_backend::{DISK, OFFER, ScriptedBackend, THERE_AND_BACK};
use bulkhead_blkback_testkit::{Frontend, Guest, Setup, World};
use bulkhead_ring::blkif::{
    BlkifSector, Discard, Operation, Request, RequestId, Status, Transfer, TransferKind,
};
use bulkhead_xenbus::XenbusState;

fn world() -> World {
    World::with(Setup {
        own_disks: true,
        ..Setup::default()
    })
}

/// Returns a guest's disk on that of a backend that publishes these nodes, too.
fn disk_of<'w>(world: &'w World, nodes: &[(&str, &str)]) -> (ScriptedBackend<'w>, Frontend<'w>) {
    let other = |name: &str| nodes.iter().all(|(changed, _)| *changed != name);
    let others = DISK.iter().filter(|(name, _)| other(name));
    let said: Vec<_> = others.chain(nodes).copied().collect();
    let backend = ScriptedBackend::new(world, &said);
    let disk = Guest::new(world).attach("xvda", "vbd:xvda").connected();
    (backend, disk)
}

/// Has a guest ask for something. Returns the request that reaches the backend, which answers so, and what the guest
/// learns.
fn asked(
    (backend, disk): (&mut ScriptedBackend<'_>, &mut Frontend<'_>),
    ask: impl FnOnce(&mut Frontend<'_>),
    status: Status,
) -> (Request, Status) {
    ask(disk);
    disk.link().kick();
    disk.world.wait(THERE_AND_BACK);
    let request = backend.take();
    backend.answer(&request.response(status));
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 1, "{:#?}", disk.world.journal());
    (request, answers[0].status)
}

fn push_discard(disk: &mut Frontend<'_>, discard: Discard) {
    let id = disk.link().new_id();
    let request = Request::of(id, Operation::Discard(discard));
    disk.link().push(&request, Vec::new());
}

fn discard(secure: bool) -> Discard {
    Discard {
        sector: BlkifSector(16),
        count: 8,
        secure,
    }
}

#[test]
fn a_secure_discard_is_a_secure_one_below_and_another_is_not() {
    let world = world();
    let nodes = [("feature-discard", "1"), ("discard-secure", "1")];
    let (mut backend, mut disk) = disk_of(&world, &nodes);
    assert_eq!(disk.backend_node("discard-secure").as_deref(), Some("1"));
    for secure in [true, false] {
        let ask = |disk: &mut Frontend<'_>| push_discard(disk, discard(secure));
        let (request, status) = asked((&mut backend, &mut disk), ask, Status::Okay);
        assert_eq!(request.operation, Operation::Discard(discard(secure)));
        assert_eq!(status, Status::Okay);
    }
}

/// Backends before Linux 2.6.37 know no other flush.
#[test]
fn a_flush_is_an_empty_barrier_where_the_backend_has_nothing_else() {
    let world = world();
    let nodes = [("feature-flush-cache", "0"), ("feature-barrier", "1")];
    let (mut backend, mut disk) = disk_of(&world, &nodes);
    assert_eq!(
        disk.backend_node("feature-flush-cache").as_deref(),
        Some("1")
    );
    let empty = Request::transfer(
        RequestId(0),
        TransferKind::WriteBarrier,
        BlkifSector(0),
        &[],
    );
    let empty = empty.expect("a barrier needs no segment").operation;
    for status in [Status::Okay, Status::Error] {
        let flush = |disk: &mut Frontend<'_>| {
            disk.link().push_flush();
        };
        let (request, learned) = asked((&mut backend, &mut disk), flush, status);
        assert_eq!(request.operation, empty);
        assert_eq!(learned, status);
    }
}

#[test]
fn sectors_of_4096_bytes_are_asked_for_as_a_whole() {
    let world = world();
    let (mut backend, mut disk) = disk_of(&world, &[("sector-size", "4096")]);
    assert_eq!(disk.backend_node("sector-size").as_deref(), Some("4096"));
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("256"));
    let read = |disk: &mut Frontend<'_>| {
        disk.link().push_read(16, 8);
    };
    let (request, status) = asked((&mut backend, &mut disk), read, Status::Okay);
    let Operation::Transfer(Transfer {
        kind,
        sector,
        segments,
    }) = request.operation
    else {
        panic!("{request:?}");
    };
    assert_eq!((kind, sector), (TransferKind::Read, BlkifSector(16)));
    let lengths: Vec<_> = segments.iter().map(|segment| segment.len()).collect();
    assert_eq!((lengths, status), (vec![4096], Status::Okay));
    // Half a sector is no request.
    for (sector, sectors) in [(4, 8), (8, 4)] {
        disk.link().push_read(sector, sectors);
        disk.link().kick();
        world.wait(THERE_AND_BACK);
        assert_eq!(disk.link().collect()[0].status, Status::Error);
        assert_eq!(backend.take_next(), None);
    }
}

#[test]
fn a_backend_that_comes_back_without_discard_is_not_asked_for_any() {
    let world = world();
    let nodes = [("feature-discard", "1"), ("discard-secure", "1")];
    let (mut backend, mut disk) = disk_of(&world, &nodes);
    let again = |backend: &mut ScriptedBackend<'_>, nodes: &[(&str, &str)]| {
        backend.offer_again(&OFFER);
        backend.connect();
        backend.say(nodes, XenbusState::Connected);
    };
    again(&mut backend, &[("discard-secure", "0")]);
    let plain = |disk: &mut Frontend<'_>| push_discard(disk, discard(false));
    let (request, _) = asked((&mut backend, &mut disk), plain, Status::Okay);
    assert_eq!(request.operation, Operation::Discard(discard(false)));
    let refused = |backend: &mut ScriptedBackend<'_>, disk: &mut Frontend<'_>, secure| {
        push_discard(disk, discard(secure));
        disk.link().kick();
        world.wait(THERE_AND_BACK);
        assert_eq!(backend.take_next(), None);
        assert_eq!(disk.link().collect()[0].status, Status::NotSupported);
    };
    refused(&mut backend, &mut disk, true);
    again(&mut backend, &[("feature-discard", "0")]);
    refused(&mut backend, &mut disk, false);
}
