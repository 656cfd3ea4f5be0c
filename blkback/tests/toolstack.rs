//! The toolstack's requests to the driver domain as a whole: to end, to be saved, to have other vCPUs.

use bulkhead_blkback::availability::{online, refuse_changes};
use bulkhead_blkback::control::{ShutdownRequest, crash_requested, shutdown_requested};
use bulkhead_blkback_testkit::{Bystander, Guest, Setup, World};
use bulkhead_xen::{Hypervisor, Port, VcpuId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Has the driver domain wait for requests to end. Returns the first one, when it has come.
fn waits_for_requests(world: &World) -> Rc<Cell<Option<ShutdownRequest>>> {
    let (store, seen) = (
        world.backend.services.store.clone(),
        Rc::new(Cell::new(None)),
    );
    let shown = seen.clone();
    world.spawn(async move { shown.set(shutdown_requested(&store).await.ok()) });
    world.run();
    seen
}

fn lines_about(world: &World, what: &str) -> usize {
    let about = |line: &&String| line.contains(what);
    world.journal().iter().filter(about).count()
}

#[test]
fn a_save_fails_before_anything_is_asked() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let seen = waits_for_requests(&world);
    // `xl save` binds the port that is written here, and gives up if it cannot.
    let port = world.own_path("device/suspend/event-channel");
    let port = world.read(&port).expect("libxl makes the node");
    let port = Port(port.parse().expect("a port"));
    let toolstack = Guest::new(&world);
    let bound = toolstack
        .domain
        .hypervisor()
        .bind_interdomain(world.storage.id(), port);
    assert!(bound.is_err(), "a save would wait for a suspend");
    let feature = world.own_path("control/feature-suspend");
    assert_eq!(world.read(&feature).as_deref(), Some("0"));
    other.io();
    assert_eq!(seen.get(), None);
}

#[test]
fn a_request_to_suspend_is_refused_and_the_domain_goes_on() {
    let world = World::new();
    let mut other = Bystander::new(&world);
    let seen = waits_for_requests(&world);
    let node = world.own_path("control/shutdown");
    world.write(&node, "suspend");
    assert_eq!(world.read(&node).as_deref(), Some(""), "it was seen");
    assert_eq!(
        lines_about(&world, "cannot be saved, migrated or suspended"),
        1
    );
    other.io();
    assert_eq!(seen.get(), None);
    world.write(&node, "poweroff");
    assert_eq!(seen.get(), Some(ShutdownRequest::Poweroff));
}

#[test]
fn only_the_key_for_it_asks_for_a_crash() {
    let world = World::new();
    let (store, asked) = (
        world.backend.services.store.clone(),
        Rc::new(Cell::new(false)),
    );
    let shown = asked.clone();
    world.spawn(async move { shown.set(crash_requested(&store).await.is_ok()) });
    world.run();
    let node = world.own_path("control/sysrq");
    for key in ["h", "cc", "C", "\u{1}"] {
        world.write(&node, key);
        assert_eq!(world.read(&node).as_deref(), Some(""), "{key} was seen");
        assert!(!asked.get(), "{key} asked for a crash");
    }
    assert_eq!(lines_about(&world, "is not offered, only c is"), 4);
    world.write(&node, "c");
    assert!(asked.get());
}

/// Returns a machine with several vCPUs, of which some are offline.
fn with_vcpus(vcpus: u32, offline: &[u32]) -> World {
    let world = World::with(Setup {
        vcpus,
        ..Setup::default()
    });
    for vcpu in 0..vcpus {
        set(&world, vcpu, !offline.contains(&vcpu));
    }
    world
}

/// Writes the node that `xl vcpu-set` writes for one vCPU.
fn set(world: &World, vcpu: u32, online: bool) {
    let node = world.own_path(&format!("cpu/{vcpu}/availability"));
    world.write(&node, if online { "online" } else { "offline" });
}

fn found_online(world: &World, all: u32) -> Vec<u32> {
    let (store, found) = (
        world.backend.services.store.clone(),
        Rc::new(RefCell::default()),
    );
    let shown: Rc<RefCell<Vec<VcpuId>>> = found.clone();
    world.spawn(async move {
        shown.replace(online(&store, all).await);
    });
    world.run();
    found.take().iter().map(|vcpu| vcpu.0).collect()
}

#[test]
fn vcpus_that_are_offline_are_not_to_run() {
    let world = with_vcpus(4, &[1, 2, 3]);
    assert_eq!(found_online(&world, 4), [0]);
    set(&world, 2, true);
    assert_eq!(found_online(&world, 4), [0, 2]);
    // The first one runs this; of others that nobody knows, nothing says that they are offline.
    set(&world, 0, false);
    assert_eq!(found_online(&world, 6), [0, 2, 4, 5]);
}

#[test]
fn a_change_of_vcpus_is_refused_once_in_the_log() {
    let world = with_vcpus(3, &[2]);
    let store = world.backend.services.store.clone();
    world.spawn(async move {
        let Err(error) = refuse_changes(&store, 3, &[VcpuId(0), VcpuId(1)]).await;
        panic!("{error}");
    });
    world.run();
    let mut other = Bystander::new(&world);
    assert_eq!(lines_about(&world, "is wanted"), 0, "all is as it was");
    // `xl vcpu-set storage 3` writes the nodes of all of them, again each time.
    for _ in 0..3 {
        (0..3).for_each(|vcpu| set(&world, vcpu, true));
    }
    assert_eq!(lines_about(&world, "vCPU 2 is wanted online"), 1);
    for _ in 0..3 {
        set(&world, 1, false);
    }
    assert_eq!(lines_about(&world, "vCPU 1 is wanted offline"), 1);
    set(&world, 1, true);
    set(&world, 1, false);
    assert_eq!(lines_about(&world, "vCPU 1 is wanted offline"), 2);
    assert_eq!(lines_about(&world, "is wanted"), 3);
    other.io();
}
