//! Data lies where the map says, and requests are passed on as they are or refused.

use crate::support::{Guest, submit};
use crate::world::{Model, Random, SECTOR, compare, leg, map, mapped, places, ram, serve, shared};
use bulkhead_images::testing::{Delayed, Encrypting, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, Caps, DataAccess, ExtentMap, Io, IoError, IoSegment, MappedDevice, Op,
    Sector, SharedDevice, Staging, StagingPhase, Submitted, Tag, guest_memory,
};
use std::sync::Arc;

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
