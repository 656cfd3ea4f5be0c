//! Extents and devices that cannot be mapped, and a device that grows.

use crate::support::{Guest, Wakes, submit};
use crate::world::{Model, SECTOR, leg, map, mapped, ram};
use bulkhead_images::testing::{Delayed, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, Caps, DataAccess, ExtentError, ExtentMap, IoError, Leg, MappedDevice,
    MappingError, NullDevice, Op, Sector, SectorSize, SharedDevice,
};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

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
