//! Directories that the toolstack makes anew in the middle of something: what it wrote last is what
//! is served, whatever was being done about the disk before.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, IMAGE_SIZE, World, content};
use bulkhead_ring::blkif::{Status, TransferKind};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;

/// The number of xenstored's answers in the beginning of a disk, and some more.
const POINTS: usize = 70;

/// Attaches `first`, and in the middle of what is done about it makes everything anew for
/// `second`.
fn made_anew<'w>(guest: &Guest<'w>, first: &Disk, second: &Disk, point: usize) -> Frontend<'w> {
    let world = guest.world;
    let disk = guest.attach_unseen("xvda", first);
    world.slowly(point);
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    let disk = guest.attach_unseen("xvda", second);
    world.wait_for_removal();
    assert_eq!(
        disk.backend(),
        Some(XenbusState::InitWait),
        "made anew at point {point}: {:#?}",
        world.journal()
    );
    disk
}

#[test]
fn a_refused_disk_is_made_anew_at_every_point() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for first in ["ram:nothing", "ram:disk5", "rubbish"] {
        for point in 0..POINTS {
            let (first, second) = (Disk::new(first), Disk::new("ram:disk0"));
            let mut disk = made_anew(&guest, &first, &second, point).connected();
            assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
            disk.detach();
        }
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn the_same_target_in_another_mode_is_another_disk() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for point in 0..POINTS {
        let (first, second) = (Disk::new("ram:disk0"), Disk::read_only("ram:disk0"));
        let mut disk = made_anew(&guest, &first, &second, point).connected();
        assert_eq!(disk.backend_node("info").as_deref(), Some("4"), "{point}");
        let written = disk.transfer(TransferKind::Write, 0, 8, &[1; 4096]);
        assert_eq!(written.status, Status::Error, "{point}");
        disk.detach();
        let mut disk = made_anew(&guest, &second, &first, point).connected();
        assert_eq!(disk.backend_node("info").as_deref(), Some("0"), "{point}");
        disk.write(0, &[2; 4096]);
        disk.detach();
    }
    other.io();
    other.leave();
    world.nothing_left();
}

#[test]
fn the_same_target_with_other_features_is_another_disk() {
    let world = World::with_discards();
    let guest = Guest::new(&world);
    let plain = Disk::new("ram:disk0");
    let cdrom = Disk {
        cdrom: true,
        removable: true,
        ..plain.clone()
    };
    let undiscardable = Disk {
        discard: false,
        ..plain.clone()
    };
    for point in 0..POINTS {
        let disk = made_anew(&guest, &plain, &cdrom, point).connected();
        assert_eq!(disk.backend_node("info").as_deref(), Some("3"), "{point}");
        disk.detach();
        let disk = made_anew(&guest, &plain, &undiscardable, point);
        let discard = disk.backend_node("feature-discard");
        assert_eq!(discard.as_deref(), Some("0"), "{point}");
        disk.detach();
        let disk = made_anew(&guest, &undiscardable, &plain, point);
        let discard = disk.backend_node("feature-discard");
        assert_eq!(discard.as_deref(), Some("1"), "{point}");
        disk.detach();
    }
    world.nothing_left();
}
