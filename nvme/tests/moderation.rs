//! Interrupts that are held back while the controller has many commands.

use bulkhead_images::Submitted;
use bulkhead_nvme_testing::world::{Buffer, Disk, World, read};
use bulkhead_nvme_testing::{Config, Treatment};
use proptest::prelude::*;
use std::time::Duration;

/// The longest time for which a completion is held back, and a moment.
const NOTICED: Duration = Duration::from_micros(2_050);

/// A guest whose task looks for completions only when it is woken.
struct Guest<'w> {
    disk: Disk<'w>,
    buffer: Buffer<'w>,
    free: Vec<usize>,
    wakes: usize,
    collected: usize,
}

impl<'w> Guest<'w> {
    fn new(world: &'w World) -> Guest<'w> {
        let mut guest = Guest {
            disk: world.open("nvme:03:00.0"),
            buffer: Buffer::new(world, 1),
            free: (0..32).collect(),
            wakes: 0,
            collected: 0,
        };
        guest.disk.collect();
        guest
    }

    fn ask(&mut self, count: usize) {
        for _ in 0..count {
            let Some(tag) = self.free.pop() else { break };
            let segment = [self.buffer.segment(0, 0, 512)];
            let submitted = self.disk.hand(tag, read(0), &segment);
            assert_eq!(submitted, Submitted::Pending);
        }
        self.disk.queue.flush_submissions();
        self.look();
    }

    /// Does what a woken task does.
    fn run(&mut self) {
        if self.disk.wakes.count() > self.wakes {
            self.wakes = self.disk.wakes.count();
            self.look();
        }
    }

    /// Has the controller complete that many of its 32 commands, one after another, so that its speed is known.
    fn keep_busy(&mut self, world: &World, count: usize) {
        self.ask(32);
        world.run();
        for _ in 0..count {
            world.fake.finish(0);
            world.wait(Duration::from_micros(50));
            self.run();
            self.ask(1);
            world.run();
        }
    }

    fn look(&mut self) {
        self.collected += self.disk.collect();
        for (tag, outcome) in self.disk.done.drain(..) {
            assert_eq!(outcome, Ok(()));
            self.free.push(tag);
        }
    }
}

fn held(config: Config) -> World {
    let world = World::started(config);
    world.fake.decide(|_| Treatment::Held);
    world
}

/// Returns the interrupts that the driver has taken, by what it tells the operator. Whoever asks has the controller asked
/// for its health, which interrupts once more.
fn taken(world: &World) -> u64 {
    let lines = world.lines();
    let (before, _) = lines.split_once(" interrupts").expect("a count");
    let count = before.rsplit(' ').next().map(str::parse);
    count.expect("a word").expect("a number")
}

#[test]
fn at_depth_32_few_completions_interrupt() {
    let world = held(Config::default());
    let mut guest = Guest::new(&world);
    let (interrupts, doorbells) = (taken(&world), world.fake.signals().0);
    let mut finished = 0;
    while finished < 1_000 {
        if !guest.free.is_empty() {
            guest.ask(32);
        }
        world.fake.step();
        world.fake.finish(0);
        finished += 1;
        world.wait(Duration::from_micros(100));
        guest.run();
    }
    world.wait(NOTICED);
    guest.run();
    assert_eq!(guest.collected, finished);
    let (interrupts, doorbells) = (
        taken(&world) - interrupts,
        world.fake.signals().0 - doorbells,
    );
    assert!(interrupts < 100, "{interrupts} for {finished}");
    assert!(doorbells < 250, "{doorbells} for {finished}");
    world.fake.finish_reversed();
    world.run();
    drop(guest);
    world.end();
}

/// A controller that is itself a program, as QEMU's is, completes commands in bursts, whenever its host lets it run.
#[test]
fn completions_in_bursts_interrupt_no_more_often() {
    for burst in [2, 3, 4, 5, 6, 7, 8] {
        let world = held(Config::default());
        let mut guest = Guest::new(&world);
        let (interrupts, doorbells) = (taken(&world), world.fake.signals().0);
        let mut finished = 0;
        while finished < 1_000 {
            // The guest sends requests while the controller is at work.
            for _ in 0..burst * 11 {
                world.wait(Duration::from_micros(10));
                guest.run();
                if !guest.free.is_empty() {
                    guest.ask(32);
                }
            }
            world.fake.step();
            (0..burst).for_each(|_| world.fake.finish(0));
            finished += burst;
        }
        world.wait(NOTICED);
        guest.run();
        assert_eq!(guest.collected, finished);
        let interrupts = taken(&world) - interrupts;
        let doorbells = world.fake.signals().0 - doorbells;
        let counted = format!("{interrupts}, {doorbells}, {finished}; {burst} at a time");
        assert!(interrupts < 100 && doorbells < 250, "{counted}");
        world.fake.finish_reversed();
        world.run();
        drop(guest);
        world.end();
    }
}

#[test]
fn the_controller_learns_once_of_what_was_taken_before_an_interrupt() {
    for sparing in [false, true] {
        let world = held(Config {
            sparing,
            ..Config::default()
        });
        let mut guest = Guest::new(&world);
        guest.free.truncate(7);
        guest.ask(7);
        world.run();
        let doorbells = world.fake.signals().0;
        for finished in 1..7 {
            world.fake.finish(0);
            // Its task is at work, and looks before the vCPU handles interrupts.
            guest.look();
            guest.look();
            assert_eq!(guest.collected, finished);
        }
        assert_eq!(world.fake.signals().0, doorbells, "{sparing}");
        world.run();
        assert_eq!(world.fake.signals().0, doorbells + 1, "{sparing}");
        world.fake.finish(0);
        world.run();
        guest.run();
        assert_eq!(guest.collected, 7, "the next one interrupts");
        drop(guest);
        world.end();
    }
}

#[test]
fn few_commands_are_not_held_back() {
    let world = held(Config::default());
    let mut guest = Guest::new(&world);
    guest.free.truncate(7);
    for finished in 1..200 {
        guest.ask(7);
        world.run();
        world.fake.finish(0);
        world.run();
        guest.run();
        assert_eq!(guest.collected, finished, "at once");
        world.wait(Duration::from_micros(100));
    }
    world.fake.finish_reversed();
    world.run();
    drop(guest);
    world.end();
}

#[test]
fn what_was_taken_without_an_interrupt_does_not_interrupt_afterwards() {
    for sparing in [false, true] {
        let world = held(Config {
            sparing,
            ..Config::default()
        });
        let mut guest = Guest::new(&world);
        guest.keep_busy(&world, 20);
        let (before, collected) = (taken(&world), guest.collected);
        // It tells of these while interrupts are held back; after that it does nothing for a while.
        for _ in 0..8 {
            world.fake.finish(0);
        }
        world.wait(2 * NOTICED);
        guest.run();
        assert_eq!(guest.collected, collected + 8, "{sparing}");
        // The controller was asked for its health, when that was read before.
        assert_eq!(taken(&world), before + 1, "{sparing}");
        world.fake.finish(0);
        world.run();
        assert_eq!(taken(&world), before + 3, "the next one interrupts");
        world.fake.finish_reversed();
        world.run();
        guest.run();
        drop(guest);
        world.end();
    }
}

#[test]
fn a_controller_that_has_stopped_completing_is_not_looked_at() {
    for sparing in [false, true] {
        let world = held(Config {
            sparing,
            ..Config::default()
        });
        let mut guest = Guest::new(&world);
        guest.keep_busy(&world, 20);
        world.wait(NOTICED);
        guest.run();
        let next = world.next_deadline().expect("commands may take too long");
        assert!(next.since(world.sim.now()) > Duration::from_millis(100));
        // The next completion interrupts.
        let collected = guest.collected;
        world.fake.finish(0);
        world.run();
        guest.run();
        assert_eq!(guest.collected, collected + 1, "{sparing}");
        world.fake.finish_reversed();
        world.run();
        drop(guest);
        world.end();
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(usize),
    Finish(usize),
    Pass(u64),
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..33_usize).prop_map(Step::Ask),
        4 => (1..9_usize).prop_map(Step::Finish),
        4 => (1..400_u64).prop_map(Step::Pass),
        1 => Just(Step::Settle),
    ];
    proptest::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever comes in between, each completion is noticed in time: the look at the commands once in a second, which
    /// would notice it too, is later.
    #[test]
    fn every_completion_is_noticed(sparing: bool, untimely: bool, steps in steps()) {
        let world = held(Config { sparing, untimely, ..Config::default() });
        let mut guest = Guest::new(&world);
        guest.keep_busy(&world, 12);
        for step in steps {
            match step {
                Step::Ask(count) => {
                    guest.ask(count);
                    world.run();
                }
                Step::Finish(count) => {
                    for _ in 0..count.min(world.fake.held().len()) {
                        world.fake.finish(0);
                    }
                    world.run();
                }
                Step::Pass(micros) => world.wait(Duration::from_micros(micros)),
                Step::Settle => {
                    world.wait(NOTICED);
                    guest.run();
                    let waits = 32 - guest.free.len() - world.fake.held().len();
                    prop_assert_eq!(waits, 0, "completions were not noticed");
                }
            }
            guest.run();
        }
        while !world.fake.held().is_empty() {
            world.fake.finish(0);
        }
        world.wait(NOTICED);
        guest.run();
        prop_assert_eq!(guest.free.len(), 32);
        drop(guest);
        world.end();
    }
}
