//! A store whose device reads and writes frontends' pages by bus address: every way to the pages tells it the
//! right one.

use bulkhead_blkback_testkit::{Frontend, Guest, IMAGE_SIZE, PATHS, Random, Setup, Style, World};
use bulkhead_ring::blkif::Status;
use bulkhead_ring::blkif::TransferKind::{Read, Write};

/// Random reads and writes from any sector of a page on, eight at a time, against a model.
fn verify(disk: &mut Frontend<'_>, model: &mut [u8], random: &mut Random) {
    const PART: usize = IMAGE_SIZE / 8;
    for _ in 0..6 {
        let mut reads = Vec::new();
        for part in 0..8 {
            let first = random.below(8) as usize;
            let sectors = 1 + random.below(24 - 8) as usize;
            let at = part * PART + first * 512;
            let (sector, range) = ((at / 512) as u64, at..at + sectors * 512);
            if random.below(2) == 0 {
                let data = random.bytes(range.len());
                disk.link().push_transfer(Write, sector, sectors, &data);
                model[range].copy_from_slice(&data);
            } else {
                let id = disk.link().push_transfer(Read, sector, sectors, &[]);
                reads.push((id, range));
            }
        }
        let answers = disk.exchange();
        assert_eq!(answers.len(), 8, "all are answered");
        for answer in answers {
            assert_eq!(answer.status, Status::Okay);
            if let Some((_, range)) = reads.iter().find(|(id, _)| *id == answer.id) {
                assert!(answer.data == model[range.clone()], "what was written");
            }
        }
    }
}

#[test]
fn a_device_finds_the_pages_however_they_are_reached() {
    for (path, persistent) in PATHS {
        let world = World::with_dma_disks(Setup::on_path(path));
        let guests = [Guest::new(&world), Guest::new(&world)];
        let mut random = Random::new(11);
        let mut disks = guests.each_ref().map(|guest| {
            let target = match guest.domain.id() == guests[0].domain.id() {
                true => "ram:disk0",
                false => "ram:disk1",
            };
            let disk = guest.attach("xvda", target);
            let disk = disk.styled(Style::persistent(persistent)).connected();
            (disk, vec![0; IMAGE_SIZE])
        });
        for _ in 0..4 {
            for (disk, model) in &mut disks {
                verify(disk, model, &mut random);
            }
        }
        for (disk, _) in disks {
            disk.detach();
        }
        world.nothing_left();
    }
}

#[test]
fn a_device_finds_our_own_pages_where_frontends_are_copied() {
    for (path, persistent) in PATHS {
        let world = World::with_dma_disks(Setup::on_path(path));
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "ram:disk0");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        let (mut model, mut random) = (vec![0; IMAGE_SIZE], Random::new(12));
        // The ring is mapped, and nothing else can be.
        world.storage.set_maptrack_limit(1);
        let before = world.storage.stats();
        verify(&mut disk, &mut model, &mut random);
        let stats = world.storage.stats() - before;
        assert!(stats.copies > 0, "{stats:?}");
        disk.detach();
        world.nothing_left();
    }
}
