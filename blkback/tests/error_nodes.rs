//! The error nodes, where operators read why a disk is not served: they are the driver domain's own
//! nodes, of which xenstored lets it have a thousand, disks included.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, World};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// The most nodes that errors take together, the two or three above all of them included.
const MOST_NODES: usize = 64;

/// The longest time that an error can be read after its guest has gone.
const LEAVES_WITHIN: Duration = Duration::from_secs(61);

/// Returns the number of nodes that hold errors, and of those above them.
fn error_nodes(world: &World) -> usize {
    let root = world.own_path("error/");
    let dump = world.sim.store().dump();
    dump.lines().filter(|line| line.starts_with(&root)).count()
}

/// Attaches disks that a guest is refused, each under a name of its own.
fn refused<'w>(guest: &Guest<'w>, names: &[&str]) -> Vec<Frontend<'w>> {
    let disk = |name: &&str| guest.attach(name, "ram:nothing");
    let disks: Vec<_> = names.iter().map(disk).collect();
    let last = disks.last().expect("at least one");
    assert!(last.problem().is_some(), "the newest is there");
    disks
}

#[test]
fn errors_are_bounded_in_nodes_however_many_disks_their_guests_have() {
    let world = World::new();
    let guests: Vec<_> = (0..40).map(|_| Guest::with_memory(&world, 8)).collect();
    let names: Vec<String> = ('a'..='p').map(|letter| format!("xvd{letter}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (number, guest) in guests.iter().enumerate() {
        refused(guest, &names[..1 + number % names.len()]);
        assert!(error_nodes(&world) <= MOST_NODES, "{}", error_nodes(&world));
    }
    assert!(error_nodes(&world) > MOST_NODES / 2);
}

#[test]
fn a_guest_with_many_errors_hides_those_of_no_other() {
    let world = World::new();
    let quiet = Guest::new(&world);
    let one = refused(&quiet, &["xvda"]);
    let loud = Guest::new(&world);
    for _ in 0..5 {
        for letter in 'a'..='z' {
            let disk = refused(&loud, &[&format!("xvd{letter}")]).remove(0);
            toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
        }
    }
    assert!(one[0].problem().is_some());
    assert!(error_nodes(&world) <= MOST_NODES, "{}", error_nodes(&world));
}

#[test]
fn errors_leave_with_their_guest() {
    let world = World::new();
    let other = Bystander::new(&world);
    let before = error_nodes(&world);
    // One is refused, one breaks its ring, one stays.
    let guests = [(); 3].map(|()| Guest::new(&world));
    let mut disks = [0, 1, 2].map(|number| match number {
        1 => guests[1].attach("xvda", "ram:disk0"),
        number => refused(&guests[number], &["xvda"]).remove(0),
    });
    disks[1].prepare();
    disks[1].write_node("ring-ref", "rubbish");
    disks[1].write_node("event-channel", "rubbish");
    disks[1].go(XenbusState::Initialised);
    world.wait(LEAVES_WITHIN);
    for disk in &disks {
        assert!(disk.problem().is_some(), "its guest is there");
    }
    let [first, second, third] = guests;
    let [refused, broken, kept] = disks;
    let vbds = [refused.vbd.clone(), broken.vbd.clone()];
    first.destroy(vec![refused]);
    second.destroy(vec![broken]);
    // Whoever made a guest in vain has the time to read why.
    assert!(vbds.iter().all(|vbd| world.error(vbd).is_some()));
    world.wait(LEAVES_WITHIN);
    for vbd in &vbds {
        assert_eq!(world.error(vbd), None, "it leaves with its guest");
        let guest = world.own_path(&format!("error/backend/vbd/{}", vbd.frontend));
        assert!(!world.sim.store().exists(&guest), "and so does all above");
    }
    assert!(kept.problem().is_some(), "its guest is still there");
    third.destroy(vec![kept]);
    world.wait(LEAVES_WITHIN);
    assert!(error_nodes(&world) <= before + 2, "{}", error_nodes(&world));
    other.leave();
    world.nothing_left();
}

#[test]
fn the_error_of_a_disk_that_was_detached_leaves_too() {
    let world = World::new();
    let guest = Guest::new(&world);
    let disks = refused(&guest, &["xvda", "xvdb"]);
    toolstack::finish_detach(&mut world.sim.store(), &disks[0].vbd);
    world.wait(LEAVES_WITHIN);
    assert_eq!(disks[0].problem(), None);
    assert!(disks[1].problem().is_some());
}

#[test]
fn a_store_that_refuses_to_say_whether_a_guest_is_there_takes_no_error_away() {
    use bulkhead_xen::abi::xs_wire::Refusal;
    let world = World::new();
    let guest = Guest::new(&world);
    let disks = refused(&guest, &["xvda"]);
    let storage = world.storage.id();
    world.sim.store().faults.refuse = Some(Box::new(move |id, _, path| {
        let about_the_guest = id == storage && path.contains("/device/");
        about_the_guest.then_some(Refusal::OutOfMemory)
    }));
    world.wait(4 * LEAVES_WITHIN);
    world.sim.store().faults.refuse = None;
    assert!(disks[0].problem().is_some());
    guest.destroy(disks);
    world.wait(LEAVES_WITHIN);
    assert_eq!(error_nodes(&world), 2, "error/backend/vbd");
}
