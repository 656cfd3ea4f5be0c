//! The sleeps of a queue while requests gather, on a clock that only the tests move.

use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback_testkit::{
    Frontend, Guest, IMAGE_SIZE, LateDisks, Setup, Style, World, content,
};
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
struct Late {
    /// The notifications that the frontend sent, and that it got.
    notifications: (u64, u64),
    /// The longest that a request waited for the store to get it.
    longest: Duration,
    /// The number of times that the store had nothing to do while a request waited.
    starved: u32,
}

/// Serves a frontend that keeps `depth` requests outstanding, one more every [`GAP`], at a store that takes `latency`
/// for each and works on all that it has at a time. Returns the cost of the last `requests` of them.
fn serve_from_late_store(
    persistent: bool,
    depth: usize,
    latency: Duration,
    requests: usize,
) -> Late {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let disk = guest.attach("xvdd", "ram:disk0");
    let mut disk = disk.styled(Style::persistent(persistent)).connected();
    // When each request was sent that the store does not have yet, and when it got those that it has.
    let (mut sent, mut held) = (VecDeque::new(), VecDeque::new());
    let (mut longest, mut starved, mut answered) = (Duration::ZERO, 0, 0);
    let mut before = None;
    while answered < WARM_UP + requests {
        answered += disk.link().collect().len();
        if answered >= WARM_UP && before.is_none() {
            before = Some((world.storage.stats(), guest.domain.stats()));
            (longest, starved) = (Duration::ZERO, 0);
        }
        let now = world.sim.now();
        let link = disk.link();
        if answered + link.outstanding() < WARM_UP + requests && link.outstanding() < depth {
            link.push_read(8, 8);
            link.kick();
            sent.push_back(now);
        }
        world.run();
        let store = late.last();
        while held.len() < store.held() {
            let came = sent.pop_front().expect("it has no more than was sent");
            longest = longest.max(now.since(came));
            held.push_back(now);
        }
        starved += u32::from(held.is_empty() && !sent.is_empty());
        while let Some(&taken) = held.front()
            && now.since(taken) >= latency
        {
            held.pop_front();
            store.release(0);
        }
        world.wait(GAP);
    }
    let before = before.expect("there were as many");
    let (storage, frontend) = (
        world.storage.stats() - before.0,
        guest.domain.stats() - before.1,
    );
    let notifications = (frontend.notifications_sent, storage.notifications_sent);
    disk.detach();
    world.nothing_left();
    Late {
        notifications,
        longest,
        starved,
    }
}

#[test]
fn a_store_at_work_is_given_several_requests_for_one_notification() {
    const REQUESTS: usize = 800;
    for (persistent, latency) in [(false, GAP * 32), (true, GAP * 100)] {
        let late = serve_from_late_store(persistent, 32, latency, REQUESTS);
        let (sent, received) = late.notifications;
        let most = REQUESTS as u64 / 4;
        assert!(
            sent < most && received < most && late.starved == 0,
            "{latency:?}: {sent} sent, {received} received, {} starved",
            late.starved
        );
        assert!(late.longest <= HOLD, "one has waited {:?}", late.longest);
    }
}

/// Where the guest takes longer for its requests than the store, the store has few of them at a time.
#[test]
fn a_store_that_is_faster_than_the_guest_is_given_several_requests_for_one_notification() {
    const REQUESTS: usize = 800;
    for persistent in [false, true] {
        for latency in [GAP / 2, GAP, GAP * 2, GAP * 3, GAP * 6] {
            let late = serve_from_late_store(persistent, 32, latency, REQUESTS);
            let (sent, received) = late.notifications;
            let most = REQUESTS as u64 / 5;
            assert!(
                sent < most && received < REQUESTS as u64 / 8,
                "{latency:?}: {sent} sent, {received} received"
            );
            assert!(late.longest <= HOLD, "one has waited {:?}", late.longest);
        }
    }
}

#[test]
fn a_store_with_few_requests_is_given_each_at_once() {
    for (persistent, depth) in [(true, 1), (false, 2), (true, 3)] {
        let late = serve_from_late_store(persistent, depth, GAP * 8, 100);
        assert_eq!(late.longest, Duration::ZERO, "depth {depth}");
    }
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
