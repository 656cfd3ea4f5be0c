//! The log: it tells what guests do, and no guest fills it.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, Style, World};
use bulkhead_xen::abi::xs_wire::Refusal;
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// Returns the number of log lines about a guest.
fn lines_about(world: &World, guest: &Guest<'_>) -> usize {
    let id = guest.domain.id();
    let (disk, other) = (format!("vbd {id}/"), format!("guest {id} "));
    let lines = world.journal();
    let about = lines
        .iter()
        .filter(|line| line.contains(&disk) || line.contains(&other));
    about.count()
}

/// Connects, makes mistakes, and starts over: 47 lines, if all were logged.
fn round(disk: &mut Frontend<'_>) {
    assert!(disk.try_connect());
    for queue in disk.queues() {
        for _ in 0..12 {
            queue.push_read(1 << 40, 1);
        }
    }
    for answers in disk.exchange_all() {
        assert_eq!(answers.len(), 12);
    }
    disk.close();
    disk.go(XenbusState::Initialising);
}

#[test]
fn a_guest_that_reconnects_without_end_has_a_few_lines_a_minute() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").styled(Style::queues(4));
    world.forget_journal();
    // At once, and then for three minutes.
    for _ in 0..10 {
        round(&mut disk);
    }
    let at_once = lines_about(&world, &guest);
    assert!((47..=61).contains(&at_once), "{at_once} lines at once");
    for _ in 0..90 {
        round(&mut disk);
        world.wait(Duration::from_secs(2));
        other.io();
    }
    let later = lines_about(&world, &guest) - at_once;
    assert!((15..=19).contains(&later), "{later} lines in three minutes");
    let lines = world.journal();
    let left_out = lines
        .iter()
        .filter(|line| line.contains("were left out before"));
    assert!(left_out.count() >= 15, "{lines:#?}");
    // Others have all of theirs.
    let quiet = Guest::new(&world);
    let disks: Vec<_> = ["xvda", "xvdb"]
        .map(|name| quiet.attach(name, "null:1M").connected())
        .into();
    assert_eq!(lines_about(&world, &quiet), 4, "attached and connected");
    disks.into_iter().for_each(|disk| disk.detach());
    // What the toolstack does is told whatever the guest has done.
    let before = lines_about(&world, &guest);
    disk.detach();
    assert_eq!(lines_about(&world, &guest), before + 1, "detached");
    other.leave();
    world.nothing_left();
}

/// Has a guest publish what is no ring, more often than its share of the log.
fn break_again_and_again(disk: &Frontend) {
    for _ in 0..70 {
        disk.write_node("ring-ref", "rubbish");
        disk.write_node("event-channel", "rubbish");
        disk.go(XenbusState::Initialised);
        assert_eq!(disk.backend(), Some(XenbusState::Closing));
        disk.go(XenbusState::Closed);
        disk.go(XenbusState::Initialising);
    }
}

#[test]
fn a_guest_that_breaks_its_disk_without_end_has_a_few_lines_a_minute() {
    let world = World::new();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    world.forget_journal();
    break_again_and_again(&disk);
    let lines = lines_about(&world, &guest);
    assert!((50..=61).contains(&lines), "{lines} lines");
    // It has asked for too much of xenstored, too.
    world.wait(Duration::from_secs(4));
    // The newest error is where operators look for it, whether the log told it or not.
    disk.write_node("ring-ref", "the last one");
    disk.go(XenbusState::Initialised);
    assert!(disk.problem().unwrap().contains("the last one"));
    disk.detach();
    world.nothing_left();
}

#[test]
fn a_guest_whose_errors_cannot_be_written_has_no_more_lines_for_that() {
    let world = World::new();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvda", "ram:disk0");
    world.forget_journal();
    let storage = world.storage.id();
    world.sim.store().faults.refuse = Some(Box::new(move |id, _, path| {
        let is_error = id == storage && path.contains("error/backend");
        is_error.then_some(Refusal::QuotaExceeded)
    }));
    break_again_and_again(&disk);
    world.sim.store().faults.refuse = None;
    let lines = world.journal();
    let failures = lines
        .iter()
        .filter(|line| line.contains("the error node could not be"));
    assert!((1..=61).contains(&failures.count()), "{lines:#?}");
    assert!((50..=61).contains(&lines.len()), "{lines:#?}");
}

#[test]
fn what_was_left_out_is_told_when_the_guest_is_gone() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").styled(Style::queues(4));
    for _ in 0..10 {
        round(&mut disk);
    }
    guest.destroy(vec![disk]);
    world.wait(Duration::from_secs(3600));
    Bystander::new(&world).leave();
    let lines = world.journal();
    let told = lines
        .iter()
        .filter(|line| line.ends_with("lines were left out"));
    assert_eq!(told.count(), 1, "{lines:#?}");
}
