//! Guests that ask without end for all that a vCPU can do: each gets its share, whatever the number of its queues.

use bulkhead_blkback_testkit::{DeviceHook, Frontend, Guest, Link, Setup, Style, World};
use bulkhead_ring::blkif::SLOT_SIZE;
use bulkhead_ring::{Index, RingMemory, SharedPages};
use bulkhead_xenbus::XenbusState;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The number of answers that are counted.
const ANSWERS: usize = 20_000;

/// The slots of a ring of one page.
const SLOTS: u32 = 32;

/// A guest's rings, which are full again at every look.
#[derive(Default)]
struct Asking {
    links: Vec<Link>,
    answered: usize,
}

impl Asking {
    /// Returns the rings of these disks.
    fn of(disks: &mut [Frontend<'_>]) -> Asking {
        Asking {
            links: disks.iter_mut().flat_map(Frontend::forget).collect(),
            answered: 0,
        }
    }

    fn collect(&mut self) {
        for link in &mut self.links {
            self.answered += link.collect().len();
        }
    }

    fn fill(&mut self) {
        for link in &mut self.links {
            while link.ring.free() > 0 {
                link.push_flush();
            }
            link.kick();
        }
    }
}

#[test]
fn a_guest_with_many_queues_gets_about_twice_as_much_at_most() {
    let hook = DeviceHook::default();
    let world = World::with(Setup {
        layer: Some(hook.layer("vbd")),
        ..Setup::default()
    });
    let guests = [Guest::new(&world), Guest::new(&world)];
    let mut greedy = ["xvda", "xvdb"].map(|name| guests[0].with_queues(name, "null:1G", 4));
    let mut modest = [guests[1].with_queues("xvda", "null:1G", 1)];
    let both = [Asking::of(&mut greedy), Asking::of(&mut modest)];
    let both = Rc::new(RefCell::new(both));
    let counted = Rc::new(Cell::new(None));
    let (asking, counting) = (both.clone(), counted.clone());
    let ask = move || {
        let mut both = asking.borrow_mut();
        both.iter_mut().for_each(Asking::collect);
        let answered = [both[0].answered, both[1].answered];
        if answered[0] + answered[1] < ANSWERS {
            both.iter_mut().for_each(Asking::fill);
        } else if counting.get().is_none() {
            // All have asked until now. They do not go on, so that the test comes to an end.
            counting.set(Some(answered));
        }
    };
    hook.set(ask.clone());
    ask();
    world.run();
    let [many, one] = counted.get().expect("all was counted");
    assert!(
        2 * many <= 5 * one,
        "{many} for eight queues, {one} for one"
    );
    assert!(one <= many, "{many} for eight queues, {one} for one");
    hook.end();
    both.borrow_mut().iter_mut().for_each(Asking::collect);
    for disk in greedy.iter().chain(&modest) {
        disk.go(XenbusState::Closing);
        disk.go(XenbusState::Closed);
    }
    for asking in both.take() {
        asking.links.into_iter().for_each(Link::take_down);
    }
    greedy
        .into_iter()
        .chain(modest)
        .for_each(Frontend::detach_at_once);
    world.nothing_left();
}

/// Counts requests of the greedy guest as they are served, and the ones that were when the modest guest's ring had a response.
/// Each time, does what is asked for with the count.
fn count_until_answered(
    hook: &DeviceHook,
    modest: SharedPages,
    mut then: impl FnMut(u32) + 'static,
) -> Rc<Cell<(u32, Option<u32>)>> {
    let answered = modest.load(Index::ResponseProducer);
    let served = Rc::new(Cell::new((0, None)));
    let counting = served.clone();
    hook.set(move || {
        let (count, mut waited) = counting.get();
        if modest.load(Index::ResponseProducer) != answered {
            waited = waited.or(Some(count));
        }
        then(count);
        counting.set((count + 1, waited));
    });
    served
}

/// The requests that the greedy guest makes again and again.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Flush,
    Read { persistent: bool },
}

#[test]
fn a_guest_that_never_stops_asking_gets_no_more_than_its_turn() {
    // It has a processor of its own: as soon as one of its requests is served, the next one is on the ring.
    for asked in [
        Asked::Flush,
        Asked::Read { persistent: false },
        Asked::Read { persistent: true },
    ] {
        let hook = DeviceHook::default();
        let world = World::with(Setup {
            layer: Some(hook.layer("xvdg")),
            ..Setup::default()
        });
        let guests = [Guest::new(&world), Guest::new(&world)];
        let style = Style::persistent(matches!(asked, Asked::Read { persistent: true }));
        let mut greedy = guests[0]
            .attach("xvdg", "ram:disk0")
            .styled(style)
            .connected();
        let mut modest = guests[1].attach("xvda", "ram:disk1").connected();
        // SAFETY: domain memory stays mapped as long as the machine.
        let [theirs, ours] = [greedy.link().memory, modest.link().memory]
            .map(|ring| unsafe { SharedPages::new(ring, 1) }.unwrap());
        let slot_of = |index: u32| 64 + index as usize % SLOTS as usize * SLOT_SIZE;
        // Its page is mapped from now on, if it stays mapped.
        greedy.read(0, 8);
        let first = theirs.load(Index::RequestProducer);
        let mut request = [0; SLOT_SIZE];
        for _ in 0..SLOTS {
            match asked {
                Asked::Flush => _ = greedy.link().push_flush(),
                Asked::Read { .. } if request == [0; SLOT_SIZE] => {
                    greedy.link().push_read(0, 8);
                    theirs.read(slot_of(first), &mut request);
                }
                Asked::Read { .. } => greedy.link().push_slot(&request),
            }
        }
        theirs.read(slot_of(first), &mut request);
        let served = count_until_answered(&hook, ours, move |count| {
            // Not for ever, so that the test comes to an end.
            if (1..5000).contains(&count) {
                theirs.write(slot_of(first + SLOTS + count - 1), &request);
                theirs.store(Index::RequestProducer, first + SLOTS + count);
            }
        });
        greedy.link().kick();
        modest.link().push_read(0, 8);
        modest.link().kick();
        world.run();
        let (count, waited) = served.get();
        assert!(count >= 5000, "{asked:?}: it was served {count} times");
        let waited = waited.expect("the modest guest was served meanwhile");
        assert!(
            waited <= 4 * SLOTS,
            "{asked:?}: it waited for {waited} of the other's"
        );
        assert_eq!(modest.link().collect().len(), 1);
        hook.end();
        greedy.go(XenbusState::Closing);
        greedy.go(XenbusState::Closed);
        greedy.take_down();
        greedy.detach();
        modest.detach();
        world.nothing_left();
    }
}

/// How many pages of one guest's requests are served in a turn, at most, where no request has more than 11.
const PAGES_OF_A_TURN: u32 = 256 + 11;

#[test]
fn a_guest_with_a_large_ring_of_large_requests_gets_no_more_than_its_turn() {
    const PAGES: u32 = 11;
    for persistent in [true, false] {
        let hook = DeviceHook::default();
        let world = World::with(Setup {
            layer: Some(hook.layer("xvdg")),
            ..Setup::default()
        });
        let guests = [Guest::with_memory(&world, 2048), Guest::new(&world)];
        let style = Style {
            ring_pages: 16,
            ..Style::persistent(persistent)
        };
        let mut greedy = guests[0]
            .attach("xvdg", "ram:disk0")
            .styled(style)
            .connected();
        let mut modest = guests[1].attach("xvda", "ram:disk1").connected();
        // SAFETY: domain memory stays mapped as long as the machine.
        let [theirs, ours] = [greedy.link().memory, modest.link().memory]
            .map(|ring| unsafe { SharedPages::new(ring, 1) }.unwrap());
        // Its pages are mapped from now on, if they stay mapped.
        let data = vec![1; PAGES as usize * 4096];
        greedy.write(0, &data);
        let first = theirs.load(Index::RequestProducer);
        greedy.link().push_write(0, &data);
        let mut request = [0; SLOT_SIZE];
        theirs.read(64 + first as usize * SLOT_SIZE, &mut request);
        while greedy.link().ring.free() > 0 {
            greedy.link().push_slot(&request);
        }
        let served = count_until_answered(&hook, ours, |_| {});
        greedy.link().kick();
        modest.link().push_read(0, 1);
        modest.link().kick();
        world.run();
        let (count, waited) = served.get();
        assert!(count >= 500, "persistent {persistent}: {count} were served");
        let waited = waited.expect("the modest guest was served meanwhile");
        println!("persistent {persistent}: it waited for {waited} of {count}");
        // Its disk has its turn, and its response is seen when the other's next turn has begun.
        assert!(
            waited * PAGES <= PAGES_OF_A_TURN + PAGES,
            "persistent {persistent}: it waited for {waited} of the other's"
        );
        assert_eq!(modest.link().collect().len(), 1);
        hook.end();
        greedy.link().collect();
        greedy.go(XenbusState::Closing);
        greedy.go(XenbusState::Closed);
        greedy.take_down();
        greedy.detach();
        modest.detach();
        world.nothing_left();
    }
}
