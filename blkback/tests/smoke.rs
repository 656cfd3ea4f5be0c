//! The main job: disks are attached, connected, read and written, and let go of without a trace.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{
    Bystander, Guest, IMAGE_SIZE, PATHS, Random, SECTORS, Setup, Style, World, content,
};
use bulkhead_ring::blkif::{Status, TransferKind};
use bulkhead_ring::{Index, RingMemory, SharedPages};
use bulkhead_xen_sim::DomainKind;
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use bulkhead_xenbus::XenbusState;

#[test]
fn a_disk_from_attach_to_detach() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0");
    assert_eq!(disk.backend(), Some(XenbusState::InitWait));
    assert_eq!(
        disk.backend_node("feature-flush-cache").as_deref(),
        Some("1")
    );
    disk.connect();
    assert_eq!(disk.backend_node("sectors"), Some(SECTORS.to_string()));
    assert_eq!(disk.backend_node("sector-size").as_deref(), Some("512"));
    assert_eq!(disk.backend_node("info").as_deref(), Some("0"));

    let image = content(0, IMAGE_SIZE);
    assert!(disk.read(0, 88) == image[..88 * 512]);
    let data = Random::new(1).bytes(5 * 512);
    disk.write(13, &data);
    disk.flush();
    assert!(disk.read(13, 5) == data);
    assert!(
        disk.read(12, 1) == image[12 * 512..13 * 512],
        "the sector before"
    );
    assert!(
        disk.read(18, 1) == image[18 * 512..19 * 512],
        "the sector after"
    );
    assert!(disk.read(SECTORS - 1, 1) == image[IMAGE_SIZE - 512..]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn every_byte_is_right_whatever_kind_of_domain_serves() {
    for kind in [DomainKind::Pvh, DomainKind::Pv] {
        for (path, persistent) in PATHS {
            let setup = Setup {
                kind,
                ..Setup::on_path(path)
            };
            let world = World::with(setup);
            let style = Style::persistent(persistent);
            let mut guest = Bystander::styled(&world, style);
            for _ in 0..15 {
                guest.io();
            }
            guest.leave();
            world.nothing_left();
        }
    }
}

#[test]
fn what_one_guest_wrote_the_next_one_reads() {
    let world = World::new();
    let data = Random::new(2).bytes(40 * 512);
    let first = Guest::new(&world);
    let mut disk = first.attach("xvda", "ram:disk1").connected();
    disk.write(3, &data);
    disk.detach();
    let second = Guest::new(&world);
    let mut disk = second.attach("xvdb", "ram:disk1").connected();
    assert!(disk.read(3, 40) == data);
    disk.detach();
    world.nothing_left();
}

#[test]
fn several_disks_of_several_guests_are_each_their_own() {
    let world = World::new();
    let guests = [Guest::new(&world), Guest::new(&world)];
    let mut disks = Vec::new();
    for (number, name) in ["xvda", "xvdb", "xvdc"].into_iter().enumerate() {
        for (which, guest) in guests.iter().enumerate() {
            let image = number * 2 + which;
            let disk = guest.attach(name, &format!("ram:disk{image}"));
            disks.push((image as u64, disk.connected()));
        }
    }
    for (image, disk) in &mut disks {
        let data = Random::new(*image).bytes(4096);
        disk.write(8, &data);
    }
    for (image, mut disk) in disks {
        assert!(disk.read(8, 8) == Random::new(image).bytes(4096));
        assert!(disk.read(16, 8) == content(image, IMAGE_SIZE)[16 * 512..24 * 512]);
        disk.detach();
    }
    world.nothing_left();
}

#[test]
fn a_read_only_disk_says_so_and_is_shared() {
    let world = World::new();
    let guests = [Guest::new(&world), Guest::new(&world)];
    let mut disks: Vec<_> = guests
        .iter()
        .map(|guest| guest.attach_read_only("xvda", "ram:disk0").connected())
        .collect();
    for disk in &mut disks {
        assert_eq!(disk.backend_node("info").as_deref(), Some("4"));
        assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
    }
    disks.into_iter().for_each(|disk| disk.detach());
    world.nothing_left();
}

#[test]
fn cdroms_removable_and_read_only_disks_are_shown_as_what_they_are() {
    // `VDISK_CDROM` is 1, `VDISK_REMOVABLE` 2, `VDISK_READONLY` 4 (io/blkif.h).
    let world = World::new();
    let guest = Guest::new(&world);
    for (cdrom, removable, read_only, info) in [
        (false, false, false, "0"),
        (false, false, true, "4"),
        (false, true, false, "2"),
        (false, true, true, "6"),
        (true, true, true, "7"),
        (true, true, false, "3"),
        // Whatever the toolstack says, the medium of a CD-ROM drive can be taken out.
        (true, false, true, "7"),
    ] {
        let shown = Disk {
            cdrom,
            removable,
            read_only,
            ..Disk::new("ram:disk0")
        };
        let mut disk = guest.attach_as("xvdc", &shown).connected();
        assert_eq!(
            disk.backend_node("info").as_deref(),
            Some(info),
            "{shown:?}"
        );
        assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
        let data = &content(0, 4096);
        let written = disk.transfer(TransferKind::Write, 0, 8, data).status;
        assert_eq!(written == Status::Error, read_only, "{shown:?}");
        disk.detach();
    }
    world.nothing_left();
}

#[test]
fn sectors_of_4096_bytes_are_an_option_of_the_image() {
    let world = World::new();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0,sector-size=4096");
    let mut disk = disk.connected();
    assert_eq!(disk.backend_node("sector-size").as_deref(), Some("4096"));
    // Positions are in units of 512 bytes all the same.
    assert_eq!(disk.backend_node("sectors"), Some(SECTORS.to_string()));
    assert!(disk.read(8, 16) == content(0, IMAGE_SIZE)[4096..3 * 4096]);
    let misaligned = disk.transfer(TransferKind::Read, 1, 8, &[]);
    assert_eq!(misaligned.status, Status::Error);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_disk_larger_than_two_terabytes_has_its_size() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "null:16T").connected();
    let sectors = 16_u64 << 40 >> 9;
    assert_eq!(disk.backend_node("sectors"), Some(sectors.to_string()));
    disk.write(sectors - 8, &[1; 4096]);
    let past = disk.transfer(TransferKind::Write, sectors - 7, 8, &[1; 4096]);
    assert_eq!(past.status, Status::Error);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_flush_with_data_flushes_and_writes() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let answer = disk.transfer(TransferKind::FlushAndWrite, 8, 8, &[7; 4096]);
    assert_eq!(answer.status, Status::Okay);
    assert!(disk.read(8, 8) == [7; 4096]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_full_ring_is_one_sweep_with_one_hypercall_of_each_kind() {
    for path in [DataPath::Map, DataPath::Copy] {
        let world = World::on_path(path);
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        for write in [false, true] {
            for number in 0..32 {
                match write {
                    true => disk.link().push_write(number * 8, &[9; 4096]),
                    false => disk.link().push_read(number * 8, 8),
                };
            }
            let before = world.storage.stats();
            assert_eq!(disk.exchange().len(), 32);
            let stats = world.storage.stats() - before;
            if path == DataPath::Map {
                assert_eq!((stats.map_calls, stats.maps), (1, 32));
                assert_eq!((stats.unmap_calls, stats.unmaps), (1, 32));
                assert_eq!(stats.copy_calls, 0);
            } else {
                assert_eq!((stats.copy_calls, stats.bytes_copied), (1, 32 * 4096));
                assert_eq!(stats.map_calls + stats.unmap_calls, 0);
            }
            assert_eq!(stats.notifications_sent, 1);
            assert_eq!(stats.bind_calls + stats.close_calls, 0);
        }
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_flush_tells_nothing_of_how_pages_are_best_reached() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    disk.link().push_flush();
    assert_eq!(disk.exchange().len(), 1);
    let before = world.storage.stats();
    disk.link().push_read(0, 8);
    assert_eq!(disk.exchange().len(), 1);
    let stats = world.storage.stats() - before;
    assert_eq!((stats.copy_calls, stats.map_calls), (1, 0), "{stats:?}");
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_frontend_that_is_awake_is_not_notified() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    // SAFETY: domain memory stays mapped as long as the machine.
    let ring = unsafe { SharedPages::new(disk.link().memory, 1) }.unwrap();
    disk.link().push_read(0, 8);
    ring.store(Index::ResponseEvent, 1000);
    let before = world.storage.stats();
    assert_eq!(disk.exchange().len(), 1);
    let stats = world.storage.stats() - before;
    assert_eq!(stats.notifications_sent, 0, "{stats:?}");
    disk.detach();
    world.nothing_left();
}

#[test]
fn serving_speaks_to_xenstore_about_nothing() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let before = world.sim.store().dump();
    // Whatever it asked of a stalled store would wait for ever.
    world.sim.store().faults.stalled = true;
    for sector in 0..100 {
        disk.read(sector, 1);
    }
    world.sim.store().faults.stalled = false;
    assert_eq!(world.sim.store().dump(), before);
    disk.detach();
    world.nothing_left();
}

#[test]
fn indices_wrap_where_they_wrap() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    // More requests than the ring has slots, in steps that do not divide it.
    for round in 0..60 {
        for number in 0..7 {
            disk.link().push_write(number, &[round as u8; 512]);
        }
        assert_eq!(disk.exchange().len(), 7);
        assert!(disk.read(3, 1) == [round as u8; 512]);
    }
    disk.detach();
    world.nothing_left();
}
