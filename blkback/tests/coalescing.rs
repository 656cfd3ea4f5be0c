//! The sleeps of a queue while requests gather, on a clock that only the tests move.

use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback_testkit::{
    Frontend, Guest, IMAGE_SIZE, LateDisks, Setup, Style, World, content,
};
use bulkhead_xen::Instant;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

/// The longest that anything waits for others to join it.
const HOLD: Duration = Duration::from_millis(2);
/// The time from one request to the next.
const GAP: Duration = Duration::from_micros(20);
const SECOND: Duration = Duration::from_secs(1);

/// Keeps `depth` requests outstanding, one more every [`GAP`], until `requests` have been answered.
fn keep_busy(world: &World, disk: &mut Frontend<'_>, depth: usize, requests: usize) {
    let mut answered = 0;
    while answered < requests {
        let link = disk.link();
        answered += link.collect().len();
        if link.outstanding() < depth {
            link.push_read(8, 8);
            link.kick();
        }
        world.wait(GAP);
    }
}

/// Lets the frontend have its answers, and returns the time that it waited for them.
fn finish(world: &World, disk: &mut Frontend<'_>) -> Duration {
    let begun = world.sim.now();
    while disk.link().outstanding() > 0 {
        world.wait(Duration::from_micros(10));
        disk.link().collect();
        assert!(world.sim.now().since(begun) < SECOND, "it is not answered");
    }
    world.sim.now().since(begun)
}

/// Returns the number of times that the driver domain has blocked since the count was `before`.
fn blocked(world: &World, before: u64) -> u64 {
    world.storage.stats().block_calls - before
}

#[test]
fn an_idle_queue_wakes_nobody() {
    for depth in [1, 4, 32] {
        let world = World::new();
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        keep_busy(&world, &mut disk, depth, 2000);
        finish(&world, &mut disk);
        world.wait(HOLD * 2);
        let before = blocked(&world, 0);
        world.wait(60 * SECOND);
        assert_eq!(blocked(&world, before), 0, "depth {depth}");
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_frontend_notifies_once_for_a_batch() {
    for persistent in [false, true] {
        // A closed loop is polled otherwise, and this clock stands still meanwhile.
        let world = World::with(Setup {
            options: QueueOptions {
                poll: Some(Duration::ZERO),
                ..QueueOptions::default()
            },
            ..Setup::default()
        });
        let guest = Guest::new(&world);
        let disk = guest.attach("xvda", "ram:disk0");
        let mut disk = disk.styled(Style::persistent(persistent)).connected();
        keep_busy(&world, &mut disk, 32, 2000);
        let before = (world.storage.stats(), guest.domain.stats());
        keep_busy(&world, &mut disk, 32, 3200);
        let (storage, frontend) = (
            world.storage.stats() - before.0,
            guest.domain.stats() - before.1,
        );
        assert!(frontend.notifications_sent < 3200 / 8, "{frontend:?}");
        assert!(storage.notifications_sent < 3200 / 8, "{storage:?}");
        // Woken for the batch, and now and then by a deadline.
        assert!(storage.block_calls < 3200 / 4, "{storage:?}");
        finish(&world, &mut disk);
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn who_asks_for_less_than_a_batch_is_served_within_the_deadline() {
    for depth in [2, 8, 32] {
        for left in 1..depth {
            let world = World::new();
            let guest = Guest::new(&world);
            let mut disk = guest.attach("xvda", "ram:disk0").connected();
            keep_busy(&world, &mut disk, depth, 1000);
            finish(&world, &mut disk);
            // It is expected to go on as before, and no notification is asked for but that of a batch.
            for _ in 0..left {
                disk.link().push_read(8, 8);
            }
            disk.link().kick();
            let took = finish(&world, &mut disk);
            assert!(took <= HOLD, "{left} of {depth} took {took:?}");
            disk.detach();
            world.nothing_left();
        }
    }
}

#[test]
fn one_request_after_a_pause_is_served_without_any_time() {
    for depth in [1, 32] {
        let world = World::new();
        let guest = Guest::new(&world);
        let mut disk = guest.attach("xvda", "ram:disk0").connected();
        let image = content(0, IMAGE_SIZE);
        keep_busy(&world, &mut disk, depth, 1000);
        finish(&world, &mut disk);
        for _ in 0..20 {
            world.wait(SECOND);
            let now = world.sim.now();
            assert!(disk.read(8, 8) == image[4096..][..4096]);
            // The first ones may be taken for the beginning of what there was before.
            let took = world.sim.now().since(now);
            assert!(took <= HOLD, "{took:?}");
        }
        let now = world.sim.now();
        assert!(disk.read(8, 8) == image[4096..][..4096]);
        assert_eq!(world.sim.now(), now, "depth {depth}");
        disk.detach();
        world.nothing_left();
    }
}

#[test]
fn a_producer_index_that_moves_without_a_notification_costs_nothing_and_is_seen() {
    let world = World::new();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvda", "ram:disk0").connected();
    keep_busy(&world, &mut disk, 32, 2000);
    // While a batch is on its way, a deadline is behind it.
    let mut before = blocked(&world, 0);
    let mut answered = disk.link().collect().len();
    for _ in 0..200 {
        if disk.link().ring.free() > 0 {
            disk.link().push_read(8, 8);
            let _owed = disk.link().ring.publish();
        }
        world.wait(GAP);
        answered += disk.link().collect().len();
    }
    assert!(answered > 0, "nothing was seen");
    assert!(blocked(&world, before) < 200, "{}", blocked(&world, before));
    // When the queue is idle it wakes nobody, however the index moves.
    world.wait(SECOND);
    disk.link().collect();
    before = blocked(&world, 0);
    while disk.link().ring.free() > 0 {
        disk.link().push_read(8, 8);
        let _owed = disk.link().ring.publish();
        world.wait(GAP);
    }
    world.wait(SECOND);
    assert_eq!(blocked(&world, before), 0);
    // Any notification is enough.
    disk.link().notify();
    assert!(finish(&world, &mut disk) <= HOLD);
    disk.detach();
    world.nothing_left();
}

/// The number of requests after which the frontend of a store that answers later is known.
const WARM_UP: usize = 500;

/// The cost of serving requests with a store that answers later.
#[derive(Debug, Default)]
struct Late {
    /// The notifications that the frontend sent, and that it got.
    notifications: (u64, u64),
    /// The longest that a request waited for the store to get it.
    longest: Duration,
    /// The number of times that the store had nothing to do while a request waited.
    starved: u32,
    /// The number of times that the store got requests.
    given: u32,
    took: Duration,
}

/// A frontend that keeps `depth` requests outstanding, one more every [`GAP`], and the store that serves it, which takes
/// `latency` for each and works on all that it has at a time.
struct LateLoad<'a> {
    world: &'a World,
    store: &'a LateDisks,
    disk: Frontend<'a>,
    depth: usize,
    latency: Duration,
    /// When each request was sent that the store does not have yet, and when it got those that it has.
    sent: VecDeque<Instant>,
    held: VecDeque<Instant>,
    left: usize,
    cost: Late,
}

impl LateLoad<'_> {
    /// Has the frontend take its responses, and send a request.
    fn ask(&mut self) {
        let link = self.disk.link();
        self.left -= link.collect().len();
        if link.outstanding() < self.depth.min(self.left) {
            link.push_read(8, 8);
            link.kick();
            self.sent.push_back(self.world.sim.now());
        }
    }

    /// Has the store see what it was given, and complete what is due.
    fn serve(&mut self) {
        let (now, store, cost) = (self.world.sim.now(), self.store.last(), &mut self.cost);
        cost.given += u32::from(self.held.len() < store.held());
        while self.held.len() < store.held() {
            let came = self.sent.pop_front().expect("it has no more than was sent");
            cost.longest = cost.longest.max(now.since(came));
            self.held.push_back(now);
        }
        cost.starved += u32::from(self.held.is_empty() && !self.sent.is_empty());
        while let Some(&taken) = self.held.front()
            && now.since(taken) >= self.latency
        {
            self.held.pop_front();
            store.release(0);
        }
    }

    /// Goes on until `left` requests are left to be answered, on a clock that stands still while the driver domain runs.
    fn run(&mut self, left: usize) {
        while self.left > left {
            self.ask();
            self.world.run();
            self.serve();
            self.world.wait(GAP);
        }
    }

    /// The same on a clock that goes on by a microsecond for each look of the driver domain's, also of one that polls.
    fn run_against_time(&mut self, left: usize) {
        let (world, next) = (self.world, Cell::new(Instant(0)));
        let load = RefCell::new(self);
        world.run_until(|| {
            let mut load = load.borrow_mut();
            world.sim.advance(Duration::from_micros(1));
            let now = world.sim.now();
            if now >= next.get() {
                next.set(now + GAP);
                load.ask();
            }
            load.serve();
            load.left <= left
        });
    }
}

/// The clock while the driver domain runs.
#[derive(Clone, Copy, Debug)]
enum Clock {
    /// It stands still, so no queue is polled.
    Still,
    Ticking,
}

/// Serves a frontend that keeps `depth` requests outstanding at a store that takes `latency` for each. Returns the cost
/// of the last `requests` of them.
fn serve_from_late_store(
    clock: Clock,
    persistent: bool,
    depth: usize,
    latency: Duration,
    requests: usize,
) -> Late {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvdd", "ram:disk0");
    let mut load = LateLoad {
        world: &world,
        store: &late,
        disk: disk.styled(Style::persistent(persistent)).connected(),
        depth,
        latency,
        sent: VecDeque::new(),
        held: VecDeque::new(),
        left: WARM_UP + requests,
        cost: Late::default(),
    };
    let run = match clock {
        Clock::Still => LateLoad::run,
        Clock::Ticking => LateLoad::run_against_time,
    };
    run(&mut load, requests);
    load.cost = Late::default();
    let begun = world.sim.now();
    let before = (world.storage.stats(), guest.domain.stats());
    run(&mut load, 0);
    let (storage, frontend) = (
        world.storage.stats() - before.0,
        guest.domain.stats() - before.1,
    );
    load.cost.notifications = (frontend.notifications_sent, storage.notifications_sent);
    load.cost.took = world.sim.now().since(begun);
    load.disk.detach();
    world.nothing_left();
    load.cost
}

#[test]
fn a_store_at_work_is_given_several_requests_for_one_notification() {
    const REQUESTS: usize = 800;
    for (persistent, latency) in [(false, GAP * 32), (true, GAP * 100)] {
        let late = serve_from_late_store(Clock::Still, persistent, 32, latency, REQUESTS);
        let (sent, received) = late.notifications;
        let most = REQUESTS as u64 / 4;
        assert!(
            sent < most && received < most && late.starved == 0,
            "{latency:?}: {late:?}"
        );
        assert!(
            u64::from(late.given) < most * 6 / 5,
            "{latency:?}: {late:?}"
        );
        assert!(late.longest <= HOLD, "one has waited {:?}", late.longest);
    }
}

/// A frontend that waits for its responses is not kept waiting for half of them.
#[test]
fn a_store_that_is_slower_than_the_guest_has_most_of_its_requests() {
    const REQUESTS: u32 = 800;
    for latency in [GAP * 32, GAP * 100] {
        let late = serve_from_late_store(Clock::Still, false, 32, latency, REQUESTS as usize);
        // With 32 requests in the store all the time.
        let least = latency * REQUESTS / 32;
        assert!(late.took < least * 3 / 2, "{least:?} would do: {late:?}");
    }
}

/// Where the guest takes longer for its requests than the store, the store has few of them at a time.
#[test]
fn a_store_that_is_faster_than_the_guest_is_given_several_requests_at_once() {
    const REQUESTS: u32 = 800;
    for (clock, persistent) in [
        (Clock::Still, false),
        (Clock::Still, true),
        (Clock::Ticking, false),
        (Clock::Ticking, true),
    ] {
        for latency in [GAP / 2, GAP, GAP * 2, GAP * 3, GAP * 6] {
            let late = serve_from_late_store(clock, persistent, 32, latency, REQUESTS as usize);
            let (sent, received) = late.notifications;
            let most = u64::from(REQUESTS);
            assert!(
                sent < most / 4 && received < most / 7,
                "{clock:?}, {latency:?}: {late:?}"
            );
            assert!(
                late.given < REQUESTS / 5,
                "{clock:?}, {latency:?}: {late:?}"
            );
            // The guest has responses to work on all the time. The last ones are waited for in vain.
            let most = GAP * REQUESTS * 11 / 10 + HOLD;
            assert!(late.took < most, "{clock:?}, {latency:?}: {late:?}");
            assert!(late.longest <= HOLD, "one has waited {:?}", late.longest);
        }
    }
}

#[test]
fn a_store_with_few_requests_is_given_each_at_once() {
    for (persistent, depth) in [(true, 1), (false, 2), (true, 3)] {
        let late = serve_from_late_store(Clock::Still, persistent, depth, GAP * 8, 100);
        assert_eq!(late.longest, Duration::ZERO, "depth {depth}");
    }
}

/// The store has so much to do that a request may wait for others, and completes some of it all the time.
#[test]
fn a_request_waits_no_longer_for_what_the_store_completes_meanwhile() {
    const SELDOM: Duration = Duration::from_micros(300);
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    let mut waited = Duration::ZERO;
    for _ in 0..20 {
        // More than will be there below, so that others may come.
        for requests in [32, 28] {
            for _ in 0..requests {
                disk.link().push_read(8, 8);
                disk.link().kick();
                // Requests come so seldom that the next one is waited for at several looks.
                world.wait(SELDOM * 3 / 2);
            }
            wait_until_held(&world, &late, requests);
            if requests == 32 {
                late.last().release_backwards();
                finish(&world, &mut disk);
            }
        }
        disk.link().push_read(8, 8);
        disk.link().kick();
        let begun = world.sim.now();
        let (mut held, mut done) = (28, 0);
        while late.last().held() <= held {
            late.last().release(0);
            (held, done) = (held - 1, done + 1);
            world.wait(SELDOM);
        }
        waited = waited.max(world.sim.now().since(begun));
        assert!(done < 21, "the store ran out of work");
        late.last().release_backwards();
        finish(&world, &mut disk);
    }
    assert!(waited > SELDOM, "nothing waits");
    assert!(waited <= HOLD + SELDOM, "one waits for {waited:?}");
    disk.detach();
    world.nothing_left();
}

/// Waits until a store has `count` requests.
fn wait_until_held(world: &World, late: &LateDisks, count: usize) {
    let begun = world.sim.now();
    while late.last().held() < count {
        world.wait(GAP);
        let took = world.sim.now().since(begun);
        assert!(took <= HOLD, "one waits for {took:?}");
    }
}

#[test]
fn a_store_that_answers_later_has_each_request_at_once_if_it_has_few() {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut disk = guest.attach("xvdd", "ram:disk0").connected();
    for _ in 0..200 {
        // Large batches, so that more are expected.
        for _ in 0..8 {
            disk.link().push_read(8, 8);
            disk.link().kick();
            world.wait(GAP);
        }
        wait_until_held(&world, &late, 8);
        late.last().release_backwards();
        world.wait(HOLD);
        assert_eq!(disk.link().collect().len(), 8);
    }
    // In a closed loop, even the first ones would wait for others.
    world.wait(HOLD * 40);
    for held in 1..8 {
        disk.link().push_read(8, 8);
        disk.link().kick();
        world.run();
        // From four on, it has enough to do that the next one may wait for another.
        let at_once = late.last().held() == held;
        assert!(at_once || held > 4, "the store has {} alone", held - 1);
        wait_until_held(&world, &late, held);
    }
    late.last().release_backwards();
    finish(&world, &mut disk);
    disk.detach();
    world.nothing_left();
}
