//! Devices that the toolstack announces here and that this domain does not serve: disks for QEMU (`format=qcow2`,
//! `backendtype=qdisk`, the CD-ROM drive of an HVM guest), network cards, and so on.

use bulkhead_blkback_testkit::{Bystander, Guest, World};
use bulkhead_xen_sim::xenstore::toolstack::{self, Disk};
use bulkhead_xenbus::XenbusState;
use std::time::Duration;

/// The longest time that an error can be read after its guest has gone.
const ERROR_LEAVES_WITHIN: Duration = Duration::from_secs(61);

#[test]
fn a_disk_for_qemu_is_refused_with_what_to_write_instead() {
    let cdrom = |target: &str| Disk {
        cdrom: true,
        ..Disk::read_only(target)
    };
    for (disk, expected) in [
        (
            Disk::new("qcow2:ram:disk0"),
            "format=qcow2 is for QEMU, which does not run here: write format=raw",
        ),
        (
            Disk::new("vhd:ram:disk0"),
            "format=vhd is for QEMU, which does not run here: write format=raw",
        ),
        (
            Disk::new("aio:ram:disk0"),
            "backendtype=qdisk is for QEMU, which does not run here: leave it out",
        ),
        (
            cdrom("aio:ram:disk0"),
            "libxl has QEMU serve the CD-ROM drive of an HVM guest, which does not run here: leave \
             out devtype=cdrom for a disk, or backend= for a drive of dom0's",
        ),
        (
            Disk::new(""),
            "backendtype=qdisk is for QEMU, which does not run here: leave it out",
        ),
    ] {
        let world = World::new();
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let refused = guest.attach_to("qdisk", "xvdb", &disk);
        let id = guest.domain.id();
        assert_eq!(
            refused.problem(),
            Some(format!("guest {id}, disk xvdb: {expected}"))
        );
        let errors: Vec<_> = world.journal();
        let errors: Vec<_> = errors
            .iter()
            .filter(|line| line.starts_with("ERROR"))
            .collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].ends_with(expected), "{errors:?}");
        // A frontend waits for minutes, unless it sees that nothing will come.
        assert_eq!(refused.backend(), Some(XenbusState::Closed));
        // The guest says what it likes.
        refused.go(XenbusState::Closed);
        refused.go(XenbusState::Initialising);
        other.io();
        assert_eq!(world.journal().len(), 3, "{:#?}", world.journal());
        refused.detach();
        world.wait(ERROR_LEAVES_WITHIN);
        let error = world.own_path(&format!("error/backend/qdisk/{id}"));
        assert!(!world.sim.store().exists(&error), "nothing is left of it");
        guest.attach("xvdb", "ram:disk0").connected().detach();
        other.leave();
        world.nothing_left();
    }
}

#[test]
fn nothing_is_left_of_a_disk_for_qemu_whose_guest_is_destroyed() {
    let world = World::new();
    let guest = Guest::new(&world);
    let refused = guest.attach_to("qdisk", "xvda", &Disk::new("qcow2:ram:disk0"));
    let vbd = refused.vbd.clone();
    // `destroy` waits for the directory to go, as libxl does.
    guest.destroy(vec![refused]);
    world.wait(ERROR_LEAVES_WITHIN);
    assert_eq!(world.error(&vbd), None);
    world.nothing_left();
}

#[test]
fn nothing_is_left_where_the_guest_itself_removes_its_directory() {
    let world = World::new();
    let guest = Guest::new(&world);
    let refused = guest.attach_to("qdisk", "xvda", &Disk::new("qcow2:ram:disk0"));
    let id = guest.domain.id();
    let path = refused.vbd.frontend_path();
    let removed = world.sim.store().as_domain(id).remove(&path);
    removed.expect("it is the guest's own");
    world.wait_for_removal();
    assert!(refused.vbd.backend_gone(&world.sim.store()));
    toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
    world.nothing_left();
}

#[test]
fn a_tool_stack_that_takes_the_directory_away_leaves_nothing_behind() {
    let world = World::new();
    let guest = Guest::new(&world);
    for turns in 0..30 {
        let refused = guest.attach_to("qdisk", "xvda", &Disk::new("aio:ram:disk0"));
        toolstack::request_detach(&mut world.sim.store(), &refused.vbd);
        world.slowly(turns);
        toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
        world.slowly(turns % 7);
        // The next one may be there before the last one's end was seen.
        let disk = guest.attach_to("qdisk", "xvda", &Disk::new("aio:ram:disk0"));
        world.run();
        assert_eq!(disk.backend(), Some(XenbusState::Closed), "at {turns}");
        disk.detach();
    }
    world.nothing_left();
}

#[test]
fn devices_for_whose_backend_libxl_waits_are_removed_at_once() {
    // Then `xl create` gives up at once instead of ten seconds later.
    let world = World::new();
    let mut other = Bystander::new(&world);
    let guest = Guest::new(&world);
    for kind in ["vif", "vbd3", "vtpm", "pci"] {
        let refused = guest.attach_to(kind, "xvda", &Disk::new("ram:disk0"));
        assert_eq!(refused.backend(), None, "{kind}");
        let problem = refused.problem().expect("the error node says why");
        let id = guest.domain.id();
        assert_eq!(
            problem,
            format!(
                "guest {id}, {kind} 51712: only disks (vbd) are served here: name another domain as its backend="
            )
        );
        toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
        other.io();
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn disks_for_qemu_that_were_there_first_are_found() {
    let world = World::new();
    let guest = Guest::new(&world);
    world.sim.store().faults.stalled = true;
    let refused = guest.attach_to("qdisk", "xvda", &Disk::new("qcow2:ram:disk0"));
    let served = guest.attach_unseen("xvdb", &Disk::new("ram:disk0"));
    // More events than are kept: all that is told is that something has changed.
    for number in 0..300 {
        let path = world.own_path(&format!("backend/rubbish-{number}"));
        world.sim.store().write(&path, "");
    }
    world.sim.store().faults.stalled = false;
    world.run();
    assert!(refused.problem().is_some());
    assert_eq!(served.backend(), Some(XenbusState::InitWait));
    for number in 0..300 {
        let path = world.own_path(&format!("backend/rubbish-{number}"));
        world.sim.store().remove(&path);
    }
    world.run();
    refused.detach();
    served.detach();
    world.nothing_left();
}

#[test]
fn paths_that_name_no_device_are_passed_over() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    world.forget_journal();
    let root = world.own_path("backend");
    for path in [
        "qdisk",
        "qdisk/9",
        "qdisk/x/51712",
        "qdisk/9/x",
        "qdisk/32752/51712",
        "x",
    ] {
        let state = format!("{root}/{path}/state");
        world.sim.store().write(&state, "1");
        world.run();
        other.io();
        world.sim.store().remove(&state);
        world.run();
    }
    assert_eq!(world.journal(), Vec::<String>::new());
    for directory in ["qdisk", "x"] {
        world.sim.store().remove(&format!("{root}/{directory}"));
    }
    other.leave();
    world.nothing_left();
}

#[test]
fn an_ending_driver_domain_waits_for_no_device_that_it_does_not_serve() {
    let world = World::new();
    let guest = Guest::new(&world);
    let refused = guest.attach_to("qdisk", "xvda", &Disk::new("qcow2:ram:disk0"));
    let backend = world.backend.clone();
    world.spawn(async move { backend.close().await });
    world.wait(Duration::from_secs(1));
    assert_eq!(world.backend.unserved(), 0);
    toolstack::finish_detach(&mut world.sim.store(), &refused.vbd);
}
