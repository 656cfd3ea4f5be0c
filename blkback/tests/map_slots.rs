//! A Xen that lets the driver domain have few pages mapped at a time (`max_maptrack_frames=` in its
//! configuration): slower, never an error.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, PATHS, POISON, Random, Setup, Style, World, content,
};
use bulkhead_images::IoError;
use bulkhead_ring::blkif::{Status, TransferKind};
use bulkhead_xen_sim::MAPTRACK_PER_FRAME;
use std::collections::BTreeMap;

/// The image of the disks whose data is checked.
const LARGE: usize = 4 << 20;

fn world(path: DataPath) -> World {
    let mut setup = Setup::on_path(path);
    setup.images.push(("large".into(), content(9, LARGE)));
    setup.images.push(("other".into(), content(10, LARGE)));
    World::with(setup)
}

/// A disk with its expected content, and random requests of 64 KiB for it, 32 at a time.
struct Verified<'w> {
    disk: Frontend<'w>,
    model: Vec<u8>,
    random: Random,
}

impl<'w> Verified<'w> {
    fn new(disk: Frontend<'w>, seed: u64) -> Self {
        Verified {
            disk,
            model: content(seed, LARGE),
            random: Random::new(seed),
        }
    }

    /// Fills the ring with reads and writes of places that do not overlap, and checks all of them.
    fn round(&mut self) {
        const LEN: usize = 64 * 1024;
        let mut reads = BTreeMap::new();
        let mut places: Vec<u64> = (0..(LARGE / LEN) as u64).collect();
        for _ in 0..32 {
            let place = self.random.below(places.len() as u64) as usize;
            let at = places.swap_remove(place) as usize * LEN;
            let sector = (at / 512) as u64;
            if self.random.below(2) == 0 {
                let data = self.random.bytes(LEN);
                let link = self.disk.link();
                link.push_transfer(TransferKind::Write, sector, LEN / 512, &data);
                self.model[at..at + LEN].copy_from_slice(&data);
            } else {
                let link = self.disk.link();
                let id = link.push_transfer(TransferKind::Read, sector, LEN / 512, &[]);
                reads.insert(id, at);
            }
        }
        let answers = self.disk.exchange();
        assert_eq!(answers.len(), 32, "all are answered");
        for answer in answers {
            assert_eq!(answer.status, Status::Okay);
            if let Some(at) = reads.remove(&answer.id) {
                assert!(answer.data == self.model[at..at + LEN], "what was written");
            }
        }
    }
}

#[test]
fn few_map_slots_make_requests_slower_and_never_fail() {
    for (path, persistent) in PATHS {
        for frames in [1, 2] {
            let world = world(path);
            world
                .storage
                .set_maptrack_limit(frames * MAPTRACK_PER_FRAME - 1);
            let style = Style::persistent(persistent);
            let guests = [
                Guest::with_memory(&world, 4096),
                Guest::with_memory(&world, 4096),
            ];
            let disk = guests[0]
                .attach("xvda", "ram:large")
                .styled(style)
                .connected();
            let mut first = Verified::new(disk, 9);
            for _ in 0..10 {
                first.round();
            }
            let disk = guests[1]
                .attach("xvda", "ram:other")
                .styled(style)
                .connected();
            let mut second = Verified::new(disk, 10);
            for _ in 0..10 {
                first.round();
                second.round();
            }
            // No more than there is was ever asked to stay.
            assert!(world.storage.live_mappings() < frames as usize * 256);
            first.disk.detach();
            second.disk.detach();
            world.nothing_left();
        }
    }
}

#[test]
fn without_any_map_slot_everything_is_copied() {
    for (path, persistent) in PATHS {
        let world = world(path);
        let guest = Guest::with_memory(&world, 4096);
        let style = Style::persistent(persistent);
        let target = match persistent {
            true => "ram:large,sector-size=4096",
            false => "ram:large",
        };
        let disk = guest.attach("xvda", target).styled(style).connected();
        let mut all = Verified::new(disk, 9);
        let mut null = guest.attach("xvdb", "null:64M").styled(style).connected();
        // The rings, and two pages; then not even those.
        for more in [2, 0] {
            let mapped = world.storage.live_mappings() as u32;
            world.storage.set_maptrack_limit(mapped.min(2) + more);
            for _ in 0..3 {
                all.round();
            }
            // A store without memory of its own; a flush with data, and a barrier.
            let image = null.read(8, 88);
            let own = |byte: &u8| [0, POISON].contains(byte);
            assert!(image.iter().all(own), "nobody else's bytes");
            for kind in [TransferKind::FlushAndWrite, TransferKind::WriteBarrier] {
                all.disk.link().push_transfer(kind, 0, 24, &[7; 24 * 512]);
                all.model[..24 * 512].fill(7);
                assert_eq!(all.disk.answer().status, Status::Okay);
            }
        }
        all.round();
        null.detach();
        all.disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_store_that_answers_late_gets_one_piece_after_the_other() {
    for (path, persistent) in PATHS {
        let (world, late) = World::with_late_disks_on(path);
        let guest = Guest::new(&world);
        let style = Style::persistent(persistent);
        let mut disk = guest.attach("xvdd", "ram:disk0").styled(style).connected();
        let image = content(0, IMAGE_SIZE);
        world.storage.set_maptrack_limit(1);
        let write = disk.link().push_write(64, &[3; 6 * 4096]);
        // Not from a page's start.
        let read = disk.link().push_read(3, 13);
        let failing = disk.link().push_read(0, 16);
        disk.link().kick();
        world.run();
        let mut answers = BTreeMap::new();
        for turn in 0..100 {
            assert_eq!(late.last().held(), 1, "a piece of one request in {turn}");
            let answered = answers.len();
            match answered {
                2 => late.last().fail(0, IoError::Medium),
                _ => late.last().release(0),
            }
            world.run();
            for answer in disk.link().collect() {
                answers.insert(answer.id, answer);
            }
            if answers.len() == 3 {
                break;
            }
        }
        let failed = answers
            .values()
            .filter(|answer| answer.status == Status::Error);
        assert_eq!(failed.count(), 1, "the last one alone");
        for (id, answer) in &answers {
            if *id == read && answer.status == Status::Okay {
                assert!(answer.data == image[3 * 512..16 * 512]);
            }
            assert!([write, read, failing].contains(id));
        }
        world.storage.set_maptrack_limit(1000);
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_ring_without_a_map_slot_costs_the_new_disk_alone() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0");
    world.storage.set_maptrack_limit(1);
    assert!(!disk.try_connect(), "its ring cannot be mapped");
    let problem = disk.problem().expect("the reason is told");
    assert!(problem.contains("out of map slots"), "{problem}");
    other.io();
    world.storage.set_maptrack_limit(1000);
    disk.take_down();
    disk.request_detach();
    disk.finish_detach();
    guest.attach("xvda", "ram:disk0").connected().detach();
    other.leave();
    world.nothing_left();
}
