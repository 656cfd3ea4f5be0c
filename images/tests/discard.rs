//! Discards: memory goes back to the (simulated) Xen, reads as zeros, and comes back when written.

mod support;

use bulkhead_images::testing::{CompleteNow, OpenNow};
use bulkhead_images::{
    Access, BlockDevice, DiscardLimits, Io, IoError, Op, Sector, Submitted, Tag,
};
use bulkhead_xen::{Errno, PAGE_SIZE};
use bulkhead_xen_sim::Hypercall;
use std::sync::Arc;
use support::Folder;
use support::domain::{Domain, all, discard, open, pattern, read, write};

/// Returns a ramdisk that is one image of `pages` pages.
fn whole(pages: usize) -> (Domain, Arc<dyn BlockDevice>, Vec<u8>) {
    let content = pattern(pages * PAGE_SIZE);
    let domain = Domain::with(&content);
    let device = open(&domain, "ram:disk0", Access::ReadWrite);
    (domain, device, content)
}

#[test]
fn discarded_pages_go_back_to_xen_and_read_as_zeros() {
    let (domain, device, mut content) = whole(16);
    let limits = DiscardLimits {
        granularity: Sector(8),
        alignment: Sector(0),
        secure: true,
    };
    assert_eq!(device.geometry().discard, Some(limits));
    let mut queue = device.queue();
    assert_eq!(discard(&mut *queue, 8, 32), Ok(()));
    assert_eq!(domain.missing(), 4);
    assert_eq!(domain.catalog.released("disk0"), Some(4 * PAGE_SIZE));
    content[PAGE_SIZE..5 * PAGE_SIZE].fill(0);
    assert!(all(&*device) == content);

    // A write to a part of a page makes all of it memory again.
    assert_eq!(write(&mut *queue, 19, &[7; 512]), Ok(()));
    assert_eq!(domain.missing(), 3);
    content[19 * 512..20 * 512].fill(7);
    assert!(all(&*device) == content);

    assert_eq!(discard(&mut *queue, 0, 128), Ok(()));
    assert_eq!(domain.missing(), 16);
    assert_eq!(write(&mut *queue, 0, &content), Ok(()));
    assert_eq!(domain.missing(), 0);
    assert!(all(&*device) == content);
}

#[test]
fn a_discard_behind_another_waits_for_its_turn() {
    let (domain, device, _) = whole(1000);
    let (mut first, mut second) = (device.queue(), device.queue());
    let mut discard = |tag: usize, count: u64| {
        let op = Op::Discard {
            sector: Sector(0),
            count: Sector(count),
            secure: false,
        };
        second.submit(Tag(tag), Io { op, segments: &[] })
    };
    assert!(matches!(discard(1, 7000), Submitted::Pending));
    // What the other queue has staged keeps a step from coming to its end.
    let read = Op::Read {
        sector: Sector(7992),
    };
    assert!(first.stage(Tag(0), read, 512).is_some());
    assert!(matches!(discard(2, 8), Submitted::Pending));
    first.end_in_place();
    let mut told = Vec::new();
    for _ in 0..1000 {
        second.complete(&mut |tag, result| told.push((tag, result)));
    }
    assert_eq!(told, [(Tag(1), Ok(())), (Tag(2), Ok(()))]);
    assert_eq!(domain.missing(), 875);
}

#[test]
fn parts_of_pages_are_cleared_in_place() {
    let (domain, device, mut content) = whole(4);
    let mut queue = device.queue();
    assert_eq!(discard(&mut *queue, 3, 2), Ok(()));
    assert_eq!(discard(&mut *queue, 9, 14), Ok(()));
    content[3 * 512..5 * 512].fill(0);
    content[9 * 512..23 * 512].fill(0);
    assert!(all(&*device) == content);
    assert_eq!(domain.missing(), 0, "no page lies in them as a whole");
}

#[test]
fn images_in_an_archive_say_where_their_pages_begin() {
    let folder = Folder::new();
    folder.file("a.img", &pattern(3 * PAGE_SIZE + 512));
    folder.file("b.img", &pattern(4 * PAGE_SIZE));
    folder.file("tiny.img", &pattern(1024));
    let archive = folder.tar(&["--format=ustar", "a.img", "b.img", "tiny.img"]);
    let domain = Domain::with(&archive);
    for (name, alignment, whole_pages) in [("a.img", 7, 2), ("b.img", 5, 3)] {
        let device = open(&domain, &format!("ram:{name}"), Access::ReadWrite);
        let limits = device.geometry().discard.expect("it has whole pages");
        assert_eq!(limits.alignment, Sector(alignment), "{name}");
        let mut queue = device.queue();
        assert_eq!(discard(&mut *queue, alignment, 8), Ok(()));
        assert_eq!(domain.missing(), 1, "the unit that is announced");
        let sectors = device.geometry().sectors.0;
        assert_eq!(discard(&mut *queue, 0, sectors), Ok(()));
        assert_eq!(domain.missing(), whole_pages, "{name}");
        assert!(all(&*device).iter().all(|&byte| byte == 0));
        let zeros = vec![0; sectors as usize * 512];
        assert_eq!(write(&mut *queue, 0, &zeros), Ok(()));
        assert_eq!(domain.missing(), 0);
    }
    let tiny = open(&domain, "ram:tiny.img", Access::ReadWrite);
    assert!(
        all(&*tiny) == pattern(1024),
        "its neighbour is gone, not it"
    );
    assert_eq!(discard(&mut *tiny.queue(), 1, 1), Ok(()));
    let mut content = pattern(1024);
    content[512..].fill(0);
    assert!(all(&*tiny) == content, "cleared in place");
    assert_eq!(domain.missing(), 0, "it has no whole page to give back");
}

#[test]
fn a_write_without_memory_fails_alone() {
    let (domain, device, mut content) = whole(8);
    let mut queue = device.queue();
    assert_eq!(discard(&mut *queue, 16, 16), Ok(()));
    content[2 * PAGE_SIZE..4 * PAGE_SIZE].fill(0);
    domain.domain.set_memory_limit(domain.domain.memory_pages());
    let data = vec![9; 4 * PAGE_SIZE];
    assert_eq!(write(&mut *queue, 8, &data), Err(IoError::NoMemory));
    assert!(all(&*device) == content, "nothing else is lost");
    assert_eq!(write(&mut *queue, 0, &data[..PAGE_SIZE]), Ok(()));
    content[..PAGE_SIZE].fill(9);

    // One page only: the first half of what is wanted.
    domain
        .domain
        .set_memory_limit(domain.domain.memory_pages() + 1);
    assert_eq!(write(&mut *queue, 8, &data), Err(IoError::NoMemory));
    assert!(all(&*device) == content);
    assert_eq!(domain.missing(), 1);

    domain.domain.set_memory_limit(domain.owned);
    assert_eq!(write(&mut *queue, 8, &data), Ok(()));
    content[PAGE_SIZE..5 * PAGE_SIZE].fill(9);
    assert!(all(&*device) == content);
    assert_eq!(domain.missing(), 0);
}

#[test]
fn what_xen_does_not_take_back_reads_as_zeros_too() {
    let (domain, device, mut content) = whole(4);
    let mut queue = device.queue();
    domain
        .domain
        .fail_call(Hypercall::ReleasePages, Errno::INVAL, 1);
    assert_eq!(discard(&mut *queue, 0, 16), Ok(()));
    content[..2 * PAGE_SIZE].fill(0);
    assert_eq!(domain.missing(), 0);
    assert_eq!(domain.catalog.released("disk0"), Some(0));
    assert!(all(&*device) == content);
    assert_eq!(discard(&mut *queue, 0, 16), Ok(()));
    assert_eq!(domain.missing(), 2, "the next one may work");
}

#[test]
fn readers_find_zeros_where_a_writer_has_discarded() {
    let (domain, device, mut content) = whole(4);
    assert_eq!(discard(&mut *device.queue(), 8, 8), Ok(()));
    content[PAGE_SIZE..2 * PAGE_SIZE].fill(0);
    drop(device);
    let device = open(&domain, "ram:disk0", Access::ReadOnly);
    assert_eq!(device.geometry().discard, None);
    assert!(all(&*device) == content);
    let refused = discard(&mut *device.queue(), 0, 8);
    assert_eq!(refused, Err(IoError::ReadOnly));
    assert_eq!(domain.missing(), 1);
}

#[test]
fn discards_that_are_none_are_refused() {
    let (domain, device, content) = whole(4);
    let mut queue = device.queue();
    for (sector, count) in [(32, 1), (0, 33), (1, u64::MAX), (u64::MAX, 1), (8, 1 << 55)] {
        let refused = discard(&mut *queue, sector, count);
        assert_eq!(refused, Err(IoError::OutOfRange), "{sector} {count}");
    }
    assert_eq!(discard(&mut *queue, 32, 0), Ok(()));
    assert!(all(&*device) == content);
    drop((device, queue));
    let device = open(&domain, "ram:disk0,sector-size=4096", Access::ReadWrite);
    for (sector, count) in [(1, 8), (0, 4), (4, 4)] {
        let refused = discard(&mut *device.queue(), sector, count);
        assert_eq!(refused, Err(IoError::Misaligned), "{sector} {count}");
    }
    assert_eq!(domain.missing(), 0);
}

#[test]
fn long_discards_are_done_in_steps() {
    let (domain, device, _) = whole(1000);
    let mut queue = device.queue();
    let op = Op::Discard {
        sector: Sector(0),
        count: Sector(8000),
        secure: true,
    };
    let io = Io { op, segments: &[] };
    assert_eq!(queue.submit(Tag(1), io), Submitted::Pending);
    let mut missing = domain.missing();
    assert!((1..1000).contains(&missing), "{missing}");
    // Meanwhile the queue serves.
    assert_eq!(write(&mut *queue, 7992, &[1; 512]), Ok(()));
    let mut told = Vec::new();
    while told.is_empty() {
        queue.complete(&mut |tag, result| told.push((tag, result)));
        let now = domain.missing();
        assert!(now > missing, "each call does a part");
        missing = now;
    }
    assert_eq!((told, missing), (vec![(Tag(1), Ok(()))], 1000));
}

#[test]
fn a_discard_waits_for_what_is_staged_in_place() {
    let (domain, device, _) = whole(8);
    let (mut first, mut second) = (device.queue(), device.queue());
    let whole_page = Op::Read { sector: Sector(8) };
    assert!(first.stage(Tag(0), whole_page, PAGE_SIZE).is_some());
    // The other queue's and the queue's own.
    for queue in [&mut second, &mut first] {
        let op = Op::Discard {
            sector: Sector(8),
            count: Sector(8),
            secure: false,
        };
        let io = Io { op, segments: &[] };
        assert_eq!(queue.submit(Tag(5), io), Submitted::Pending);
        queue.complete(&mut |_, _| panic!("the page is staged"));
    }
    assert_eq!(domain.missing(), 0);
    assert_eq!(
        first.stage(Tag(0), whole_page, PAGE_SIZE),
        None,
        "no longer"
    );
    assert_eq!(read(&mut *first, 8, 8), Ok(vec![0; PAGE_SIZE]));
    // A write takes the page out of the discard that is waiting.
    assert_eq!(write(&mut *first, 8, &[3; 512]), Ok(()));
    first.end_in_place();
    for queue in [&mut second, &mut first] {
        let mut told = Vec::new();
        queue.complete(&mut |tag, result| told.push((tag, result)));
        assert_eq!(told, [(Tag(5), Ok(()))]);
    }
    // The second discard came after the write.
    assert_eq!(domain.missing(), 1);
    assert_eq!(read(&mut *second, 8, 8), Ok(vec![0; PAGE_SIZE]));
}

#[test]
fn a_queue_that_is_dropped_keeps_nobody_from_discarding() {
    let (domain, device, mut content) = whole(8);
    let (mut first, mut second) = (device.queue(), device.queue());
    assert!(
        first
            .stage(Tag(0), Op::Read { sector: Sector(0) }, 512)
            .is_some()
    );
    let op = Op::Discard {
        sector: Sector(8),
        count: Sector(8),
        secure: false,
    };
    let io = Io { op, segments: &[] };
    assert_eq!(second.submit(Tag(5), io), Submitted::Pending);
    drop(second);
    content[PAGE_SIZE..2 * PAGE_SIZE].fill(0);
    assert_eq!(domain.catalog.released("disk0"), Some(0));
    assert_eq!(read(&mut *first, 0, 64), Ok(content));
    drop(first);
    assert_eq!(discard(&mut *device.queue(), 0, 64), Ok(()));
    assert_eq!(domain.missing(), 8);
}

/// Each thread has pages of its own, where it checks every byte, and all of them read, write and
/// discard in the same other ones.
#[test]
fn queues_on_several_threads_never_touch_what_is_gone() {
    const THREADS: u64 = 3;
    const OWN: u64 = 4;
    let (domain, device, _) = whole(((THREADS + 1) * OWN) as usize);
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let device = &device;
            scope.spawn(move || {
                let mut queue = device.queue();
                let mut random = number + 1;
                let mut next = |below: u64| {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    (random >> 33) % below
                };
                let first = number * OWN * 8;
                let mut model = vec![0; (OWN * 8 * 512) as usize];
                assert_eq!(write(&mut *queue, first, &model), Ok(()));
                for round in 0..1500_u64 {
                    let sector = next(OWN * 8);
                    let count = 1 + next(OWN * 8 - sector);
                    let bytes = (sector * 512) as usize..((sector + count) * 512) as usize;
                    let shared = THREADS * OWN * 8 + sector;
                    match next(3) {
                        0 => {
                            model[bytes].fill(0);
                            assert_eq!(discard(&mut *queue, first + sector, count), Ok(()));
                            assert_eq!(discard(&mut *queue, shared, count), Ok(()));
                        }
                        1 => {
                            model[bytes.clone()].fill(round as u8);
                            let data = &model[bytes];
                            assert_eq!(write(&mut *queue, first + sector, data), Ok(()));
                            assert_eq!(write(&mut *queue, shared, data), Ok(()));
                        }
                        _ => {
                            let found = read(&mut *queue, first + sector, count as usize);
                            assert!(found.as_deref() == Ok(&model[bytes]));
                            assert!(read(&mut *queue, shared, count as usize).is_ok());
                        }
                    }
                }
            });
        }
    });
    assert_eq!(
        discard(&mut *device.queue(), 0, (THREADS + 1) * OWN * 8),
        Ok(())
    );
    assert_eq!(domain.missing() as u64, (THREADS + 1) * OWN);
}
