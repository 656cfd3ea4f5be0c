//! The stores: the data that they read and write, and the requests that they refuse.

mod support;

use bulkhead_images::testing::{CompleteNow, Delayed, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, Io, IoError, NullDevice, Op, RamImage, Sector, SectorSize, Submitted, Tag,
};
use proptest::prelude::*;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use support::{Guest, Wakes, memory, submit};

fn read(sector: u64) -> Op {
    Op::Read {
        sector: Sector(sector),
    }
}

fn write(sector: u64) -> Op {
    Op::write(Sector(sector))
}

/// Returns both stores with 16 sectors, as `bytes` of memory or none.
fn devices(sector_size: SectorSize, access: Access) -> [Box<dyn BlockDevice>; 2] {
    [
        Box::new(RamImage::new(memory(&[0; 8192]), sector_size, access)),
        Box::new(NullDevice::new(Sector(16), sector_size, access)),
    ]
}

#[test]
fn requests_past_the_end_are_refused() {
    for device in devices(SectorSize::B512, Access::ReadWrite) {
        let mut queue = device.queue();
        let mut guest = Guest::filled(&[512, 512]);
        let segments = guest.segments();
        for op in [read(14), write(14)] {
            assert_eq!(submit(&mut *queue, op, &segments), Ok(()));
        }
        for sector in [15, 16, 17, u64::MAX / 512, u64::MAX - 1, u64::MAX] {
            for op in [read(sector), write(sector)] {
                let refused = submit(&mut *queue, op, &segments);
                assert_eq!(refused, Err(IoError::OutOfRange), "{op:?}");
            }
        }
    }
}

#[test]
fn requests_in_parts_of_sectors_are_refused() {
    for device in devices(SectorSize::B512, Access::ReadWrite) {
        let mut guest = Guest::filled(&[512, 100]);
        let segments = guest.segments();
        let refused = submit(&mut *device.queue(), read(0), &segments);
        assert_eq!(refused, Err(IoError::Misaligned));
    }
    for device in devices(SectorSize::B4096, Access::ReadWrite) {
        let mut queue = device.queue();
        // Segments may be smaller than a sector if together they are whole ones.
        let mut guest = Guest::filled(&[512, 3584]);
        let segments = guest.segments();
        assert_eq!(submit(&mut *queue, write(8), &segments), Ok(()));
        let misaligned = Err(IoError::Misaligned);
        assert_eq!(submit(&mut *queue, write(1), &segments), misaligned);
        assert_eq!(submit(&mut *queue, write(0), &segments[..1]), misaligned);
    }
}

#[test]
fn read_only_devices_are_not_written() {
    for device in devices(SectorSize::B512, Access::ReadOnly) {
        assert!(device.geometry().read_only);
        let mut queue = device.queue();
        let mut guest = Guest::filled(&[512]);
        let segments = guest.segments();
        let refused = submit(&mut *queue, write(0), &segments);
        assert_eq!(refused, Err(IoError::ReadOnly));
        assert_eq!(submit(&mut *queue, read(0), &segments), Ok(()));
        assert_eq!(submit(&mut *queue, Op::Flush, &[]), Ok(()));
    }
}

#[test]
fn discards_are_refused_where_the_geometry_has_none() {
    for access in [Access::ReadWrite, Access::ReadOnly] {
        for device in devices(SectorSize::B512, access) {
            let offered = device.geometry().discard.is_some();
            let discard = Op::Discard {
                sector: Sector(0),
                count: Sector(8),
                secure: false,
            };
            let done = submit(&mut *device.queue(), discard, &[]).is_ok();
            assert_eq!(done, offered);
        }
        let null = NullDevice::new(Sector(16), SectorSize::B512, access);
        assert_eq!(null.geometry().discard, None, "it holds nothing");
    }
}

#[test]
fn positions_past_two_tebibytes_are_exact() {
    // More sectors than 32 bits count, up to the last one that 2^64 bytes have.
    for sectors in [3_u64 << 32, (1 << 55) - 8] {
        for sector_size in [SectorSize::B512, SectorSize::B4096] {
            let device = NullDevice::new(Sector(sectors), sector_size, Access::ReadWrite);
            assert_eq!(device.geometry().sectors, Sector(sectors));
            let mut queue = device.queue();
            let mut guest = Guest::filled(&[4096]);
            let segments = guest.segments();
            for op in [read(sectors - 8), write(sectors - 8), read(1 << 32)] {
                assert_eq!(submit(&mut *queue, op, &segments), Ok(()), "{op:?}");
            }
            for op in [read(sectors), write(sectors + 8), read(u64::MAX - 7)] {
                let refused = submit(&mut *queue, op, &segments);
                assert_eq!(refused, Err(IoError::OutOfRange), "{op:?}");
            }
        }
    }
}

#[test]
fn null_leaves_memory_alone() {
    let device = NullDevice::new(Sector(8), SectorSize::B512, Access::ReadWrite);
    let mut guest = Guest::filled(&[4096]);
    let segments = guest.segments();
    assert_eq!(submit(&mut *device.queue(), read(0), &segments), Ok(()));
    assert_eq!(guest.content(), [0xEE; 4096]);
}

#[test]
fn queues_on_several_threads_serve_one_image_without_locks() {
    let image = RamImage::new(memory(&[0; 64 * 512]), SectorSize::B512, Access::ReadWrite);
    std::thread::scope(|scope| {
        for number in 0..4_u8 {
            let image = &image;
            scope.spawn(move || {
                let mut queue = image.queue();
                for round in 0..200_u8 {
                    // Each thread has its sectors, and all of them write the last.
                    for (sector, byte) in [(u64::from(number), round), (63, number)] {
                        let mut guest = Guest::with(&[&[byte; 512]]);
                        let segments = guest.segments();
                        assert_eq!(submit(&mut *queue, write(sector), &segments), Ok(()));
                    }
                    let mut guest = Guest::filled(&[512]);
                    let segments = guest.segments();
                    let own = read(u64::from(number));
                    assert_eq!(submit(&mut *queue, own, &segments), Ok(()));
                    assert_eq!(guest.content(), [round; 512]);
                }
            });
        }
    });
}

proptest! {
    /// Compares an image with a plain vector.
    #[test]
    fn what_is_written_is_read(
        requests in prop::collection::vec(
            (any::<bool>(), 0..70_u64, prop::collection::vec(1..=8_usize, 0..12), any::<u8>()),
            1..40,
        ),
    ) {
        let mut model: Vec<u8> = (0..64 * 512).map(|n| (n % 253) as u8).collect();
        let image = RamImage::new(memory(&model), SectorSize::B512, Access::ReadWrite);
        let mut queue = image.queue();
        for (is_write, sector, sectors, byte) in requests {
            let lengths: Vec<usize> = sectors.iter().map(|count| count * 512).collect();
            let start = sector as usize * 512;
            let range = start..start + lengths.iter().sum::<usize>();
            let inside = model.get(range.clone()).is_some();
            let expected = if inside { Ok(()) } else { Err(IoError::OutOfRange) };
            if is_write {
                let buffers: Vec<Vec<u8>> = lengths
                    .iter()
                    .zip(0_u8..)
                    .map(|(&len, number)| (0..len).map(|n| byte ^ number ^ n as u8).collect())
                    .collect();
                let buffers: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
                let mut guest = Guest::with(&buffers);
                let segments = guest.segments();
                prop_assert_eq!(submit(&mut *queue, write(sector), &segments), expected);
                if inside {
                    model[range].copy_from_slice(&guest.content());
                }
            } else {
                let mut guest = Guest::filled(&lengths);
                let segments = guest.segments();
                prop_assert_eq!(submit(&mut *queue, read(sector), &segments), expected);
                if inside {
                    prop_assert_eq!(&guest.content(), &model[range]);
                }
            }
        }
    }
}

#[test]
fn a_delayed_device_completes_in_any_order_and_wakes() {
    let image = RamImage::new(memory(&[5; 4096]), SectorSize::B512, Access::ReadWrite);
    let device = Delayed::new(Arc::new(image));
    let mut queue = device.queue();
    let mut other = device.queue();
    let mut guest = Guest::filled(&[512]);
    let segments = guest.segments();
    for (tag, op) in [(1, read(0)), (2, write(1)), (3, write(100)), (4, read(2))] {
        let io = Io {
            op,
            segments: &segments,
        };
        assert_eq!(queue.submit(Tag(tag), io), Submitted::Pending);
    }
    assert_eq!(device.ops(), [read(0), write(1), write(100), read(2)]);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    let mut context = Context::from_waker(&waker);
    let none = queue.poll_complete(&mut context, &mut |_, _| panic!("nothing is done"));
    assert_eq!((none, wakes.count()), (Poll::Pending, 0));

    device.fail(1, IoError::Medium);
    device.release_backwards();
    assert_eq!(wakes.count(), 1, "once asked, once woken");
    let mut told = Vec::new();
    other.complete(&mut |tag, result| told.push((tag, result)));
    assert_eq!(told, [], "completions come to the queue that asked");
    queue.complete(&mut |tag, result| told.push((tag, result)));
    let expected = [
        (Tag(2), Err(IoError::Medium)),
        (Tag(4), Ok(())),
        (Tag(3), Err(IoError::OutOfRange)),
        (Tag(1), Ok(())),
    ];
    assert_eq!(told, expected);
    assert_eq!(guest.content(), [5; 512]);
}

#[test]
fn a_closed_queue_abandons_its_requests() {
    let null = NullDevice::new(Sector(8), SectorSize::B512, Access::ReadWrite);
    let device = Delayed::new(Arc::new(null));
    let mut queue = device.queue();
    let flush = Io {
        op: Op::Flush,
        segments: &[],
    };
    assert_eq!(queue.submit(Tag(1), flush), Submitted::Pending);
    assert_eq!(device.held(), 1);
    let closed = queue.poll_close(&mut Context::from_waker(Waker::noop()));
    assert_eq!((closed, device.held()), (Poll::Ready(()), 0));
}
