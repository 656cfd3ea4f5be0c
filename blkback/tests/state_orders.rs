//! State changes in every wrong order: whatever a frontend says, in whatever order, with whatever
//! of its details there, the disk can be detached in the end and nothing is left.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, World};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;

/// The actions of a frontend on its directory.
#[derive(Clone, Copy, Debug)]
enum Move {
    State(&'static str),
    RemoveState,
    /// Makes a ring and publishes it, if it has none.
    Publish,
    /// Takes its details out of the store; the ring stays.
    Unpublish,
    /// Asks for something, if it has a ring.
    Request,
    /// Lets no time pass before the next move.
    Hurry,
}

use Move::*;

/// All moves.
const MOVES: [Move; 14] = [
    State("0"),
    State("1"),
    State("2"),
    State("3"),
    State("4"),
    State("5"),
    State("6"),
    State("7"),
    State("rubbish"),
    RemoveState,
    Publish,
    Unpublish,
    Request,
    Hurry,
];

/// The moves that mean something to a backend, to end a sequence with.
const LAST: [Move; 6] = [
    State("1"),
    State("3"),
    State("4"),
    State("5"),
    State("6"),
    RemoveState,
];

fn make(disk: &mut Frontend<'_>, moves: &[Move]) {
    let mut hurry = false;
    for step in moves {
        match *step {
            State(state) => disk.write_node("state", state),
            RemoveState if disk_has(disk, "state") => disk.remove_node("state"),
            Publish => {
                if !disk.is_prepared() {
                    disk.prepare();
                }
                disk.publish();
            }
            Unpublish if disk_has(disk, "ring-ref") => disk.remove_node("ring-ref"),
            Request if disk.is_prepared() && disk.link().ring.free() > 0 => {
                disk.link().push_read(0, 8);
                disk.link().kick();
            }
            Hurry => hurry = true,
            _ => {}
        }
        if !std::mem::take(&mut hurry) || matches!(step, Hurry) {
            disk.world.run();
        }
    }
    disk.world.run();
}

fn disk_has(disk: &Frontend<'_>, node: &str) -> bool {
    let path = format!("{}/{node}", disk.vbd.frontend_path());
    disk.world.sim.store().exists(&path)
}

/// Takes the disk away by force, as libxl can whatever happened, and checks that the ring is free.
fn force_away(disk: &mut Frontend<'_>) {
    let world = disk.world;
    toolstack::force_detach(&mut world.sim.store(), &disk.vbd);
    world.wait_for_removal();
    let gone = disk.vbd.backend_gone(&world.sim.store());
    assert!(gone, "libxl waits for the directory to vanish");
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.run();
    assert_eq!(disk.domain.grants_in_use(), 0);
    if disk.is_prepared() {
        disk.take_down();
    }
}

/// Tries every pair of moves and a third, after `before`, from the state in which `begin` leaves a frontend.
fn every_pair_and_a_third(before: &[Move], begin: impl Fn(Frontend<'_>) -> Frontend<'_>) {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for (at, first) in MOVES.into_iter().enumerate() {
        for (then, second) in MOVES.into_iter().enumerate() {
            // All three from all fourteen are as many again; random machines try those.
            for third in [LAST[(at + then) % 6], LAST[(at * 2 + then * 3 + 1) % 6]] {
                let mut disk = begin(guest.attach("xvda", "ram:disk0"));
                make(&mut disk, &[before, &[first, second, third]].concat());
                force_away(&mut disk);
            }
        }
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn every_pair_of_moves_and_a_third() {
    every_pair_and_a_third(&[Publish], |disk| disk);
}

#[test]
fn every_pair_of_moves_of_a_connected_frontend_and_a_third() {
    every_pair_and_a_third(&[], |disk| disk.connected());
}

/// Acts as the toolstack can at any time.
fn interfere(disk: &Frontend<'_>, how: usize) {
    let (store, backend) = (&disk.world.sim, disk.vbd.backend_path());
    let write = |node: &str, value: &str| store.store().write(&format!("{backend}/{node}"), value);
    match how {
        0 => {}
        1 => write("online", "0"),
        2 => write("state", "5"),
        3 => {
            toolstack::request_detach(&mut store.store(), &disk.vbd);
        }
        4 => write("state", "6"),
        5 => write("state", "4"),
        6 => write("state", "rubbish"),
        7 => store.store().remove(&backend),
        _ => store.store().remove(&disk.vbd.frontend_path()),
    }
}

#[test]
fn the_toolstack_interferes_at_every_point() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for how in 0..9 {
        for state in ["1", "3", "4", "5", "6"] {
            for connected in [false, true] {
                for steps in [0, 1, 2, 4, 7, 11] {
                    let mut disk = guest.attach("xvda", "ram:disk0");
                    if connected {
                        disk.connect();
                    } else {
                        disk.prepare();
                        disk.publish();
                    }
                    disk.write_node("state", state);
                    for _ in 0..steps {
                        world.step(true);
                        world.step(false);
                    }
                    interfere(&disk, how);
                    world.run();
                    force_away(&mut disk);
                }
            }
        }
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn a_detach_asked_for_at_every_point_of_a_connect_ends_well() {
    let world = World::new();
    let guest = Guest::new(&world);
    for steps in 0..60 {
        let mut disk = guest.attach("xvda", "ram:disk0");
        disk.prepare();
        disk.publish();
        disk.say(XenbusState::Initialised);
        for _ in 0..steps {
            world.step(steps % 2 == 0);
            world.step(steps % 2 != 0);
        }
        disk.request_detach();
        // A real blkfront closes when it sees the backend do so.
        let state = disk.backend();
        if state == Some(XenbusState::Closing) {
            disk.go(XenbusState::Closing);
            disk.go(XenbusState::Closed);
        }
        disk.take_down();
        disk.finish_detach();
        world.nothing_left();
    }
}
