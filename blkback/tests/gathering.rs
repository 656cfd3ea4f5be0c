//! Requests that wait for others, at a store that is too busy now and then, among barriers, and on several queues.

use bulkhead_blkback_testkit::{Frontend, Guest, LateDisks, Random, World};
use bulkhead_ring::blkif::TransferKind;
use std::time::Duration;

/// The longest that anything waits for others to join it.
const HOLD: Duration = Duration::from_millis(2);
/// The longest time between two looks of the test's.
const LOOK: Duration = Duration::from_micros(60);
const STEPS: u32 = 10_000;

/// A frontend whose queues have up to `depth` requests outstanding, and the store that serves it.
struct Load<'a> {
    world: &'a World,
    store: &'a LateDisks,
    disk: Frontend<'a>,
    depth: usize,
    /// One of so many requests is a barrier, if any.
    barriers: Option<u64>,
    random: Random,
    sent: usize,
    answered: usize,
    /// The number of requests that the store completed.
    completed: usize,
    is_busy: bool,
    /// A queue is sent requests at one of so many looks.
    pace: u64,
}

impl Load<'_> {
    /// Has the frontend take its responses, and send requests now and then.
    fn ask(&mut self) {
        let random = &mut self.random;
        if random.below(300) == 0 {
            self.pace = [2, 10, 60][random.below(3) as usize];
        }
        for link in self.disk.queues() {
            self.answered += link.collect().len();
            let more = self.depth - link.outstanding();
            if more == 0 || random.below(self.pace) > 0 {
                continue;
            }
            for _ in 0..=random.below(more.min(4) as u64) {
                self.sent += 1;
                if self.barriers.is_some_and(|of| random.below(of) == 0) {
                    link.push_transfer(TransferKind::WriteBarrier, 0, 8, &[3; 4096]);
                } else {
                    link.push_read(8, 8);
                }
            }
            link.kick();
        }
    }

    /// Has the store complete some of its requests, in any order, and be busy or no longer.
    fn serve(&mut self) {
        let (store, random) = (self.store.last(), &mut self.random);
        if random.below(50) == 0 {
            self.is_busy = !self.is_busy;
            store.be_busy(self.is_busy);
        }
        // It completes about as many as it gets, so that it has few or many for a while.
        while store.held() > 0 && random.below(self.pace + 1) == 0 {
            store.release(random.below(store.held() as u64) as usize);
            self.completed += 1;
        }
    }

    fn outstanding(&mut self) -> usize {
        self.disk.queues().map(|link| link.outstanding()).sum()
    }

    /// Returns whether there is something to be done at once, or soon: a request for the store, or a response to be
    /// shown while the store has no request.
    fn is_due(&mut self) -> bool {
        let held = self.store.last().held();
        let untaken = self.barriers.is_none() && self.sent > self.completed + held;
        !self.is_busy && (untaken || held == 0 && self.outstanding() > 0)
    }

    /// Returns what changes when that is done.
    fn progress(&self) -> (usize, usize) {
        let held = self.store.last().held();
        (
            self.answered * usize::from(held == 0),
            self.completed + held,
        )
    }
}

/// Serves a frontend for a while. Nothing that the store could take waits for longer than responses are held back, and
/// neither does a response while the store has nothing to do.
fn serve(queues: usize, depth: usize, barriers: Option<u64>, seed: u64) {
    let (world, late) = World::with_late_disks();
    let guest = Guest::new(&world);
    let mut load = Load {
        world: &world,
        store: &late,
        disk: guest.with_queues("xvdd", "ram:disk0", queues),
        depth,
        barriers,
        random: Random::new(seed),
        sent: 0,
        answered: 0,
        completed: 0,
        is_busy: false,
        pace: 2,
    };
    let (mut since, mut before) = (world.sim.now(), (0, 0));
    let mut longest = Duration::ZERO;
    for _ in 0..STEPS {
        load.ask();
        world.run();
        load.serve();
        let (now, progress) = (world.sim.now(), load.progress());
        if !load.is_due() || progress != before {
            (since, before) = (now, progress);
        }
        longest = longest.max(now.since(since));
        let pause = load.random.below(LOOK.as_micros() as u64 + 1);
        world.wait(Duration::from_micros(pause));
    }
    assert!(
        longest <= HOLD + LOOK,
        "{queues}, {depth}, {barriers:?}, {seed}: {longest:?}"
    );
    assert!(load.answered > STEPS as usize / 20, "{}", load.answered);
    finish(&mut load);
    load.disk.detach();
    world.nothing_left();
}

/// Completes all that is outstanding.
fn finish(load: &mut Load) {
    let store = load.store.last();
    store.be_busy(false);
    let begun = load.world.sim.now();
    while load.outstanding() > 0 {
        store.release_backwards();
        load.world.wait(LOOK);
        for link in load.disk.queues() {
            link.collect();
        }
        assert!(load.world.sim.now().since(begun) < HOLD * 16);
    }
}

#[test]
fn a_store_that_may_be_busy_is_given_what_waits_in_time() {
    for (queues, depth) in [(1, 32), (1, 8), (2, 16), (2, 3)] {
        for seed in 0..3 {
            serve(queues, depth, None, seed);
            serve(queues, depth, Some(40), seed);
        }
    }
}
