//! A device with several users.

use crate::support::Wakes;
use crate::world::{leg, map, mapped, ram, shared};
use bulkhead_images::testing::OpenNow;
use bulkhead_images::{Access, BlockDevice, ExtentMap, MappedDevice, Sector, SharedDevice};
use std::sync::Arc;
use std::task::Waker;

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
