//! An NVMe controller that does as the script says, and guests' queues on it.

use crate::heap;
use bulkhead_blkback_testkit::Script;
use bulkhead_images::{IoSegment, Op, Sector, Submitted, Tag};
use bulkhead_nvme::command::{Command, Completion, Status};
use bulkhead_nvme_testing::world::{Buffer, Disk, NAME, World, discard, read, write};
use bulkhead_nvme_testing::{Config, FakeNamespace, Treatment};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The number of pages that all requests share. A request uses the pages from the number of its tag on.
const PAGES: usize = 64;

/// The vCPU of each queue: two on the first vCPU, one on the second.
const QUEUES: [u32; 3] = [0, 0, 1];

/// The queue depth that each queue asks for.
const REQUESTS: usize = 40;

/// Fuzzes the NVMe driver. The input is a script for a controller and for guests.
///
/// # Panics
/// If a request completes that is not pending, if one never does, or if the driver gives the controller an address that
/// the controller may not access.
pub fn nvme(script: &[u8]) {
    let _heap = heap::limited(8 << 20);
    let mut script = Script::new(script);
    let world = World::new(config(&mut script));
    world.controllers.add(world.fake.function(NAME));
    world.wait(Duration::from_secs(2));
    let buffer = Buffer::new(&world, PAGES);
    let device = world.try_open(["nvme:03:00.0", "nvme:03:00.0/n2"][script.below(2)]);
    let mut guests: Vec<Guest<'_>> = Vec::new();
    if let Ok(device) = device {
        guests.extend(QUEUES.map(|vcpu| Guest {
            disk: Disk::new(&world, device.clone(), vcpu, REQUESTS),
            pending: Vec::new(),
        }));
    }
    while !script.is_empty() {
        match script.below(16) {
            0 => world.wait(Duration::from_millis(script.number() % 5000)),
            1 => world.wait(Duration::from_secs(script.number() % 40)),
            2 => _ = world.fake.step(),
            3 | 4 => world.run(),
            5..8 => control(&world, &mut script),
            _ if guests.is_empty() => {}
            _ => {
                let which = script.below(guests.len());
                guests[which].act(&buffer, &mut script);
            }
        }
    }
    end(&world, guests);
    drop(buffer);
    world.sim.assert_no_violations();
}

/// Reads the controller's configuration from the script, with changes to the data of its Identify commands (opcode 6).
fn config(script: &mut Script<'_>) -> Config {
    let changes = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..script.below(4) {
        let change = (
            script.below(3) as u32,
            script.number() as usize,
            script.byte(),
        );
        changes.lock().expect("nobody panicked").push(change);
    }
    let forge = move |command: &Command, data: &mut [u8]| {
        for (kind, at, value) in &*changes.lock().expect("nobody panicked") {
            if command.opcode() == 6 && command.dword(10) == *kind {
                let at = at % data.len();
                data[at] = *value;
            }
        }
    };
    let mut config = Config {
        namespaces: vec![
            FakeNamespace::new(1, script.pick(&[9, 12]), 64),
            FakeNamespace::new(2, script.pick(&[9, 12, 10]), 64),
        ],
        vectors: script.pick(&[65, 65, 3, 2, 1, 0]),
        queues: script.pick(&[64, 2, 1]),
        queue_entries: script.pick(&[2048, 64, 5, 2]),
        most_pages: script.below(4) as u8,
        cache: script.below(2) == 0,
        deallocates: script.below(2) == 0,
        forge: Arc::new(forge),
        ..Config::default()
    };
    let manners = script.below(8);
    config.lists = manners > 0;
    config.sparing = manners & 1 == 1;
    config.untimely = manners & 2 == 2;
    config
}

/// Has the controller do something once, or behave differently from now on.
fn control(world: &World, script: &mut Script<'_>) {
    let fake = &world.fake;
    let status = Status::new(script.number() as u16);
    match script.below(16) {
        0 => fake.finish_reversed(),
        1 => {
            let held = fake.held().len();
            if held > 0 {
                fake.finish(script.below(held));
            }
        }
        2 => {
            let mut left = script.below(8);
            let treatment = script.pick(&[
                Treatment::Twice,
                Treatment::Misnamed,
                Treatment::Lost,
                Treatment::Failed(status),
            ]);
            fake.decide(move |_| match left.checked_sub(1) {
                Some(fewer) => {
                    left = fewer;
                    treatment
                }
                None => Treatment::Done,
            });
        }
        3..6 => fake.decide(|_| Treatment::Held),
        6 => fake.decide(|_| Treatment::Done),
        7 => {
            let mut left = script.below(5);
            let treatment = script.pick(&[
                Treatment::Twice,
                Treatment::Misnamed,
                Treatment::Lost,
                Treatment::Failed(status),
            ]);
            fake.decide_admin(move |_| match left.checked_sub(1) {
                Some(fewer) => {
                    left = fewer;
                    treatment
                }
                None => Treatment::Done,
            });
        }
        8 => {
            let seen = fake.seen();
            if !seen.is_empty() {
                let command = seen[script.number() as usize % seen.len()];
                fake.complete(1 + script.below(2) as u16, &command, status);
            }
        }
        9 => {
            let words = [script.number(), script.number()];
            let queue = script.below(3) as u16;
            fake.write_completion(queue, Completion::from_words(words));
        }
        10 => _ = fake.report(script.number() as u32),
        11 => fake.change(|config| {
            let namespace = &mut config.namespaces[script.below(2)];
            let blocks = script.below(200);
            namespace.bytes.resize(blocks << namespace.shift, 0);
            namespace.read_only = script.below(4) == 0;
        }),
        12 => fake.fail(),
        13 if script.below(4) == 0 => fake.vanish(),
        14 if script.below(4) == 0 => fake.never_stop(true),
        15 => fake.never_start(script.below(3) == 0),
        _ => {}
    }
}

/// A guest's queue, and the tags of its requests in flight.
struct Guest<'w> {
    disk: Disk<'w>,
    pending: Vec<usize>,
}

impl Guest<'_> {
    fn act(&mut self, buffer: &Buffer<'_>, script: &mut Script<'_>) {
        match script.below(8) {
            0 => self.disk.queue.cancel_all(),
            1 => self.disk.queue.cancel(Tag(script.below(REQUESTS))),
            2 => self.collect(),
            _ => self.ask(buffer, script),
        }
    }

    fn ask(&mut self, buffer: &Buffer<'_>, script: &mut Script<'_>) {
        let free = (0..REQUESTS).find(|tag| !self.pending.contains(tag));
        let Some(tag) = free.filter(|_| self.pending.len() < self.disk.queue.caps().depth) else {
            return self.collect();
        };
        let caps = self.disk.queue.caps();
        let sector = script.number();
        let op = match script.below(8) {
            0..3 => read(sector),
            3..5 => write(sector),
            5 => Op::Write {
                sector: Sector(sector),
                fua: caps.fua,
            },
            6 => Op::Flush,
            _ => discard(sector, script.number()),
        };
        let mut segments: Vec<IoSegment> = Vec::new();
        if matches!(op, Op::Read { .. } | Op::Write { .. }) {
            let mut bytes = 0;
            for part in 0..1 + script.below(40) {
                let units = 4096 / caps.alignment;
                let (offset, len) = match script.below(4) {
                    0 => (script.below(units), 1 + script.below(units)),
                    _ => (0, units),
                };
                let len = len.min(units - offset) * caps.alignment;
                bytes += len;
                if bytes > caps.bytes || segments.len() == caps.segments {
                    break;
                }
                let page = (tag + part) % PAGES;
                segments.push(buffer.segment(page, offset * caps.alignment, len));
            }
        }
        match self.disk.hand(tag, op, &segments) {
            Submitted::Pending => self.pending.push(tag),
            Submitted::Busy => self.collect(),
            Submitted::Done(_) => {}
        }
        if script.below(2) == 0 {
            self.disk.queue.flush_submissions();
        }
    }

    fn collect(&mut self) {
        self.disk.queue.flush_submissions();
        self.disk.collect();
        for (tag, _) in self.disk.done.drain(..) {
            let known = self.pending.iter().position(|pending| *pending == tag);
            let known = known.expect("a request completes that is not pending");
            self.pending.swap_remove(known);
        }
    }
}

/// Makes the controller a well-behaved one, and checks that all requests complete, or that the controller was given up,
/// and that the disks close and the driver releases the controller.
fn end(world: &World, mut guests: Vec<Guest<'_>>) {
    world.fake.decide(|_| Treatment::Done);
    world.fake.decide_admin(|_| Treatment::Done);
    world.fake.never_start(false);
    world.fake.finish_reversed();
    for _ in 0..12 {
        guests.iter_mut().for_each(Guest::collect);
        world.wait(Duration::from_secs(30));
    }
    guests.iter_mut().for_each(Guest::collect);
    for guest in &mut guests {
        assert_eq!(guest.pending, [], "never completed: {}", world.lines());
        assert!(
            guest.disk.close(),
            "the controller has pages: {}",
            world.lines()
        );
    }
    drop(guests);
    let controllers = world.controllers.clone();
    let gone = world.within(Duration::from_secs(120), async move {
        controllers.give_up(NAME).await;
    });
    assert_eq!(gone, Some(()), "it is not let go of: {}", world.lines());
}
