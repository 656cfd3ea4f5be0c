//! The parts that the tests share: a map, two disks below it, and a model of their content.

use crate::support::{Guest, submit, visible_memory};
use bulkhead_images::testing::{CompleteNow, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, ExtentMap, Io, IoError, IoQueue, IoSegment, Leg, MappedDevice, Op,
    RamImage, Sector, SectorSize, SharedDevice, Submitted, Tag,
};
use std::sync::Arc;

pub const SECTOR: usize = 512;

/// Returns a RAM disk of that many sectors, each with its own content, and its address.
pub fn ram(sectors: usize, seed: u8) -> (Arc<dyn BlockDevice>, *const u8) {
    let bytes: Vec<u8> = (0..sectors * SECTOR)
        .map(|at| (at / SECTOR * 7 + at + usize::from(seed)) as u8)
        .collect();
    let (memory, pointer) = visible_memory(&bytes);
    let image = RamImage::new(memory, SectorSize::B512, Access::ReadWrite);
    (Arc::new(image), pointer)
}

pub fn leg(device: usize, start: u64) -> Leg {
    Leg {
        device,
        start: Sector(start),
    }
}

/// Returns a map of two linear extents that are not neighbours, with two legs and three legs in turns between them.
pub fn map() -> ExtentMap {
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

/// Returns the place of each sector of [`map`], by the rule for striping.
pub fn places() -> Vec<(usize, usize)> {
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

pub fn shared(devices: &[Arc<dyn BlockDevice>]) -> Vec<SharedDevice> {
    devices.iter().cloned().map(SharedDevice::new).collect()
}

pub fn mapped(devices: &[Arc<dyn BlockDevice>], map: ExtentMap) -> MappedDevice {
    let held = Arc::new(());
    MappedDevice::new(&shared(devices), map, Access::ReadWrite, held).expect("it can be mapped")
}

/// A generator that gives the same numbers in every run (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % limit
    }

    /// Returns segments of up to a page that have that many sectors together.
    pub fn lengths(&mut self, sectors: usize) -> Vec<usize> {
        let (mut left, mut lengths) = (sectors, Vec::new());
        while left > 0 {
            let sectors = (1 + self.below(8)).min(left);
            lengths.push(sectors * SECTOR);
            left -= sectors;
        }
        lengths
    }
}

/// The content of two devices.
pub struct Model(pub [Vec<u8>; 2]);

impl Model {
    pub fn of(devices: &[Arc<dyn BlockDevice>]) -> Model {
        Model([content(&*devices[0]), content(&*devices[1])])
    }

    pub fn sector(&mut self, place: (usize, usize)) -> &mut [u8] {
        &mut self.0[place.0][place.1 * SECTOR..(place.1 + 1) * SECTOR]
    }
}

pub fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let sectors = device.geometry().sectors.0 as usize;
    let mut guest = Guest::filled(&vec![SECTOR; sectors]);
    let segments = guest.segments();
    let op = Op::Read { sector: Sector(0) };
    submit(&mut *device.queue(), op, &segments).expect("it can be read");
    guest.content()
}

/// Serves one request to its end; `step` has a slow store go on.
pub fn serve(
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
pub fn compare(device: &MappedDevice, model: &mut Model, step: &mut dyn FnMut(), rounds: usize) {
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
