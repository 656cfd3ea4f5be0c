//! A driver domain that crashes between any two of the writes that put a response.

use super::recovery::{collect_all, push_writes, world};
use bulkhead_blkback::engine::QueueOptions;
use bulkhead_blkback_testkit::{Crash, Frontend, Guest, Style, World};
use bulkhead_ring::blkif::{Abi, RequestId};
use std::collections::BTreeSet;

/// Requests of each round, each of which leaves the byte it is told in the first three sectors.
type Ask = fn(&mut Frontend<'_>, u8) -> Vec<RequestId>;

/// More instructions than there are between two calls into Xen.
const MOST: u64 = 1 << 16;
/// Slots of the ring.
const SLOTS: u32 = 32;
/// Bytes from a disk's record to the notes of its last responses, to their indices, and to the requests that are kept.
const ANSWERS: usize = 64;
const INDICES: usize = ANSWERS + 16 + 4;
const KEPT: usize = ANSWERS + 32;
/// Bytes of a kept request, and those before its index.
const KEPT_SIZE: usize = 128;
const KEPT_INDEX: usize = 112;

/// What a crash has left of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    slot: Slot,
    /// The response is noted, and so is the request.
    answer: bool,
    request: bool,
    /// The frontend was shown the response.
    published: bool,
}

/// What lies in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Request,
    Part,
    Response,
}

struct Crashes<'w> {
    world: &'w World,
    disk: Frontend<'w>,
    abi: Abi,
    ask: Ask,
    round: u8,
    /// Calls into Xen after which instructions are counted.
    calls: u64,
}

impl Crashes<'_> {
    /// Returns the first bytes of the slot of an index: as many as a response has.
    fn slot(&mut self, index: u32) -> Vec<u8> {
        let at = 64 + (index % SLOTS) as usize * self.abi.request_size();
        let memory = self.disk.link().memory;
        let byte = |offset| {
            // SAFETY: the guest's own ring, which nothing refers into.
            unsafe { memory.add(at + offset).read_volatile() }
        };
        (0..self.abi.response_size()).map(byte).collect()
    }

    /// Returns the index of the first response that the frontend was not shown.
    fn published(&mut self) -> u32 {
        let memory = self.disk.link().memory;
        // SAFETY: as above.
        unsafe { memory.cast::<u32>().add(2).read_volatile() }
    }

    /// Asks, crashes after that many instructions and restarts: all requests are answered once. Returns what the crash had
    /// left of the request with that number, and whether there were so many instructions.
    fn crash(&mut self, instructions: u64, number: u32) -> (Moment, bool) {
        // So many pages are mapped.
        let warm = push_writes(&mut self.disk, 24, 0xff);
        self.disk.link().kick();
        collect_all(&mut self.disk, &warm, "before");
        self.round = self.round % 100 + 1;
        let first = self.published();
        let asked = (self.ask)(&mut self.disk, self.round);
        let index = first.wrapping_add(number);
        let request = self.slot(index);
        self.disk.link().kick();
        let crash = self.world.crash_after(self.calls, instructions);
        let found = self.slot(index);
        let id = asked[number as usize].0.to_le_bytes();
        let slot = match &found {
            found if *found == request => Slot::Request,
            found if found[..8] == id && found[9..12] == [0; 3] => Slot::Response,
            _ => Slot::Part,
        };
        let published = self.published().wrapping_sub(first) > number;
        let (mut answer, mut kept) = (false, false);
        let surviving = self.world.surviving.as_ref().expect("it recovers");
        surviving.damage(|bytes| {
            let at = bytes.windows(4).rposition(|four| four == b"kept");
            let at = at.expect("a record");
            let word = |offset| bytes[at + offset..][..4] == index.to_le_bytes();
            answer = word(INDICES + (index % 2) as usize * 8);
            kept = word(KEPT + (index % SLOTS) as usize * KEPT_SIZE + KEPT_INDEX);
        });
        let moment = Moment {
            slot,
            answer,
            request: kept,
            published,
        };
        let crashed = matches!(crash, Crash::Crashed(_));
        if crashed {
            self.world.restart();
        }
        let why = format!("after {instructions} instructions: {moment:?}");
        collect_all(&mut self.disk, &asked, &why);
        let read = self.disk.read(0, 3);
        assert!(read.iter().all(|byte| *byte == self.round), "{why}");
        (moment, crashed)
    }

    /// Returns the number of instructions after which `has_come` is true of a request for the first time.
    fn first(&mut self, number: u32, has_come: impl Fn(Moment) -> bool) -> u64 {
        let (mut not_yet, mut come) = (0, MOST);
        while come - not_yet > 1 {
            let between = (not_yet + come) / 2;
            let (moment, crashed) = self.crash(between, number);
            // How many instructions there are depends on the compiler.
            match !crashed || has_come(moment) {
                true => come = between,
                false => not_yet = between,
            }
        }
        come
    }
}

/// Crashes after the instructions from a bit before `begins` is true of the request of that number to a bit after `ends` is.
/// Returns what was found.
fn crash_between(
    (abi, ask): (Abi, Ask),
    number: u32,
    begins: impl Fn(Moment) -> bool,
    ends: impl Fn(Moment) -> bool,
) -> BTreeSet<Moment> {
    let world = world(QueueOptions::default());
    let guest = Guest::with_memory(&world, 2048);
    let style = Style {
        abi,
        ..Style::persistent(true)
    };
    let disk = guest.attach("xvda", "ram:disk0").styled(style).connected();
    let mut crashes = Crashes {
        world: &world,
        disk,
        abi,
        ask,
        round: 0,
        calls: 0,
    };
    // The last call before anything happens to its slot is soon followed by that.
    while crashes.crash(0, number).0.slot == Slot::Request {
        crashes.calls += 1;
    }
    crashes.calls -= 1;
    let first = crashes.first(number, begins);
    let last = crashes.first(number, ends);
    assert!(first < last && last < MOST, "{first} to {last}");
    // None of what is looked for lasts for fewer instructions than this.
    let step = ((last - first) / 40).max(1) as usize;
    let span = (first.saturating_sub(3)..last)
        .step_by(step)
        .chain(last..last + 3);
    let found = span.map(|instructions| crashes.crash(instructions, number).0);
    let found: BTreeSet<Moment> = found.collect();
    println!("{abi:?}, request {number}, {first} to {last}: {found:#?}");
    crashes.disk.detach();
    world.nothing_left_in_xen();
    found
}

fn writes(disk: &mut Frontend<'_>, byte: u8) -> Vec<RequestId> {
    push_writes(disk, 3, byte)
}

/// The first is begun, and answered after the next two.
fn a_large_one_and_writes(disk: &mut Frontend<'_>, byte: u8) -> Vec<RequestId> {
    let link = disk.link();
    let mut asked = vec![link.push_write(0, &[byte; 512 * 104])];
    asked.extend(push_writes(disk, 2, byte));
    asked
}

const BEFORE: Moment = Moment {
    slot: Slot::Request,
    answer: false,
    request: false,
    published: false,
};

fn responses_in_order(abi: Abi, number: u32) {
    let noted = Moment {
        answer: true,
        ..BEFORE
    };
    let is_put = |moment: Moment| moment.slot == Slot::Response;
    let found = crash_between((abi, writes), number, |moment| moment.answer, is_put);
    let of = |slot| Moment { slot, ..noted };
    let expected = [BEFORE, noted, of(Slot::Part), of(Slot::Response)];
    assert_eq!(found, BTreeSet::from(expected));
}

#[test]
fn a_response_that_is_put_in_part_is_put_again() {
    responses_in_order(Abi::X86_64, 1);
}

#[test]
fn a_response_that_is_put_in_part_in_the_32_bit_layout_is_put_again() {
    responses_in_order(Abi::X86_32, 2);
}

#[test]
fn a_request_whose_slot_another_ones_response_takes_is_kept_before() {
    let kept = Moment {
        request: true,
        ..BEFORE
    };
    let asked = (Abi::X86_64, a_large_one_and_writes as Ask);
    let is_overwritten = |moment: Moment| moment.slot != Slot::Request;
    let found = crash_between(asked, 0, |moment| moment.request, is_overwritten);
    let of = |slot| Moment { slot, ..kept };
    // The response there is that of the second request.
    assert!(
        found.is_superset(&BTreeSet::from([BEFORE, kept, of(Slot::Part)])),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .all(|moment| moment.request || *moment == BEFORE),
        "{found:?}"
    );
}
