//! Requests that lie: an error response, or a closed device, for that frontend alone.

use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, PATHS, POISON, SECTORS, Style, World, content,
};
use bulkhead_grant::GrantAccess;
use bulkhead_ring::RingMemory;
use bulkhead_ring::blkif::{
    BlkifSector, Opcode, Operation, Request, RequestId, SLOT_SIZE, Segment, Status, TransferKind,
};
use bulkhead_ring::{Index, SharedPages};
use bulkhead_xen::GrantRef;
use bulkhead_xen_sim::GrantUse;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// Runs a scene with a hostile frontend, connected to `disk0`, beside a guest that does verified
/// I/O before and after, for each way to guests' pages. The scene may leave the frontend connected
/// or not.
fn beside_a_bystander(scene: impl Fn(&mut Frontend<'_>, &mut Bystander<'_>)) {
    for (path, persistent) in PATHS {
        let world = World::on_path(path);
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let style = Style::persistent(persistent);
        let disk = guest.attach("xvda", "ram:disk0");
        let mut disk = disk.styled(style).connected();
        other.io();
        scene(&mut disk, &mut other);
        other.io();
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

/// Returns a slot with a wild request: its bytes in the 64-bit layout.
fn slot(operation: u8, segments: u8, id: u64, sector: u64) -> [u8; SLOT_SIZE] {
    let mut slot = [0; SLOT_SIZE];
    slot[0] = operation;
    slot[1] = segments;
    slot[8..16].copy_from_slice(&id.to_le_bytes());
    slot[16..24].copy_from_slice(&sector.to_le_bytes());
    slot
}

/// Puts the slot into the ring and returns the status of its response; then checks that the disk still works.
fn answer_to(disk: &mut Frontend<'_>, slot: [u8; SLOT_SIZE]) -> Status {
    disk.link().push_slot(&slot);
    let answer = disk.answer();
    let id = u64::from_le_bytes(slot[8..16].try_into().unwrap());
    assert_eq!(answer.id, RequestId(id));
    assert!(
        disk.read(0, 1) == content(0, IMAGE_SIZE)[..512],
        "the disk is unharmed"
    );
    answer.status
}

#[test]
fn an_unknown_operation() {
    beside_a_bystander(|disk, _| {
        for operation in [4, 7, 8, 100, 255] {
            let status = answer_to(disk, slot(operation, 1, 0xbad, 0));
            assert_eq!(status, Status::NotSupported, "operation {operation}");
        }
    });
}

#[test]
fn a_count_of_segments_that_no_request_has_room_for() {
    beside_a_bystander(|disk, _| {
        for operation in [Opcode::READ, Opcode::WRITE, Opcode::WRITE_BARRIER] {
            for count in [12, 13, 100, 255] {
                assert_eq!(
                    answer_to(disk, slot(operation.0, count, 1, 0)),
                    Status::Error
                );
            }
        }
        for operation in [Opcode::READ, Opcode::WRITE] {
            assert_eq!(answer_to(disk, slot(operation.0, 0, 1, 0)), Status::Error);
        }
    });
}

#[test]
fn a_first_sector_after_the_last_and_a_last_sector_past_the_page() {
    beside_a_bystander(|disk, _| {
        for operation in [Opcode::READ, Opcode::WRITE] {
            for (first, last) in [(1, 0), (7, 6), (8, 8), (0, 8), (0, 255), (255, 255)] {
                let mut bad = slot(operation.0, 1, 5, 0);
                (bad[28], bad[29]) = (first, last);
                assert_eq!(answer_to(disk, bad), Status::Error, "{first} to {last}");
            }
        }
    });
}

#[test]
fn sectors_past_the_end_of_the_disk() {
    beside_a_bystander(|disk, _| {
        let far = [
            SECTORS - 7,
            SECTORS,
            SECTORS + 8,
            1 << 55,
            u64::MAX - 7,
            u64::MAX,
        ];
        for sector in far {
            for kind in [
                TransferKind::Read,
                TransferKind::Write,
                TransferKind::FlushAndWrite,
            ] {
                let sectors = 8;
                let data = vec![0xdd; if kind.is_write() { 4096 } else { 0 }];
                let answer = disk.transfer(kind, sector, sectors, &data);
                assert_eq!(answer.status, Status::Error, "{kind:?} at {sector}");
                let untouched = if kind.is_write() { 0xdd } else { POISON };
                assert!(answer.data.iter().all(|&byte| byte == untouched));
            }
        }
        let end = disk.read(SECTORS - 8, 8);
        assert!(end == content(0, IMAGE_SIZE)[IMAGE_SIZE - 4096..]);
    });
}

#[test]
fn a_write_to_a_read_only_disk() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach_read_only("xvda", "ram:disk0").connected();
    for kind in [TransferKind::Write, TransferKind::FlushAndWrite] {
        let answer = disk.transfer(kind, 0, 8, &[0xdd; 4096]);
        assert_eq!(answer.status, Status::Error);
    }
    assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
    other.io();
    disk.detach();
    other.leave();
    world.nothing_left();
}

/// Returns a request with these segments, which name their pages by number.
fn about(disk: &mut Frontend<'_>, kind: TransferKind, segments: &[Segment]) -> Request {
    let id = disk.link().new_id();
    Request::transfer(id, kind, BlkifSector(0), segments).unwrap()
}

#[test]
fn pages_that_do_not_map() {
    beside_a_bystander(|disk, other| {
        for gref in [0, 700, 8191, 8192, 1 << 20, u32::MAX] {
            for kind in [TransferKind::Read, TransferKind::Write] {
                let request = about(disk, kind, &[Segment::whole(GrantRef(gref))]);
                disk.link().push(&request, Vec::new());
                assert_eq!(disk.answer().status, Status::Error, "grant {gref}");
            }
            other.io();
        }
    });
}

#[test]
fn one_page_of_many_that_does_not_map() {
    beside_a_bystander(|disk, _| {
        let page = disk.link().fresh_page(GrantAccess::ReadWrite);
        page.fill(0, &[POISON; 4096]);
        let segments = [
            Segment::whole(page.gref()),
            Segment::whole(GrantRef(700)),
            Segment::whole(page.gref()),
        ];
        let request = about(disk, TransferKind::Read, &segments);
        disk.link().push(&request, vec![page]);
        assert_eq!(disk.answer().status, Status::Error);
        // The others of the same sweep are served.
        let good = disk.link().push_read(0, 8);
        let bad = about(disk, TransferKind::Write, &segments[1..2]);
        disk.link().push(&bad, Vec::new());
        let better = disk.link().push_read(8, 8);
        for answer in disk.exchange() {
            let expected = answer.id != good && answer.id != better;
            assert_eq!(answer.status == Status::Error, expected);
        }
    });
}

#[test]
fn a_page_granted_for_reading_that_is_to_be_read_into() {
    beside_a_bystander(|disk, _| {
        let page = disk.link().fresh_page(GrantAccess::ReadOnly);
        page.fill(0, &[POISON; 4096]);
        let request = about(disk, TransferKind::Read, &[Segment::whole(page.gref())]);
        disk.link().push(&request, vec![page]);
        let answer = disk.answer();
        assert_eq!(answer.status, Status::Error);
        assert_eq!(answer.data, [POISON; 4096], "it was never written");
    });
}

#[test]
fn a_page_that_xen_is_still_fetching_is_waited_for() {
    beside_a_bystander(|disk, _| {
        for (times, expected) in [(5, Status::Okay), (1_000_000, Status::Error)] {
            let page = disk.link().fresh_page(GrantAccess::ReadOnly);
            let key = (disk.domain.id(), page.gref());
            let sim = &disk.world.sim;
            let again = bulkhead_xen::GrantStatus::EAGAIN;
            sim.fail_grant(GrantUse::Map, key, again, times);
            sim.fail_grant(GrantUse::Copy, key, again, times);
            let request = about(disk, TransferKind::Write, &[Segment::whole(page.gref())]);
            disk.link().push(&request, vec![page]);
            assert_eq!(disk.answer().status, expected);
        }
    });
}

#[test]
fn the_same_page_in_all_segments() {
    beside_a_bystander(|disk, _| {
        let page = disk.link().fresh_page(GrantAccess::ReadWrite);
        let segments = [Segment::whole(page.gref()); 11];
        let request = about(disk, TransferKind::Read, &segments);
        disk.link().push(&request, vec![page]);
        let answer = disk.answer();
        assert_eq!(answer.status, Status::Okay);
        assert!(answer.data == content(0, IMAGE_SIZE)[10 * 4096..11 * 4096]);
    });
}

#[test]
fn the_ring_itself_as_a_page_of_data() {
    beside_a_bystander(|disk, other| {
        let gref = disk.link().ring_refs()[0];
        let request = about(disk, TransferKind::Read, &[Segment::whole(gref)]);
        disk.link().push(&request, Vec::new());
        disk.link().kick();
        disk.world.run();
        other.io();
        // Whatever the ring says now, it is the frontend's own doing: it closes, or is closed.
        let link = disk.forget().pop().unwrap();
        disk.go(XenbusState::Closing);
        disk.go(XenbusState::Closed);
        link.take_down();
    });
}

#[test]
fn one_identifier_for_all_requests() {
    beside_a_bystander(|disk, _| {
        let flush = |operation| slot(operation, 0, 0x77, 0);
        for _ in 0..32 {
            disk.link().push_slot(&flush(Opcode::FLUSH_DISKCACHE.0));
        }
        let answers = disk.exchange();
        assert_eq!(answers.len(), 32);
        assert!(answers.iter().all(|answer| answer.id == RequestId(0x77)));
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    });
}

#[test]
fn an_operation_that_is_not_offered() {
    let world = World::new();
    let guest = Guest::new(&world);
    // Nothing is ever discarded from a disk without discard.
    let mut disk = guest.attach_read_only("xvda", "ram:disk0").connected();
    let discard = bulkhead_ring::blkif::Discard {
        sector: BlkifSector(0),
        count: 8,
        secure: false,
    };
    let request = Request::of(RequestId(1), Operation::Discard(discard));
    disk.link().push(&request, Vec::new());
    assert_ne!(disk.answer().status, Status::Okay);
    assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
    disk.detach();
    world.nothing_left();
}

/// Returns the ring's shared indices, to be written as no honest frontend would.
fn indices(disk: &mut Frontend<'_>) -> SharedPages {
    // SAFETY: domain memory stays mapped as long as the machine.
    unsafe { SharedPages::new(disk.link().memory, 1) }.unwrap()
}

#[test]
fn a_producer_index_that_overruns_the_ring() {
    for producer in [33, 34, 1000, 1 << 31, u32::MAX, u32::MAX - 31] {
        beside_a_bystander(|disk, other| {
            let before = disk.world.storage.live_mappings();
            indices(disk).store(Index::RequestProducer, producer);
            disk.link().notify();
            disk.world.run();
            other.io();
            assert_eq!(disk.backend(), Some(XenbusState::Closing));
            let problem = disk.problem().expect("the error node says why");
            assert!(
                problem.starts_with("ring overrun: producer index"),
                "{problem}"
            );
            assert_eq!(disk.world.storage.live_mappings(), before - 1);
            // It may start over.
            disk.close();
            disk.go(XenbusState::Initialising);
            disk.connect();
            disk.read(0, 8);
        });
    }
}

#[test]
fn a_producer_index_that_goes_back() {
    beside_a_bystander(|disk, _| {
        for _ in 0..10 {
            disk.read(0, 1);
        }
        indices(disk).store(Index::RequestProducer, 3);
        disk.link().notify();
        disk.world.run();
        assert_eq!(disk.backend(), Some(XenbusState::Closing));
        disk.close();
    });
}

#[test]
fn event_and_response_indices_of_rubbish() {
    beside_a_bystander(|disk, other| {
        for rubbish in [0, 1, 77, 1 << 31, u32::MAX] {
            let ring = indices(disk);
            ring.store(Index::ResponseEvent, rubbish);
            ring.store(Index::RequestEvent, rubbish);
            disk.link().push_flush();
            disk.link().kick();
            disk.link().notify();
            disk.world.run();
            // The frontend may miss a notification, but not the answer.
            assert_eq!(disk.link().collect().len(), 1);
            other.io();
        }
        // The backend keeps its own count of responses.
        indices(disk).store(Index::ResponseProducer, 12345);
        disk.link().push_flush();
        disk.link().kick();
        disk.link().notify();
        disk.world.run();
        assert_eq!(disk.link().collect().len(), 1);
    });
}

#[test]
fn notifications_about_nothing() {
    beside_a_bystander(|disk, other| {
        for _ in 0..1000 {
            disk.link().notify();
            disk.world.run();
        }
        other.io();
        // It is looked at every few milliseconds alone.
        disk.world.wait(Duration::from_millis(8));
        disk.read(0, 8);
    });
}

#[test]
fn mistakes_without_end_fill_no_log() {
    beside_a_bystander(|disk, _| {
        let before = disk.world.journal().len();
        for _ in 0..50 {
            for number in 0..32 {
                disk.link().push_slot(&slot(99, 0, number, 0));
            }
            assert_eq!(disk.exchange().len(), 32);
        }
        let lines = disk.world.journal().len() - before;
        assert!(lines <= 12, "{lines} lines");
    });
}
