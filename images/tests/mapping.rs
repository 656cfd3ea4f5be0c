//! Devices that consist of extents of others: data is where the map says, however requests are cut.

mod support;

use bulkhead_images::testing::{CompleteNow, Delayed, Encrypting, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, Caps, DataAccess, ExtentError, ExtentMap, Geometry, Io, IoError, IoQueue,
    IoSegment, Leg, MappedDevice, MappingError, NullDevice, Op, OpenQueue, QueueContext, RamImage,
    Sector, SectorSize, SharedDevice, Staging, StagingPhase, Submitted, Tag, guest_memory, opened,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use support::{Guest, Wakes, submit, visible_memory};

const SECTOR: usize = 512;

/// A RAM disk of that many sectors, each with its own content, and where it lies.
fn ram(sectors: usize, seed: u8) -> (Arc<dyn BlockDevice>, *const u8) {
    let bytes: Vec<u8> = (0..sectors * SECTOR)
        .map(|at| (at / SECTOR * 7 + at + usize::from(seed)) as u8)
        .collect();
    let (memory, pointer) = visible_memory(&bytes);
    let image = RamImage::new(memory, SectorSize::B512, Access::ReadWrite);
    (Arc::new(image), pointer)
}

fn leg(device: usize, start: u64) -> Leg {
    Leg {
        device,
        start: Sector(start),
    }
}

/// Two linear extents that are no neighbours, between them two legs and three legs in turns.
fn map() -> ExtentMap {
    let mut map = ExtentMap::default();
    map.push(Sector(24), &[leg(1, 8)]).unwrap();
    map.push_striped(Sector(64), Sector(16), &[leg(0, 0), leg(1, 64)])
        .unwrap();
    map.push_striped(
        Sector(72),
        Sector(8),
        &[leg(0, 64), leg(1, 128), leg(0, 200)],
    )
    .unwrap();
    map.push(Sector(40), &[leg(0, 100)]).unwrap();
    map
}

/// Where each sector of [`map`] lies, written down as the rule for striping says.
fn places() -> Vec<(usize, usize)> {
    let mut places: Vec<(usize, usize)> = (8..32).map(|sector| (1, sector)).collect();
    for sector in 0..64 {
        let (turn, within) = (sector / 16, sector % 16);
        let (device, start) = [(0, 0), (1, 64)][turn % 2];
        places.push((device, start + turn / 2 * 16 + within));
    }
    for sector in 0..72 {
        let (turn, within) = (sector / 8, sector % 8);
        let (device, start) = [(0, 64), (1, 128), (0, 200)][turn % 3];
        places.push((device, start + turn / 3 * 8 + within));
    }
    places.extend((100..140).map(|sector| (0, sector)));
    places
}

fn shared(devices: &[Arc<dyn BlockDevice>]) -> Vec<SharedDevice> {
    devices.iter().cloned().map(SharedDevice::new).collect()
}

fn mapped(devices: &[Arc<dyn BlockDevice>], map: ExtentMap) -> MappedDevice {
    let held = Arc::new(());
    MappedDevice::new(&shared(devices), map, Access::ReadWrite, held).expect("it can be mapped")
}

/// A generator that gives the same numbers in every run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % limit
    }

    /// Segments of up to a page that have that many sectors together.
    fn lengths(&mut self, sectors: usize) -> Vec<usize> {
        let (mut left, mut lengths) = (sectors, Vec::new());
        while left > 0 {
            let sectors = (1 + self.below(8)).min(left);
            lengths.push(sectors * SECTOR);
            left -= sectors;
        }
        lengths
    }
}

/// What lies on two devices.
struct Model([Vec<u8>; 2]);

impl Model {
    fn of(devices: &[Arc<dyn BlockDevice>]) -> Model {
        Model([content(&*devices[0]), content(&*devices[1])])
    }

    fn sector(&mut self, place: (usize, usize)) -> &mut [u8] {
        &mut self.0[place.0][place.1 * SECTOR..(place.1 + 1) * SECTOR]
    }
}

fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let sectors = device.geometry().sectors.0 as usize;
    let mut guest = Guest::filled(&vec![SECTOR; sectors]);
    let segments = guest.segments();
    let op = Op::Read { sector: Sector(0) };
    submit(&mut *device.queue(), op, &segments).expect("it can be read");
    guest.content()
}

/// Serves one request to its end; `step` lets a slow store go on.
fn serve(
    queue: &mut dyn IoQueue,
    op: Op,
    segments: &[IoSegment],
    step: &mut dyn FnMut(),
) -> Result<(), IoError> {
    for _ in 0..10_000 {
        match queue.submit(Tag(5), Io { op, segments }) {
            Submitted::Done(outcome) => return outcome,
            Submitted::Pending => break,
            Submitted::Busy => step(),
        }
    }
    let mut told = None;
    for _ in 0..10_000 {
        queue.complete(&mut |tag, outcome| {
            assert_eq!(tag, Tag(5));
            assert!(told.replace(outcome).is_none(), "told twice");
        });
        if let Some(outcome) = told {
            return outcome;
        }
        step();
    }
    panic!("{op:?} does not end");
}

/// Compares random requests with the model.
fn compare(device: &MappedDevice, model: &mut Model, step: &mut dyn FnMut(), rounds: usize) {
    let places = places();
    let mut queue = device.queue();
    let mut random = Random(11);
    for round in 0..rounds {
        let first = random.below(places.len());
        let count = 1 + random.below((places.len() - first).min(100));
        let lengths = random.lengths(count);
        let sector = Sector(first as u64);
        let range = &places[first..first + count];
        if random.below(2) == 0 {
            let mut guest = Guest::filled(&lengths);
            let segments = guest.segments();
            serve(&mut *queue, Op::Read { sector }, &segments, step).expect("a read");
            let mut expected = Vec::new();
            for place in range {
                expected.extend_from_slice(model.sector(*place));
            }
            assert!(guest.content() == expected, "{first} and {count} more");
        } else {
            let written: Vec<Vec<u8>> = lengths
                .iter()
                .map(|len| (0..*len).map(|at| (at * 3 + round) as u8).collect())
                .collect();
            let slices: Vec<&[u8]> = written.iter().map(Vec::as_slice).collect();
            let mut guest = Guest::with(&slices);
            let segments = guest.segments();
            serve(&mut *queue, Op::write(sector), &segments, step).expect("a write");
            for (place, bytes) in range.iter().zip(written.concat().chunks(SECTOR)) {
                model.sector(*place).copy_from_slice(bytes);
            }
        }
    }
}

#[test]
fn data_is_where_the_map_says() {
    let devices = [ram(300, 1).0, ram(300, 2).0];
    let mut model = Model::of(&devices);
    compare(&mapped(&devices, map()), &mut model, &mut || {}, 300);
    assert_eq!(model.0, Model::of(&devices).0);
}

#[test]
fn parts_may_end_late_in_any_order_and_find_a_device_busy() {
    let devices = [ram(300, 1).0, ram(300, 2).0];
    let mut model = Model::of(&devices);
    let slow: Vec<Delayed> = devices.iter().cloned().map(Delayed::new).collect();
    for (device, depth) in slow.iter().zip([1, 3]) {
        device.limit(Caps {
            depth,
            segments: 40,
            ..Caps::UNLIMITED
        });
    }
    let below = slow
        .iter()
        .map(|device| Arc::new(device.clone()) as Arc<dyn BlockDevice>);
    let device = mapped(&below.collect::<Vec<_>>(), map());
    let mut random = Random(3);
    let mut step = || {
        let device = &slow[random.below(2)];
        match random.below(4) {
            0 => device.be_busy(true),
            1 => device.be_busy(false),
            _ if device.held() > 0 => device.release(random.below(device.held())),
            _ => {}
        }
    };
    // No request has more segments than that, and most are cut.
    let places = places();
    let mut queue = device.queue();
    assert_eq!((queue.caps().depth, queue.caps().segments), (1, 40));
    for first in (0..places.len() - 40).step_by(3) {
        let mut guest = Guest::filled(&[SECTOR; 40]);
        let segments = guest.segments();
        let op = Op::Read {
            sector: Sector(first as u64),
        };
        serve(&mut *queue, op, &segments, &mut step).expect("a read");
        let mut expected = Vec::new();
        for place in &places[first..first + 40] {
            expected.extend_from_slice(model.sector(*place));
        }
        assert!(guest.content() == expected, "from {first} on");
    }
}

#[test]
fn data_that_goes_through_the_stores_memory_is_where_the_map_says() {
    let devices = [ram(300, 1).0, ram(300, 2).0];
    let places = places();
    let staged: [Arc<dyn BlockDevice>; 2] =
        [0, 1].map(|at| Arc::new(Encrypting::new(devices[at].clone(), 99)) as Arc<dyn BlockDevice>);
    let device = mapped(&staged, map());
    let mut queue = device.queue();
    assert_eq!(queue.caps().access, DataAccess::Staged);
    let written: Vec<u8> = (0..places.len() * SECTOR)
        .map(|at| (at * 5) as u8)
        .collect();
    let (mut first, mut parts) = (0, 0);
    while first < places.len() {
        let sector = Sector(first as u64);
        let most = (places.len() - first).min(32) * SECTOR;
        let len = queue.contiguous(Op::write(sector), most);
        let range = first * SECTOR..first * SECTOR + len;
        for op in [Op::write(sector), Op::Read { sector }] {
            let staging = queue.stage(Tag(9), op, len).expect("memory");
            let Staging { memory, phase } = staging;
            // SAFETY: the store gave so many bytes, and none of them is used but here.
            unsafe {
                match phase {
                    StagingPhase::BeforeSubmit => {
                        guest_memory::copy(written[range.clone()].as_ptr(), memory.as_ptr(), len)
                    }
                    _ => guest_memory::zero(memory.as_ptr(), len),
                }
            }
            // SAFETY: as above.
            let segment = unsafe { IoSegment::new(memory, len, None) };
            let io = Io {
                op,
                segments: &[segment],
            };
            assert_eq!(queue.submit(Tag(9), io), Submitted::Done(Ok(())));
            let mut back = vec![0; len];
            // SAFETY: as above.
            unsafe { guest_memory::copy(memory.as_ptr(), back.as_mut_ptr(), len) };
            assert!(phase == StagingPhase::BeforeSubmit || back == written[range.clone()]);
            queue.unstage(Tag(9));
        }
        first += len / SECTOR;
        parts += 1;
    }
    assert_eq!(
        parts,
        1 + 4 + 9 + 2,
        "extents, turns, and what is too large"
    );
    let mut model = Model::of(&devices);
    for (place, bytes) in places.iter().zip(written.chunks(SECTOR)) {
        let sector = model.sector(*place);
        Encrypting::apply(99, Sector(place.1 as u64), sector);
        assert_eq!(sector, bytes);
    }
}

#[test]
fn what_lies_in_a_row_is_copied_in_place_and_nothing_else() {
    let (device, memory) = ram(300, 1);
    let device = mapped(&[device, ram(300, 2).0], map());
    let mut queue = device.queue();
    assert_eq!(queue.caps().access, DataAccess::Direct);
    let read = |sector| Op::Read {
        sector: Sector(sector),
    };
    let staging = queue.stage(Tag(1), read(160 + 3), 30 * SECTOR);
    let Staging { memory: own, phase } = staging.expect("it lies in a row");
    assert_eq!(phase, StagingPhase::InPlace);
    assert_eq!(own.as_ptr().cast_const(), memory.wrapping_add(103 * SECTOR));
    assert_eq!(
        queue.stage(Tag(2), read(20), 5 * SECTOR),
        None,
        "two extents"
    );
    assert_eq!(
        queue.stage(Tag(3), read(160), 41 * SECTOR),
        None,
        "past the end"
    );
    queue.end_in_place();
}

#[test]
fn a_request_is_passed_on_as_it_is_or_refused() {
    let (device, _) = ram(300, 1);
    let mut only = ExtentMap::default();
    only.push(Sector(10), &[leg(0, 50)]).unwrap();
    let slow = Delayed::new(device);
    let device = mapped(&[Arc::new(slow.clone())], only);
    let mut queue = device.queue();
    let mut guest = Guest::filled(&[SECTOR; 3]);
    let segments = guest.segments();
    let mut ask = |op, segments: &[IoSegment]| queue.submit(Tag(1), Io { op, segments });
    let read = |sector| Op::Read {
        sector: Sector(sector),
    };
    assert_eq!(ask(read(7), &segments), Submitted::Pending);
    assert_eq!(slow.ops(), [read(57)]);
    let refused = |error| Submitted::Done(Err(error));
    assert_eq!(ask(read(8), &segments), refused(IoError::OutOfRange));
    assert_eq!(ask(read(u64::MAX), &segments), refused(IoError::OutOfRange));
    let discard = |sector, count| Op::Discard {
        sector: Sector(sector),
        count: Sector(count),
        secure: false,
    };
    assert_eq!(ask(discard(1, u64::MAX), &[]), refused(IoError::OutOfRange));
    assert_eq!(ask(discard(9, 2), &[]), refused(IoError::OutOfRange));
    let mut odd = Guest::filled(&[100]);
    assert_eq!(ask(read(1), &odd.segments()), refused(IoError::Misaligned));
    assert_eq!(slow.held(), 1);
}

#[test]
fn who_reads_changes_nothing() {
    let devices = [ram(300, 1).0, ram(300, 2).0];
    let before = Model::of(&devices).0;
    let device = MappedDevice::new(&shared(&devices), map(), Access::ReadOnly, Arc::new(()));
    let device = device.expect("it can be mapped");
    assert!(device.geometry().read_only);
    assert_eq!(device.geometry().discard, None);
    let whole = SharedDevice::new(devices[0].clone()).user(Access::ReadOnly, Arc::new(()));
    assert!(whole.geometry().read_only);
    for mut queue in [device.queue(), whole.queue()] {
        let mut guest = Guest::filled(&[SECTOR]);
        let segments = guest.segments();
        let write = Op::write(Sector(1));
        assert_eq!(queue.stage(Tag(1), write, SECTOR), None);
        assert_eq!(
            submit(&mut *queue, write, &segments),
            Err(IoError::ReadOnly)
        );
        let discard = Op::Discard {
            sector: Sector(0),
            count: Sector(8),
            secure: false,
        };
        assert_eq!(submit(&mut *queue, discard, &[]), Err(IoError::ReadOnly));
    }
    assert_eq!(before, Model::of(&devices).0);
}

#[test]
fn a_flush_is_done_when_every_device_has_done_it() {
    let slow = [Delayed::new(ram(300, 1).0), Delayed::new(ram(300, 2).0)];
    let device = mapped(
        &slow.clone().map(|it| Arc::new(it) as Arc<dyn BlockDevice>),
        map(),
    );
    let mut queue = device.queue();
    let flush = Io {
        op: Op::Flush,
        segments: &[],
    };
    let mut told = Vec::new();
    for fails in [false, true] {
        assert_eq!(queue.submit(Tag(3), flush), Submitted::Pending);
        queue.flush_submissions();
        slow[1].release(0);
        queue.complete(&mut |tag, outcome| told.push((tag, outcome)));
        assert_eq!(told, [], "one device has not");
        match fails {
            false => slow[0].release(0),
            true => slow[0].fail(0, IoError::Medium),
        }
        queue.complete(&mut |tag, outcome| told.push((tag, outcome)));
        let expected = if fails { Err(IoError::Medium) } else { Ok(()) };
        assert_eq!(std::mem::take(&mut told), [(Tag(3), expected)]);
    }
    assert_eq!((slow[0].batches(), slow[1].batches()), (2, 2));
}

#[test]
fn a_discard_asks_each_device_once_for_an_extent() {
    let slow = [Delayed::new(ram(300, 1).0), Delayed::new(ram(300, 2).0)];
    let device = mapped(
        &slow.clone().map(|it| Arc::new(it) as Arc<dyn BlockDevice>),
        map(),
    );
    let places = places();
    let mut random = Random(17);
    for _ in 0..300 {
        let first = random.below(places.len());
        let count = 1 + random.below(places.len() - first);
        let mut queue = device.queue();
        let op = Op::Discard {
            sector: Sector(first as u64),
            count: Sector(count as u64),
            secure: false,
        };
        let io = Io { op, segments: &[] };
        assert_eq!(queue.submit(Tag(3), io), Submitted::Pending);
        let mut discarded = HashSet::new();
        let mut parts = 0;
        for (device, slow) in slow.iter().enumerate() {
            for op in slow.ops() {
                let Op::Discard { sector, count, .. } = op else {
                    panic!("{op:?}");
                };
                parts += 1;
                for sector in sector.0..sector.0 + count.0 {
                    assert!(discarded.insert((device, sector as usize)), "twice");
                }
            }
            while slow.held() > 0 {
                slow.release(0);
            }
        }
        let expected: HashSet<_> = places[first..first + count].iter().copied().collect();
        assert_eq!(discarded, expected);
        assert!(parts <= 7, "{parts} parts for 7 legs");
        let mut told = Vec::new();
        queue.complete(&mut |tag, outcome| told.push((tag, outcome)));
        assert_eq!(told, [(Tag(3), Ok(()))]);
    }
}

#[test]
fn what_is_given_up_passes_on_no_more_parts() {
    let slow = Delayed::new(ram(300, 1).0);
    slow.cancel_what_is_given_up();
    slow.limit(Caps {
        depth: 2,
        ..Caps::UNLIMITED
    });
    let mut turns = ExtentMap::default();
    let legs = [leg(0, 0), leg(0, 100)];
    turns.push_striped(Sector(128), Sector(8), &legs).unwrap();
    let device = mapped(&[Arc::new(slow.clone())], turns);
    for all in [false, true] {
        let mut queue = device.queue();
        let mut guest = Guest::filled(&[4096; 16]);
        let segments = guest.segments();
        let read = Io {
            op: Op::Read { sector: Sector(0) },
            segments: &segments,
        };
        assert_eq!(queue.submit(Tag(7), read), Submitted::Pending);
        assert_eq!(slow.held(), 2);
        match all {
            true => queue.cancel_all(),
            false => queue.cancel(Tag(7)),
        }
        let mut told = Vec::new();
        queue.complete(&mut |tag, outcome| told.push((tag, outcome)));
        assert_eq!(told, [(Tag(7), Err(IoError::Cancelled))]);
        assert_eq!(slow.held(), 0);
    }
}

#[test]
fn who_was_refused_for_want_of_room_is_told_when_there_is_some() {
    let slow = Delayed::new(ram(300, 1).0);
    let mut turns = ExtentMap::default();
    let legs = [leg(0, 0), leg(0, 100)];
    turns.push_striped(Sector(128), Sector(8), &legs).unwrap();
    let device = mapped(&[Arc::new(slow.clone())], turns);
    let mut queue = device.queue();
    let mut guest = Guest::filled(&[4096; 2]);
    let segments = guest.segments();
    let read = Io {
        op: Op::Read { sector: Sector(0) },
        segments: &segments,
    };
    let mut taken = 0;
    while queue.submit(Tag(taken), read) == Submitted::Pending {
        taken += 1;
        assert!(taken < 1000);
    }
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let poll = |queue: &mut dyn IoQueue| {
        let mut told = 0;
        let polled = queue.poll_complete(&mut Context::from_waker(&waker), &mut |_, _| told += 1);
        (polled, told)
    };
    assert_eq!(poll(&mut *queue), (Poll::Pending, 0));
    slow.release(0);
    slow.release(0);
    assert!(wakes.count() > 0);
    assert_eq!(poll(&mut *queue), (Poll::Ready(()), 1));
    assert_eq!(queue.submit(Tag(999), read), Submitted::Pending);
}

#[test]
fn whoever_waits_is_woken_after_each_part_that_ends_alone() {
    let slow = Delayed::new(ram(300, 1).0);
    let mut turns = ExtentMap::default();
    let legs = [leg(0, 0), leg(0, 100)];
    turns.push_striped(Sector(128), Sector(8), &legs).unwrap();
    let device = mapped(&[Arc::new(slow.clone())], turns);
    let mut queue = device.queue();
    let discard = Io {
        op: Op::Discard {
            sector: Sector(0),
            count: Sector(16),
            secure: false,
        },
        segments: &[],
    };
    assert_eq!(queue.submit(Tag(1), discard), Submitted::Pending);
    assert_eq!(slow.held(), 2);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let poll = |queue: &mut dyn IoQueue| {
        let mut told = 0;
        let polled = queue.poll_complete(&mut Context::from_waker(&waker), &mut |_, _| told += 1);
        (polled, told)
    };
    assert_eq!(poll(&mut *queue), (Poll::Pending, 0));
    slow.release(0);
    assert_eq!(wakes.count(), 1);
    assert_eq!(poll(&mut *queue), (Poll::Pending, 0), "one part is left");
    slow.release(0);
    assert_eq!(wakes.count(), 2, "the last part wakes the queue too");
    assert_eq!(poll(&mut *queue), (Poll::Ready(()), 1));
}

#[test]
fn a_device_that_cannot_be_flushed_does_not_keep_the_others_from_it() {
    let slow = Delayed::new(ram(300, 1).0);
    for unflushed in [0, 1] {
        let mut devices: [Arc<dyn BlockDevice>; 2] = [0, 1].map(|_| Arc::new(slow.clone()) as _);
        devices[unflushed] = Arc::new(Unflushed(ram(300, 2).0));
        let device = mapped(&devices, map());
        assert!(device.geometry().flush);
        let mut queue = device.queue();
        let flush = Io {
            op: Op::Flush,
            segments: &[],
        };
        assert_eq!(queue.submit(Tag(3), flush), Submitted::Pending);
        assert_eq!(slow.ops(), [Op::Flush]);
        slow.release(0);
        let mut told = Vec::new();
        queue.complete(&mut |tag, outcome| told.push((tag, outcome)));
        assert_eq!(told, [(Tag(3), Ok(()))]);
    }
    let devices = [(); 2].map(|()| Arc::new(Unflushed(ram(300, 2).0)) as Arc<dyn BlockDevice>);
    let device = mapped(&devices, map());
    assert!(!device.geometry().flush);
    let refused = submit(&mut *device.queue(), Op::Flush, &[]);
    assert_eq!(refused, Err(IoError::NotSupported));
}

/// A disk that has nothing to flush with, and refuses to.
struct Unflushed(Arc<dyn BlockDevice>);

impl BlockDevice for Unflushed {
    fn geometry(&self) -> Geometry {
        Geometry {
            flush: false,
            ..self.0.geometry()
        }
    }

    fn open_queue<'a>(&'a self, _: &QueueContext) -> OpenQueue<'a> {
        opened(UnflushedQueue(self.0.queue()))
    }
}

struct UnflushedQueue(Box<dyn IoQueue>);

impl IoQueue for UnflushedQueue {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        match io.op {
            Op::Flush => Submitted::Done(Err(IoError::NotSupported)),
            _ => self.0.submit(tag, io),
        }
    }

    fn poll_complete(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(Tag, Result<(), IoError>),
    ) -> Poll<()> {
        self.0.poll_complete(context, sink)
    }

    fn cancel(&mut self, tag: Tag) {
        self.0.cancel(tag);
    }

    fn cancel_all(&mut self) {
        self.0.cancel_all();
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.0.poll_close(context)
    }
}

#[test]
fn a_queue_is_closed_when_all_below_are() {
    let slow = [Delayed::new(ram(300, 1).0), Delayed::new(ram(300, 2).0)];
    slow[1].hold_on();
    let device = mapped(
        &slow.clone().map(|it| Arc::new(it) as Arc<dyn BlockDevice>),
        map(),
    );
    let mut queue = device.queue();
    let mut guest = Guest::filled(&[4096; 8]);
    let segments = guest.segments();
    let read = Io {
        op: Op::Read { sector: Sector(24) },
        segments: &segments,
    };
    assert_eq!(queue.submit(Tag(7), read), Submitted::Pending);
    let mut close = || queue.poll_close(&mut Context::from_waker(Waker::noop()));
    assert_eq!(close(), Poll::Pending);
    assert_eq!((slow[0].held(), slow[1].held()), (0, 2));
    slow[1].release_backwards();
    assert_eq!(close(), Poll::Ready(()));
}

#[test]
fn it_grows_while_it_is_in_use() {
    let devices = [ram(300, 1).0, ram(300, 2).0];
    let device = mapped(&devices, map());
    let mut queue = device.queue();
    let wakes = Arc::new(Wakes::default());
    device.on_change(&Waker::from(wakes.clone()));
    let old = device.geometry().sectors;
    assert_eq!(old, Sector(200));
    let mut guest = Guest::filled(&[SECTOR]);
    let segments = guest.segments();
    let read = Op::Read { sector: old };
    let refused = submit(&mut *queue, read, &segments);
    assert_eq!(refused, Err(IoError::OutOfRange));

    let mut larger = map();
    larger.push(Sector(4), &[leg(0, 140)]).unwrap();
    larger.push(Sector(4), &[leg(1, 290)]).unwrap();
    device.extend(larger).expect("it grows");
    assert_eq!(wakes.count(), 1);
    assert_eq!(device.geometry().sectors, Sector(208));
    submit(&mut *queue, read, &segments).expect("there now");
    assert_eq!(guest.content(), Model::of(&devices).sector((0, 140)));

    let mut moved = ExtentMap::default();
    moved.push(Sector(24), &[leg(1, 9)]).unwrap();
    moved.push(Sector(250), &[leg(0, 0)]).unwrap();
    assert_eq!(device.extend(moved), Err(MappingError::Moved));
    assert_eq!(device.extend(map()), Err(MappingError::Moved), "smaller");
    let mut outside = map();
    outside.push(Sector(1), &[leg(0, 300)]).unwrap();
    assert_eq!(device.extend(outside), Err(MappingError::OutOfRange));
    let mut foreign = map();
    foreign.push(Sector(1), &[leg(2, 0)]).unwrap();
    assert_eq!(device.extend(foreign), Err(MappingError::OutOfRange));
    assert_eq!(device.geometry().sectors, Sector(208));
    assert_eq!(wakes.count(), 1);
}

#[test]
fn extents_that_cannot_be_are_refused() {
    let mut map = ExtentMap::default();
    let legs = [leg(0, 0), leg(1, 0)];
    let chunk = |chunk| Err(ExtentError::Chunk(Sector(chunk)));
    assert_eq!(map.push(Sector(0), &[leg(0, 0)]), Err(ExtentError::Empty));
    assert_eq!(
        map.push_striped(Sector(64), Sector(8), &[]),
        Err(ExtentError::Empty)
    );
    assert_eq!(map.push_striped(Sector(64), Sector(4), &legs), chunk(4));
    assert_eq!(map.push_striped(Sector(64), Sector(0), &legs), chunk(0));
    assert_eq!(map.push_striped(Sector(72), Sector(8), &legs), chunk(8));
    assert_eq!(map.push_striped(Sector(63), Sector(8), &legs), chunk(8));
    let large = Err(ExtentError::TooLarge);
    assert_eq!(map.push(Sector(2), &[leg(0, u64::MAX - 1)]), large);
    assert_eq!(map.push(Sector(1 << 56), &[leg(0, 0)]), large);
    map.push(Sector(1 << 54), &[leg(0, 0)]).expect("large");
    assert_eq!(map.push(Sector(1 << 54), &[leg(0, 1 << 54)]), large);
    assert_eq!(map.push(Sector(1 << 54), &[leg(1, 0)]), large);
    assert_eq!(map.sectors(), Sector(1 << 54));

    let small = SharedDevice::new(ram(8, 0).0);
    let null = NullDevice::new(Sector(800), SectorSize::B4096, Access::ReadWrite);
    let coarse = SharedDevice::new(Arc::new(null));
    let make = |below: &[SharedDevice], leg: Leg| {
        let mut map = ExtentMap::default();
        map.push(Sector(4), &[leg]).expect("an extent");
        let made = MappedDevice::new(below, map, Access::ReadWrite, Arc::new(()));
        made.err()
    };
    let sizes = MappingError::SectorSizes(SectorSize::B512, SectorSize::B4096);
    let both = [small.clone(), coarse.clone()];
    assert_eq!(make(&both, leg(0, 0)), Some(sizes));
    assert_eq!(make(&[], leg(0, 0)), Some(MappingError::Empty));
    assert_eq!(make(&both[..1], leg(0, 5)), Some(MappingError::OutOfRange));
    let misaligned = MappingError::Misaligned(SectorSize::B4096);
    assert_eq!(make(&both[1..], leg(0, 8)), Some(misaligned));
    assert_eq!(make(&both[..1], leg(0, 4)), None);
}

#[test]
fn devices_of_kinds_that_do_not_go_together_are_refused() {
    let slow = |access| {
        let device = Delayed::new(ram(300, 1).0);
        device.limit(Caps {
            access,
            ..Caps::UNLIMITED
        });
        Arc::new(device) as Arc<dyn BlockDevice>
    };
    let opened = |one, other| {
        let device = mapped(&[slow(one), slow(other)], map());
        let context = bulkhead_images::QueueContext::new(bulkhead_xen::VcpuId(0), 4);
        let mut opening = device.open_queue(&context);
        match opening
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(Ok(queue)) => Ok(queue.caps().access),
            Poll::Ready(Err(error)) => Err(error.to_string()),
            Poll::Pending => panic!("it waits"),
        }
    };
    use DataAccess::{Direct, Dma, Mapped, Staged};
    assert_eq!(opened(Direct, Mapped), Ok(Mapped));
    assert_eq!(opened(Dma, Dma), Ok(Dma));
    let refused = opened(Staged, Dma).unwrap_err();
    assert!(refused.contains("cannot have together"), "{refused}");
}

#[test]
fn every_user_of_a_shared_device_is_told_of_a_change() {
    let bottom = mapped(&[ram(300, 1).0, ram(300, 2).0], map());
    let shared = SharedDevice::new(Arc::new(bottom.clone()));
    let mut part = ExtentMap::default();
    part.push(Sector(8), &[leg(0, 8)]).unwrap();
    let part = MappedDevice::new(
        std::slice::from_ref(&shared),
        part,
        Access::ReadOnly,
        Arc::new(()),
    );
    let users: [Arc<dyn BlockDevice>; 3] = [
        shared.user(Access::ReadWrite, Arc::new(())),
        shared.user(Access::ReadOnly, Arc::new(())),
        Arc::new(part.expect("it can be mapped")),
    ];
    let wakes = [(); 3].map(|()| Arc::new(Wakes::default()));
    for (user, wakes) in users.iter().zip(&wakes) {
        user.on_change(&Waker::from(wakes.clone()));
    }
    let mut larger = map();
    larger.push(Sector(8), &[leg(1, 200)]).unwrap();
    bottom.extend(larger).expect("it grows");
    assert_eq!(wakes.each_ref().map(|wakes| wakes.count()), [1; 3]);
    assert_eq!(users[0].geometry().sectors, Sector(208));
}

#[test]
fn a_claim_is_held_as_long_as_a_queue() {
    let held = Arc::new(());
    let shared = SharedDevice::new(ram(300, 1).0);
    let mut part = ExtentMap::default();
    part.push(Sector(8), &[leg(0, 8)]).unwrap();
    let part = MappedDevice::new(
        std::slice::from_ref(&shared),
        part,
        Access::ReadWrite,
        held.clone(),
    );
    let part = part.expect("it can be mapped");
    let whole = shared.user(Access::ReadWrite, held.clone());
    let queues = [part.queue(), whole.queue()];
    drop((part, whole));
    assert_eq!(Arc::strong_count(&held), 3);
    drop(queues);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn a_shared_device_is_dropped_with_its_last_user() {
    let held = Arc::new(());
    let devices = [ram(300, 1).0, ram(300, 2).0];
    let below = shared(&devices);
    let bottom = MappedDevice::new(&below, map(), Access::ReadWrite, held.clone());
    let bottom = bottom.expect("it can be mapped");
    let user = SharedDevice::new(Arc::new(bottom)).user(Access::ReadWrite, Arc::new(()));
    // The device keeps a waker from now on.
    user.on_change(Waker::noop());
    assert_eq!(Arc::strong_count(&held), 2);
    drop(user);
    assert_eq!(Arc::strong_count(&held), 1);
}
