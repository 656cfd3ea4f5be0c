//! Starting a controller, and letting go of it.

use bulkhead_nvme::command::admin::opcode;
use bulkhead_nvme::command::{Command, Status};
use bulkhead_nvme_testing::world::{Buffer, NAME, World, read, stops, write};
use bulkhead_nvme_testing::{Config, Treatment};
use bulkhead_xen::{StopDevice, Stopped};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_disk_waits_for_its_controller_and_is_told_what_is_missing() {
    let world = World::new(Config::default());
    let refused = world.try_open("nvme:03:00.0").err().expect("refused");
    assert_eq!(
        refused,
        "no controller 03:00.0: the driver domain has none (pci= in its configuration)"
    );
    world.fake.never_start(true);
    world.controllers.add(world.fake.function(NAME));
    let refused = world.try_open("nvme:03:00.0").err().expect("refused");
    assert_eq!(refused, "the controller 03:00.0 is not ready");
    let refused = world.try_open("nvme:04:00.0").err().expect("refused");
    assert_eq!(refused, "no controller 04:00.0, there are: 03:00.0");
    world.fake.never_start(false);
    let mut disk = world.open("nvme:0000:03:00.0");
    let buffer = Buffer::new(&world, 1);
    assert_eq!(disk.does(read(0), &buffer.whole(512)), Ok(()));
    drop((disk, buffer));
    world.end();
}

#[test]
fn a_controller_for_whose_driver_there_is_no_room_is_named_with_the_reason() {
    struct Other;
    impl StopDevice for Other {
        fn begin_stop(&self) {}
        fn has_stopped(&self) -> bool {
            true
        }
    }
    let world = World::new(Config::default());
    let others: Vec<_> = std::iter::from_fn(|| stops().register(Arc::new(Other)).ok()).collect();
    world.controllers.add(world.fake.function(NAME));
    let refused = world.try_open("nvme:03:00.0").err().expect("refused");
    let reason = format!("there are {} devices already", others.len());
    assert_eq!(
        refused,
        format!("the controller 03:00.0 was given up: {reason}")
    );
    assert!(world.lines().contains(&reason), "{}", world.lines());
    drop(others);
    world.end();
}

#[test]
fn what_somebody_left_at_work_is_stopped_first() {
    let world = World::new(Config::default());
    // As a boot loader may leave it.
    let registers = world.fake.registers();
    registers.write32(0x14, 1);
    world.run();
    assert!(world.fake.state().0);
    world.controllers.add(world.fake.function(NAME));
    world.wait(Duration::from_millis(100));
    drop(world.open("nvme:03:00.0"));
    world.end();
}

#[test]
fn a_controller_that_cannot_be_used_is_given_up_with_the_reason() {
    fn forged(command: &Command, data: &mut [u8], change: impl Fn(&mut [u8])) {
        if command.opcode() == opcode::IDENTIFY && command.dword(10) == 1 {
            change(data);
        }
    }
    type Change = fn(&Command, &mut [u8]);
    let cases: [(Change, &str); 2] = [
        (
            |command, data| forged(command, data, |data| data[111] = 2),
            "it is no controller for I/O (its kind is 2)",
        ),
        (
            |command, data| forged(command, data, |data| data[512] = 0x77),
            "it takes no queue entries of 64 and 16 bytes",
        ),
    ];
    for (forge, reason) in cases {
        let world = World::started(Config {
            forge: Arc::new(forge),
            ..Config::default()
        });
        let refused = world.try_open("nvme:03:00.0").err().expect("refused");
        assert_eq!(
            refused,
            format!("the controller 03:00.0 was given up: {reason}")
        );
        assert_eq!(world.fake.state(), (false, true), "it was stopped");
        world.end();
    }
}

#[test]
fn a_controller_that_refuses_or_forgets_admin_commands_is_tried_again() {
    for (treatment, attempts) in [
        (Treatment::Failed(Status::INVALID_FIELD), 4),
        (Treatment::Lost, 4),
        (Treatment::Misnamed, 4),
        (Treatment::Twice, 4),
    ] {
        let world = World::new(Config::default());
        world
            .fake
            .decide_admin(move |command| match command.opcode() {
                opcode::SET_FEATURES => treatment,
                _ => Treatment::Done,
            });
        world.controllers.add(world.fake.function(NAME));
        while !world.lines().contains("given up") {
            world.wait(Duration::from_secs(1));
        }
        let seen = world.fake.admin_seen();
        let identified = seen
            .iter()
            .filter(|command| command.opcode() == opcode::IDENTIFY && command.dword(10) == 1);
        assert_eq!(identified.count(), attempts, "{treatment:?}");
        world.end();
        // Some later luck is enough.
        let world = World::new(Config::default());
        let mut left = 2;
        world
            .fake
            .decide_admin(move |command| match command.opcode() {
                opcode::SET_FEATURES if left > 0 => {
                    left -= 1;
                    treatment
                }
                _ => Treatment::Done,
            });
        world.controllers.add(world.fake.function(NAME));
        world.wait(Duration::from_secs(120));
        drop(world.open("nvme:03:00.0"));
        world.end();
    }
}

#[test]
fn a_controller_in_use_is_not_let_go_of_and_one_that_is_not_saves_its_cache() {
    let world = World::started(Config::default());
    let disk = world.open("nvme:03:00.0");
    let remove = |world: &World| {
        let controllers = world.controllers.clone();
        world.within(Duration::from_secs(60), async move {
            controllers
                .remove(NAME)
                .await
                .map_err(|error| error.to_string())
        })
    };
    let refused = remove(&world).expect("at once").expect_err("refused");
    assert_eq!(
        refused,
        "nvme:03:00.0 is in use: disks are attached that lie on n1"
    );
    drop(disk);
    assert!(!world.fake.was_shut_down());
    assert_eq!(remove(&world), Some(Ok(())));
    assert!(world.fake.was_shut_down());
    assert_eq!(world.fake.state(), (false, false));
    assert!(world.lines().is_empty(), "{}", world.lines());
    // It may come back.
    world.controllers.add(world.fake.function(NAME));
    world.wait(Duration::from_millis(100));
    drop(world.open("nvme:03:00.0"));
    world.end();
}

#[test]
fn a_controller_that_is_taken_away_fails_what_is_asked_of_it() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 2);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, write(0), &buffer.whole(4096));
    disk.collect();
    world.run();
    let controllers = world.controllers.clone();
    let gone = world.within(Duration::from_secs(60), async move {
        controllers.give_up("03:00.0").await;
    });
    assert_eq!((gone, world.fake.state()), (Some(()), (false, false)));
    disk.collect();
    assert_eq!(disk.done, [(1, Err(bulkhead_images::IoError::Medium))]);
    drop((disk, buffer));
    world.sim.assert_no_violations();
}

#[test]
fn a_domain_that_ends_at_once_stops_the_controller_first() {
    let world = World::started(Config::default());
    let mut disk = world.open("nvme:03:00.0");
    let buffer = Buffer::new(&world, 1);
    world.fake.decide(|_| Treatment::Held);
    disk.ask(1, read(0), &buffer.whole(512));
    world.run();
    let stopped = world.stop_devices(true);
    assert_eq!((stopped.stopped, stopped.running), (1, 0));
    assert!(!world.fake.state().0);
    assert_eq!(world.fake.held(), [], "it has forgotten what it had");
}

#[test]
fn a_domain_that_ends_starts_no_controller() {
    let world = World::new(Config::default());
    assert_eq!(world.stop_devices(true), Stopped::default());
    world.controllers.add(world.fake.function(NAME));
    world.wait(Duration::from_secs(60));
    assert_eq!(world.fake.state(), (false, false));
    assert!(
        world.lines().contains("the domain ends"),
        "{}",
        world.lines()
    );
}

#[test]
fn a_controller_that_does_not_stop_does_not_keep_the_domain() {
    let world = World::started(Config::default());
    let stopped = world.stop_devices(false);
    assert_eq!((stopped.stopped, stopped.running), (0, 1));
}

#[test]
fn a_controller_that_may_still_be_at_work_is_told_again_when_the_domain_ends() {
    let world = World::started(Config::default());
    world.fake.never_stop(true);
    world.fake.stay_master(true);
    let controllers = world.controllers.clone();
    let closed = world.within(Duration::from_secs(60), async move {
        controllers.close().await;
    });
    assert_eq!((closed, world.fake.state()), (Some(()), (true, true)));
    let stopped = world.stop_devices(false);
    assert_eq!((stopped.stopped, stopped.running), (0, 1));
}

#[test]
fn a_controller_that_is_gone_has_stopped() {
    let world = World::started(Config::default());
    world.fake.vanish();
    assert_eq!(world.stop_devices(false).stopped, 1);
}

#[test]
fn what_was_let_go_of_is_not_stopped_at_the_end() {
    let world = World::started(Config::default());
    let controllers = world.controllers.clone();
    let removed = world.within(Duration::from_secs(60), async move {
        controllers.remove("03:00.0").await
    });
    assert_eq!(removed, Some(Ok(())));
    assert_eq!(world.stop_devices(false), Stopped::default());
}

#[test]
fn starting_takes_no_time_but_the_controllers() {
    let world = World::new(Config::default());
    let before = world.sim.now();
    world.controllers.add(world.fake.function(NAME));
    world.run();
    // The state is looked at again and again: a controller need not interrupt for that.
    while world.try_open("nvme:03:00.0").is_err() {}
    let took = world.sim.now().since(before);
    assert!(took < Duration::from_millis(5), "{took:?}");
    world.end();
}

#[test]
fn health_is_shown_with_its_age_and_read_anew_for_the_next_time() {
    let world = World::started(Config::default());
    world.wait(Duration::from_secs(7));
    for age in [7, 0] {
        let lines = world.lines();
        let expected = format!("0 media errors (as of {age} s ago)");
        assert!(lines.contains(&expected), "{expected} is not in\n{lines}");
        world.run();
    }
    world.end();
}
