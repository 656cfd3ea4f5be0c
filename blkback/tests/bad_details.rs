//! Frontends that publish rubbish: each is closed and told why, and no other guest is affected.

use bulkhead_blkback_testkit::{Bystander, Frontend, Guest, World};
use bulkhead_xen::abi::grant_table::EntryFlags;
use bulkhead_xen::{DomId, Errno, GrantRef, GrantStatus};
use bulkhead_xen_sim::{GrantUse, Hypercall};
use bulkhead_xenbus::XenbusState;

/// Publishes what `spoil` makes of a frontend's details, beside a guest that notices nothing. Returns the error that
/// the frontend is told.
fn refused(spoil: impl Fn(&mut Frontend<'_>)) -> String {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0");
    disk.prepare();
    disk.publish();
    spoil(&mut disk);
    disk.say(XenbusState::Initialised);
    other.io();
    world.run();
    assert_eq!(disk.backend(), Some(XenbusState::Closing));
    let problem = disk.problem().expect("the error node says why");
    let logged = |line: &String| line.starts_with("ERROR") && line.contains(&problem);
    assert!(world.journal().iter().any(logged), "so does the log");
    // Nothing is held meanwhile, and it does not try again by itself.
    assert_eq!(disk.domain.grants_in_use(), 0);
    disk.go(XenbusState::Connected);
    assert_eq!(disk.backend(), Some(XenbusState::Closing));

    // A frontend that comes back and means it is served.
    disk.close();
    assert_eq!(disk.backend(), Some(XenbusState::Closed));
    for node in [
        "protocol",
        "ring-page-order",
        "num-ring-pages",
        "multi-queue-num-queues",
    ] {
        disk.write_node(node, "");
        disk.remove_node(node);
    }
    disk.go(XenbusState::Initialising);
    disk.connect();
    disk.read(0, 8);
    disk.detach();
    other.leave();
    world.nothing_left();
    problem
}

fn refused_node(node: &str, value: impl AsRef<[u8]>) -> String {
    refused(|disk| disk.write_node(node, value.as_ref()))
}

#[test]
fn nothing_published() {
    let problem = refused(|disk| {
        disk.remove_node("ring-ref");
        disk.remove_node("event-channel");
    });
    assert_eq!(problem, "the frontend published no ring-ref");
}

#[test]
fn no_ring() {
    let problem = refused(|disk| disk.remove_node("ring-ref"));
    assert_eq!(problem, "the frontend published no ring-ref");
}

#[test]
fn no_event_channel() {
    let problem = refused(|disk| disk.remove_node("event-channel"));
    assert_eq!(problem, "the frontend published no event-channel");
}

#[test]
fn a_ring_that_is_no_number() {
    for value in ["", "x", "-1", "8 9", "0x8", "99999999999"] {
        let problem = refused_node("ring-ref", value);
        assert!(
            problem.starts_with("the frontend's ring-ref is not a number"),
            "{value:?}: {problem}"
        );
    }
    // The whole of a very long value is in neither log nor node.
    assert!(refused_node("ring-ref", "x".repeat(1900)).len() < 200);
}

#[test]
fn a_ring_that_is_no_text() {
    let problem = refused_node("ring-ref", [0xff, 0xfe, 0]);
    assert!(problem.contains("ring-ref"), "{problem}");
}

#[test]
fn an_event_channel_that_is_no_number() {
    let problem = refused_node("event-channel", "many");
    assert_eq!(
        problem,
        "the frontend's event-channel is not a number: \"many\""
    );
}

#[test]
fn a_ring_that_is_not_granted() {
    let problem = refused_node("ring-ref", "700");
    assert!(
        problem.starts_with("the ring's grant 700 cannot be mapped"),
        "{problem}"
    );
}

#[test]
fn a_ring_beyond_the_grant_table() {
    for gref in ["8192", "4294967295"] {
        let problem = refused_node("ring-ref", gref);
        assert!(problem.starts_with(&format!("the ring's grant {gref} cannot be mapped")));
    }
}

/// Publishes a page as its ring that is granted to the wrong domain, or in the wrong way.
fn refused_ring(granted: impl Fn(&Frontend<'_>) -> (DomId, EntryFlags)) {
    let problem = refused(|disk| {
        let frame = disk.domain.frame_of(disk.domain.alloc_page());
        let (domain, flags) = granted(disk);
        disk.domain.grant(GrantRef(600), domain, frame, flags);
        disk.write_node("ring-ref", "600");
    });
    assert!(
        problem.starts_with("the ring's grant 600 cannot be mapped"),
        "{problem}"
    );
}

#[test]
fn a_ring_granted_to_somebody_else() {
    refused_ring(|disk| (disk.world.sim.dom0().id(), PERMIT));
}

#[test]
fn a_ring_granted_for_reading_alone() {
    refused_ring(|disk| (disk.vbd.backend, PERMIT | EntryFlags::READONLY));
}

const PERMIT: bulkhead_xen::abi::grant_table::EntryFlags =
    bulkhead_xen::abi::grant_table::EntryFlags::PERMIT_ACCESS;

#[test]
fn a_ring_that_xen_will_not_map_now() {
    let problem = refused(|disk| {
        let owner = disk.domain.id();
        let gref = disk.link().ring_refs()[0];
        let status = GrantStatus::NO_SPACE;
        let sim = &disk.world.sim;
        sim.fail_grant(GrantUse::Map, (owner, gref), status, 1);
    });
    assert!(problem.contains("cannot be mapped"), "{problem}");
}

#[test]
fn an_event_channel_that_is_not_there() {
    for port in ["0", "77", "4096", "4294967295"] {
        let problem = refused_node("event-channel", port);
        let expected = format!("the frontend's event channel {port} cannot be bound");
        assert!(problem.starts_with(&expected), "{problem}");
    }
}

#[test]
fn an_event_channel_of_the_guests_xenstore() {
    let problem = refused(|disk| {
        let port = disk.domain.store_ring().port;
        disk.write_node("event-channel", port.to_string());
    });
    assert!(problem.contains("cannot be bound"), "{problem}");
}

#[test]
fn an_event_channel_that_xen_will_not_bind_now() {
    let problem = refused(|disk| {
        let storage = &disk.world.storage;
        storage.fail_call(Hypercall::BindInterdomain, Errno::NOSPC, 1);
    });
    assert!(problem.contains("cannot be bound"), "{problem}");
}

#[test]
fn a_protocol_that_nobody_speaks() {
    let problem = refused_node("protocol", "sparc-abi");
    assert!(problem.contains("\"sparc-abi\", expected x86_64-abi or x86_32-abi"));
    assert!(refused_node("protocol", "y".repeat(1900)).len() < 200);
}

#[test]
fn more_queues_and_pages_than_were_offered() {
    for (node, value) in [
        ("multi-queue-num-queues", "0"),
        ("multi-queue-num-queues", "100000"),
        ("multi-queue-num-queues", "two"),
        ("ring-page-order", "5"),
        ("ring-page-order", "4294967295"),
        ("ring-page-order", "-1"),
        ("num-ring-pages", "17"),
        ("num-ring-pages", "32"),
        ("num-ring-pages", "0"),
        // In between, io/blkif.h has powers of two alone.
        ("num-ring-pages", "3"),
        ("num-ring-pages", "5"),
        ("num-ring-pages", "6"),
        ("num-ring-pages", "7"),
        ("num-ring-pages", "9"),
        ("num-ring-pages", "12"),
        ("num-ring-pages", "15"),
    ] {
        let problem = refused_node(node, value);
        assert!(
            problem.contains(node) && problem.contains(value),
            "{problem}"
        );
    }
}

/// Returns the error that a frontend which leaves out or adds one node is told about a disk of large sectors, and
/// checks that the same frontend is served a disk of small ones.
#[track_caller]
fn refused_large_sectors(spoil: impl Fn(&Frontend<'_>)) -> String {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut told = None;
    for target in [
        "ram:disk0,sector-size=4096",
        "null:1M,sector-size=4096",
        "ram:disk0,physical-sector-size=4096",
        "ram:disk0",
    ] {
        let mut disk = guest.attach("xvda", target);
        disk.prepare();
        disk.publish();
        spoil(&disk);
        disk.go(XenbusState::Initialised);
        if target.contains(",sector-size=4096") {
            assert_eq!(disk.backend(), Some(XenbusState::Closing), "{target}");
            told = disk.problem();
        } else {
            assert_eq!(disk.backend(), Some(XenbusState::Connected), "{target}");
        }
        disk.detach();
    }
    world.nothing_left();
    told.expect("the error node says why")
}

#[test]
fn large_sectors_are_served_to_nobody_who_may_count_them_differently() {
    // Windows' frontend, in its own words.
    let told = refused_large_sectors(|disk| disk.write_node("feature-large-sector-size", "1"));
    assert!(told.contains("counts in sectors of 4096 bytes"), "{told}");
    assert!(told.contains("physical-sector-size=4096 instead"), "{told}");
    // FreeBSD's, which says nothing.
    let told = refused_large_sectors(|disk| disk.remove_node("feature-persistent"));
    assert!(told.contains("does not show whether it counts"), "{told}");
}

#[test]
fn a_frontend_that_denies_large_sectors_counts_as_linux_does() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0,sector-size=4096");
    disk.write_node("feature-large-sector-size", "0");
    disk.connect();
    disk.write(8, &[1; 4096]);
    assert!(disk.read(8, 8) == [1; 4096]);
    disk.detach();
    world.nothing_left();
}
