//! Long discards that no guest waits for any more, and those that one still waits for.

use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback_testkit::{
    Bystander, DeviceHook, Frontend, Guest, SECTORS, Setup, World, content,
};
use bulkhead_images::DiscardMode;
use bulkhead_ring::blkif::{BlkifSector, Discard, Operation, Request, Status};
use bulkhead_xen_sim::xenstore::toolstack;
use bulkhead_xenbus::XenbusState;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const MIB: usize = 1 << 20;
/// The discarded disk's size in slices of a mebibyte.
const SLICES: usize = 8;
/// The number of discards that fill a ring.
const DISCARDS: usize = 32;

/// Returns a machine with a larger image, `large`, and the hook that runs at the calls to the device of its disk
/// `xvdl`.
fn world(discard: DiscardMode) -> (World, DeviceHook) {
    let hook = DeviceHook::default();
    let mut setup = Setup {
        layer: Some(hook.layer("xvdl")),
        reservation: true,
        options: QueueOptions {
            discard,
            ..QueueOptions::default()
        },
        ..Setup::default()
    };
    let large = ("large".into(), content(7, SLICES * MIB));
    setup.images.push(large);
    (World::with(setup), hook)
}

/// Asks for all of the disk to be discarded, as often as the ring has room.
fn discard_all(disk: &mut Frontend<'_>) {
    for _ in 0..DISCARDS {
        let id = disk.link().new_id();
        let discard = Discard {
            sector: BlkifSector(0),
            count: (SLICES * MIB / 512) as u64,
            secure: false,
        };
        let request = Request::of(id, Operation::Discard(discard));
        disk.link().push(&request, Vec::new());
    }
    disk.link().kick();
}

/// Lets `act` happen while the discards go on. Until each look of the queue at its device, dom0 works beside the driver
/// domain, and a millisecond passes. Returns a counter of the looks after `act`.
fn in_the_middle(world: &World, hook: &DeviceHook, act: impl Fn() + 'static) -> Rc<Cell<u32>> {
    let looks = Rc::new(Cell::new(0));
    let (counted, sim) = (looks.clone(), world.sim.clone());
    let mut before = 10;
    hook.set(move || {
        if before > 0 {
            before -= 1;
            if before == 0 {
                act();
            }
        } else {
            counted.set(counted.get() + 1);
        }
        sim.step_xenstored();
        sim.advance_to(sim.now() + Duration::from_millis(1));
    });
    hook.at_every_look();
    looks
}

fn is_open(world: &World) -> bool {
    let mut images = world.backend.services.catalog().images();
    let (.., open) = images
        .find(|(name, ..)| *name == "large")
        .expect("it is there");
    open > 0
}

#[test]
fn a_dead_guests_discards_are_dropped() {
    for mode in [DiscardMode::Keep, DiscardMode::Release] {
        let (world, hook) = world(mode);
        let mut other = Bystander::new(&world);
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvdl", "ram:large").connected();
        let (sim, vbd) = (world.sim.clone(), disk.vbd.clone());
        let looks = in_the_middle(&world, &hook, move || {
            sim.destroy_domain(vbd.frontend);
            toolstack::force_detach(&mut sim.store(), &vbd);
        });
        discard_all(&mut disk);
        world.run();
        assert!(!is_open(&world), "{mode}");
        let looks = looks.get();
        assert!(
            (1..64).contains(&looks),
            "{mode}: went on for {looks} looks"
        );
        hook.end();
        other.io();
        // The image is as good as ever.
        let mut again = Guest::new(&world).attach("xvda", "ram:large").connected();
        again.write(9, &[5; 4096]);
        assert!(again.read(9, 8) == [5; 4096]);
        again.detach();
        guest.destroy(vec![disk]);
        other.leave();
    }
}

#[test]
fn an_ending_driver_domain_does_not_wait_for_discards() {
    let (world, hook) = world(DiscardMode::Keep);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdl", "ram:large").connected();
    let closed = Rc::new(Cell::new(false));
    let (done, backend) = (closed.clone(), world.backend.clone());
    // The guest closes and so stops the queue, which goes on with the discards; then the driver domain
    // is asked to end.
    disk.say(XenbusState::Closing);
    disk.say(XenbusState::Closed);
    let looks = in_the_middle(&world, &hook, move || {
        let (done, ending) = (done.clone(), backend.clone());
        backend.services.handle.spawn(async move {
            ending.close().await;
            done.set(true);
        });
    });
    discard_all(&mut disk);
    world.run();
    world.wait(Duration::from_millis(100));
    assert!(closed.get(), "the driver domain waits for something");
    let looks = looks.get();
    assert!((1..128).contains(&looks), "went on for {looks} looks");
    hook.end();
    let answers = disk.link().collect();
    assert_eq!(answers.len(), DISCARDS, "the guest is alive and is told");
    let failed = |status| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    assert!(failed(Status::Error) > DISCARDS / 2);
    disk.take_down();
    toolstack::finish_detach(&mut world.sim.store(), &disk.vbd);
    world.nothing_left();
}

#[test]
fn a_guest_that_closes_has_its_discards_carried_out() {
    let (world, hook) = world(DiscardMode::Keep);
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdl", "ram:large").connected();
    let sim = world.sim.clone();
    let path = disk.vbd.frontend_path();
    let looks = in_the_middle(&world, &hook, move || {
        for state in [XenbusState::Closing, XenbusState::Closed] {
            sim.store()
                .write(&format!("{path}/state"), &state.to_string());
        }
    });
    discard_all(&mut disk);
    world.run();
    world.wait(Duration::from_millis(100));
    assert!(
        looks.get() > (SLICES * (DISCARDS - 3)) as u32,
        "{}",
        looks.get()
    );
    hook.end();
    let answers = disk.link().collect();
    assert_eq!(answers.len(), DISCARDS);
    assert!(answers.iter().all(|answer| answer.status == Status::Okay));
    disk.take_down();
    disk.detach();
    let mut disk = guest.attach("xvda", "ram:large").connected();
    assert!(disk.read(SECTORS, 128) == [0; 65536]);
    disk.detach();
    world.nothing_left();
}
