//! A PV driver domain that crashes while its guests' disks lie on a device that it was given, which goes on by itself.

use super::recovery::{Case, collect_all, crash_everywhere, held, push_writes, rounds};
use super::recovery_load::Load;
use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{Crash, Guest, Nvme, PATHS, Random, Setup, Style, World};
use bulkhead_grant::GrantAccess;
use bulkhead_images::SectorSize;
use bulkhead_nvme_testing::{Config, FakeNamespace, Treatment};
use bulkhead_ring::blkif::TransferKind::Read;
use bulkhead_ring::blkif::{BlkifSector, Request, Segment, Status};
use bulkhead_volumes::Guid;
use bulkhead_volumes::testing::{self, NewPartition, write_gpt};
use bulkhead_xen::PAGE_SIZE;
use bulkhead_xen_sim::DomainKind;
use bulkhead_xen_sim::pci::FunctionConfig;
use bulkhead_xen_sim::pci::toolstack::{backend_state, frontend_state};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// The bytes of the device.
const SIZE: usize = 256 * 1024;

pub const NVME: &str = "nvme:03:00.0";
pub const VIRTIO: &str = "virtio:04:00.0";

/// The time within which a disk is served again.
pub const SOON: Duration = Duration::from_millis(100);

/// Returns a driver domain with an NVMe controller.
pub fn nvme_setup(setup: Setup) -> Setup {
    let config = Config {
        namespaces: vec![FakeNamespace::new(1, 9, SIZE / 512)],
        ..Config::default()
    };
    Setup {
        kind: DomainKind::Pv,
        controller: Some((FunctionConfig::default(), config)),
        recover: true,
        ..setup
    }
}

pub fn nvme_world(setup: Setup) -> World {
    World::with(nvme_setup(setup))
}

pub fn virtio_world(setup: Setup) -> World {
    let config = bulkhead_virtio_testing::Config {
        bytes: vec![0; SIZE],
        ..bulkhead_virtio_testing::Config::default()
    };
    World::with(Setup {
        kind: DomainKind::Pv,
        virtio: Some(config),
        recover: true,
        ..setup
    })
}

fn nvme(world: &World) -> &Nvme {
    world.nvme.as_ref().expect("it has a controller")
}

fn crash_on_path(path: usize) {
    let (data_path, persistent) = PATHS[path];
    let case = Case {
        world: &|| nvme_world(Setup::on_path(data_path)),
        prepare: |_| (),
        target: NVME,
        persistent,
    };
    crash_everywhere(&case, rounds());
}

#[test]
fn a_guest_whose_pages_a_controller_accesses_notices_no_crash() {
    crash_on_path(1);
}

#[test]
fn a_guest_on_a_controller_whose_pages_are_copied_notices_no_crash() {
    crash_on_path(2);
}

#[test]
fn a_domain_with_two_vcpus_crashes_while_its_controller_is_at_work() {
    let world = &|| {
        nvme_world(Setup {
            vcpus: 2,
            ..Setup::default()
        })
    };
    let case = Case {
        world,
        prepare: |_| (),
        target: NVME,
        persistent: true,
    };
    crash_everywhere(&case, rounds());
}

/// Crashes follow each other at any moment of the boot, too: in the middle of an operation of pciback's, or of a start of
/// the device.
fn crashes_follow_each_other(world: &World, target: &str) {
    let before = held(world);
    let guest = Guest::with_memory(world, 2048);
    let mut disk = guest.attach("xvda", target);
    disk = disk.styled(Style::persistent(true)).connected();
    let mut load = Load::new(&mut disk);
    let mut random = Random::new(15);
    let mut crashes = 0;
    for round in 0..12 {
        let why = format!("round {round}");
        for _ in 0..random.below(6) {
            load.send(&mut disk, &mut random);
            world.run();
            load.collect(&mut disk, &why);
        }
        load.send(&mut disk, &mut random);
        for _ in 0..random.below(4) {
            let crash = world.crash_after(random.below(20), random.below(1500));
            crashes += u64::from(matches!(crash, Crash::Crashed(_)));
            load.collect(&mut disk, &why);
            world.restart();
            // xenstored, pciback, the device, and the beginning of the next boot.
            for _ in 0..random.below(300) {
                world.step(random.below(2) == 0);
                world.step_devices();
            }
            load.collect(&mut disk, &why);
        }
        world.wait(SOON);
        load.collect(&mut disk, &why);
        assert_eq!(disk.backend(), Some(XenbusState::Connected), "{why}");
    }
    assert!(crashes > 6, "{crashes} crashes");
    load.expect_all(&mut disk, 300);
    disk.detach();
    assert_eq!(held(world), before);
    world.no_mistakes();
}

#[test]
fn crashes_of_a_domain_with_a_controller_follow_each_other_under_load() {
    crashes_follow_each_other(&nvme_world(Setup::default()), NVME);
}

#[test]
fn crashes_of_a_domain_with_a_virtio_device_follow_each_other_under_load() {
    crashes_follow_each_other(&virtio_world(Setup::default()), VIRTIO);
}

/// Crashes, and returns the number of operations of pciback that a boot takes that goes on with the channel.
pub fn operations_of_a_boot(world: &World) -> usize {
    let id = world.storage.id();
    let answered = || world.sim.pciback(id, |pciback| pciback.answered);
    let first = answered();
    world.crash_after(0, 0);
    world.restart();
    world.wait(SOON);
    let operations = answered() - first;
    assert!(operations > 15, "{operations} operations");
    operations
}

#[test]
fn a_crash_during_any_operation_of_pciback_is_gone_on_from() {
    let world = nvme_world(Setup::default());
    let before = held(&world);
    let id = world.storage.id();
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", NVME).connected();
    let operations = operations_of_a_boot(&world);
    for operation in 0..operations {
        let why = format!("operation {operation} of {operations}");
        let asked = push_writes(&mut disk, 8, operation as u8);
        disk.link().kick();
        world.crash_after(3, 50);
        world
            .sim
            .pciback(id, |pciback| pciback.stall_after = Some(operation));
        world.restart();
        world.wait(SOON);
        assert!(world.sim.pciback(id, |pciback| pciback.stalled), "{why}");
        world.crash_after(0, 0);
        world.restart();
        world.wait(SOON);
        assert_eq!(disk.link().collect().len(), 0, "{why}");
        // The operation of before is done only now.
        world.sim.pciback(id, |pciback| pciback.stalled = false);
        world.wait(SOON);
        let why = format!("{why}: {:#?}", world.journal());
        collect_all(&mut disk, &asked, &why);
        assert_eq!(disk.read(7, 1), [operation as u8; 512], "{why}");
        world.forget_journal();
    }
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn what_a_slow_controller_still_does_it_does_before_the_next_boot() {
    let world = nvme_world(Setup::on_path(DataPath::Map));
    let before = held(&world);
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", NVME).connected();
    for sector in 0..32 {
        disk.write(sector, &[sector as u8 + 1; 512]);
    }
    let fake = &nvme(&world).fake;
    fake.decide(|_| Treatment::Held);
    for sector in 0..32 {
        disk.link().push_read(sector, 1);
    }
    disk.link().kick();
    world.run();
    let commands = fake.held().len();
    assert!(commands > 8, "{commands} commands");
    world.crash_after(0, 0);
    // It reads and writes on while it is waited for.
    fake.stop_late(commands + 5);
    world.restart();
    assert_eq!(fake.held().len(), 0);
    fake.decide(|_| Treatment::Done);
    world.wait(SOON);
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 32);
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    for answer in &answers {
        let byte = answer.data[0];
        assert!(answer.data == [byte; 512] && (1..=32).contains(&byte));
    }
    disk.detach();
    assert_eq!(held(&world), before);
    world.no_mistakes();
}

#[test]
fn a_controller_that_does_not_stop_ends_the_domain() {
    let world = nvme_world(Setup::on_path(DataPath::Map));
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", NVME).connected();
    disk.write(0, &[1; 512]);
    let fake = &nvme(&world).fake;
    fake.decide(|_| Treatment::Held);
    push_writes(&mut disk, 8, 2);
    disk.link().kick();
    world.run();
    fake.never_stop(true);
    world.crash_after(0, 0);
    assert_eq!(world.stop_devices(), 1, "it does not start again");
}

/// A controller says that it has stopped, and writes on. The IOMMU lets it reach no page of a guest that the next boot has
/// not mapped for it itself, and none of this domain that was not named to it.
#[test]
fn a_controller_that_violates_the_protocol_reaches_no_page_of_before() {
    let world = nvme_world(Setup::on_path(DataPath::Map));
    let guest = Guest::with_memory(&world, 2048);
    let mut disk = guest.attach("xvda", NVME).connected();
    disk.write(0, &[7; 4096]);
    let fake = &nvme(&world).fake;
    fake.decide(|_| Treatment::Held);
    let page = disk.link().fresh_page(GrantAccess::ReadWrite);
    let memory = page.memory;
    let segment = Segment::new(page.gref(), 0, 7).expect("a page");
    let id = disk.link().new_id();
    let request = Request::transfer(id, Read, BlkifSector(0), &[segment]).expect("one segment");
    disk.link().push(&request, vec![page]);
    disk.link().kick();
    world.run();
    let late: Vec<_> = fake
        .held()
        .into_iter()
        .map(|(_, command)| command)
        .collect();
    assert_eq!(late.len(), 1);
    world.crash_after(0, 0);
    world.restart();
    let canary = [0x5a; PAGE_SIZE];
    // SAFETY: the guest's own page.
    unsafe { memory.cast().write(canary) };
    // Before the request is served again, and while nothing was named to it.
    fake.do_late(&late[0]);
    // SAFETY: as before.
    let there: [u8; PAGE_SIZE] = unsafe { memory.cast().read() };
    assert!(there == canary, "it has written to a page of before");
    assert_eq!(world.sim.violations().len(), 1, "the IOMMU has refused it");
    fake.decide(|_| Treatment::Done);
    world.wait(SOON);
    let answers = disk.link().collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].status, Status::Okay);
    assert!(answers[0].data == [7; 4096]);
}

#[test]
fn a_function_that_is_being_taken_away_is_let_go_of_after_a_crash() {
    for crashes in 1..4 {
        let world = nvme_world(Setup::default());
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", NVME).connected();
        disk.write(8, &[9; 512]);
        disk.detach();
        let function = &nvme(&world).function;
        world.sim.detach_function(&world.storage, function);
        for _ in 0..crashes {
            world.crash_after(0, 0);
            world.restart();
            for _ in 0..20 * (crashes - 1) {
                world.step(true);
                world.step(false);
            }
        }
        world.wait(SOON);
        let id = world.storage.id();
        assert_eq!(
            backend_state(&mut world.sim.store(), id).as_deref(),
            Some("4")
        );
        assert_eq!(
            frontend_state(&mut world.sim.store(), id).as_deref(),
            Some("4")
        );
        assert!(world.sim.finish_detach(&world.storage, function));
        world.run();
        world.sim.attach_functions(&world.storage, &[function]);
        world.crash_after(0, 0);
        world.restart();
        world.wait(SOON);
        let mut disk = guest.attach("xvda", NVME).connected();
        assert_eq!(disk.read(8, 1), [9; 512]);
        disk.detach();
        world.no_mistakes();
    }
}

#[test]
fn a_channel_that_is_gone_after_a_crash_is_given_up_and_made_anew() {
    let world = nvme_world(Setup::default());
    let id = world.storage.id();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", NVME).connected();
    disk.write(8, &[9; 512]);
    world.crash_after(0, 0);
    // As if the domain had written something else there.
    let node = world.own_path("device/pci/0/event-channel");
    world.sim.store().write(&node, "4000");
    world.restart();
    world.wait(SOON);
    let journal = world.journal();
    let expected = "the channel to dom0's pciback of before the restart cannot be used";
    assert!(
        journal.iter().any(|line| line.contains(expected)),
        "{journal:#?}"
    );
    assert_eq!(
        frontend_state(&mut world.sim.store(), id).as_deref(),
        Some("6")
    );
    assert_eq!(
        backend_state(&mut world.sim.store(), id).as_deref(),
        Some("6")
    );
    // Its disks are waited for, for a minute.
    world.wait(Duration::from_secs(80));
    let journal = world.journal();
    assert_ne!(disk.backend(), Some(XenbusState::Connected), "{journal:#?}");
    world.no_mistakes();
}

#[test]
fn a_disk_that_became_smaller_than_its_guest_was_told_is_not_served_again() {
    for (bytes, expected) in [
        (SIZE, XenbusState::Connected),
        (2 * SIZE, XenbusState::Connected),
        (SIZE - 4096, XenbusState::Closing),
    ] {
        let world = virtio_world(Setup::default());
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", VIRTIO).connected();
        world.crash_after(0, 0);
        let fake = &world.virtio.as_ref().expect("it has a device").fake;
        fake.change(|config| config.bytes.resize(bytes, 9));
        world.restart();
        world.wait(SOON);
        assert_eq!(disk.backend(), Some(expected), "{bytes} bytes");
        if expected == XenbusState::Connected {
            let sectors = (bytes / 512).to_string();
            assert_eq!(disk.backend_node("sectors"), Some(sectors));
        }
    }
}

#[test]
fn a_partition_that_lies_elsewhere_after_a_crash_is_another_disk() {
    let table = |first, last| {
        let disk = testing::Disk::of(vec![0; SIZE], SectorSize::B512);
        let part = NewPartition {
            label: "one",
            kind: Guid::from_bytes([9; 16]),
            id: Guid::from_bytes([1; 16]),
            first,
            last,
        };
        write_gpt(&disk, &[part]);
        disk.change(|bytes| bytes.clone())
    };
    for (first, last, expected) in [
        (40, 79, XenbusState::Connected),
        // What its guest has is where it was.
        (40, 119, XenbusState::Connected),
        (48, 87, XenbusState::Closing),
        (48, 127, XenbusState::Closing),
    ] {
        let world = virtio_world(Setup::default());
        let fake = &world.virtio.as_ref().expect("it has a device").fake;
        fake.change(|config| config.bytes = table(40, 79));
        world.wait(SOON);
        let guest = Guest::new(&world);
        let target = format!("{VIRTIO}/one");
        let disk = guest.attach("xvda", &target);
        world.wait(SOON);
        let disk = disk.connected();
        assert_eq!(disk.backend_node("sectors").as_deref(), Some("40"));
        world.crash_after(0, 0);
        // Somebody else writes the table while nobody serves.
        fake.change(|config| config.bytes = table(first, last));
        world.restart();
        world.wait(SOON);
        assert_eq!(disk.backend(), Some(expected), "sectors {first} to {last}");
    }
}
