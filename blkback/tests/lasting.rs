//! Disks of the driver domain's own, served to guests: another driver domain serves them to it.

use bulkhead_blkback_testkit::{Frontend, Guest, IMAGE_SIZE, Lower, Setup, Style, World, content};
use bulkhead_blkfront::UNSENT_TIMEOUT;
use bulkhead_ring::blkif::{BlkifSector, Discard, Operation, Request, Status, TransferKind};
use bulkhead_xen::Reservation;
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk, Vbd};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// Makes a driver domain with that many vCPUs that serves disks of its own.
fn world(vcpus: u32) -> World {
    World::with(Setup {
        own_disks: true,
        vcpus,
        ..Setup::default()
    })
}

/// Returns the images of another driver domain, whose contents are not those of the first one's.
fn images() -> Vec<(String, Vec<u8>)> {
    (0..3)
        .map(|number| (format!("below{number}"), content(70 + number, IMAGE_SIZE)))
        .collect()
}

/// Returns the content of the image with that number.
fn below(number: u64) -> Vec<u8> {
    content(70 + number, IMAGE_SIZE)
}

/// The time for a request to the domain below and its response; both may be held back for others to join them.
const THERE_AND_BACK: Duration = Duration::from_millis(5);

fn read(disk: &mut Frontend<'_>, sector: u64, sectors: usize) -> Vec<u8> {
    let answer = answered(disk, |disk| {
        disk.link().push_read(sector, sectors);
    });
    assert_eq!(answer.0, Status::Okay, "{:#?}", disk.world.journal());
    answer.1
}

fn write(disk: &mut Frontend<'_>, sector: u64, data: &[u8]) {
    let answer = answered(disk, |disk| {
        disk.link().push_write(sector, data);
    });
    assert_eq!(answer.0, Status::Okay, "{:#?}", disk.world.journal());
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

fn flush(disk: &mut Frontend<'_>) -> Status {
    let answer = answered(disk, |disk| {
        disk.link().push_flush();
    });
    answer.0
}

/// Returns the state of a disk of the driver domain's own.
fn own_state(world: &World, vbd: &Vbd) -> Option<XenbusState> {
    let state = vbd.frontend_state(&mut world.sim.store());
    state.map(|state| XenbusState::parse(Some(&state)))
}

#[test]
fn a_guest_reads_and_writes_a_disk_of_the_driver_domains_own() {
    for vcpus in [1, 3] {
        let world = world(vcpus);
        let lower = Lower::new(&world, &images());
        let vbd = lower.attach("xvda", &Disk::new("ram:below0"));
        assert_eq!(own_state(&world, &vbd), Some(XenbusState::Connected));
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "vbd:xvda").connected();
        assert_eq!(disk.backend_node("sectors").as_deref(), Some("256"));
        assert_eq!(
            disk.backend_node("feature-flush-cache").as_deref(),
            Some("1")
        );
        assert!(read(&mut disk, 8, 8) == below(0)[8 * 512..][..4096]);
        let data: Vec<u8> = (0..20 * 512).map(|n| (n % 249) as u8 + 1).collect();
        write(&mut disk, 3, &data);
        assert!(lower.holds(&data), "it has arrived below");
        assert!(read(&mut disk, 3, 20) == data);
        disk.link().push_flush();
        disk.link().kick();
        world.wait(THERE_AND_BACK);
        assert_eq!(disk.link().collect()[0].status, Status::Okay);
        disk.detach();
        world.sim.assert_no_violations();
    }
}

#[test]
fn every_kind_of_request_reaches_the_backend() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    lower.attach("xvda", &Disk::new("ram:below1"));
    let guest = Guest::with_memory(&world, 4096);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    // 32 pages: more segments than a plain request has, asked for by an indirect one.
    let data: Vec<u8> = (0..32 * 4096_u32).map(|n| (n % 253) as u8).collect();
    disk.link().push_write(0, &data);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    assert!(lower.holds(&data));
    let before = world.storage.stats();
    assert!(read(&mut disk, 128, 88) == data[128 * 512..216 * 512]);
    let after = world.storage.stats();
    assert_eq!(after.maps, before.maps, "nothing is mapped for data");
    assert_eq!(after.copy_calls, before.copy_calls + 1, "one copy");
    // A barrier, a flush with data, and a discard.
    for kind in [TransferKind::WriteBarrier, TransferKind::FlushAndWrite] {
        let answer = answered(&mut disk, |disk| {
            disk.link()
                .push_transfer(kind, 8, 1, &[kind.opcode().0; 512]);
        });
        assert_eq!(answer.0, Status::Okay);
        assert!(read(&mut disk, 8, 1) == [kind.opcode().0; 512]);
    }
    assert_eq!(disk.backend_node("feature-discard").as_deref(), Some("1"));
    let answer = answered(&mut disk, |disk| {
        let id = disk.link().new_id();
        let discard = Discard {
            sector: BlkifSector(16),
            count: 8,
            secure: true,
        };
        let request = Request::of(id, Operation::Discard(discard));
        disk.link().push(&request, Vec::new());
    });
    assert_eq!(answer.0, Status::Okay);
    assert!(read(&mut disk, 16, 8) == [0; 4096]);
    disk.detach();
    world.sim.assert_no_violations();
}

#[test]
fn a_read_only_disk_is_served_to_readers_and_a_writer_is_alone() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    lower.attach("xvda", &Disk::read_only("ram:below0"));
    lower.attach("xvdb", &Disk::new("ram:below1"));
    let guests = [Guest::new(&world), Guest::new(&world), Guest::new(&world)];
    let writer = guests[0].attach("xvda", "vbd:xvda");
    assert_eq!(
        writer.problem().as_deref(),
        Some("vbd:xvda is read-only, expected access=ro")
    );
    writer.finish_detach();
    let readers = [0, 1].map(|n| guests[n].attach_read_only("xvda", "vbd:xvda").connected());
    for mut reader in readers {
        assert!(read(&mut reader, 0, 8) == below(0)[..4096]);
        reader.detach();
    }
    let writer = guests[0].attach("xvda", "vbd:xvdb").connected();
    let second = guests[1].attach("xvda", "vbd:xvdb");
    let problem = second.problem().expect("it has a writer");
    assert!(
        problem.starts_with("vbd:xvdb is open for writing by vbd"),
        "{problem}"
    );
    second.finish_detach();
    writer.detach();
    let shared = [1, 2].map(|n| guests[n].attach("xvda", "vbd:xvdb,shared=yes").connected());
    shared.into_iter().for_each(Frontend::detach);
    world.sim.assert_no_violations();
}

#[test]
fn a_target_that_names_no_disk_says_which_there_are() {
    let world = world(1);
    let guest = Guest::new(&world);
    let refused = |target: &str| {
        let disk = guest.attach("xvda", target);
        world.wait(Duration::from_secs(8));
        let problem = disk.problem().expect("refused");
        disk.finish_detach();
        problem
    };
    assert_eq!(
        refused("vbd:xvda"),
        "no disk xvda: the driver domain has no disks of its own (disk= in its configuration)"
    );
    let lower = Lower::new(&world, &images());
    lower.attach("xvdc", &Disk::new("ram:below0"));
    assert_eq!(refused("vbd:xvda"), "no disk xvda, there are: xvdc");
    assert_eq!(refused("vbd:"), "'vbd:' names no disk, expected vbd:xvda");
    assert_eq!(
        refused("vbd:xvdc/vg0/alice"),
        "there is no vbd:xvdc/vg0/alice, there are: none"
    );
    for option in [
        "sector-size=4096",
        "physical-sector-size=4096",
        "discard=keep",
    ] {
        let (name, _) = option.split_once('=').unwrap();
        assert_eq!(
            refused(&format!("vbd:xvdc,{option}")),
            format!("vbd: shows a disk as it is, expected it without {name}=")
        );
    }
    world.sim.assert_no_violations();
}

#[test]
fn a_guest_waits_for_a_disk_that_is_attached_a_little_later() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "vbd:xvdb");
    world.wait(Duration::from_secs(4));
    assert_eq!(disk.backend(), Some(XenbusState::Initialising));
    lower.attach("xvdb", &Disk::new("ram:below0"));
    let mut disk = disk.connected();
    assert!(read(&mut disk, 0, 8) == below(0)[..4096]);
    disk.detach();
    world.sim.assert_no_violations();
}

#[test]
fn a_disk_in_use_is_detached_when_its_guest_is_gone() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    let vbd = lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    toolstack::request_detach(&mut world.sim.store(), &vbd);
    world.wait(Duration::from_secs(12));
    assert_eq!(lower.state(&vbd), Some(XenbusState::Closing));
    write(&mut disk, 0, &[1; 512]);
    disk.detach();
    world.wait_for_removal();
    assert!(vbd.backend_gone(&world.sim.store()), "it is let go of");
    toolstack::finish_detach(&mut world.sim.store(), &vbd);
    world.wait(Duration::from_secs(1));
    world.sim.assert_no_violations();
    assert_eq!(
        world.storage.grants_in_use(),
        0,
        "nothing is granted any more"
    );
}

#[test]
fn a_disk_that_grows_is_announced_to_guests() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "vbd:xvda").connected();
    let grow = format!("/local/domain/{}/data/grow", lower.domain.id());
    world.write(&grow, "below0 256K");
    assert_eq!(disk.backend_node("sectors").as_deref(), Some("512"));
    disk.detach();
    world.sim.assert_no_violations();
}

/// The backend's driver starts anew while requests are on the ring: it closes the disk, and offers it again.
#[test]
fn what_a_backend_that_closes_has_not_answered_is_asked_again() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    let vbd = lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    write(&mut disk, 0, &[7; 512]);
    lower.pause(true);
    for number in 0..20_u8 {
        disk.link()
            .push_write(u64::from(number) * 2, &[number + 100; 512]);
    }
    disk.link().push_read(1, 1);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    assert_eq!(disk.link().collect(), [], "nobody answers");
    // As its driver does when it is unbound, without having looked at the ring.
    world
        .sim
        .store()
        .write(&format!("{}/state", vbd.backend_path()), "5");
    // It has its time to flush what it has acknowledged.
    world.wait(Duration::from_secs(3));
    assert_eq!(own_state(&world, &vbd), Some(XenbusState::Closed));
    // It is there again.
    lower.pause(false);
    world.wait(Duration::from_secs(5));
    assert_eq!(own_state(&world, &vbd), Some(XenbusState::Connected));
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 21, "{:#?}", world.journal());
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    for number in 0..20_u8 {
        assert!(read(&mut disk, u64::from(number) * 2, 1) == [number + 100; 512]);
    }
    // It is the same domain, which has what it acknowledged before.
    assert_eq!(flush(&mut disk), Status::Okay);
    disk.detach();
    world.sim.assert_no_violations();
}

/// A driver domain is destroyed, and another one is given its place.
#[test]
fn requests_wait_for_another_driver_domain_in_the_place_of_one_that_was_destroyed() {
    let world = world(2);
    let lower = Lower::new(&world, &images());
    let vbd = lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    write(&mut disk, 0, &[7; 512]);
    assert_eq!(flush(&mut disk), Status::Okay);
    lower.pause(true);
    disk.link().push_write(8, &[9; 512]);
    disk.link().push_flush();
    disk.link().push_read(16, 8);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    lower.destroy();
    world.wait(Duration::from_secs(10));
    assert_eq!(disk.link().collect(), [], "they wait");
    // xl block-detach: "already removed, cleanup frontend only".
    toolstack::finish_detach(&mut world.sim.store(), &vbd);
    world.wait(Duration::from_secs(1));
    let other = Lower::new(&world, &images());
    other.attach("xvda", &Disk::new("ram:below0"));
    world.wait(Duration::from_secs(5));
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 3, "{:#?}", world.journal());
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    assert!(other.holds(&[9; 512]));
    disk.detach();
    world.sim.assert_no_violations();
}

/// Gives the disk to another driver domain, which has an image of the same name, but not what the first one was given
/// to write.
fn replace<'w>(world: &'w World, lower: Lower<'w>, vbd: &Vbd) -> (Lower<'w>, Vbd) {
    lower.destroy();
    toolstack::finish_detach(&mut world.sim.store(), vbd);
    world.wait(Duration::from_secs(1));
    let other = Lower::new(world, &images());
    let vbd = other.attach("xvda", &Disk::new("ram:below0"));
    world.wait(Duration::from_secs(5));
    (other, vbd)
}

fn says_that_writes_may_be_lost(world: &World) -> bool {
    let journal = world.journal();
    let mut lines = journal.iter();
    lines.any(|line| line.contains("did not flush may be lost"))
}

/// Linux's blkfront never flushes again after a flush that failed.
#[test]
fn what_another_domain_may_have_lost_is_told_in_the_log_and_fails_no_flush() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    let vbd = lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    write(&mut disk, 0, &[7; 512]);
    assert_eq!(flush(&mut disk), Status::Okay);
    let (lower, vbd) = replace(&world, lower, &vbd);
    assert!(!says_that_writes_may_be_lost(&world), "they were flushed");
    write(&mut disk, 0, &[7; 512]);
    lower.pause(true);
    disk.link().push_flush();
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    replace(&world, lower, &vbd);
    assert!(says_that_writes_may_be_lost(&world));
    assert_eq!(disk.link().collect()[0].status, Status::Okay, "it waited");
    assert_eq!(flush(&mut disk), Status::Okay);
    disk.detach();
    world.sim.assert_no_violations();
}

/// `xl shutdown` of a driver domain: its disks close in order.
#[test]
fn a_domain_that_closes_its_disks_in_order_flushes_them_before() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    let vbd = lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    write(&mut disk, 0, &[7; 512]);
    let closing = lower.backend.clone();
    lower
        .backend
        .services
        .handle
        .spawn(async move { closing.close().await });
    world.wait(Duration::from_millis(100));
    assert_eq!(own_state(&world, &vbd), Some(XenbusState::Initialising));
    disk.link().push_write(8, &[8; 512]);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    replace(&world, lower, &vbd);
    assert_eq!(disk.link().collect()[0].status, Status::Okay);
    assert!(
        !says_that_writes_may_be_lost(&world),
        "{:#?}",
        world.journal()
    );
    assert_eq!(flush(&mut disk), Status::Okay);
    disk.detach();
    world.sim.assert_no_violations();
}

#[test]
fn requests_do_not_wait_for_ever_for_a_backend_that_is_gone() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    lower.destroy();
    disk.link().push_read(0, 8);
    disk.link().kick();
    world.wait(UNSENT_TIMEOUT - Duration::from_secs(1));
    assert_eq!(disk.link().collect(), []);
    world.wait(Duration::from_secs(5));
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 1, "{:#?}", world.journal());
    assert_eq!(answers[0].status, Status::Error);
    disk.detach();
    world.sim.assert_no_violations();
}

#[test]
fn another_disk_in_the_place_of_one_in_use_is_not_written_to() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    let vbd = lower.attach("xvda", &Disk::new("ram:below0"));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    write(&mut disk, 0, &[7; 512]);
    lower.destroy();
    disk.link().push_write(8, &[0xa5; 512]);
    disk.link().kick();
    world.wait(THERE_AND_BACK);
    toolstack::finish_detach(&mut world.sim.store(), &vbd);
    world.run();
    let other = Lower::new(&world, &images());
    let vbd = other.attach("xvda", &Disk::new("ram:below2"));
    world.wait(Duration::from_secs(2));
    assert_eq!(disk.link().collect()[0].status, Status::Error);
    assert!(!other.holds(&[0xa5; 512]));
    let said = |line: &String| line.contains("another disk was attached in its place");
    assert!(world.journal().iter().any(said), "{:#?}", world.journal());
    disk.detach();
    // Once it is attached anew it serves.
    toolstack::request_detach(&mut world.sim.store(), &vbd);
    world.wait_for_removal();
    toolstack::finish_detach(&mut world.sim.store(), &vbd);
    world.run();
    other.attach("xvda", &Disk::new("ram:below2"));
    let mut disk = guest.attach("xvda", "vbd:xvda").connected();
    assert!(read(&mut disk, 0, 8) == below(2)[..4096]);
    disk.detach();
    world.sim.assert_no_violations();
}

#[test]
fn a_dead_guests_requests_do_not_get_into_the_next_ones_way() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    lower.attach("xvda", &Disk::new("ram:below0"));
    // Without `shared=yes`, the next one would not get the disk yet.
    for round in 0..4 {
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "vbd:xvda,shared=yes").connected();
        lower.pause(true);
        for number in 0..16 {
            disk.link().push_write(number, &[0xd0 + round; 512]);
            disk.link().push_read(number, 8);
        }
        disk.link().kick();
        world.wait(THERE_AND_BACK);
        let vbd = disk.vbd.clone();
        world.sim.destroy_domain(guest.domain.id());
        toolstack::force_detach(&mut world.sim.store(), &vbd);
        // Its requests are given up after a second.
        world.wait(Duration::from_secs(5));
        assert!(vbd.backend_gone(&world.sim.store()));
        toolstack::finish_detach(&mut world.sim.store(), &vbd);
        toolstack::remove_domain(&mut world.sim.store(), vbd.frontend);
        // The backend has yet to look at what that one asked for.
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "vbd:xvda,shared=yes").connected();
        disk.link().push_write(100, &[round + 1; 512]);
        disk.link().push_read(120, 8);
        disk.link().kick();
        lower.pause(false);
        world.wait(THERE_AND_BACK * 4);
        let answers = disk.link().collect();
        assert_eq!(answers.len(), 2);
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
        assert!(
            answers
                .iter()
                .any(|answer| answer.data == below(0)[120 * 512..][..4096])
        );
        assert!(read(&mut disk, 100, 1) == [round + 1; 512]);
        guest.destroy(vec![disk]);
    }
    world.sim.assert_no_violations();
    // The memory of the queues is used again: two of them at a time, and the ring.
    let granted = world.storage.grants_in_use();
    assert!(granted <= 2 * 400 + 16, "{granted} pages are granted");
}

#[test]
fn the_memory_of_queues_is_used_again_however_deep_the_next_ones_are() {
    let world = world(1);
    let lower = Lower::new(&world, &images());
    lower.attach("xvda", &Disk::new("ram:below0"));
    for ring_pages in [1, 2, 4, 4, 1, 4] {
        let guest = Guest::new(&world);
        let style = Style {
            ring_pages,
            ..Style::default()
        };
        let mut disk = guest.attach("xvda", "vbd:xvda").styled(style).connected();
        for request in 0..32 * ring_pages as u64 {
            disk.link().push_read(request, 1);
        }
        disk.link().kick();
        world.wait(THERE_AND_BACK * 8);
        let answers = disk.link().collect();
        assert_eq!(answers.len(), 32 * ring_pages as usize);
        for answer in answers {
            assert_eq!(answer.status, Status::Okay);
        }
        disk.detach();
        // One queue's memory, and the ring.
        let granted = world.storage.grants_in_use();
        assert!(granted <= 400 + 16, "{granted} pages are granted");
    }
    world.sim.assert_no_violations();
}

#[test]
fn a_disk_that_there_is_no_memory_to_connect_leaves_nothing_behind() {
    let memory = world(3).storage.hypervisor();
    let rings = std::iter::from_fn(|| memory.allocate(16)).count();
    let world = world(3);
    let lower = Lower::new(&world, &images());
    // Memory for the first ring and not for the second.
    let memory = world.storage.hypervisor();
    assert!((1..rings).all(|_| memory.allocate(16).is_some()));
    let (ports, grants) = (world.storage.open_ports(), world.storage.grants_in_use());
    lower.attach("xvda", &Disk::new("ram:below0"));
    world.wait(Duration::from_secs(20));
    let said = |line: &String| line.contains("cannot be connected: the driver domain has no");
    assert!(world.journal().iter().any(said), "{:#?}", world.journal());
    assert_eq!(world.storage.open_ports(), ports);
    assert_eq!(world.storage.grants_in_use(), grants);
}
