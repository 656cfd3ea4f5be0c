//! Queue pairs: their order, their doorbells and interrupts, and how queues share them.

use bulkhead_images::Submitted;
use bulkhead_nvme::command::Status;
use bulkhead_nvme::command::admin::opcode;
use bulkhead_nvme_testing::world::{Buffer, Disk, World, read, write};
use bulkhead_nvme_testing::{Config, Treatment};
use std::time::Duration;

#[test]
fn completions_come_in_any_order_and_each_once() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 32);
    world.fake.decide(|_| Treatment::Held);
    for round in 0..20 {
        for tag in 0..32 {
            let segment = [buffer.segment(tag, 0, 512)];
            assert_eq!(
                disk.hand(tag, read(tag as u64), &segment),
                Submitted::Pending
            );
        }
        disk.queue.flush_submissions();
        assert_eq!(disk.collect(), 0);
        world.run();
        assert_eq!(world.fake.held().len(), 32);
        let wakes = disk.wakes.count();
        world.fake.finish(round % 32);
        world.fake.finish_reversed();
        world.run();
        assert_eq!(disk.wakes.count(), wakes + 1, "woken once for all");
        assert_eq!(disk.collect(), 32);
        let mut tags: Vec<usize> = disk.done.drain(..).map(|(tag, _)| tag).collect();
        assert_eq!(
            (tags[0], tags[1]),
            (round % 32, if round == 31 { 30 } else { 31 })
        );
        tags.sort_unstable();
        assert_eq!(tags, (0..32).collect::<Vec<_>>());
    }
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_batch_costs_one_doorbell_and_its_completions_another() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    let (before, _) = world.fake.signals();
    for tag in 0..32 {
        let submitted = disk.hand(tag, read(0), &[buffer.segment(0, 0, 512)]);
        assert_eq!(submitted, Submitted::Pending);
    }
    disk.queue.flush_submissions();
    disk.queue.flush_submissions();
    world.fake.step();
    assert_eq!(disk.collect(), 32);
    let (after, _) = world.fake.signals();
    assert!(after - before <= 2, "{} doorbells", after - before);
    drop((disk, buffer));
    world.end();
}

#[test]
fn each_vcpu_has_a_queue_pair_and_an_interrupt() {
    let world = World::started(Config::default());
    let device = world.try_open("nvme:03:00.0").expect("opened");
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|_| Treatment::Held);
    let mut disks = [0, 1].map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8));
    for (number, disk) in disks.iter_mut().enumerate() {
        disk.ask(
            number,
            write(8 * number as u64),
            &[buffer.segment(number, 0, 4096)],
        );
        disk.collect();
    }
    world.run();
    let queues: Vec<u16> = world.fake.held().iter().map(|(queue, _)| *queue).collect();
    assert_eq!(queues, [1, 2]);
    world.fake.finish(1);
    world.run();
    assert_eq!((disks[0].collect(), disks[1].collect()), (0, 1));
    world.fake.finish(0);
    world.run();
    assert_eq!((disks[0].collect(), disks[1].collect()), (1, 0));
    drop((disks, device, buffer));
    world.end();
}

/// Returns a count from the lines for the operator, and what the controller has counted of doorbell writes and
/// interrupts.
fn shown(world: &World, what: &str) -> (u64, (u64, u64)) {
    let lines = world.lines();
    let words: Vec<&str> = lines
        .split([' ', ','])
        .filter(|word| !word.is_empty())
        .collect();
    let at = words.iter().position(|word| *word == what);
    let count = at.and_then(|at| words[at - 1].parse().ok());
    (
        count.unwrap_or_else(|| panic!("{what}: {lines}")),
        world.fake.signals(),
    )
}

#[test]
fn the_operator_sees_interrupts_and_writes_to_doorbells() {
    let world = World::started(Config::default());
    let device = world.try_open("nvme:03:00.0").expect("opened");
    let buffer = Buffer::new(&world, 1);
    let mut disks = [0, 1].map(|vcpu| Disk::new(&world, device.clone(), vcpu, 8));
    // What is shown has the controller asked for its health, by the admin queue.
    world.run();
    let before = ["interrupts", "doorbells"].map(|what| shown(&world, what));
    world.run();
    for round in 0..5 {
        for disk in &mut disks {
            disk.ask(round, read(0), &[buffer.segment(0, 0, 512)]);
            world.run();
            assert_eq!(disk.collect(), 1);
        }
    }
    let after = ["interrupts", "doorbells"].map(|what| shown(&world, what));
    let [interrupts, doorbells] = [0, 1].map(|index| after[index].0 - before[index].0);
    assert_eq!(interrupts, after[0].1.1 - before[0].1.1);
    assert!(interrupts >= 10, "{interrupts}: one for each request");
    assert_eq!(doorbells, after[1].1.0 - before[1].1.0);
    assert!(doorbells >= 10, "{doorbells}: one for each request");
    drop((disks, device, buffer));
    world.end();
}

#[test]
fn few_interrupts_or_none_serve_as_well() {
    for vectors in [0, 1, 2] {
        let world = World::started(Config {
            vectors,
            ..Config::default()
        });
        let device = world.try_open("nvme:03:00.0").expect("opened");
        let buffer = Buffer::new(&world, 1);
        for vcpu in [0, 1] {
            let mut disk = Disk::new(&world, device.clone(), vcpu, 8);
            disk.ask(1, read(0), &[buffer.segment(0, 0, 512)]);
            assert_eq!(disk.collect(), 0);
            world.wait(Duration::from_millis(3));
            assert!(disk.wakes.count() > 0, "{vectors} interrupts, vCPU {vcpu}");
            assert_eq!(disk.collect(), 1);
        }
        // Nothing is looked at while there is nothing to look for.
        world.wait(Duration::from_secs(2));
        assert_eq!(world.next_deadline(), None, "{vectors} interrupts");
        drop((device, buffer));
        world.end();
    }
}

#[test]
fn an_admin_command_that_takes_long_holds_up_no_request() {
    for vectors in [0, 1, 2, 3] {
        let world = World::started(Config {
            vectors,
            ..Config::default()
        });
        let mut disk = world.open("nvme:03:00.0");
        let buffer = Buffer::new(&world, 1);
        world.fake.decide_admin(|command| match command.opcode() {
            opcode::GET_LOG_PAGE => Treatment::Held,
            _ => Treatment::Done,
        });
        // That has its health read.
        let asked = world.lines();
        world.wait(Duration::from_millis(500));
        for round in 1..4 {
            disk.ask(round, read(0), &buffer.whole(512));
            assert_eq!(disk.collect(), 0);
            let wakes = disk.wakes.count();
            world.wait(Duration::from_millis(11));
            assert!(disk.wakes.count() > wakes, "{vectors} interrupts");
            assert_eq!(disk.collect(), 1);
        }
        // Both are done at the same moment.
        world.fake.decide(|_| Treatment::Held);
        disk.ask(9, read(0), &buffer.whole(512));
        assert_eq!(disk.collect(), 0);
        world.run();
        let wakes = disk.wakes.count();
        let seen = world.fake.admin_seen();
        let last = seen.last().expect("the log is read");
        assert_eq!(last.opcode(), opcode::GET_LOG_PAGE);
        world.fake.finish(0);
        world.fake.complete(0, last, Status::SUCCESS);
        world.wait(Duration::from_millis(11));
        assert!(disk.wakes.count() > wakes, "{vectors} interrupts");
        assert_eq!(disk.collect(), 1);
        assert!(asked.contains(" 0 resets") && world.lines().contains(" 0 resets"));
        world.fake.decide_admin(|_| Treatment::Done);
        world.wait(Duration::from_secs(60));
        drop((disk, buffer));
        world.end();
    }
}

#[test]
fn short_queues_and_wide_doorbells_are_respected() {
    let world = World::started(Config {
        queue_entries: 5,
        stride: 3,
        queues: 1,
        ..Config::default()
    });
    let device = world.try_open("nvme:03:00.0").expect("opened");
    let mut disk = Disk::new(&world, device.clone(), 1, 32);
    assert_eq!(
        disk.queue.caps().depth,
        3,
        "four entries, of which one stays free"
    );
    let buffer = Buffer::new(&world, 1);
    for round in 0..50 {
        for tag in 0..3 {
            disk.ask(tag, read(round), &[buffer.segment(0, 0, 512)]);
        }
        assert_eq!(
            disk.hand(3, read(0), &[buffer.segment(0, 0, 512)]),
            Submitted::Busy
        );
        world.run();
        assert_eq!(disk.collect(), 3, "round {round}");
    }
    drop((disk, device, buffer));
    world.end();
}

#[test]
fn queues_of_one_vcpu_share_the_commands_and_none_starves() {
    let world = World::started(Config::default());
    let device = world.try_open("nvme:03:00.0").expect("opened");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    let mut disks = [0, 1, 2].map(|_| Disk::new(&world, device.clone(), 0, 63));
    let ask = |disk: &mut Disk<'_>| {
        let mut taken = 0;
        while disk.hand(taken, read(0), &[buffer.segment(0, 0, 512)]) == Submitted::Pending {
            taken += 1;
        }
        disk.queue.flush_submissions();
        disk.collect();
        taken
    };
    let [greedy, second, third] = &mut disks;
    assert_eq!(ask(greedy), 63, "alone, it may have all");
    assert_eq!((ask(second), ask(third)), (0, 0));
    world.run();
    let mut served = [0, 0, 0];
    for _ in 0..100 {
        // The greedy one is quicker each time.
        world.fake.finish(0);
        world.run();
        for (number, disk) in [&mut *greedy, &mut *second, &mut *third]
            .into_iter()
            .enumerate()
        {
            served[number] += disk.collect();
            if disk.hand(0, read(0), &[buffer.segment(0, 0, 512)]) == Submitted::Pending {
                disk.queue.flush_submissions();
            }
        }
        world.run();
    }
    // 63 of the first were there before; the next ones are of all three.
    while world.fake.held().len() > 40 {
        world.fake.finish(0);
    }
    world.run();
    for (number, disk) in [greedy, second, third].into_iter().enumerate() {
        served[number] += disk.collect();
    }
    assert!(served[1] > 10 && served[2] > 10, "{served:?}");
    world.fake.decide(|_| Treatment::Done);
    world.fake.finish_reversed();
    world.run();
    disks.iter_mut().for_each(|disk| assert!(disk.close()));
    drop((disks, device, buffer));
    world.end();
}

#[test]
fn the_completion_queue_of_a_controller_with_small_queues_does_not_overflow() {
    // Three commands at a time, and room for three completions.
    let world = World::started(Config {
        queue_entries: 5,
        ..Config::default()
    });
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 12);
    // Parts of pages: a command for each.
    let parts: Vec<_> = (0..12).map(|page| buffer.segment(page, 512, 512)).collect();
    assert_eq!(disk.hand(0, read(0), &parts), Submitted::Pending);
    disk.queue.flush_submissions();
    for _ in 0..12 {
        // It completes all that it was told of, and panics if one completion finds no room.
        world.fake.step();
        disk.collect();
    }
    assert_eq!(disk.done, [(0, Ok(()))]);
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_free_command_goes_to_the_next_queue_if_the_first_does_not_want_it_any_more() {
    // One command at a time.
    let world = World::started(Config {
        queue_entries: 2,
        ..Config::default()
    });
    let device = world.try_open("nvme:03:00.0").expect("opened");
    let buffer = Buffer::new(&world, 1);
    let segment = [buffer.segment(0, 0, 512)];
    for closes in [true, false] {
        let mut disks = [0, 1, 2, 3].map(|_| Disk::new(&world, device.clone(), 0, 8));
        world.fake.decide(|_| Treatment::Held);
        let [first, rest @ ..] = &mut disks;
        first.ask(0, read(0), &segment);
        for disk in rest.iter_mut() {
            assert_eq!(disk.hand(0, read(0), &segment), Submitted::Busy);
            assert_eq!(disk.collect(), 0);
        }
        world.run();
        world.fake.finish(0);
        world.run();
        assert_eq!(first.collect(), 1);
        // Each is told once the one before has nothing to ask for any more.
        for number in 0..3 {
            let (now, later) = rest[number..].split_first_mut().expect("one");
            assert_eq!(now.wakes.count(), 1, "{number}");
            assert!(later.iter().all(|disk| disk.wakes.count() == 0), "{number}");
            if number < 2 && closes {
                assert!(now.close());
            } else if number < 2 {
                assert_eq!(now.collect(), 0);
            }
        }
        world.fake.decide(|_| Treatment::Done);
        rest[2].ask(0, read(0), &segment);
        world.run();
        assert_eq!(rest[2].collect(), 1);
        disks.iter_mut().for_each(|disk| assert!(disk.close()));
    }
    drop((device, buffer));
    world.end();
}

#[test]
fn what_comes_while_the_controller_is_told_what_was_taken_is_noticed() {
    // It does not interrupt for it: something was not taken yet.
    let world = World::started(Config {
        sparing: true,
        untimely: true,
        ..Config::default()
    });
    let device = world.try_open("nvme:03:00.0").expect("opened");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    let mut disks = [0, 1].map(|_| Disk::new(&world, device.clone(), 0, 8));
    for round in 1..3 {
        for disk in &mut disks {
            disk.ask(0, read(0), &[buffer.segment(0, 0, 512)]);
            assert_eq!(disk.collect(), 0);
        }
        world.run();
        world.fake.finish(0);
        world.run();
        assert_eq!(world.fake.held().len(), 0, "the other one, too");
        assert_eq!([0, 1].map(|disk| disks[disk].wakes.count()), [round; 2]);
        let collected = disks.each_mut().map(Disk::collect);
        assert_eq!(collected, [1, 1]);
    }
    drop((disks, device, buffer));
    world.end();
}
