//! Partitions of the driver domain's own disks, served to guests.

use bulkhead_blkback_testkit::{Frontend, Guest, IMAGE_SIZE, Lower, Setup, World, content};
use bulkhead_images::SectorSize;
use bulkhead_ring::blkif::Status;
use bulkhead_volumes::Guid;
use bulkhead_volumes::testing::{self, NewPartition, write_gpt};
use bulkhead_xen_sim::xenstore::toolstack::Disk;
use std::time::Duration;

/// The time for a request to the domain below and its response; both may be held back for others to join them.
const THERE_AND_BACK: Duration = Duration::from_millis(5);

/// Returns a disk with two partitions, the second of which ends with that sector.
fn partitioned(last: u64) -> Vec<u8> {
    let disk = testing::Disk::of(content(70, IMAGE_SIZE), SectorSize::B512);
    let new = |label, number, first, last| NewPartition {
        label,
        kind: Guid::from_bytes([9; 16]),
        id: Guid::from_bytes([number; 16]),
        first,
        last,
    };
    write_gpt(&disk, &[new("one", 1, 40, 79), new("two", 2, 80, last)]);
    disk.change(|bytes| bytes.clone())
}

fn answered(disk: &mut Frontend<'_>, ask: impl FnOnce(&mut Frontend<'_>)) -> (Status, Vec<u8>) {
    ask(disk);
    disk.link().kick();
    disk.world.wait(THERE_AND_BACK);
    let mut answers = disk.link().collect();
    assert_eq!(answers.len(), 1, "one request, one answer");
    let answer = answers.remove(0);
    (answer.status, answer.data)
}

fn read(disk: &mut Frontend<'_>, sector: u64, sectors: usize) -> Vec<u8> {
    let (status, data) = answered(disk, |disk| {
        disk.link().push_read(sector, sectors);
    });
    assert_eq!(status, Status::Okay, "{:#?}", disk.world.journal());
    data
}

fn write(disk: &mut Frontend<'_>, sector: u64, data: &[u8]) {
    let (status, _) = answered(disk, |disk| {
        disk.link().push_write(sector, data);
    });
    assert_eq!(status, Status::Okay, "{:#?}", disk.world.journal());
}

fn rescan(world: &World, disk: &str) -> String {
    world.write(&world.own_path("data/rescan"), disk);
    world.wait(Duration::from_millis(50));
    let answer = world.own_path("data/rescan-answer");
    world.read(&answer).expect("there is an answer")
}

#[test]
fn partitions_are_served_grow_and_are_nobody_elses() {
    let world = World::with(Setup {
        own_disks: true,
        ..Setup::default()
    });
    let bytes = partitioned(119);
    let lower = Lower::new(&world, &[("disk".to_string(), bytes.clone())]);
    lower.attach("xvda", &Disk::new("ram:disk"));
    let guests = [Guest::new(&world), Guest::new(&world), Guest::new(&world)];
    let attach = |guest: usize, target: &str| {
        let disk = guests[guest].attach("xvda", target);
        world.wait(Duration::from_millis(50));
        disk
    };
    let mut one = attach(0, "vbd:xvda/one,shared=yes").connected();
    let mut two = attach(1, "vbd:xvda/two,shared=yes").connected();
    assert_eq!(one.backend_node("sectors").as_deref(), Some("40"));
    assert!(read(&mut one, 0, 8) == bytes[40 * 512..][..4096]);
    assert!(read(&mut two, 32, 8) == bytes[112 * 512..][..4096]);
    let data = [0xA5; 4096];
    write(&mut two, 0, &data);
    let past = answered(&mut two, |disk| {
        disk.link().push_read(39, 2);
    });
    assert_eq!(past.0, Status::Error, "past its end");
    let refused = attach(2, "vbd:xvda");
    let problem = refused.problem().expect("refused");
    assert!(
        problem.starts_with("vbd:xvda is in use: it has sectors of vbd:xvda/one"),
        "{problem}"
    );
    refused.finish_detach();

    // Somebody with the whole disk makes the second one larger.
    let mut whole = attach(2, "vbd:xvda,shared=yes").connected();
    assert!(read(&mut whole, 80, 8) == data);
    let larger = partitioned(139);
    for place in [1, 2, IMAGE_SIZE / 512 - 33, IMAGE_SIZE / 512 - 1] {
        write(&mut whole, place as u64, &larger[place * 512..][..512]);
    }
    let told = rescan(&world, "vbd:xvda");
    assert!(
        told.starts_with("vbd:xvda was read again, volumes on it: 2\n"),
        "{told}"
    );
    assert!(
        told.ends_with("has grown from 40 to 60 sectors of 512 bytes"),
        "{told}"
    );
    assert_eq!(two.backend_node("sectors").as_deref(), Some("60"));
    assert!(read(&mut two, 52, 8) == bytes[132 * 512..][..4096]);
    assert_eq!(one.backend_node("sectors").as_deref(), Some("40"));
    assert_eq!(
        rescan(&world, "ram:disk"),
        "ram:disk has no tables that are read"
    );
    [one, two, whole].into_iter().for_each(Frontend::detach);
    for node in ["data/rescan", "data/rescan-answer"] {
        world.sim.store().remove(&world.own_path(node));
    }
    world.sim.assert_no_violations();
}
