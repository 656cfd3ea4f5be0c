//! Several queues of a disk, on one vCPU and on several.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{Frontend, Guest, PATHS, Setup, Style, World};
use bulkhead_xen::VcpuId;
use bulkhead_xen_sim::DomainKind;
use bulkhead_xenbus::XenbusState;

#[test]
fn every_count_of_queues_on_every_count_of_vcpus() {
    for (path, persistent) in PATHS {
        for vcpus in [1, 2, 3, 6] {
            let world = World::with_vcpus(vcpus, path);
            let guest = Guest::with_memory(&world, 2048);
            let disk = guest.attach("xvda", "ram:disk0");
            let most = disk.offered_queues();
            assert_eq!(most, 4.max(vcpus as usize));
            disk.detach_at_once();
            for queues in 1..=most {
                let disk = guest.attach("xvdb", "ram:disk1");
                let style = Style {
                    persistent,
                    ..Style::queues(queues)
                };
                let mut disk = disk.styled(style).connected();
                disk.verify();
                let load = world.load();
                assert_eq!(load.iter().sum::<usize>(), queues);
                let spread = load.iter().max().unwrap() - load.iter().min().unwrap();
                assert!(spread <= 1, "{load:?}");
                disk.detach();
            }
            assert!(world.load().iter().all(|queues| *queues == 0));
            world.no_mistakes();
        }
    }
}

#[test]
fn what_is_told_about_queues_says_where_they_are_served() {
    let world = World::with_vcpus(2, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disk = guest.with_queues("xvda", "ram:disk0", 2);
    disk.queue(1).push_read(0, 8);
    disk.exchange_all();
    let node = format!("{}/statistics", disk.vbd.backend_path());
    world.write(&node, "refresh");
    let lines = world.read(&node).expect("the node is there");
    for line in [
        "queue_0_vcpu 1",
        "queue_0_reads 0",
        "queue_1_vcpu 0",
        "queue_1_reads 1",
    ] {
        assert!(lines.lines().any(|other| other == line), "{line}: {lines}");
    }
    disk.detach();
    world.nothing_left();
}

#[test]
fn each_port_wakes_the_vcpu_that_serves_its_queue() {
    for kind in [DomainKind::Pvh, DomainKind::Pv] {
        let world = World::with(Setup {
            vcpus: 3,
            kind,
            ..Setup::default()
        });
        let guest = Guest::new(&world);
        let mut disk = guest.with_queues("xvda", "ram:disk0", 3);
        let asleep = || (0..3).map(|vcpu| world.storage.is_blocked(VcpuId(vcpu)));
        assert!(asleep().eq([true; 3]), "nothing to do, nobody runs");
        for (queue, vcpu) in [(0, 2), (1, 1), (2, 0)] {
            disk.queue(queue).push_read(0, 1);
            disk.queue(queue).kick();
            let awake: Vec<usize> = asleep()
                .enumerate()
                .filter(|(_, asleep)| !asleep)
                .map(|(vcpu, _)| vcpu)
                .collect();
            assert_eq!(awake, [vcpu]);
            world.run();
            assert_eq!(disk.queue(queue).collect().len(), 1);
        }
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn serving_interrupts_no_other_vcpu() {
    let world = World::with_vcpus(2, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disk = guest.with_queues("xvda", "ram:disk0", 2);
    let before = world.storage.stats();
    for _ in 0..10 {
        disk.verify();
    }
    assert_eq!(world.storage.stats().wake_calls, before.wake_calls);
    disk.detach();
    world.nothing_left();
}

#[test]
fn disks_of_one_queue_are_spread_over_the_vcpus() {
    let world = World::with_vcpus(3, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disks: Vec<_> = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .enumerate()
        .map(|(number, letter)| {
            let disk = guest.attach(&format!("xvd{letter}"), &format!("ram:disk{number}"));
            disk.connected()
        })
        .collect();
    assert_eq!(world.load(), [2, 2, 2]);
    for disk in &mut disks {
        disk.verify();
    }
    // Those on the last vCPU go: the next disks go there.
    disks.remove(3).detach();
    disks.remove(0).detach();
    assert_eq!(world.load(), [2, 2, 0]);
    disks.push(guest.attach("xvda", "ram:disk0").connected());
    disks.push(guest.attach("xvdd", "ram:disk3").connected());
    assert_eq!(world.load(), [2, 2, 2]);
    disks.into_iter().for_each(Frontend::detach);
    world.nothing_left();
}

#[test]
fn a_disk_closes_with_requests_in_flight_on_all_queues() {
    let (world, late) = World::with_late_disks_and(Setup {
        vcpus: 2,
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let mut disk = guest.with_queues("xvdd", "ram:disk0", 4);
    for link in disk.queues() {
        for number in 0..4 {
            link.push_write(number * 8, &[number as u8; 4096]);
        }
        link.kick();
    }
    world.run();
    disk.request_detach();
    disk.go(XenbusState::Closing);
    disk.go(XenbusState::Closed);
    // The device has not answered yet: nothing is given back.
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    assert_eq!(world.load().iter().sum::<usize>(), 4);
    late.last().release_backwards();
    world.run();
    assert_eq!(world.load().iter().sum::<usize>(), 0);
    for link in disk.queues() {
        assert_eq!(link.collect().len(), 4, "what was in flight is answered");
    }
    disk.take_down();
    disk.finish_detach();
    world.wait_for_removal();
    world.nothing_left();
}

#[test]
fn a_guest_dies_with_requests_on_all_queues() {
    let world = World::with_vcpus(3, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disk = guest.with_queues("xvda", "ram:disk0", 4);
    for link in disk.queues() {
        (0..20).for_each(|number| _ = link.push_read(number * 8, 8));
        link.kick();
    }
    guest.destroy(vec![disk]);
    world.nothing_left();
    // The image is there for the next one.
    let guest = Guest::new(&world);
    let mut disk = guest.with_queues("xvda", "ram:disk0", 4);
    disk.verify();
    disk.detach();
    world.nothing_left();
}

#[test]
fn fewer_queues_are_offered_when_room_gets_scarce() {
    let world = World::with(Setup {
        region_pages: 8 * 1024,
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    assert_eq!(disk.offered_queues(), 1);
    let mut disk = disk.styled(Style::queues(2));
    assert!(!disk.try_connect(), "more queues than were offered");
    let problem = disk.problem().expect("the operator is told");
    assert!(problem.contains("expected 1 to 1"), "{problem}");
    disk.go(XenbusState::Closed);
    disk.take_down();
    disk.detach();
    world.nothing_left();
}
