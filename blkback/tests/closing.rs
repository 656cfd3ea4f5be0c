//! The ways in which a disk is closed, the order of the steps, and what is left to see of it.

use bulkhead_blkback_testkit::{Frontend, Guest, IMAGE_SIZE, Style, World, content};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// Windows' xenvbd closes before it connects, to begin with a clean slate: it waits for the backend
/// to follow at each step.
#[test]
fn a_frontend_that_closes_before_it_connects_is_followed_and_offered_the_disk_again() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0");
    for round in 0..3 {
        assert_eq!(disk.backend(), Some(XenbusState::InitWait));
        disk.go(XenbusState::Closing);
        assert_eq!(disk.backend(), Some(XenbusState::Closing), "round {round}");
        disk.go(XenbusState::Closed);
        assert_eq!(disk.backend(), Some(XenbusState::Closed), "round {round}");
        disk.go(XenbusState::Initialising);
    }
    // Some do not take the step between.
    disk.go(XenbusState::Closed);
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    disk.go(XenbusState::Initialising);
    disk.connect();
    assert!(disk.read(0, 8) == content(0, IMAGE_SIZE)[..4096]);
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_frontend_that_closes_before_it_connects_can_be_detached_at_each_step() {
    use XenbusState::{Closed, Closing, Initialising};
    let world = World::new();
    let guest = Guest::new(&world);
    for steps in [
        &[Closing][..],
        &[Closed],
        &[Closing, Closed],
        &[Closing, Closed, Initialising],
    ] {
        let disk = guest.attach("xvda", "ram:disk0");
        for state in steps {
            disk.go(*state);
        }
        disk.request_detach();
        disk.finish_detach();
        world.nothing_left();
    }
}

#[test]
fn a_disk_that_is_being_detached_is_not_offered_again() {
    use XenbusState::{Closed, Closing, Connected, Initialised, Initialising};
    let world = World::new();
    let guest = Guest::new(&world);
    for connected in [false, true] {
        for before in [&[][..], &[Closing], &[Closed], &[Closing, Closed]] {
            for after in [
                &[Initialising][..],
                &[Initialising, Initialised],
                &[Initialised, Connected],
            ] {
                for hurry in [false, true] {
                    let mut disk = guest.attach("xvda", "ram:disk0");
                    if connected {
                        disk.connect();
                    }
                    toolstack::request_detach(&mut world.sim.store(), &disk.vbd);
                    if !hurry {
                        world.run();
                    }
                    for state in before.iter().chain(after) {
                        disk.say(*state);
                        if !hurry {
                            world.run();
                        }
                        let seen = disk.backend();
                        let offered = seen == Some(XenbusState::InitWait);
                        assert!(
                            !offered || hurry,
                            "{connected} {before:?} {after:?}: {seen:?}"
                        );
                    }
                    world.run();
                    let seen = disk.backend();
                    let kept = matches!(seen, Some(Closing | Closed));
                    assert!(kept, "{connected} {before:?} {after:?}: {seen:?}");
                    if seen == Some(Closing) {
                        // It does as if nothing had happened: libxl waits for it to let go.
                        disk.go(Closed);
                    }
                    if disk.is_prepared() {
                        world.run();
                        disk.take_down();
                    }
                    disk.finish_detach();
                    world.nothing_left();
                }
            }
        }
    }
}

#[test]
fn a_guest_that_starts_over_without_a_toolstack_that_wants_the_disk_is_not_offered_it() {
    // Some toolstacks write the one node before the other.
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    world.write(&disk.backend_path("online"), "0");
    let old = disk.forget().pop().unwrap();
    disk.go(XenbusState::Initialising);
    assert_ne!(disk.backend(), Some(XenbusState::InitWait));
    assert_eq!(world.storage.live_mappings(), 0);
    old.take_down();
    disk.request_detach();
    disk.finish_detach();
    world.nothing_left();
}

#[test]
fn a_closed_disk_is_seen_by_a_toolstack_that_looks_two_seconds_late() {
    let world = World::new();
    let guests = [Guest::new(&world), Guest::new(&world)];
    for connected in [true, false] {
        let mut disk = guests[0].attach("xvda", "ram:disk0");
        if connected {
            disk.connect();
        }
        disk.request_detach();
        disk.go(XenbusState::Closed);
        assert_eq!(disk.backend(), Some(XenbusState::Closed));
        // Nothing is held back for that.
        if connected {
            disk.take_down();
        }
        let next = guests[1].attach("xvda", "ram:disk0").connected();
        world.wait(Duration::from_secs(2));
        assert_eq!(disk.backend(), Some(XenbusState::Closed));
        world.wait(Duration::from_secs(1));
        assert_eq!(disk.backend(), None);
        disk.finish_detach();
        next.detach();
        world.nothing_left();
    }
}

#[test]
fn a_disk_that_is_attached_again_while_the_old_one_is_still_seen_is_served_at_once() {
    let world = World::new();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    disk.request_detach();
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    let mut disk = guest.attach("xvda", "ram:disk1").connected();
    let image = content(1, IMAGE_SIZE);
    assert!(disk.read(0, 8) == image[..4096]);
    disk.detach();
    world.nothing_left();
}

/// Puts a request on each ring, and shows it to the backend.
fn ask(disk: &mut Frontend<'_>) {
    for link in disk.queues() {
        link.push_read(0, 8);
        link.kick();
    }
}

/// Linux's blkfront says that it has closed while a `queue_rq` of another vCPU may still run, and `del_gendisk` waits
/// for its response.
#[test]
fn requests_that_come_just_after_their_frontend_has_closed_are_answered() {
    let world = World::new();
    let guest = Guest::new(&world);
    for queues in [1, 3] {
        for ends in [Ends::Frontend, Ends::Toolstack, Ends::DriverDomain] {
            let (world, guest) = match ends {
                Ends::DriverDomain => (&World::new(), None),
                _ => (&world, Some(&guest)),
            };
            let own = guest.is_none().then(|| Guest::new(world));
            let guest = guest.or(own.as_ref()).expect("one of them");
            let style = Style {
                queues,
                ..Style::default()
            };
            let mut disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
            match ends {
                Ends::Frontend => {}
                Ends::Toolstack => disk.request_detach(),
                Ends::DriverDomain => {
                    let backend = world.backend.clone();
                    world.spawn(async move { backend.close().await });
                    world.run();
                }
            }
            disk.say(XenbusState::Closed);
            for _ in 0..3 {
                world.run();
                world.wait(Duration::from_millis(5));
                ask(&mut disk);
            }
            world.wait(Duration::from_millis(10));
            assert_eq!(disk.backend(), Some(XenbusState::Closed), "{ends:?}");
            for link in disk.queues() {
                assert_eq!(link.collect().len(), 3, "{ends:?}");
            }
            disk.take_down();
            match ends {
                Ends::Frontend => disk.detach(),
                Ends::Toolstack => disk.finish_detach(),
                Ends::DriverDomain => toolstack::finish_detach(&mut world.sim.store(), &disk.vbd),
            }
            world.nothing_left();
        }
    }
}

/// The one that ends a disk.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Frontend,
    Toolstack,
    DriverDomain,
}

#[test]
fn a_frontend_that_goes_on_asking_after_it_has_closed_does_not_keep_its_disk() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    let closed = world.sim.now();
    disk.say(XenbusState::Closed);
    world.run();
    while disk.backend() != Some(XenbusState::Closed) {
        ask(&mut disk);
        world.wait(Duration::from_millis(1));
        disk.link().collect();
    }
    let taken = world.sim.now().0 - closed.0;
    assert!(taken <= 21_000_000, "{taken} ns");
    disk.take_down();
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_guest_that_is_destroyed_is_not_waited_for() {
    let world = World::new();
    for closed_before in [false, true] {
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "ram:disk0").connected();
        if closed_before {
            disk.say(XenbusState::Closed);
            world.run();
        }
        world.sim.destroy_domain(guest.domain.id());
        toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
        match closed_before {
            false => _ = world.run(),
            true => world.wait(Duration::from_millis(20)),
        }
        assert_eq!(world.storage.live_mappings(), 0);
        world.destroy(guest.domain.id(), &[&disk.vbd]);
        world.nothing_left();
    }
}
