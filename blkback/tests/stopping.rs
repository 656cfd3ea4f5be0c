//! A queue that is to stop: the requests that the frontend had made are finished, later ones are not, and the other
//! queues of the vCPU have their turns meanwhile.

use bulkhead_blkback_testkit::{DeviceHook, Frontend, Guest, Setup, Style, World};
use bulkhead_ring::blkif::{Opcode, SLOT_SIZE};
use bulkhead_ring::{Index, RingMemory, SharedPages};
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::XenbusState;
use std::cell::Cell;
use std::rc::Rc;

/// The slots of a ring of 16 pages.
const SLOTS: u32 = 512;

/// The number of requests that the greedy disk's device got, in all and until the other guest had its answer.
#[derive(Clone, Copy, Default)]
struct Seen {
    asked: u32,
    before_the_other: Option<u32>,
}

/// Returns a flush whose identifier makes its response, read as a request, the same flush again: slots that the backend
/// has answered need not be written anew.
fn eternal_flush() -> [u8; SLOT_SIZE] {
    let mut slot = [0; SLOT_SIZE];
    slot[0] = Opcode::FLUSH_DISKCACHE.0;
    slot[8] = Opcode::FLUSH_DISKCACHE.0;
    slot
}

/// Closes the disk of a guest whose ring was filled by `fill` while its queue slept. Another guest asks for one read as
/// soon as the first of those requests is served. `meanwhile` runs at each of them.
fn close_with_a_full_ring(
    fill: impl Fn(&mut Frontend<'_>),
    meanwhile: impl Fn(u32, &SharedPages) + 'static,
) -> Seen {
    let device_hook = DeviceHook::default();
    let world = World::with(Setup {
        layer: Some(device_hook.layer("xvdg")),
        ..Setup::default()
    });
    let guests = [Guest::with_memory(&world, 8192), Guest::new(&world)];
    let style = Style {
        ring_pages: 16,
        ..Style::default()
    };
    let mut greedy = guests[0]
        .attach("xvdg", "ram:disk0")
        .styled(style)
        .connected();
    let mut modest = guests[1].attach("xvda", "ram:disk1").connected();
    world.run();
    fill(&mut greedy);
    // Shown without a notification: the queue sleeps on until it is told to stop.
    let _ = greedy.link().ring.publish();
    modest.link().push_read(0, 8);
    let _ = modest.link().ring.publish();
    // SAFETY: domain memory stays mapped as long as the machine.
    let theirs = unsafe { SharedPages::new(greedy.link().memory, 16) }.unwrap();
    // SAFETY: as above.
    let ours = unsafe { SharedPages::new(modest.link().memory, 1) }.unwrap();
    let (domain, port) = (modest.link().domain.clone(), modest.link().port);
    let answered = ours.load(Index::ResponseProducer);
    let seen = Rc::new(Cell::new(Seen::default()));
    let counting = seen.clone();
    device_hook.set(move || {
        let mut seen = counting.get();
        if seen.asked == 0 {
            domain.hypervisor().notify(port).expect("the port is open");
        }
        if ours.load(Index::ResponseProducer) != answered {
            seen.before_the_other = seen.before_the_other.or(Some(seen.asked));
        }
        seen.asked += 1;
        meanwhile(seen.asked, &theirs);
        counting.set(seen);
    });
    greedy.go(XenbusState::Closed);
    device_hook.end();
    assert_eq!(greedy.backend(), Some(XenbusState::Closed));
    assert_eq!(
        modest.link().collect().len(),
        1,
        "the other guest is served"
    );
    greedy.take_down();
    greedy.detach();
    modest.detach();
    world.nothing_left();
    seen.get()
}

#[test]
fn a_guest_that_asks_without_end_while_its_disk_stops_is_not_served_on() {
    let seen = close_with_a_full_ring(
        |greedy| (0..SLOTS).for_each(|_| greedy.link().push_slot(&eternal_flush())),
        |asked, ring| {
            // Whenever the ring was served, it is full again.
            let producer = asked.div_ceil(SLOTS) * SLOTS + SLOTS;
            ring.store(Index::RequestProducer, producer);
        },
    );
    assert_eq!(seen.asked, SLOTS, "what was on the ring, and no more");
}

#[test]
fn others_are_served_while_what_was_asked_for_is_finished() {
    // Eleven pages each: twelve sweeps.
    let seen = close_with_a_full_ring(
        |greedy| (0..SLOTS).for_each(|_| _ = greedy.link().push_read(0, 11 * 8)),
        |_, _| (),
    );
    assert_eq!(seen.asked, SLOTS, "each of them is finished");
    let waited = seen
        .before_the_other
        .expect("the other guest is served meanwhile");
    assert!(waited <= 4 * 512 / 11, "it waited for {waited} requests");
}
