//! Discards: what was discarded reads as zeros. Its memory stays, or goes back to Xen where the operator
//! wants that.

use bulkhead_blkback_testkit::{
    Bystander, Frontend, Guest, IMAGE_SIZE, SECTORS, Setup, World, content,
};
use bulkhead_ring::blkif::{BlkifSector, Discard, Operation, Request, Status, TransferKind};
use bulkhead_xen_sim::xenstore::toolstack::Disk;

/// Discards sectors, and returns the status of the answer.
pub fn discard(disk: &mut Frontend<'_>, sector: u64, count: u64, secure: bool) -> Status {
    let id = disk.link().new_id();
    let discard = Discard {
        sector: BlkifSector(sector),
        count,
        secure,
    };
    let request = Request::of(id, Operation::Discard(discard));
    disk.link().push(&request, Vec::new());
    disk.answer().status
}

#[test]
fn what_was_discarded_reads_as_zeros_and_is_xens_again() {
    let world = World::with_discards();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    assert_eq!(disk.backend_node("feature-discard").as_deref(), Some("1"));
    // The archive's header is 512 bytes, so the image's first whole page begins at its byte 3584.
    for (node, expected) in [
        ("discard-granularity", "4096"),
        ("discard-alignment", "3584"),
        ("discard-secure", "1"),
    ] {
        assert_eq!(disk.backend_node(node).as_deref(), Some(expected), "{node}");
    }
    let mut disk = disk.connected();
    let image = content(0, IMAGE_SIZE);
    assert_eq!(discard(&mut disk, 40, 100, false), Status::Okay);
    assert!(disk.read(40, 100) == [0; 100 * 512]);
    assert!(disk.read(0, 40) == image[..40 * 512]);
    assert!(disk.read(140, 116) == image[140 * 512..]);
    let stats = world.storage.stats();
    assert!(stats.release_calls > 0, "{stats:?}");
    other.io();
    // It can be written again.
    disk.write(50, &[5; 4096]);
    assert!(disk.read(50, 8) == [5; 4096]);
    assert!(disk.read(58, 8) == [0; 4096]);
    assert_eq!(discard(&mut disk, 0, SECTORS, true), Status::Okay);
    assert!(disk.read(0, 256) == [0; IMAGE_SIZE]);
    let stats = world.storage.stats();
    assert_eq!(stats.pages_released_uncleared, 0, "nobody else sees a byte");
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn what_was_discarded_can_always_be_written_again() {
    for target in ["ram:disk0", "ram:disk0,discard=release"] {
        let world = World::with(Setup {
            reservation: true,
            ..Setup::default()
        });
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", target).connected();
        assert_eq!(discard(&mut disk, 0, SECTORS, false), Status::Okay);
        assert!(disk.read(0, 256) == [0; IMAGE_SIZE]);
        // Another domain takes what the host has, or `xl mem-max` is lowered.
        world.storage.set_memory_limit(0);
        let kind = TransferKind::Write;
        let written = disk.transfer(kind, 64, 8, &[5; 4096]).status;
        let releases = world.storage.stats().release_calls > 0;
        match target {
            "ram:disk0" => {
                assert!(!releases, "all of it stays");
                assert_eq!(written, Status::Okay);
                assert!(disk.read(64, 8) == [5; 4096]);
            }
            // What the operator has chosen, with that risk.
            _ => {
                assert!(releases);
                assert_eq!(written, Status::Error);
                assert!(disk.read(64, 8) == [0; 4096]);
            }
        }
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_secure_discard_leaves_nothing_of_what_was_there() {
    // Whole pages may go back to Xen, parts of pages stay: both are cleared first.
    let ranges = [(7, 8), (0, SECTORS), (9, 3), (200, 17)];
    for (sector, count, release) in ranges
        .into_iter()
        .flat_map(|(sector, count)| [false, true].map(|yes| (sector, count, yes)))
    {
        let world = World::with(match release {
            true => Setup::giving_back(),
            false => Setup::default(),
        });
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        assert_eq!(discard(&mut disk, sector, count, true), Status::Okay);
        let mut expected = content(0, IMAGE_SIZE);
        expected[sector as usize * 512..][..count as usize * 512].fill(0);
        assert!(disk.read(0, 256) == expected, "{count} at {sector}");
        assert_eq!(world.storage.stats().pages_released_uncleared, 0);
        disk.detach();
        // Nor does the next one who attaches the image find it.
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        assert!(disk.read(0, 256) == expected);
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn malformed_discards() {
    let world = World::with_discards();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let far = [
        (SECTORS, 1),
        (SECTORS - 1, 2),
        (0, SECTORS + 1),
        (u64::MAX, 1),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
        (1 << 55, 1 << 55),
    ];
    for (sector, count) in far {
        let status = discard(&mut disk, sector, count, false);
        assert_eq!(status, Status::Error, "{count} at {sector}");
        other.io();
    }
    assert!(disk.read(0, 256) == content(0, IMAGE_SIZE));
    disk.detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_disk_attached_without_discard_does_not_offer_it() {
    let world = World::with_discards();
    let guest = Guest::new(&world);
    let without = Disk {
        discard: false,
        ..Disk::new("ram:disk0")
    };
    for disk in [without, Disk::read_only("ram:disk1")] {
        let image = content(u64::from(disk.read_only), IMAGE_SIZE);
        let disk = guest.attach_as("xvda", &disk);
        assert_ne!(disk.backend_node("feature-discard").as_deref(), Some("1"));
        let mut disk = disk.connected();
        // Whoever asks all the same changes nothing.
        assert_ne!(discard(&mut disk, 0, 100, false), Status::Okay);
        assert!(disk.read(0, 256) == image);
        disk.detach();
    }
    world.nothing_left();
}

#[test]
fn reads_writes_and_discards_in_one_sweep() {
    let world = World::with_discards();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    for round in 0..20 {
        for number in 0..8 {
            disk.link().push_write(number * 8, &[round; 4096]);
        }
        for number in 8..16 {
            let id = disk.link().new_id();
            let discard = Discard {
                sector: BlkifSector(number * 8),
                count: 8,
                secure: false,
            };
            let request = Request::of(id, Operation::Discard(discard));
            disk.link().push(&request, Vec::new());
        }
        assert_eq!(disk.exchange().len(), 16);
        assert!(disk.read(0, 64) == [round; 64 * 512]);
        assert!(disk.read(64, 64) == [0; 64 * 512]);
    }
    disk.detach();
    world.nothing_left();
}
