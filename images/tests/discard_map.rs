//! No interleaving of reads, writes and discards touches a page that Xen has back.
//!
//! loom runs the crate's own `discard_map` module on its own atomics, and tries interleavings and
//! stale values that the memory model allows. The tests that must panic break one rule each, to
//! show that the search would find out.

extern crate alloc;

#[allow(dead_code, reason = "the test uses a part of it")]
#[path = "../src/discard_map.rs"]
mod discard_map;

/// The atomics of `discard_map` in this test.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    pub(crate) fn fence(order: Ordering) {
        if super::BROKEN.get() != super::Broken::Fence {
            loom::sync::atomic::fence(order);
        }
    }
}

use discard_map::{Count, Reader, Released, announce};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;
use std::cell::Cell;
// Not loom's, so that a failed search can be told from a leak.
use std::sync::Arc;

/// A rule that a test breaks.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    Nothing,
    /// No full fences.
    Fence,
    /// The discard does not wait for readers.
    Wait,
    /// A write that meets a released page copies after it gave up the lock.
    Lock,
}

thread_local! {
    // loom's threads take turns on one real thread.
    static BROKEN: Cell<Broken> = const { Cell::new(Broken::Nothing) };
}

/// An image of one page. The cell says whether there is memory behind it: an access reads it, and giving memory back or
/// getting it again writes it.
struct Image {
    released: Released,
    count: Count,
    lock: Mutex<()>,
    readers: [Reader; 2],
    there: UnsafeCell<bool>,
}

impl Image {
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "loom's threads take turns on one real thread"
    )]
    fn new() -> Arc<Image> {
        Arc::new(Image {
            released: Released::none_of(1),
            count: Count::new(),
            lock: Mutex::new(()),
            readers: [Reader::new(), Reader::new()],
            there: UnsafeCell::new(true),
        })
    }

    fn touch(&self) {
        // SAFETY: loom checks that nobody writes meanwhile.
        self.there
            .with(|there| assert!(unsafe { *there }, "touched while it is gone"));
    }

    fn set(&self, present: bool) {
        // SAFETY: loom checks that nobody else reads or writes meanwhile.
        self.there.with_mut(|there| unsafe { *there = present });
    }

    fn read(&self, reader: usize) {
        let _guard = self.readers[reader].guard();
        if self.count.is_zero() || !self.released.contains(0) {
            self.touch();
        }
    }

    fn write(&self, reader: usize) {
        {
            let _guard = self.readers[reader].guard();
            if self.count.is_zero() || !self.released.contains(0) {
                return self.touch();
            }
        }
        let lock = self.lock.lock().unwrap();
        if self.released.is_gone(0) {
            self.set(true);
            self.released.regain(0, &self.count);
        } else if self.released.contains(0) {
            self.touch();
            self.released.regain(0, &self.count);
        }
        let lock = Some(lock).filter(|_| BROKEN.get() != Broken::Lock);
        self.touch();
        drop(lock);
    }

    fn discard(&self) {
        let awaited = {
            let _lock = self.lock.lock().unwrap();
            if !self.released.contains(0) {
                self.released.note(0, &self.count);
            }
            announce();
            [0, 1].map(|reader| self.readers[reader].current_epoch())
        };
        for (reader, epoch) in self.readers.iter().zip(awaited) {
            let Some(epoch) = epoch else { continue };
            while BROKEN.get() != Broken::Wait && !reader.has_left(epoch) {
                thread::yield_now();
            }
        }
        let _lock = self.lock.lock().unwrap();
        if self.released.contains(0) && !self.released.is_gone(0) {
            self.set(false);
            self.released.lose(0);
        }
    }
}

/// Runs all of these at once, in every order.
fn explore(broken: Broken, preemptions: usize, parts: &'static [fn(&Image)]) {
    BROKEN.set(broken);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let image = Image::new();
        let (last, others) = parts.split_last().expect("somebody does something");
        let threads: Vec<_> = others
            .iter()
            .map(|part| {
                let image = image.clone();
                thread::spawn(move || part(&image))
            })
            .collect();
        last(&image);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

const READS: fn(&Image) = |image| {
    image.read(0);
    image.read(0);
};
const WRITES: fn(&Image) = |image| {
    image.write(1);
    image.write(1);
};
const DISCARDS: fn(&Image) = |image| {
    image.discard();
    image.discard();
};

#[test]
fn readers_never_touch_what_is_gone() {
    explore(Broken::Nothing, 4, &[READS, DISCARDS]);
}

#[test]
fn writers_never_touch_what_is_gone() {
    explore(Broken::Nothing, 4, &[WRITES, DISCARDS]);
}

#[test]
fn readers_and_writers_together_never_touch_what_is_gone() {
    explore(Broken::Nothing, 2, &[READS, WRITES, DISCARDS]);
}

#[test]
#[should_panic]
fn without_fences_the_search_finds_a_touch() {
    explore(Broken::Fence, 4, &[READS, DISCARDS]);
}

#[test]
#[should_panic]
fn without_waiting_the_search_finds_a_touch() {
    explore(Broken::Wait, 4, &[READS, DISCARDS]);
}

#[test]
#[should_panic]
fn without_the_lock_the_search_finds_a_touch() {
    explore(Broken::Lock, 4, &[WRITES, DISCARDS]);
}
