//! The freedom of a store: it may take less than a request at a time, or nothing for a while, or have data go through
//! memory of its own. `silent_stores` has those that do not answer.

use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, LateDisks, PATHS, Setup, Style, World, content,
};
use bulkhead_grant::GrantAccess;
use bulkhead_images::testing::{Delayed, Encrypting, Layer};
use bulkhead_images::{BlockDevice, Caps, IoError, Sector};
use bulkhead_ring::blkif::{BlkifSector, Request, Segment, Status, TransferKind};
use std::sync::Arc;
use std::time::Duration;

const KEY: u64 = 0x5eed;

/// Returns a machine where the disks named `xvde` are encrypted.
fn with_encrypted_disks(setup: Setup) -> World {
    let layer = Layer::new(|device, owner| match owner.contains("xvde") {
        true => Arc::new(Encrypting::new(device, KEY)),
        false => device,
    });
    World::with(Setup {
        layer: Some(layer),
        ..setup
    })
}

/// Returns a machine where the disks named `xvdd` are encrypted, above stores that answer late.
fn with_late_encrypted_disks() -> (World, LateDisks) {
    let late = LateDisks::default();
    let seen = late.clone();
    let layer = Layer::new(move |device, owner| -> Arc<dyn BlockDevice> {
        if !owner.contains("xvdd") {
            return device;
        }
        let delayed = Delayed::new(device);
        seen.add(owner, delayed.clone());
        Arc::new(Encrypting::new(Arc::new(delayed), KEY))
    });
    let mut world = World::with(Setup {
        layer: Some(layer),
        ..Setup::default()
    });
    world.late = late.clone();
    (world, late)
}

/// Lets through everything that a late store holds, until all of a disk's requests are answered.
pub fn finish(world: &World, late: &Delayed, disk: &mut Frontend<'_>) -> Vec<Status> {
    let mut statuses = Vec::new();
    for _ in 0..2000 {
        if disk.link().outstanding() == 0 {
            return statuses;
        }
        match late.held() {
            // Responses may be held back for company.
            0 => world.wait(Duration::from_micros(500)),
            _ => late.release_backwards(),
        }
        world.run();
        statuses.extend(disk.link().collect().iter().map(|answer| answer.status));
    }
    panic!("{} requests are not answered", disk.link().outstanding());
}

#[test]
fn what_goes_through_an_encrypting_layer_is_never_seen_below_it() {
    for (path, persistent) in PATHS {
        let world = with_encrypted_disks(Setup::on_path(path));
        let guest = Guest::new(&world);
        let mut other = Bystander::new(&world);
        let style = Style::persistent(persistent);
        let mut disk = guest.attach("xvde", "ram:disk0").styled(style).connected();
        let plain = content(77, 64 * 1024);
        let maps = world.storage.stats().map_calls;
        // Through one request each: a part of a page, several pages, and all that a request may have.
        let mut sector = 0;
        for sectors in [1, 3, 8, 21, 80] {
            let bytes = &plain[sector * 512..(sector + sectors) * 512];
            disk.write(sector as u64, bytes);
            assert!(disk.read(sector as u64, sectors) == bytes);
            sector += sectors;
        }
        assert!(disk.read(0, 80) == plain[..80 * 512]);
        disk.flush();
        // Pages that stay granted are mapped once, others never.
        if !persistent {
            assert_eq!(world.storage.stats().map_calls, maps, "no page is mapped");
        }
        other.io();
        // What lies beneath is what the cipher makes of it.
        let mut cipher = plain[..sector * 512].to_vec();
        Encrypting::apply(KEY, Sector(0), &mut cipher);
        let ramdisk = world.ramdisk();
        let holds = |bytes: &[u8]| ramdisk.windows(bytes.len()).any(|part| part == bytes);
        for number in 0..sector {
            let range = number * 512..number * 512 + 32;
            assert!(!holds(&plain[range.clone()]), "sector {number} is plain");
            assert!(holds(&cipher[range]), "sector {number} is not there");
        }
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn staged_requests_of_a_sweep_are_copied_in_one_hypercall() {
    let world = with_encrypted_disks(Setup::default());
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvde", "ram:disk0").connected();
    let copies = || world.storage.stats().copy_calls;
    let before = copies();
    for number in 0..8 {
        disk.link().push_write(number * 8, &[number as u8; 4096]);
    }
    assert_eq!(disk.exchange().len(), 8);
    assert_eq!(copies() - before, 1, "eight writes in");
    let before = copies();
    for number in 0..8 {
        disk.link().push_read(number * 8, 8);
    }
    assert_eq!(disk.exchange().len(), 8);
    assert_eq!(copies() - before, 1, "eight reads out");
    disk.detach();
    world.nothing_left();
}

#[test]
fn data_of_pages_that_stay_mapped_is_staged_without_a_hypercall() {
    let world = with_encrypted_disks(Setup::default());
    let guest = Guest::new(&world);
    let style = Style::persistent(true);
    let mut disk = guest.attach("xvde", "ram:disk0").styled(style).connected();
    let bytes = content(9, 5 * 4096);
    disk.write(0, &bytes);
    assert!(disk.read(0, 40) == bytes);
    let before = world.storage.stats();
    for _ in 0..10 {
        disk.write(80, &bytes);
        assert!(disk.read(80, 40) == bytes);
    }
    let after = world.storage.stats();
    assert_eq!(after.map_calls, before.map_calls, "maps");
    assert_eq!(after.unmap_calls, before.unmap_calls, "unmaps");
    assert_eq!(
        after.copy_calls, before.copy_calls,
        "copies by the hypervisor"
    );
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_staged_read_into_a_page_that_may_not_be_written_fails() {
    for persistent in [false, true] {
        let world = with_encrypted_disks(Setup::default());
        let guest = Guest::new(&world);
        let style = Style::persistent(persistent);
        let mut disk = guest.attach("xvde", "ram:disk0").styled(style).connected();
        disk.write(0, &content(3, 4096));
        let page = disk.link().fresh_page(GrantAccess::ReadOnly);
        let segment = [Segment::whole(page.gref())];
        let id = disk.link().new_id();
        let kind = TransferKind::Read;
        let read = Request::transfer(id, kind, BlkifSector(0), &segment).expect("one segment");
        disk.link().push(&read, vec![page]);
        assert_eq!(disk.exchange()[0].status, Status::Error);
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn more_requests_than_a_staging_store_has_memory_for_wait_for_it() {
    let (world, late) = with_late_encrypted_disks();
    let guest = Guest::new(&world);
    let mut other = Bystander::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    for number in 0..32 {
        disk.link().push_write(number * 8, &[number as u8; 4096]);
    }
    assert_eq!(disk.exchange(), []);
    assert_eq!(late.last().held(), 8, "as many as it has memory for");
    other.io();
    let statuses = finish(&world, &late.last(), &mut disk);
    assert_eq!(statuses, [Status::Okay; 32]);
    for number in (0..32).rev() {
        disk.link().push_read(number * 8, 8);
    }
    disk.exchange();
    let mut answers = 0;
    while disk.link().outstanding() > 0 {
        late.last().release_backwards();
        world.run();
        for answer in disk.link().collect() {
            assert!(answer.data.iter().all(|byte| *byte == answer.data[0]));
            answers += 1;
        }
    }
    assert_eq!(answers, 32);
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_staged_read_that_fails_shows_nothing_of_the_stores_memory() {
    let (world, late) = with_late_encrypted_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    // Some of it is left in the memory that the next request gets.
    disk.link().push_write(0, &[0x77; 4096]);
    disk.exchange();
    finish(&world, &late.last(), &mut disk);
    disk.link().push_read(64, 8);
    disk.exchange();
    late.last().fail(0, IoError::Medium);
    world.run();
    let answers = disk.link().collect();
    assert_eq!(answers[0].status, Status::Error);
    assert!(!answers[0].data.contains(&0x77), "nothing was copied");
    // The memory is free again: all of it can be used.
    for number in 0..8 {
        disk.link().push_read(number * 8, 8);
    }
    disk.exchange();
    assert_eq!(late.last().held(), 8);
    assert_eq!(finish(&world, &late.last(), &mut disk), [Status::Okay; 8]);
    disk.detach();
    world.nothing_left();
}

/// Has every request of a few sizes served by a store with these limits, on every way to guests' pages.
fn within(caps: Caps, target: &str) {
    for (path, persistent) in PATHS {
        let (world, late) = World::with_late_disks_and(Setup::on_path(path));
        let guest = Guest::new(&world);
        let mut other = Bystander::new(&world);
        let mut disk = guest
            .attach("xvdd", target)
            .styled(Style::persistent(persistent));
        late.last().limit(caps);
        disk.connect();
        let mut expected = content(0, IMAGE_SIZE);
        for (sector, sectors) in [(0, 8), (16, 24), (80, 88), (8, 8), (168, 64)] {
            let bytes = content(50 + sector, sectors * 512);
            disk.link().push_write(sector, &bytes);
            disk.link().push_read(200, 8);
            disk.exchange();
            let statuses = finish(&world, &late.last(), &mut disk);
            assert_eq!(statuses, [Status::Okay; 2], "{caps:?}");
            expected[sector as usize * 512..][..bytes.len()].copy_from_slice(&bytes);
        }
        other.io();
        for sector in (0..256).step_by(64) {
            disk.link().push_read(sector, 64);
        }
        disk.exchange();
        let mut read = 0;
        while disk.link().outstanding() > 0 {
            late.last().release_backwards();
            world.run();
            for answer in disk.link().collect() {
                let parts = expected.chunks(64 * 512);
                assert!(parts.into_iter().any(|part| part == answer.data));
                read += 1;
            }
        }
        assert_eq!(read, 4);
        disk.detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn requests_larger_than_the_store_takes_are_split() {
    let unlimited = Caps::UNLIMITED;
    for caps in [
        Caps {
            bytes: 512,
            ..unlimited
        },
        Caps {
            bytes: 5 * 4096 + 512,
            ..unlimited
        },
        Caps {
            segments: 1,
            ..unlimited
        },
        Caps {
            segments: 3,
            bytes: 2 * 4096,
            ..unlimited
        },
        Caps {
            depth: 1,
            ..unlimited
        },
        Caps {
            depth: 2,
            segments: 2,
            bytes: 4096,
            ..unlimited
        },
    ] {
        within(caps, "ram:disk0");
    }
    let caps = Caps {
        bytes: 2 * 4096,
        segments: 1,
        alignment: 4096,
        ..unlimited
    };
    within(caps, "ram:disk0,sector-size=4096");
}

#[test]
fn a_sector_in_more_segments_than_the_store_takes_goes_through_own_memory() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0,sector-size=4096");
    late.last().limit(Caps {
        segments: 2,
        alignment: 4096,
        ..Caps::UNLIMITED
    });
    disk.connect();
    let bytes = content(60, 8 * 512);
    // In eight segments of a sector each.
    let link = disk.link();
    let pages: Vec<_> = (0..8).map(|_| link.page(GrantAccess::ReadOnly)).collect();
    for (page, sector) in pages.iter().zip(bytes.chunks(512)) {
        page.fill(1024, sector);
    }
    let segments: Vec<_> = pages
        .iter()
        .map(|page| Segment::new(page.gref(), 2, 2).expect("within the page"))
        .collect();
    let id = link.new_id();
    let write = Request::transfer(id, TransferKind::Write, BlkifSector(8), &segments);
    link.push(&write.expect("not too many"), pages);
    disk.exchange();
    assert_eq!(finish(&world, &late.last(), &mut disk), [Status::Okay]);
    disk.link().push_read(8, 8);
    disk.exchange();
    late.last().release_backwards();
    world.run();
    assert!(disk.link().collect()[0].data == bytes);
    disk.detach();
    world.nothing_left();
}

#[test]
fn what_a_busy_store_does_not_take_waits_in_its_order() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut other = Bystander::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    late.last().be_busy(true);
    for number in 0..10 {
        disk.link().push_write(number * 8, &[number as u8; 4096]);
    }
    let kind = TransferKind::WriteBarrier;
    disk.link().push_transfer(kind, 88, 8, &[9; 4096]);
    assert_eq!(disk.exchange(), []);
    assert_eq!(late.last().held(), 0);
    world.wait(Duration::from_secs(3));
    other.io();
    late.last().be_busy(false);
    world.run();
    let sectors: Vec<_> = late
        .last()
        .ops()
        .iter()
        .map(|op| format!("{op:?}"))
        .collect();
    assert_eq!(sectors.len(), 10, "the barrier waits for them");
    assert!(sectors.is_sorted_by_key(|op| op.len()), "{sectors:?}");
    // It becomes busy again between two steps of a request.
    late.last().release_backwards();
    late.last().be_busy(true);
    world.run();
    assert_eq!(disk.link().collect().len(), 10);
    late.last().be_busy(false);
    world.run();
    assert_eq!(finish(&world, &late.last(), &mut disk), [Status::Okay]);
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_batch_ends_once_a_sweep() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    for number in 0..32 {
        disk.link().push_read(number * 8, 8);
    }
    disk.exchange();
    assert_eq!((late.last().held(), late.last().batches()), (32, 1));
    finish(&world, &late.last(), &mut disk);
    disk.detach();
    world.nothing_left();
}
