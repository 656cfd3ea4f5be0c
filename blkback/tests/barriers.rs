//! Barriers: requests before one are done before it, and requests after it begin after it.

use bulkhead_blkback_testkit::{Bystander, Guest, Random, World};
use bulkhead_images::{Caps, IoError, Op, Sector};
use bulkhead_ring::blkif::{BlkifSector, Request, RequestId, Status, TransferKind};
use std::collections::BTreeSet;

const BARRIER: TransferKind = TransferKind::WriteBarrier;

fn write_at(sector: u64) -> Op {
    Op::write(Sector(sector))
}

#[test]
fn a_barrier_waits_for_what_came_before_and_holds_what_comes_after() {
    let (world, late) = World::with_late_disks();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let disk = guest.attach("xvdd", "ram:disk0");
    assert_eq!(disk.backend_node("feature-barrier").as_deref(), Some("1"));
    let mut disk = disk.connected();
    disk.link().push_write(0, &[1; 4096]);
    disk.link().push_write(8, &[2; 4096]);
    disk.link().push_transfer(BARRIER, 0, 8, &[3; 4096]);
    disk.link().push_write(0, &[4; 4096]);
    disk.exchange();
    let late = late.last();
    assert_eq!(late.ops(), [write_at(0), write_at(8)]);
    late.release(1);
    world.run();
    assert_eq!(late.ops(), [write_at(0)], "one is still to be done");
    other.io();
    late.release(0);
    world.run();
    // What was written before is made durable, then the barrier's own data is written, and that
    // too is durable before anything else begins.
    for step in [Op::Flush, write_at(0), Op::Flush] {
        assert_eq!(late.ops(), [step]);
        assert!(disk.link().collect().len() <= 2);
        late.release(0);
        world.run();
    }
    assert_eq!(late.ops(), [write_at(0)], "what came after");
    late.release(0);
    world.run();
    disk.link().collect();
    assert_eq!(disk.link().outstanding(), 0);
    disk.link().push_read(0, 8);
    disk.exchange();
    late.release(0);
    world.run();
    assert!(disk.link().collect()[0].data == [4; 4096]);
    drop(late);
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_barrier_needs_no_second_flush_where_the_store_can_write_durably() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvdd", "ram:disk0");
    late.last().limit(Caps {
        fua: true,
        ..Caps::UNLIMITED
    });
    let mut disk = disk.connected();
    let durable = |sector| Op::Write {
        sector: Sector(sector),
        fua: true,
    };
    disk.link().push_write(0, &[1; 4096]);
    disk.link().push_transfer(BARRIER, 8, 8, &[3; 4096]);
    let empty = Request::transfer(RequestId(9), BARRIER, BlkifSector(0), &[]);
    disk.link()
        .push(&empty.expect("it may be empty"), Vec::new());
    disk.link()
        .push_transfer(TransferKind::FlushAndWrite, 16, 8, &[4; 4096]);
    disk.exchange();
    // One after the other: each is alone.
    for step in [
        write_at(0),
        Op::Flush,
        durable(8),
        Op::Flush,
        Op::Flush,
        write_at(16),
    ] {
        assert_eq!(late.last().ops(), [step]);
        late.last().release(0);
        world.run();
    }
    let answers = disk.link().collect();
    assert_eq!(disk.link().outstanding(), 0, "{answers:?}");
    disk.detach();
    world.nothing_left();
}

#[test]
fn an_empty_barrier_is_an_order_alone() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    disk.link().push_write(0, &[1; 4096]);
    let barrier = Request::transfer(RequestId(1), BARRIER, BlkifSector(0), &[]);
    disk.link()
        .push(&barrier.expect("it may be empty"), Vec::new());
    disk.link().push_write(8, &[2; 4096]);
    disk.exchange();
    assert_eq!(late.last().ops(), [write_at(0)]);
    while late.last().held() > 0 {
        late.last().release(0);
        world.run();
    }
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[1].id, RequestId(1), "in its place");
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_barrier_that_fails_lets_the_others_go_on() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    for failing in 0..3 {
        let barrier = disk.link().push_transfer(BARRIER, 0, 8, &[3; 4096]);
        disk.link().push_write(8, &[4; 4096]);
        disk.exchange();
        for _ in 0..failing {
            late.last().release(0);
            world.run();
        }
        late.last().fail(0, IoError::Medium);
        world.run();
        assert_eq!(late.last().ops(), [write_at(8)]);
        late.last().release(0);
        world.run();
        for answer in disk.link().collect() {
            let failed = answer.id == barrier;
            assert_eq!(answer.status == Status::Error, failed);
        }
    }
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_ring_full_of_barriers_is_served_with_one_notification() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for number in 0..32 {
        let kind = [BARRIER, TransferKind::Write][number % 2];
        disk.link().push_transfer(kind, 0, 8, &[number as u8; 4096]);
    }
    let answers = disk.exchange();
    assert_eq!(answers.len(), 32);
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    assert!(disk.read(0, 8) == [31; 4096]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn malformed_barriers_hold_up_nobody() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach_read_only("xvda", "ram:disk0").connected();
    let refused = disk.transfer(BARRIER, 0, 8, &[1; 4096]);
    assert_eq!(refused.status, Status::Error, "the disk is read-only");
    let past = disk.transfer(BARRIER, u64::MAX - 3, 8, &[1; 4096]);
    assert_eq!(past.status, Status::Error);
    disk.read(0, 8);
    other.io();
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_guest_is_destroyed_behind_a_barrier() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    disk.link().push_write(0, &[1; 4096]);
    disk.link().push_transfer(BARRIER, 0, 8, &[3; 4096]);
    disk.link().push_write(8, &[2; 4096]);
    disk.exchange();
    late.last().release(0);
    // The barrier's steps, if it still comes to them.
    let id = guest.domain.id();
    world.sim.destroy_domain(id);
    for _ in 0..5 {
        world.run();
        late.last().release_backwards();
    }
    world.run();
    world.destroy(id, &[&disk.vbd]);
    assert!(world.sim.is_fully_gone(id));
    world.nothing_left();
}

/// The values that each sector may hold when all writes have ended: any of the last writes that no barrier separates,
/// or before the first write, the old content.
#[derive(Default)]
struct Sectors {
    /// The values by sector. `true` says that they are of the current epoch.
    values: Vec<(BTreeSet<u8>, bool)>,
}

impl Sectors {
    fn new(count: usize) -> Sectors {
        Sectors {
            values: vec![(BTreeSet::new(), false); count],
        }
    }

    fn write(&mut self, sector: u64, count: u64, value: u8) {
        for (values, fresh) in &mut self.values[sector as usize..][..count as usize] {
            if !std::mem::replace(fresh, true) {
                values.clear();
            }
            values.insert(value);
        }
    }

    /// Begins an epoch: later writes are done after all earlier ones.
    fn barrier(&mut self) {
        self.values.iter_mut().for_each(|(_, fresh)| *fresh = false);
    }
}

#[test]
fn overlapping_writes_keep_their_meaning_whatever_order_the_store_has() {
    const SECTORS: u64 = 24;
    let mut random = Random::new(0x0b5e55ed);
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    let mut reordered = 0;
    for round in 0..60 {
        let mut sectors = Sectors::new(SECTORS as usize);
        for number in 0..31_u8 {
            let count = 1 + random.below(12);
            let sector = random.below(SECTORS - count + 1);
            let data = vec![number + 1; count as usize * 512];
            if random.below(6) == 0 {
                // Its own write is after all before it and before all after it.
                disk.link()
                    .push_transfer(BARRIER, sector, count as usize, &data);
                sectors.barrier();
                sectors.write(sector, count, number + 1);
                sectors.barrier();
            } else {
                disk.link().push_write(sector, &data);
                sectors.write(sector, count, number + 1);
            }
        }
        disk.link().kick();
        world.run();
        while late.last().held() > 0 {
            let position = random.below(late.last().held() as u64) as usize;
            reordered += usize::from(position > 0);
            late.last().release(position);
            world.run();
        }
        let answers = disk.link().collect();
        assert_eq!(answers.len(), 31);
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
        disk.link().push_read(0, SECTORS as usize);
        disk.exchange();
        late.last().release(0);
        world.run();
        let read = disk.link().collect().remove(0).data;
        for (sector, (bytes, (values, _))) in read.chunks(512).zip(&sectors.values).enumerate() {
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn sector");
            if values.is_empty() {
                continue;
            }
            assert!(
                values.contains(&bytes[0]),
                "round {round}: sector {sector} is {}, may be {values:?}",
                bytes[0]
            );
        }
    }
    assert!(reordered > 100, "the store did things out of order");
    disk.detach();
    world.nothing_left();
}
