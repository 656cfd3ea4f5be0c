//! Requests that are cut into parts: flushes, discards, requests that are given up, and wake-ups.

use crate::support::{Guest, Wakes};
use crate::world::{Random, leg, map, mapped, places, ram};
use bulkhead_images::testing::{CompleteNow, Delayed, OpenNow};
use bulkhead_images::{
    BlockDevice, Caps, ExtentMap, Io, IoError, IoQueue, Op, Sector, Submitted, Tag,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

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
