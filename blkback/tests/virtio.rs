//! Guests' disks on a virtio-blk device that was given to the driver domain: it reads and writes their pages itself.

use super::allocations::taken_beside;
use super::discard::discard;
use bulkhead_blkback_testkit::{Guest, PATHS, Random, Setup, Style, Virtio, World};
use bulkhead_ring::blkif::Status;
use bulkhead_ring::blkif::TransferKind::Write;
use bulkhead_virtio_testing::{Config, T, Treatment};
use bulkhead_xen_sim::DomainKind;
use bulkhead_xen_sim::xenstore::toolstack;
use std::time::Duration;

/// The bytes of the device.
const SIZE: usize = 256 * 1024;

fn setup(setup: Setup) -> Setup {
    let config = Config {
        bytes: vec![0; SIZE],
        ..Config::default()
    };
    Setup {
        kind: DomainKind::Pv,
        virtio: Some(config),
        ..setup
    }
}

fn virtio(world: &World) -> &Virtio {
    world.virtio.as_ref().expect("it has a device")
}

#[test]
fn a_guest_is_served_however_its_pages_are_reached() {
    for (path, persistent) in PATHS {
        for block in [512, 4096] {
            let mut setup = setup(Setup::on_path(path));
            if let Some(config) = &mut setup.virtio {
                config.block = block;
            }
            let world = World::with(setup);
            let guest = Guest::new(&world);
            let disk = guest.attach("xvda", "virtio:04:00.0");
            let mut disk = disk.styled(Style::persistent(persistent)).connected();
            let mut random = Random::new(22);
            if block == 512 {
                let mut model = vec![0; SIZE];
                for _ in 0..4 {
                    disk.verify_against(&mut model, &mut random);
                }
                assert!(virtio(&world).fake.bytes() == model);
            } else {
                let data = random.bytes(8192);
                disk.write(16, &data);
                assert!(disk.read(16, 16) == data);
                assert_eq!(virtio(&world).fake.bytes()[8192..16384], data);
            }
            disk.detach();
            world.nothing_left();
            world.sim.assert_no_violations();
        }
    }
}

#[test]
fn flushes_and_discards_reach_the_device() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "virtio:04:00.0").connected();
    for (feature, value) in [("feature-flush-cache", "1"), ("feature-discard", "1")] {
        assert_eq!(disk.backend_node(feature).as_deref(), Some(value));
    }
    disk.write(8, &[7; 4096]);
    disk.link().push_flush();
    assert_eq!(disk.exchange()[0].status, Status::Okay);
    assert_eq!(discard(&mut disk, 8, 8, false), Status::Okay);
    let seen = virtio(&world).fake.seen();
    let kinds: Vec<u32> = seen.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [T::Out, T::Flush, T::Discard].map(u32::from));
    assert_eq!(disk.read(8, 8), [0; 4096]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_device_that_grows_is_larger_for_its_guest() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "virtio:04:00.0").connected();
    let fake = &virtio(&world).fake;
    fake.change(|config| config.bytes.resize(2 * SIZE, 9));
    world.wait(Duration::from_millis(50));
    let sectors = (2 * SIZE / 512).to_string();
    assert_eq!(disk.backend_node("sectors"), Some(sectors));
    assert_eq!(disk.read(2 * SIZE as u64 / 512 - 1, 1), [9; 512]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn pages_of_a_guest_that_is_gone_stay_until_the_device_has_none_of_them() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "virtio:04:00.0");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        let fake = &virtio(&world).fake;
        fake.decide(|_| Treatment::Lost);
        for number in 0..4 {
            disk.link().push_read(number * 8, 8);
        }
        disk.link().kick();
        world.run();
        assert_eq!(fake.seen().len(), 4);
        let id = guest.domain.id();
        world.sim.destroy_domain(id);
        toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
        world.wait(Duration::from_secs(6));
        assert!(disk.vbd.backend_gone(&world.sim.store()));
        toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        assert!(!world.sim.is_fully_gone(id), "the device may write there");
        // What it does late, it does to pages that are still there for it.
        for request in fake.seen() {
            fake.do_late(&request);
        }
        world.sim.assert_no_violations();
        // It is reset in the end, and has none of them.
        world.wait(Duration::from_secs(40));
        assert!(world.sim.is_fully_gone(id));
        world.nothing_left();
    }
}

#[test]
fn a_guest_is_served_again_after_a_device_was_reset() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "virtio:04:00.0").connected();
    let fake = &virtio(&world).fake;
    fake.decide(|_| Treatment::Lost);
    let id = disk.link().push_transfer(Write, 8, 8, &[5; 4096]);
    disk.link().kick();
    world.run();
    fake.decide(|_| Treatment::Done);
    world.wait(Duration::from_secs(40));
    let answers = disk.link().collect();
    assert_eq!((answers.len(), answers[0].id), (1, id));
    assert_eq!(answers[0].status, Status::Okay);
    assert_eq!(fake.resets(), 1);
    assert_eq!(disk.read(8, 8), [5; 4096]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn serving_allocates_nothing() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "virtio:04:00.0").connected();
    let taken = taken_beside(&mut disk, || _ = virtio(&world).fake.step());
    assert_eq!(taken, 0);
    disk.detach();
    world.nothing_left();
}
