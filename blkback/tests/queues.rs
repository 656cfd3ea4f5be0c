//! Several queues of a disk, on one vCPU and on several.

mod world;

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback::vbd::state::XenbusState;
use bulkhead_ring::blkif::Status;
use bulkhead_xen::VcpuId;
use bulkhead_xen::sim::DomainKind;
use std::time::Duration;
use world::{Answer, Bystander, Frontend, Guest, PATHS, SECTORS, Setup, Style, World};

fn with_vcpus(vcpus: u32, data_path: DataPath) -> World {
    World::with(Setup {
        vcpus,
        ..Setup::on_path(data_path)
    })
}

fn style(queues: usize) -> Style {
    Style {
        queues,
        ..Style::default()
    }
}

/// How many queues the backend offers.
fn offered(disk: &Frontend<'_>) -> usize {
    let offered = disk.backend_node("multi-queue-max-queues");
    offered.expect("is offered").parse().expect("a number")
}

/// How many queues each vCPU serves.
fn load(world: &World) -> Vec<usize> {
    world.backend.vcpus.load().collect()
}

/// Shows all rings to the backend at once, and takes the answers of each.
fn exchange(disk: &mut Frontend<'_>) -> Vec<Vec<Answer>> {
    let world = disk.world;
    disk.queues().for_each(|queue| queue.kick());
    world.run();
    disk.queues().map(|queue| queue.collect()).collect()
}

/// Each queue writes a part of the disk, and reads what another one wrote.
fn verify(disk: &mut Frontend<'_>, queues: usize) {
    const WRITES: u64 = 16;
    let part = SECTORS / queues as u64;
    let place = |queue: usize, number: u64| queue as u64 * part + number % (part / 2) * 2;
    let data = |queue: usize, number: u64| [queue as u8 * 16 + number as u8 + 1; 512];
    for (queue, link) in disk.queues().enumerate() {
        for number in 0..WRITES.min(part / 2) {
            link.push_write(place(queue, number), &data(queue, number));
        }
    }
    for answers in exchange(disk) {
        assert_eq!(answers.len() as u64, WRITES.min(part / 2));
        assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    }
    for (queue, link) in disk.queues().enumerate() {
        for number in 0..WRITES.min(part / 2) {
            link.push_read(place((queue + 1) % queues, number), 1);
        }
    }
    for (queue, mut answers) in exchange(disk).into_iter().enumerate() {
        // Asked for in this order, and so numbered.
        answers.sort_by_key(|answer| answer.id.0);
        for (number, answer) in answers.iter().enumerate() {
            let expected = data((queue + 1) % queues, number as u64);
            assert!(answer.data == expected, "queue {queue}, read {number}");
        }
    }
}

#[test]
fn every_count_of_queues_on_every_count_of_vcpus() {
    for (path, persistent) in PATHS {
        for vcpus in [1, 2, 3, 6] {
            let world = with_vcpus(vcpus, path);
            let guest = Guest::with_memory(&world, 2048);
            let most = offered(&guest.attach("xvda", "ram:disk0"));
            assert_eq!(most, 4.max(vcpus as usize));
            for queues in 1..=most {
                let disk = guest.attach("xvdb", "ram:disk1");
                let style = Style {
                    persistent,
                    ..style(queues)
                };
                let mut disk = disk.styled(style).connected();
                verify(&mut disk, queues);
                let load = load(&world);
                assert_eq!(load.iter().sum::<usize>(), queues);
                let spread = load.iter().max().unwrap() - load.iter().min().unwrap();
                assert!(spread <= 1, "{load:?}");
                disk.detach();
            }
            assert!(load(&world).iter().all(|queues| *queues == 0));
            world.no_mistakes();
        }
    }
}

#[test]
fn what_is_told_about_queues_says_where_they_are_served() {
    let world = with_vcpus(2, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disk = guest
        .attach("xvda", "ram:disk0")
        .styled(style(2))
        .connected();
    disk.queue(1).push_read(0, 8);
    exchange(&mut disk);
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
        let mut disk = guest
            .attach("xvda", "ram:disk0")
            .styled(style(3))
            .connected();
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
    let world = with_vcpus(2, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disk = guest
        .attach("xvda", "ram:disk0")
        .styled(style(2))
        .connected();
    let before = world.storage.stats();
    for _ in 0..10 {
        verify(&mut disk, 2);
    }
    assert_eq!(world.storage.stats().wake_calls, before.wake_calls);
    disk.detach();
    world.nothing_left();
}

#[test]
fn disks_of_one_queue_are_spread_over_the_vcpus() {
    let world = with_vcpus(3, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disks: Vec<_> = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .enumerate()
        .map(|(number, letter)| {
            let disk = guest.attach(&format!("xvd{letter}"), &format!("ram:disk{number}"));
            disk.connected()
        })
        .collect();
    assert_eq!(load(&world), [2, 2, 2]);
    for disk in &mut disks {
        verify(disk, 1);
    }
    // Those on the last vCPU go: the next disks go there.
    disks.remove(3).detach();
    disks.remove(0).detach();
    assert_eq!(load(&world), [2, 2, 0]);
    disks.push(guest.attach("xvda", "ram:disk0").connected());
    disks.push(guest.attach("xvdd", "ram:disk3").connected());
    assert_eq!(load(&world), [2, 2, 2]);
    disks.into_iter().for_each(Frontend::detach);
    world.nothing_left();
}

/// Connects with nodes that make no sense, and answers what the operator is told.
fn refused(guest: &Guest<'_>, queues: usize, spoil: impl Fn(&mut Frontend<'_>)) -> String {
    let before = load(guest.world);
    let mut disk = guest.attach("xvdb", "ram:disk1").styled(style(queues));
    disk.prepare();
    disk.publish();
    spoil(&mut disk);
    disk.go(XenbusState::Initialised);
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    assert_eq!(load(guest.world), before);
    let problem = disk.problem().expect("the operator is told");
    // The guest gives up, and nothing of it is held.
    disk.go(XenbusState::Closed);
    disk.take_down();
    for queue in 0..queues.max(5) {
        disk.remove_if_there(&format!("queue-{queue}"));
    }
    for node in ["multi-queue-num-queues", "ring-page-order", "event-channel"] {
        disk.remove_if_there(node);
    }
    disk.detach();
    problem
}

#[test]
fn nodes_of_queues_are_checked() {
    let world = with_vcpus(2, DataPath::Auto);
    let guest = Guest::new(&world);
    type Spoil = fn(&mut Frontend<'_>);
    let cases: [(usize, Spoil, &str); 9] = [
        (5, |_| (), "multi-queue-num-queues is 5, expected 1 to 4"),
        (
            2,
            |disk| disk.write_node("multi-queue-num-queues", "0"),
            "multi-queue-num-queues is 0",
        ),
        (
            2,
            |disk| disk.write_node("multi-queue-num-queues", "4294967295"),
            "multi-queue-num-queues is 4294967295",
        ),
        (
            2,
            |disk| disk.write_node("multi-queue-num-queues", "two"),
            "multi-queue-num-queues is no number",
        ),
        (
            2,
            |disk| disk.write_node("multi-queue-num-queues", "3"),
            "published no queue-2/ring-ref",
        ),
        (
            2,
            |disk| disk.remove_node("queue-1/ring-ref"),
            "published no queue-1/ring-ref",
        ),
        // The pages of all rings are as many: one that has fewer has too few.
        (
            2,
            |disk| disk.write_node("ring-page-order", "1"),
            "published no queue-0/ring-ref0",
        ),
        (
            2,
            |disk| disk.write_node("queue-1/ring-ref", "8191"),
            "the ring's grant 8191 cannot be mapped",
        ),
        (
            3,
            |disk| disk.write_node("queue-2/event-channel", "4000"),
            "event channel 4000 cannot be bound",
        ),
    ];
    for (queues, spoil, expected) in cases {
        let problem = refused(&guest, queues, spoil);
        assert!(problem.contains(expected), "{problem}");
    }
    world.nothing_left();
}

#[test]
fn two_queues_with_one_port_or_one_ring() {
    let world = with_vcpus(2, DataPath::Auto);
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    // A port can be bound once.
    let problem = refused(&guest, 2, |disk| {
        let port = disk.queue(0).port.to_string();
        disk.write_node("queue-1/event-channel", port);
    });
    assert!(problem.contains("cannot be bound"), "{problem}");
    // A ring can be mapped twice: what comes of it is the guest's own affair.
    let mut disk = guest.attach("xvdb", "ram:disk1").styled(style(2));
    disk.prepare();
    disk.publish();
    let gref = disk.queue(0).ring_refs()[0].to_string();
    disk.write_node("queue-1/ring-ref", gref);
    disk.go(XenbusState::Initialised);
    for number in 0..8 {
        disk.queue(0).push_read(number * 8, 8);
    }
    disk.queue(0).kick();
    disk.queue(1).notify();
    world.run();
    disk.queue(0).collect_whatever();
    other.io();
    disk.request_detach();
    disk.go(XenbusState::Closed);
    disk.take_down();
    disk.finish_detach();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_hostile_queue_ends_its_disk_alone() {
    let world = with_vcpus(2, DataPath::Auto);
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for hostile in 0..3 {
        let mut disk = guest
            .attach("xvdb", "ram:disk1")
            .styled(style(3))
            .connected();
        verify(&mut disk, 3);
        // A producer index that cannot be.
        let memory = disk.queue(hostile).memory.cast::<u32>();
        // SAFETY: the ring's own memory, which nothing refers into.
        unsafe { memory.write_volatile(0x8000_0000) };
        disk.queue(hostile).notify();
        world.run();
        assert_eq!(disk.backend(), Some(XenbusState::Closing));
        assert!(disk.problem().is_some());
        // No queue of it is served any more.
        assert_eq!(load(&world).iter().sum::<usize>(), 1, "the bystander's");
        other.io();
        disk.go(XenbusState::Closed);
        disk.take_down();
        disk.detach();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn a_disk_closes_with_requests_in_flight_on_all_queues() {
    let (world, late) = World::with_late_disks_and(Setup {
        vcpus: 2,
        ..Setup::default()
    });
    let guest = Guest::new(&world);
    let mut disk = guest
        .attach("xvdd", "ram:disk0")
        .styled(style(4))
        .connected();
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
    assert_eq!(load(&world).iter().sum::<usize>(), 4);
    late.last().release_backwards();
    world.run();
    assert_eq!(load(&world).iter().sum::<usize>(), 0);
    for link in disk.queues() {
        assert_eq!(link.collect().len(), 4, "what was in flight is answered");
    }
    disk.take_down();
    disk.finish_detach();
    world.wait(Duration::from_secs(1));
    world.nothing_left();
}

#[test]
fn a_guest_dies_with_requests_on_all_queues() {
    let world = with_vcpus(3, DataPath::Auto);
    let guest = Guest::new(&world);
    let mut disk = guest
        .attach("xvda", "ram:disk0")
        .styled(style(4))
        .connected();
    for link in disk.queues() {
        (0..20).for_each(|number| _ = link.push_read(number * 8, 8));
        link.kick();
    }
    guest.destroy(vec![disk]);
    world.nothing_left();
    // The image is there for the next one.
    let guest = Guest::new(&world);
    let mut disk = guest
        .attach("xvda", "ram:disk0")
        .styled(style(4))
        .connected();
    verify(&mut disk, 4);
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
    assert_eq!(offered(&disk), 1);
    let mut disk = disk.styled(style(2));
    assert!(!disk.try_connect(), "more queues than were offered");
    let problem = disk.problem().expect("the operator is told");
    assert!(problem.contains("expected 1 to 1"), "{problem}");
    disk.go(XenbusState::Closed);
    disk.take_down();
    disk.detach();
    world.nothing_left();
}
