//! A store that answers late, in any order, or not at all.

use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, Random, Style, World, content,
};
use bulkhead_images::{IoError, Op, Sector};
use bulkhead_ring::blkif::{Status, TransferKind};
use bulkhead_xenbus::XenbusState;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn answers_come_in_the_order_of_the_store() {
    let (world, late) = World::with_late_disks();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    let image = content(0, IMAGE_SIZE);
    let asked: Vec<_> = (0..32).map(|n| disk.link().push_read(n * 8, 8)).collect();
    assert_eq!(disk.exchange(), []);
    assert_eq!(late.last().held(), 32);
    other.io();
    // Some, out of order: answered and unmapped, the others not.
    let mapped = world.storage.live_mappings();
    for (left, position) in [(31, 5), (30, 0), (29, 28)] {
        late.last().release(position);
        world.run();
        assert_eq!(disk.link().outstanding(), 1 + left);
        assert_eq!(disk.link().collect().len(), 1);
    }
    assert!(world.storage.live_mappings() < mapped);
    other.io();
    late.last().release_backwards();
    world.run();
    let answers = disk.link().collect();
    let order: Vec<_> = answers.iter().map(|answer| answer.id).collect();
    let mut expected = asked.clone();
    expected.retain(|id| order.contains(id));
    expected.reverse();
    assert_eq!(order, expected, "the newest first, as the store did it");
    for answer in answers {
        let number = asked.iter().position(|id| *id == answer.id).unwrap();
        assert!(answer.data == image[number * 4096..][..4096]);
    }
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_store_that_would_take_a_request_where_none_waits_is_heard_afterwards() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    disk.link().push_read(0, 8);
    assert_eq!(disk.exchange(), []);
    late.last().call();
    world.run();
    late.last().release(0);
    world.run();
    assert_eq!(disk.link().collect().len(), 1);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_ring_is_refilled_while_the_store_is_late() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    let mut random = Random::new(3);
    let mut answered = 0;
    for _ in 0..300 {
        while disk.link().ring.free() > 0 && random.below(4) > 0 {
            let sector = random.below(200);
            disk.link().push_read(sector, 8);
        }
        disk.link().kick();
        world.run();
        for _ in 0..random.below(8) {
            let held = late.last().held() as u64;
            if held > 0 {
                late.last().release(random.below(held) as usize);
            }
        }
        world.run();
        for answer in disk.link().collect() {
            assert_eq!(answer.status, Status::Okay);
            answered += 1;
        }
    }
    assert!(answered > 300);
    while disk.link().outstanding() > 0 {
        late.last().release_backwards();
        world.run();
        disk.link().collect();
    }
    disk.detach();
    world.nothing_left();
}

#[test]
fn pages_stay_for_a_store_that_was_prompt_and_is_late_or_busy() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvdd", "ram:disk0");
    let mut disk = disk.styled(Style::persistent(true)).connected();
    late.last().be_prompt(true);
    let image = content(0, IMAGE_SIZE);
    // From now on the pages are mapped.
    assert!(disk.read(0, 88) == image[..88 * 512]);
    let mapped = world.storage.live_mappings();
    late.last().be_prompt(false);
    let asked: Vec<_> = (0..10).map(|n| disk.link().push_read(n * 8, 8)).collect();
    assert_eq!(disk.exchange(), []);
    assert_eq!(late.last().held(), 10);
    late.last().release_backwards();
    world.run();
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 10);
    for answer in answers {
        let number = asked.iter().position(|id| *id == answer.id).unwrap();
        assert!(answer.data == image[number * 4096..][..4096]);
    }
    assert_eq!(world.storage.live_mappings(), mapped);
    disk.detach();
    // Too busy for a request of which it would have kept none so far.
    let disk = guest.attach("xvdd", "ram:disk0");
    let mut disk = disk.styled(Style::persistent(true)).connected();
    late.last().be_prompt(true);
    disk.write(0, &[3; 8192]);
    late.last().be_busy(true);
    disk.link().push_write(0, &[4; 4096]);
    disk.link().push_write(8, &[5; 4096]);
    assert_eq!(disk.exchange(), []);
    late.last().be_busy(false);
    world.run();
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    assert!(disk.read(0, 16) == [[4; 4096], [5; 4096]].concat());
    disk.detach();
    world.nothing_left();
}

#[test]
fn an_error_of_the_store_is_an_error_of_the_request() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    for (error, expected) in [
        (IoError::Medium, Status::Error),
        (IoError::OutOfRange, Status::Error),
        (IoError::NotSupported, Status::NotSupported),
    ] {
        disk.link().push_read(0, 8);
        let good = disk.link().push_read(8, 8);
        disk.exchange();
        late.last().fail(0, error);
        late.last().release(0);
        world.run();
        for answer in disk.link().collect() {
            let expected = if answer.id == good {
                Status::Okay
            } else {
                expected
            };
            assert_eq!(answer.status, expected);
        }
    }
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_flush_with_data_writes_only_after_the_flush() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    let kind = TransferKind::FlushAndWrite;
    disk.link().push_transfer(kind, 0, 8, &[7; 4096]);
    assert_eq!(disk.exchange(), []);
    assert_eq!(late.last().ops(), [Op::Flush]);
    late.last().release(0);
    world.run();
    assert_eq!(late.last().ops(), [Op::write(Sector(0))]);
    assert_eq!(disk.link().collect(), [], "not done yet");
    late.last().release(0);
    world.run();
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    // A flush that fails is the end of it.
    disk.link().push_transfer(kind, 0, 8, &[8; 4096]);
    disk.exchange();
    late.last().fail(0, IoError::Medium);
    world.run();
    assert_eq!(late.last().held(), 0);
    assert_eq!(disk.link().collect()[0].status, Status::Error);
    disk.detach();
    world.nothing_left();
}

/// Returns a disk with writes that the store has not done.
fn with_requests_in_flight<'w>(world: &'w World, guest: &Guest<'w>) -> Frontend<'w> {
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    for number in 0..10 {
        disk.link().push_write(number * 8, &[number as u8; 4096]);
    }
    disk.link().kick();
    world.run();
    disk
}

#[test]
fn a_detach_waits_for_requests_in_flight() {
    let (world, late) = World::with_late_disks();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = with_requests_in_flight(&world, &guest);
    disk.request_detach();
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    // The pages stay mapped, and the toolstack is not told, until the store is done with them.
    world.wait(Duration::from_secs(5));
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    assert!(disk.domain.grants_in_use() >= 10);
    other.io();
    late.last().release_backwards();
    world.run();
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    assert_eq!(disk.link().collect().len(), 10);
    disk.take_down();
    disk.finish_detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_frontend_that_closes_waits_for_requests_in_flight() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = with_requests_in_flight(&world, &guest);
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    assert_ne!(disk.backend(), Some(XenbusState::Closed));
    late.last().release_backwards();
    world.run();
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    assert_eq!(disk.link().collect().len(), 10);
    disk.take_down();
    disk.detach();
    world.nothing_left();
}

#[test]
fn what_waits_for_requests_in_flight_is_answered_when_a_frontend_closes() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = with_requests_in_flight(&world, &guest);
    let kind = TransferKind::WriteBarrier;
    disk.link().push_transfer(kind, 0, 8, &[7; 4096]);
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.run();
    assert_eq!(late.last().held(), 10, "the barrier waits");
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    // The barrier has several steps.
    for _ in 0..10 {
        late.last().release_backwards();
        world.run();
    }
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    assert_eq!(disk.link().collect().len(), 12);
    disk.take_down();
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_guest_is_destroyed_with_requests_in_the_store() {
    let (world, late) = World::with_late_disks();
    let mut other = Bystander::new(&world);
    for _ in 0..5 {
        let guest = Guest::new(&world);
        let disk = with_requests_in_flight(&world, &guest);
        let id = guest.domain.id();
        world.sim.destroy_domain(id);
        world.run();
        other.io();
        // Until the store is done, the pages must stay.
        assert!(!world.sim.is_fully_gone(id));
        late.last().release_backwards();
        world.run();
        world.destroy(id, &[&disk.vbd]);
        assert!(world.sim.is_fully_gone(id));
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn a_ring_that_breaks_with_requests_in_the_store_takes_them_back() {
    use bulkhead_ring::{Index, RingMemory, SharedPages};
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = with_requests_in_flight(&world, &guest);
    // SAFETY: domain memory stays mapped as long as the machine.
    let ring = unsafe { SharedPages::new(disk.link().memory, 1) }.unwrap();
    ring.store(Index::RequestProducer, 5000);
    disk.link().notify();
    world.run();
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    assert_eq!(late.last().held(), 0, "the store has let go");
    assert_eq!(disk.domain.grants_in_use(), 0);
    disk.close();
    disk.detach();
    world.nothing_left();
}

#[test]
fn the_driver_domain_ends_when_the_store_is_done() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = with_requests_in_flight(&world, &guest);
    let closed = Rc::new(Cell::new(false));
    let (done, backend) = (closed.clone(), world.backend.clone());
    world.spawn(async move {
        backend.close().await;
        done.set(true);
    });
    world.wait(Duration::from_secs(1));
    assert!(!closed.get());
    late.last().release_backwards();
    world.wait(Duration::from_secs(20));
    assert!(closed.get());
    assert_eq!(disk.link().collect().len(), 10);
    disk.take_down();
}
