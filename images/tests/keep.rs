//! Discards that keep the memory, as they do unless an operator wants it otherwise.

mod support;

use bulkhead_images::testing::{CompleteNow, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, DiscardMode, Io, IoError, IoQueue, Op, Sector, Submitted, Tag,
};
use bulkhead_xen::PAGE_SIZE;
use std::sync::Arc;
use support::domain::{Domain, all, discard, open, pattern, read, write};

/// Returns a ramdisk that is one image of `pages` pages.
fn whole(pages: usize) -> (Domain, Arc<dyn BlockDevice>, Vec<u8>) {
    let content = pattern(pages * PAGE_SIZE);
    let domain = Domain::discarding(DiscardMode::default(), &content);
    let device = open(&domain, "ram:disk0", Access::ReadWrite);
    (domain, device, content)
}

/// Submits a discard and does not wait for it.
fn begin(queue: &mut dyn IoQueue, tag: usize, sector: u64, count: u64) -> Submitted {
    let op = Op::Discard {
        sector: Sector(sector),
        count: Sector(count),
        secure: false,
    };
    queue.submit(Tag(tag), Io { op, segments: &[] })
}

#[test]
fn what_was_discarded_reads_as_zeros_and_its_memory_stays() {
    let (domain, device, mut content) = whole(16);
    let mut queue = device.queue();
    for (sector, count) in [(8, 32), (45, 3), (60, 21)] {
        assert_eq!(discard(&mut *queue, sector, count), Ok(()));
        content[sector as usize * 512..(sector + count) as usize * 512].fill(0);
        assert!(all(&*device) == content, "{count} from {sector}");
        assert_eq!(domain.missing(), 0);
    }
}

#[test]
fn a_later_write_never_fails_for_want_of_memory() {
    let (domain, device, _) = whole(16);
    let mut queue = device.queue();
    assert_eq!(discard(&mut *queue, 0, 128), Ok(()));
    // Another domain takes all that the host has left.
    domain.domain.set_memory_limit(0);
    let data = pattern(16 * PAGE_SIZE);
    assert_eq!(write(&mut *queue, 0, &data), Ok(()));
    assert!(all(&*device) == data);
}

#[test]
fn an_option_of_the_target_gives_memory_back_all_the_same() {
    for (mode, option, missing) in [
        (DiscardMode::Keep, "", 0),
        (DiscardMode::Keep, ",discard=release", 4),
        (DiscardMode::Release, "", 4),
        (DiscardMode::Release, ",discard=keep", 0),
    ] {
        let domain = Domain::discarding(mode, &pattern(4 * PAGE_SIZE));
        let target = format!("ram:disk0{option}");
        let device = open(&domain, &target, Access::ReadWrite);
        assert_eq!(discard(&mut *device.queue(), 0, 32), Ok(()));
        assert_eq!(domain.missing(), missing, "{mode} and {target}");
        assert!(all(&*device).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn what_was_released_before_is_neither_touched_nor_lost() {
    let (domain, device, mut content) = whole(8);
    drop(device);
    let giving = open(&domain, "ram:disk0,discard=release", Access::ReadWrite);
    assert_eq!(discard(&mut *giving.queue(), 8, 16), Ok(()));
    drop(giving);
    let keeping = open(&domain, "ram:disk0", Access::ReadWrite);
    let mut queue = keeping.queue();
    assert_eq!(discard(&mut *queue, 4, 16), Ok(()));
    content[4 * 512..24 * 512].fill(0);
    assert!(all(&*keeping) == content);
    assert_eq!(write(&mut *queue, 12, &[7; 512]), Ok(()));
    content[12 * 512..13 * 512].fill(7);
    assert!(all(&*keeping) == content);
    assert_eq!(domain.missing(), 1);
}

#[test]
fn long_discards_are_done_in_steps_of_a_mebibyte() {
    let (_domain, device, content) = whole(1000);
    let (mut queue, mut other) = (device.queue(), device.queue());
    assert_eq!(begin(&mut *queue, 1, 0, 8000), Submitted::Pending);
    for step in 1..4_u64 {
        // What comes after the step is as it was, and both queues serve.
        for queue in [&mut queue, &mut other] {
            assert_eq!(read(&mut **queue, step * 2048 - 8, 8), Ok(vec![0; 4096]));
            let next = read(&mut **queue, step * 2048, 8).expect("it can be read");
            assert!(
                next == content[step as usize * (1 << 20)..][..4096],
                "{step}"
            );
        }
        let mut told = Vec::new();
        queue.complete(&mut |tag, result| told.push((tag, result)));
        let expected: &[_] = if step < 3 { &[] } else { &[(Tag(1), Ok(()))] };
        assert_eq!(told, expected, "step {step}");
    }
    assert!(all(&*device).iter().all(|&byte| byte == 0));
}

#[test]
fn another_queue_discards_meanwhile() {
    let (_domain, device, _) = whole(1000);
    let (mut first, mut second) = (device.queue(), device.queue());
    assert_eq!(begin(&mut *first, 1, 0, 8000), Submitted::Pending);
    assert_eq!(
        begin(&mut *second, 2, 0, 2048),
        Submitted::Done(Ok(())),
        "nobody waits for another queue"
    );
}

#[test]
fn discards_that_are_given_up_end_at_once_and_undone() {
    for mode in [DiscardMode::Keep, DiscardMode::Release] {
        let content = pattern(1000 * PAGE_SIZE);
        let domain = Domain::discarding(mode, &content);
        let device = open(&domain, "ram:disk0", Access::ReadWrite);
        let mut queue = device.queue();
        for tag in 0..32 {
            assert_eq!(begin(&mut *queue, tag, 0, 8000), Submitted::Pending);
        }
        queue.cancel_all();
        let mut told = Vec::new();
        queue.complete(&mut |tag, result| told.push((tag, result)));
        let expected: Vec<_> = (0..32)
            .map(|tag| (Tag(tag), Err(IoError::Cancelled)))
            .collect();
        assert_eq!(told, expected, "{mode}");
        let rest = &all(&*device)[2 << 20..];
        assert!(
            rest == &content[2 << 20..],
            "{mode}: the rest was not begun"
        );
        // The queue is as good as before.
        assert_eq!(discard(&mut *queue, 0, 8000), Ok(()));
        assert!(all(&*device).iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_slice_that_is_given_up_keeps_nobody_from_discarding() {
    let domain = Domain::with(&pattern(8 * PAGE_SIZE));
    let device = open(&domain, "ram:disk0", Access::ReadWrite);
    let (mut first, mut second) = (device.queue(), device.queue());
    let page = Op::Read { sector: Sector(0) };
    assert!(first.stage(Tag(0), page, PAGE_SIZE).is_some());
    assert_eq!(begin(&mut *second, 1, 8, 8), Submitted::Pending);
    second.cancel_all();
    first.end_in_place();
    assert_eq!(discard(&mut *first, 0, 64), Ok(()));
    assert_eq!(domain.missing(), 8);
}

/// Each thread has pages of its own, where it checks every byte, and all of them write and discard in
/// the same other ones.
#[test]
fn queues_on_several_threads_find_their_own_bytes() {
    const OWN: u64 = 16;
    let (domain, device, _) = whole(8);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let device = &device;
            scope.spawn(move || {
                let mut queue = device.queue();
                let first = number * OWN;
                let mut model = vec![0; OWN as usize * 512];
                assert_eq!(discard(&mut *queue, first, OWN), Ok(()));
                for round in 0..2000_u64 {
                    let sector = (round * 7 + number) % OWN;
                    let count = 1 + (round * 5) % (OWN - sector);
                    let bytes = (sector * 512) as usize..((sector + count) * 512) as usize;
                    if round % 3 == 0 {
                        model[bytes].fill(0);
                        assert_eq!(discard(&mut *queue, first + sector, count), Ok(()));
                        assert_eq!(discard(&mut *queue, 3 * OWN + sector, count), Ok(()));
                    } else {
                        model[bytes.clone()].fill(round as u8);
                        let data = &model[bytes];
                        assert_eq!(write(&mut *queue, first + sector, data), Ok(()));
                        assert_eq!(write(&mut *queue, 3 * OWN + sector, data), Ok(()));
                    }
                    let found = read(&mut *queue, first, OWN as usize);
                    assert!(found.as_deref() == Ok(&model[..]), "round {round}");
                }
            });
        }
    });
    assert_eq!(domain.missing(), 0);
}
