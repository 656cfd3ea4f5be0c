//! Frontends that lie about one of their queues, or on it.

use bulkhead_blkback::engine::DataPath;
use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, Style, World};
use bulkhead_xenbus::XenbusState;

/// Connects with nodes that are not valid, and returns the error that the operator is told.
fn refused(guest: &Guest<'_>, queues: usize, spoil: impl Fn(&mut Frontend<'_>)) -> String {
    let before = guest.world.load();
    let mut disk = guest
        .attach("xvdb", "ram:disk1")
        .styled(Style::queues(queues));
    disk.prepare();
    disk.publish();
    spoil(&mut disk);
    disk.go(XenbusState::Initialised);
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    assert_eq!(guest.world.load(), before);
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
    let world = World::with_vcpus(2, DataPath::Auto);
    let guest = Guest::new(&world);
    let count = "multi-queue-num-queues";
    // A node of a frontend with so many queues, and what it holds instead, if anything.
    let cases = [
        (
            5,
            count,
            Some("5"),
            "multi-queue-num-queues is 5, expected 1 to 4",
        ),
        (2, count, Some("0"), "multi-queue-num-queues is 0"),
        (
            2,
            count,
            Some("4294967295"),
            "multi-queue-num-queues is 4294967295",
        ),
        (
            2,
            count,
            Some("two"),
            "multi-queue-num-queues is not a number",
        ),
        (2, count, Some("3"), "published no queue-2/ring-ref"),
        (2, "queue-1/ring-ref", None, "published no queue-1/ring-ref"),
        // The pages of all rings are as many: one that has fewer has too few.
        (
            2,
            "ring-page-order",
            Some("1"),
            "published no queue-0/ring-ref0",
        ),
        (
            2,
            "queue-1/ring-ref",
            Some("8191"),
            "the ring's grant 8191 cannot be mapped",
        ),
        (
            3,
            "queue-2/event-channel",
            Some("4000"),
            "event channel 4000 cannot be bound",
        ),
    ];
    for (queues, node, value, expected) in cases {
        let problem = refused(&guest, queues, |disk| match value {
            Some(value) => disk.write_node(node, value),
            None => disk.remove_node(node),
        });
        assert!(problem.contains(expected), "{node}={value:?}: {problem}");
    }
    world.nothing_left();
}

#[test]
fn two_queues_with_one_port_or_one_ring() {
    let world = World::with_vcpus(2, DataPath::Auto);
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    // A port can be bound once.
    let problem = refused(&guest, 2, |disk| {
        let port = disk.queue(0).port.to_string();
        disk.write_node("queue-1/event-channel", port);
    });
    assert!(problem.contains("cannot be bound"), "{problem}");
    // A ring can be mapped twice: what comes of it is the guest's own affair.
    let mut disk = guest.attach("xvdb", "ram:disk1").styled(Style::queues(2));
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
    disk.detach_at_once();
    other.leave();
    world.nothing_left();
}

#[test]
fn a_hostile_queue_ends_its_disk_alone() {
    let world = World::with_vcpus(2, DataPath::Auto);
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for hostile in 0..3 {
        let mut disk = guest.with_queues("xvdb", "ram:disk1", 3);
        disk.verify();
        // A producer index that cannot be.
        let memory = disk.queue(hostile).memory.cast::<u32>();
        // SAFETY: the ring's own memory, which nothing refers into.
        unsafe { memory.write_volatile(0x8000_0000) };
        disk.queue(hostile).notify();
        world.run();
        assert_eq!(disk.backend(), Some(XenbusState::Closing));
        assert!(disk.problem().is_some());
        // No queue of it is served any more.
        assert_eq!(world.load().iter().sum::<usize>(), 1, "the bystander's");
        other.io();
        disk.go(XenbusState::Closed);
        disk.take_down();
        disk.detach();
    }
    other.leave();
    world.nothing_left();
}
