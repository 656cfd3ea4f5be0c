//! Guests' disks on an NVMe controller that was given to the driver domain: it reads and writes their pages itself.

use bulkhead_blkback_testkit::{Guest, Nvme, PATHS, Random, Setup, Style, World, allocations};
use bulkhead_nvme::command::nvm::opcode;
use bulkhead_nvme_testing::{Config, FakeNamespace, Fate};
use bulkhead_ring::blkif::Status;
use bulkhead_ring::blkif::TransferKind::Write;
use bulkhead_xen_sim::DomainKind;
use bulkhead_xen_sim::xenstore::toolstack;
use std::time::Duration;

/// The bytes of each namespace.
const SIZE: usize = 256 * 1024;

fn setup(setup: Setup) -> Setup {
    Setup {
        kind: DomainKind::Pv,
        controller: Some(Config {
            namespaces: vec![
                FakeNamespace::new(1, 9, SIZE / 512),
                FakeNamespace::new(2, 12, SIZE / 4096),
            ],
            ..Config::default()
        }),
        ..setup
    }
}

fn nvme(world: &World) -> &Nvme {
    world.nvme.as_ref().expect("it has a controller")
}

#[test]
fn guests_are_served_however_their_pages_are_reached() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guests = [Guest::new(&world), Guest::new(&world)];
        let mut random = Random::new(21);
        let mut disks = Vec::new();
        for (guest, target) in guests.iter().zip(["nvme:03:00.0", "nvme:0000:03:00.0/n2"]) {
            let disk = guest.attach("xvda", target);
            let disk = disk.styled(Style::persistent(persistent)).connected();
            disks.push((disk, vec![0; SIZE]));
        }
        let (first, model) = &mut disks[0];
        for _ in 0..4 {
            first.verify_against(model, &mut random);
        }
        assert!(nvme(&world).fake.bytes(1) == *model);
        let (second, _) = &mut disks[1];
        let data = random.bytes(8192);
        second.write(16, &data);
        assert!(second.read(16, 16) == data);
        assert_eq!(nvme(&world).fake.bytes(2)[8192..16384], data);
        for (disk, _) in disks {
            disk.detach();
        }
        world.nothing_left();
        world.sim.assert_no_violations();
    }
}

#[test]
fn flushes_and_discards_reach_the_controller() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    assert_eq!(
        disk.backend_node("feature-flush-cache").as_deref(),
        Some("1")
    );
    disk.write(8, &[7; 4096]);
    disk.link().push_flush();
    assert_eq!(disk.exchange()[0].status, Status::Okay);
    let seen = nvme(&world).fake.seen();
    let opcodes: Vec<u8> = seen.iter().map(|command| command.opcode()).collect();
    assert_eq!(opcodes, [opcode::WRITE, opcode::FLUSH]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_namespace_that_grows_is_larger_for_its_guest() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    let nvme = nvme(&world);
    nvme.fake
        .change(|config| config.namespaces[0].bytes.resize(2 * SIZE, 9));
    assert!(nvme.fake.report(0x0004_0002));
    world.wait(Duration::from_millis(50));
    let sectors = (2 * SIZE / 512).to_string();
    assert_eq!(disk.backend_node("sectors"), Some(sectors));
    assert_eq!(disk.read(2 * SIZE as u64 / 512 - 1, 1), [9; 512]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn pages_of_a_guest_that_is_gone_stay_until_the_controller_has_none_of_them() {
    for (path, persistent) in PATHS {
        let world = World::with(setup(Setup::on_path(path)));
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "nvme:03:00.0");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        let fake = &nvme(&world).fake;
        // Not even an abort is heard of.
        fake.decide(|_| Fate::Lost);
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
        assert!(
            !world.sim.is_fully_gone(id),
            "the controller may write there"
        );
        // What it does late, it does to pages that are still there for it.
        for command in fake.seen() {
            fake.do_late(&command);
        }
        world.sim.assert_no_violations();
        // It is reset in the end, and has none of them.
        world.wait(Duration::from_secs(40));
        assert!(world.sim.is_fully_gone(id));
        world.nothing_left();
    }
}

#[test]
fn serving_allocates_nothing() {
    let world = World::with(setup(Setup::default()));
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "nvme:03:00.0").connected();
    let mut taken = 0;
    for round in 0..40 {
        for number in 0..16 {
            disk.link().push_read(number * 9, 9);
            disk.link().push_transfer(Write, number * 8, 8, &[1; 4096]);
        }
        disk.link().kick();
        let mut answered = 0;
        for _ in 0..40 {
            let before = allocations();
            world.turn();
            // The simulated machine itself needs some rounds until it has all that it needs.
            if round >= 30 {
                taken += allocations() - before;
            }
            nvme(&world).fake.step();
            answered += disk.link().collect().len();
        }
        assert_eq!(answered, 32);
    }
    assert_eq!(taken, 0);
    disk.detach();
    world.nothing_left();
}
