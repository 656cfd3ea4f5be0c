//! Reads a device for this domain's own use.

mod support;

use bulkhead_images::testing::{Delayed, Encrypting, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, Caps, DeviceReader, IoError, Op, RamImage, ReadError, Sector, SectorSize,
};
use bulkhead_xen::VcpuId;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use support::{Guest, memory, submit};

/// Polls a future to its end; `step` has a slow store go on.
fn run<T>(future: impl Future<Output = T>, mut step: impl FnMut()) -> T {
    let mut future = pin!(future);
    for _ in 0..10_000 {
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(output) => return output,
            Poll::Pending => step(),
        }
    }
    panic!("it does not end");
}

fn bytes() -> Vec<u8> {
    (0..128 * 1024_usize)
        .map(|at| (at / 512 + at) as u8)
        .collect()
}

fn ram(size: SectorSize) -> Arc<dyn BlockDevice> {
    Arc::new(RamImage::new(memory(&bytes()), size, Access::ReadWrite))
}

/// Reads ranges that begin and end anywhere.
async fn read_all(device: &dyn BlockDevice) {
    let mut reader = DeviceReader::open(device, VcpuId(0)).await.expect("opened");
    let expected = bytes();
    for (start, len) in [
        (0, 1),
        (511, 2),
        (512, 4096),
        (4095, 40_000),
        (7, 131_065),
        (131_071, 1),
    ] {
        let mut read = vec![0xEE; len];
        reader
            .read(start as u64, &mut read)
            .await
            .expect("it is there");
        assert!(read == expected[start..start + len], "{start} and {len}");
    }
    for start in [131_072, 131_071, u64::MAX] {
        let past = reader.read(start, &mut [0; 2]).await;
        assert_eq!(past, Err(ReadError::PastTheEnd));
    }
    reader.close().await;
}

#[test]
fn reads_any_range_of_devices_with_both_sizes_of_sectors() {
    for size in [SectorSize::B512, SectorSize::B4096] {
        run(read_all(&*ram(size)), || panic!("nothing to wait for"));
    }
}

#[test]
fn reads_within_what_a_slow_store_takes() {
    let slow = Delayed::new(ram(SectorSize::B512));
    slow.limit(Caps {
        depth: 1,
        segments: 2,
        bytes: 3000 / 512 * 512,
        alignment: 512,
        ..Caps::UNLIMITED
    });
    let mut step = 0;
    run(read_all(&slow), || {
        step += 1;
        slow.be_busy(step % 3 == 0);
        if slow.held() > 0 {
            slow.release(0);
        }
    });
}

#[test]
fn reads_through_the_memory_of_a_store() {
    let encrypted = Encrypting::new(ram(SectorSize::B512), 5);
    // What it is to read is written through the same layer, sector by sector.
    let mut content = bytes();
    for (sector, bytes) in content.chunks_mut(512).enumerate() {
        Encrypting::apply(5, Sector(sector as u64), bytes);
    }
    let ram = RamImage::new(memory(&content), SectorSize::B512, Access::ReadWrite);
    drop(encrypted);
    let device = Encrypting::new(Arc::new(ram), 5);
    run(read_all(&device), || panic!("nothing to wait for"));
}

#[test]
fn a_store_that_fails_is_told() {
    let slow = Delayed::new(ram(SectorSize::B512));
    let outcome = run(
        async {
            let mut reader = DeviceReader::open(&slow, VcpuId(0)).await.expect("opened");
            let outcome = reader.read(0, &mut [0; 512]).await;
            reader.close().await;
            outcome
        },
        || slow.fail(0, IoError::Medium),
    );
    assert_eq!(outcome, Err(ReadError::Io(IoError::Medium)));
}

#[test]
fn a_store_that_never_answers_keeps_the_memory_when_the_reader_is_given_up() {
    let slow = Delayed::new(ram(SectorSize::B512));
    slow.hold_on();
    {
        let mut reading = pin!(async {
            let mut reader = DeviceReader::open(&slow, VcpuId(0)).await.expect("opened");
            reader.read(0, &mut [0; 512]).await
        });
        let polled = reading
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Pending);
    }
    // It answers after all. Were the memory anybody else's by now, this one's would change.
    let others: Vec<Vec<u8>> = (0..64).map(|_| vec![0x11; 8 * 4096]).collect();
    slow.release(0);
    assert!(others.iter().flatten().all(|&byte| byte == 0x11));
    // The store is not in use otherwise.
    let mut guest = Guest::filled(&[512]);
    let segments = guest.segments();
    let op = Op::Read { sector: Sector(0) };
    submit(&mut *ram(SectorSize::B512).queue(), op, &segments).expect("a read");
}
