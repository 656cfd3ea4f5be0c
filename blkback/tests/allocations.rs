//! The data path takes no memory: all of it was taken when the disk connected.

use bulkhead_blkback_testkit::{
    Frontend, Guest, Lower, Setup, Style, World, allocations, on_every_path,
};
use bulkhead_ring::blkif::TransferKind::{FlushAndWrite, Write};
use bulkhead_ring::blkif::{BlkifSector, Discard, Operation, Request, SLOT_SIZE};
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use std::hint::black_box;
use std::time::Duration;

/// Returns the number of the driver domain's allocations while it serves the requests that `fill` puts into the ring.
fn taken(disk: &mut Frontend<'_>, mut fill: impl FnMut(&mut Frontend<'_>)) -> u64 {
    let mut taken = 0;
    for round in 0..25 {
        fill(disk);
        disk.link().kick();
        let before = allocations();
        disk.world.step(true);
        // The simulated machine itself needs some rounds until it has all that it needs.
        if round >= 15 {
            taken += allocations() - before;
        }
        assert!(!disk.link().collect().is_empty());
    }
    taken
}

/// Returns the number of allocations while a store that completes later serves reads and writes. `step` has its device, or
/// its server, do what it was asked for.
pub fn taken_beside(disk: &mut Frontend<'_>, step: impl Fn()) -> u64 {
    let mut taken = 0;
    for round in 0..40 {
        for number in 0..16 {
            disk.link().push_read(number * 9, 9);
            disk.link().push_transfer(Write, number * 8, 8, &[1; 4096]);
        }
        disk.link().kick();
        let mut answered = 0;
        for _ in 0..40 {
            let before = allocations();
            disk.world.turn();
            // The simulated machine itself needs some rounds until it has all that it needs.
            if round >= 30 {
                taken += allocations() - before;
            }
            step();
            answered += disk.link().collect().len();
        }
        assert_eq!(answered, 32);
    }
    taken
}

#[test]
fn the_counter_counts() {
    let before = allocations();
    drop(black_box(Box::new(1)));
    assert_eq!(allocations() - before, 1);
}

#[test]
fn serving_takes_nothing() {
    on_every_path(Style::default(), |disk| {
        let reads = taken(disk, |disk| {
            (0..32).for_each(|n| _ = disk.link().push_read(n * 7, 7));
        });
        assert_eq!(reads, 0, "reads");
        let writes = taken(disk, |disk| {
            (0..8).for_each(|n| _ = disk.link().push_write(n * 2, &[1; 88 * 512]));
        });
        assert_eq!(writes, 0, "writes of eleven pages");
        let flushes = taken(disk, |disk| {
            (0..32).for_each(|_| _ = disk.link().push_flush());
        });
        assert_eq!(flushes, 0, "flushes");
    });
}

#[test]
fn a_ring_full_of_requests_in_two_steps_takes_nothing() {
    on_every_path(Style::default(), |disk| {
        let kind = FlushAndWrite;
        let taken = taken(disk, |disk| {
            (0..32).for_each(|n| _ = disk.link().push_transfer(kind, n * 8, 8, &[1; 4096]));
        });
        assert_eq!(taken, 0);
    });
}

#[test]
fn a_ring_full_of_discards_takes_nothing() {
    on_every_path(Style::default(), |disk| {
        let mut flushes = 15;
        let taken = taken(disk, |disk| {
            // The first discards of all are counted.
            if flushes > 0 {
                flushes -= 1;
                return (0..32).for_each(|_| _ = disk.link().push_flush());
            }
            for number in 0..32 {
                let id = disk.link().new_id();
                let discard = Discard {
                    sector: BlkifSector(number * 8),
                    count: 8 - number % 3,
                    secure: number % 2 == 0,
                };
                let request = Request::of(id, Operation::Discard(discard));
                disk.link().push(&request, Vec::new());
            }
        });
        assert_eq!(taken, 0);
    });
}

#[test]
fn hostile_requests_take_nothing_either() {
    on_every_path(Style::default(), |disk| {
        let mut random = bulkhead_blkback_testkit::Random::new(11);
        let taken = taken(disk, |disk| {
            for _ in 0..32 {
                let mut slot = [0; SLOT_SIZE];
                slot.copy_from_slice(&random.bytes(SLOT_SIZE));
                slot[0] %= 8;
                slot[1] %= 13;
                disk.link().push_slot(&slot);
            }
        });
        assert_eq!(taken, 0);
    });
}

#[test]
fn serving_a_disk_of_the_driver_domains_own_takes_nothing() {
    let world = World::with(Setup {
        own_disks: true,
        ..Setup::default()
    });
    let lower = Lower::new(&world, &[("below".to_string(), vec![0; 1 << 20])]);
    lower.attach("xvda", &Disk::new("ram:below"));
    let guest = Guest::with_memory(&world, 8192);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    let mut taken = 0;
    for round in 0..25 {
        (0..8).for_each(|n| _ = disk.link().push_write(n * 80, &[1; 80 * 512]));
        (0..16).for_each(|n| _ = disk.link().push_read(n * 8, 8));
        disk.link().push_flush();
        disk.link().kick();
        while disk.link().outstanding() > 0 {
            let before = allocations();
            world.step(true);
            // What the domain below takes is counted, too.
            lower.step();
            if round >= 15 {
                taken += allocations() - before;
            }
            world.sim.advance(Duration::from_millis(1));
            disk.link().collect();
        }
    }
    assert_eq!(taken, 0);
}
