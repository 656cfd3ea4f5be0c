//! An NBD server that does as the script says, and guests' queues on an export of it.

use crate::heap;
use bulkhead_blkback_testkit::Script;
use bulkhead_images::{Access, IoError, IoSegment, Op, Sector, Submitted, Tag};
use bulkhead_nbd_testing::world::{Buffer, Disk, World, discard, pattern, read, write};
use bulkhead_nbd_testing::{Config, FakeExport, Part, Reach, Seen, Treatment};
use bulkhead_stream::{ConnectError, Ended};
use std::time::Duration;

/// The number of pages that all requests share. A request uses the pages from the number of its tag on.
const PAGES: usize = 64;

/// The vCPU of each queue: two on the first vCPU, one on the second.
const QUEUES: [u32; 3] = [0, 0, 1];

/// The queue depth that each queue asks for.
const REQUESTS: usize = 40;

/// The size of the export in bytes.
const BYTES: usize = 64 << 10;

/// Fuzzes the NBD client. The input is a script for a server and for guests.
///
/// # Panics
/// If a request completes that was not asked for, if one never does, if the client sends what is not a command, or if
/// the guest of another server notices anything.
pub fn nbd(script: &[u8]) {
    let _heap = heap::limited(12 << 20);
    let mut script = Script::new(script);
    let config = config(&mut script);
    let timeout = script.pick(&[None, None, Some(Duration::from_secs(20))]);
    let world = World::with(config, timeout, None);
    forge(&world, &mut script);
    let buffer = Buffer::new(&world, PAGES);
    let mut bystander = world.open("nbd:10.0.0.3/disk");
    let mut guests: Vec<Guest<'_>> = Vec::new();
    if let Ok(device) = world.try_open("nbd:10.0.0.2/disk", Access::ReadWrite) {
        guests.extend(QUEUES.map(|vcpu| Guest {
            disk: Disk::new(&world, device.clone(), vcpu, REQUESTS),
            pending: Vec::new(),
        }));
    }
    while !script.is_empty() {
        match script.below(16) {
            0 => world.wait(Duration::from_millis(script.number() % 5000)),
            1 => world.wait(Duration::from_secs(script.number() % 100)),
            2 => _ = world.server.step(),
            3 => world.run_domain(),
            4 => world.run(),
            5..8 => control(&world, &mut script),
            _ if guests.is_empty() => {}
            _ => {
                let which = script.below(guests.len());
                guests[which].act(&buffer, &mut script);
            }
        }
    }
    watch(&world, &mut bystander);
    end(&world, guests);
    watch(&world, &mut bystander);
    drop((bystander, buffer));
    world.end();
}

/// Checks that the guest of another server reads what it has written, whatever the scripted server does.
fn watch(world: &World, bystander: &mut Disk<'_>) {
    let buffer = Buffer::new(world, 1);
    let data = pattern(77, 4096);
    buffer.fill(&data);
    assert_eq!(bystander.does(write(16), &buffer.whole(4096)), Ok(()));
    buffer.fill(&[0; 4096]);
    assert_eq!(bystander.does(read(16), &buffer.whole(4096)), Ok(()));
    assert!(buffer.bytes(0, 4096) == data);
}

/// Reads the server's configuration from the script.
fn config(script: &mut Script<'_>) -> Config {
    let flags = script.pick(&[0b110_1101, 0b1_0110_1101, 0b110_1111, 0b100_0101, 1, 0]);
    let sizes = script.pick(&[
        None,
        None,
        Some([1, 512, 4096]),
        Some([4096, 4096, 65536]),
        Some([512, 4096, u32::MAX]),
        Some([0, 1, 2]),
    ]);
    Config {
        exports: vec![FakeExport {
            flags,
            sizes,
            ..FakeExport::new("disk", BYTES)
        }],
        structured: script.below(3) > 0,
        holes: script.below(2) == 0,
        piece: script.pick(&[1 << 20, 4096, 1000, 100, 13]),
        room: script.pick(&[1 << 20, 1 << 20, 4096, 1000]),
        refuses_writes_early: script.pick(&[None, None, None, Some(28), Some(0)]),
        ..Config::default()
    }
}

/// Has the server change bytes of some of its handshake messages, and perhaps repeat one.
fn forge(world: &World, script: &mut Script<'_>) {
    let mut changes = Vec::new();
    for _ in 0..script.below(4) {
        changes.push((script.below(6), script.number() as usize, script.byte()));
    }
    let repeats = script.pick(&[0, 0, 0, 100]);
    world.server.forge(move |number, message| {
        for (which, at, value) in &changes {
            if *which == number {
                let at = at % message.len();
                message[at] = *value;
            }
        }
        if number == 3 && repeats > 0 {
            let one = message.clone();
            (0..repeats).for_each(|_| message.extend(&one));
        }
    });
}

/// Reads from the script what the server does with a command.
fn treatment(script: &mut Script<'_>) -> Treatment {
    let error = script.number() as u32;
    match script.below(12) {
        0 => Treatment::Twice,
        1 => Treatment::Misnamed(script.number().rotate_left(script.below(64) as u32)),
        2 => Treatment::Lost,
        3 | 4 => Treatment::Failed(script.pick(&[error, 5, 28, 95, 108])),
        5 => Treatment::Unanswered(script.pick(&[Ended::Closed, Ended::Reset, Ended::TimedOut])),
        6 => Treatment::Raw((0..script.below(40)).map(|_| script.byte()).collect()),
        7 => Treatment::Held,
        _ => {
            let parts = 1 + script.below(5);
            Treatment::Parts((0..parts).map(|_| part(script)).collect())
        }
    }
}

fn part(script: &mut Script<'_>) -> Part {
    let offset = script.number() % (BYTES as u64 + 512);
    let len = script.number() as u32 % 9000;
    match script.below(8) {
        0 => Part::None,
        1 => Part::Error(script.number() as u32),
        2 => Part::ErrorAt(script.number() as u32, offset),
        3 => Part::Hole(offset, len),
        4 => {
            let payload = (0..script.below(30)).map(|_| script.byte()).collect();
            Part::Raw(script.number() as u16, payload)
        }
        _ => Part::Data(offset, len),
    }
}

/// Has the server do something once, or behave differently from now on.
fn control(world: &World, script: &mut Script<'_>) {
    let server = &world.server;
    match script.below(12) {
        0 => server.finish_reversed(),
        1 => {
            let held = server.held().len();
            if held > 0 {
                server.finish(script.below(held));
            }
        }
        2..4 => {
            let (mut left, treatment) = (script.below(6), treatment(script));
            server.decide(move |_| match left.checked_sub(1) {
                Some(fewer) => {
                    left = fewer;
                    treatment.clone()
                }
                None => Treatment::Done,
            });
        }
        // Reads come in two parts, the second one first.
        4 => server.decide(|seen: &Seen| {
            let half = seen.len / 2;
            match seen.kind {
                0 if half > 0 => Treatment::Parts(vec![
                    Part::Data(seen.offset + u64::from(half), seen.len - half),
                    Part::Data(seen.offset, half),
                ]),
                _ => Treatment::Done,
            }
        }),
        5 => server.decide(|_| Treatment::Held),
        6 => server.decide(|_| Treatment::Done),
        7 => server.drop_all(script.pick(&[Ended::Closed, Ended::Reset, Ended::NoNetwork])),
        8 => {
            let cut = |script: &mut Script<'_>| match script.below(3) {
                0 => Some(script.number() as usize % 1000),
                _ => None,
            };
            server.cut_after(cut(script), cut(script));
        }
        9 => {
            let bytes: Vec<u8> = (0..script.below(30)).map(|_| script.byte()).collect();
            server.send(&bytes);
        }
        10 => {
            let refused = Reach::Fails(ConnectError::Refused);
            let reach = script.pick(&[Reach::Connects, Reach::Connects, Reach::Hangs, refused]);
            let (deaf, most) = (script.below(4) == 0, script.pick(&[1, 2, 100]));
            server.change(|config| {
                (config.reach, config.is_deaf) = (reach, deaf);
                config.most_connections = most;
            });
        }
        _ => {
            let (bytes, bit) = (script.pick(&[BYTES, BYTES, BYTES * 2]), script.below(9));
            let name = script.pick(&["disk", "disk", "gone"]);
            let other = script.below(4) == 0;
            server.change(|config| {
                let export = &mut config.exports[0];
                export.bytes.resize(bytes, 0);
                export.name = name.to_string();
                if other {
                    export.flags ^= 1 << bit;
                }
            });
        }
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
        let sector = script.number() % 160;
        let op = match script.below(8) {
            0..3 => read(sector),
            3..5 => write(sector),
            5 => Op::Write {
                sector: Sector(sector),
                fua: caps.fua,
            },
            6 => Op::Flush,
            _ => discard(sector, script.number() % 160),
        };
        let mut segments: Vec<IoSegment> = Vec::new();
        if matches!(op, Op::Read { .. } | Op::Write { .. }) {
            let mut bytes = 0;
            for part in 0..1 + script.below(12) {
                let (offset, len) = match script.below(4) {
                    0 => (script.below(8) * 512, 512),
                    _ => (0, 4096),
                };
                bytes += len;
                if bytes > caps.bytes || segments.len() == caps.segments {
                    break;
                }
                segments.push(buffer.segment((tag + part) % PAGES, offset, len));
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
        for (tag, outcome) in self.disk.done.drain(..) {
            let known = self.pending.iter().position(|pending| *pending == tag);
            let known = known.expect("a request completes that is not pending");
            self.pending.swap_remove(known);
            assert_ne!(outcome, Err(IoError::NoMemory));
        }
    }
}

/// Makes the server a well-behaved one, and checks that all requests complete, or that the export was given up, and
/// that the disks close.
fn end(world: &World, mut guests: Vec<Guest<'_>>) {
    let server = &world.server;
    server.decide(|_| Treatment::Done);
    server.forge(|_, _| {});
    server.cut_after(None, None);
    server.change(|config| {
        (config.reach, config.is_deaf) = (Reach::Connects, false);
        config.most_connections = usize::MAX;
        config.refuses_writes_early = None;
        let export = &mut config.exports[0];
        export.name = "disk".to_string();
        // With impossible block sizes, the client would reconnect for ever.
        export.sizes = None;
    });
    server.finish_reversed();
    server.drop_all(Ended::Closed);
    for _ in 0..4 {
        guests.iter_mut().for_each(Guest::collect);
        world.wait(Duration::from_secs(40));
    }
    guests.iter_mut().for_each(Guest::collect);
    for guest in &mut guests {
        assert_eq!(guest.pending, [], "never completed: {}", world.lines());
        assert!(guest.disk.close(), "{}", world.lines());
    }
}
