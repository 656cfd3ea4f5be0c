//! A virtio-blk device that does as the script says, and guests' queues on it.

use crate::heap;
use bulkhead_blkback_testkit::Script;
use bulkhead_dma_testing::{Buffer, Disk, discard, read, write};
use bulkhead_images::{IoSegment, Op, Submitted, Tag};
use bulkhead_virtio_testing::{Config, F, Treatment, World};
use std::time::Duration;

/// The number of pages that all requests share. A request uses the pages from the number of its tag on.
const PAGES: usize = 64;

/// The vCPU of each queue: two on the first vCPU, one on the second.
const QUEUES: [u32; 3] = [0, 0, 1];

/// The queue depth that each queue asks for.
const REQUESTS: usize = 40;

/// Sets of features. The device offers the usual ones, but those of one set only if they are not usual.
const CHANGED: [F; 10] = [
    F::empty(),
    F::INDIRECT_DESC,
    F::EVENT_IDX,
    F::INDIRECT_DESC.union(F::EVENT_IDX),
    F::DISCARD,
    F::FLUSH,
    F::SEG_MAX,
    F::SIZE_MAX,
    F::MQ,
    F::ACCESS_PLATFORM,
];

/// Fuzzes the virtio-blk driver. The input is a script for a device and for guests.
///
/// # Panics
/// If a request completes that is not pending, if one never does, or if the driver gives the device an address that the
/// device may not access.
pub fn virtio(script: &[u8]) {
    let _heap = heap::limited(8 << 20);
    let mut script = Script::new(script);
    let world = World::new(config(&mut script));
    world.wait(Duration::from_secs(2));
    let buffer = Buffer::new(&world, PAGES);
    let device = world.try_open("virtio:04:00.0");
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

/// Reads the device's configuration from the script, with changes to bytes of its configuration structure.
fn config(script: &mut Script<'_>) -> Config {
    let usual = Config::default();
    let forged = (0..script.below(4))
        .map(|_| (script.number() as usize % 60, script.byte()))
        .collect();
    Config {
        // VERSION_1 is always offered: the driver uses no device without it.
        features: usual.features.symmetric_difference(script.pick(&CHANGED)),
        bytes: vec![0; 64 << script.pick(&[9, 12])],
        block: script.pick(&[512, 512, 4096, 1024]),
        segments: script.pick(&[254, 254, 1, 0, 8]),
        queues: script.pick(&[4, 1, 2]),
        entries: script.pick(&[256, 64, 4, 2, 1]),
        discards: script.pick(&[0x3f_ffff, 9, 0]),
        messages: script.pick(&[Some(5), Some(5), Some(2), Some(1), None]),
        line: script.below(2) == 0,
        forged,
        ..usual
    }
}

/// Has the device do something once, or behave differently from now on.
fn control(world: &World, script: &mut Script<'_>) {
    let fake = &world.fake;
    match script.below(16) {
        0 => fake.finish_reversed(),
        1 => {
            let held = fake.held().len();
            if held > 0 {
                fake.finish(script.below(held));
            }
        }
        2 | 3 => {
            let mut left = script.below(8);
            let treatment = script.pick(&[
                Treatment::Twice,
                Treatment::Misnamed,
                Treatment::TooLong,
                Treatment::NoOutcome,
                Treatment::Lost,
                Treatment::Failed(1),
                Treatment::Failed(2),
            ]);
            fake.decide(move |_| match left.checked_sub(1) {
                Some(fewer) => {
                    left = fewer;
                    treatment
                }
                None => Treatment::Done,
            });
        }
        4..7 => fake.decide(|_| Treatment::Held),
        7 => fake.decide(|_| Treatment::Done),
        8 => {
            let (queue, head) = (script.below(2) as u16, script.number() as u32);
            fake.violate(queue, head, script.number() as u32);
        }
        9 => fake.jump(script.below(2) as u16, script.number() as u16),
        10 => fake.change(|config| {
            let sectors = script.below(200);
            config.bytes.resize(sectors << 9, 0);
        }),
        11 => fake.change(|config| {
            let forged = (script.number() as usize % 60, script.byte());
            config.forged.push(forged);
        }),
        12 => fake.fail(),
        13 if script.below(4) == 0 => fake.vanish(),
        14 => fake.never_reset(script.below(3) == 0),
        15 => fake.refuse_features(script.below(3) == 0),
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
        let caps = self.disk.queue.caps();
        let Some(tag) = free.filter(|_| self.pending.len() < caps.depth) else {
            return self.collect();
        };
        let sector = script.number();
        let op = match script.below(8) {
            0..3 => read(sector),
            3..6 => write(sector),
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

/// Makes the device a well-behaved one, and checks that all requests complete, or that the device was given up, and
/// that the disks close and the driver releases the device.
fn end(world: &World, mut guests: Vec<Guest<'_>>) {
    world.fake.decide(|_| Treatment::Done);
    world.fake.never_reset(false);
    world.fake.refuse_features(false);
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
            "the device has pages: {}",
            world.lines()
        );
    }
    drop(guests);
    world.detach();
    world.wait(Duration::from_secs(60));
    assert_eq!(world.lines(), "", "it is not let go of");
}
