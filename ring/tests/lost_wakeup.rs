//! No interleaving of the two ends sleeps with work pending.
//!
//! loom runs the real [`FrontRing`] and [`BackRing`] on memory made of its own atomics, tries all
//! interleavings and all stale values that the memory model allows, and reports a deadlock where
//! an end sleeps for ever, or a race where a slot is read while it is written. The tests that must
//! panic break one rule each, to show that the search would find out.

use bulkhead_ring::{BackRing, Format, FrontRing, Index, RING_HEADER_SIZE, RingMemory};
use loom::cell::UnsafeCell;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;
use std::num::NonZeroU32;
// Not loom's: that one panics when it is dropped after a deadlock has been found.
use std::sync::Arc;

/// A rule of the protocol that a test breaks.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    Nothing,
    /// No full barrier between publishing and looking at the event index.
    Barrier,
    /// The producer index does not carry the slots with it.
    Release,
}

/// Two slots of four bytes, in memory that loom watches.
struct Shared {
    indices: [AtomicU32; 4],
    slots: [UnsafeCell<[u8; 4]>; 2],
}

#[derive(Clone)]
struct Memory {
    shared: Arc<Shared>,
    broken: Broken,
}

impl Memory {
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "loom's threads take turns on one real thread"
    )]
    fn new(broken: Broken) -> Memory {
        Memory {
            shared: Arc::new(Shared {
                indices: std::array::from_fn(|_| AtomicU32::new(0)),
                slots: std::array::from_fn(|_| UnsafeCell::new([0; 4])),
            }),
            broken,
        }
    }

    fn slot(&self, offset: usize) -> Option<&UnsafeCell<[u8; 4]>> {
        let slot = offset.checked_sub(RING_HEADER_SIZE)? / 4;
        Some(&self.shared.slots[slot])
    }
}

impl RingMemory for Memory {
    fn size(&self) -> usize {
        RING_HEADER_SIZE + 8
    }

    fn load(&self, index: Index) -> u32 {
        self.shared.indices[index.offset() / 4].load(Ordering::Acquire)
    }

    fn store(&self, index: Index, value: u32) {
        let order = match self.broken {
            Broken::Release => Ordering::Relaxed,
            _ => Ordering::Release,
        };
        self.shared.indices[index.offset() / 4].store(value, order);
    }

    fn barrier(&self) {
        // A fence would also order the slots, which the test of `Release` must not be spared by.
        if self.broken == Broken::Nothing {
            fence(Ordering::SeqCst);
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        let slot = self.slot(offset).expect("a slot");
        // SAFETY: loom checks that nobody writes meanwhile.
        slot.with(|slot| into.copy_from_slice(unsafe { &*slot }));
    }

    fn write(&self, offset: usize, from: &[u8]) {
        // The header's padding has no place here.
        if let Some(slot) = self.slot(offset) {
            // SAFETY: loom checks that nobody else reads or writes meanwhile.
            slot.with_mut(|slot| unsafe { (*slot).copy_from_slice(from) });
        }
    }
}

/// Messages that are numbers.
struct Numbers;

impl Format for Numbers {
    type Request = u32;
    type Response = u32;
    type Malformed = std::convert::Infallible;
    type Slot = [u8; 4];
    type ResponseSlot = [u8; 4];

    fn empty_slot(&self) -> [u8; 4] {
        [0; 4]
    }

    fn request_size(&self) -> usize {
        4
    }

    fn response_size(&self) -> usize {
        4
    }

    fn decode_request(&self, slot: &[u8; 4]) -> Result<u32, Self::Malformed> {
        Ok(u32::from_le_bytes(*slot))
    }

    fn encode_request(&self, request: &u32, slot: &mut [u8; 4]) {
        *slot = request.to_le_bytes();
    }

    fn decode_response(&self, slot: &[u8; 4]) -> u32 {
        u32::from_le_bytes(*slot)
    }

    fn encode_response(&self, response: &u32) -> [u8; 4] {
        response.to_le_bytes()
    }
}

type Front = FrontRing<Memory, Numbers>;
type Back = BackRing<Memory, Numbers>;

/// Both ends of one ring, with an event channel each way.
struct Ends {
    front: Front,
    back: Back,
    to_front: Arc<Notify>,
    to_back: Arc<Notify>,
}

/// Explores what `test` does with the two ends of a fresh ring.
fn explore(broken: Broken, test: impl Fn(Ends) + Send + Sync + 'static) {
    explore_to(3, broken, test);
}

/// As [`explore`], with at most `preemptions` switches away from an end that could go on. The
/// broken variants all show with two; each more multiplies the time.
fn explore_to(preemptions: usize, broken: Broken, test: impl Fn(Ends) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let memory = Memory::new(broken);
        test(Ends {
            front: FrontRing::new(memory.clone(), Numbers).expect("room for a ring"),
            back: BackRing::new(memory, Numbers).expect("room for a ring"),
            to_front: Arc::new(Notify::new()),
            to_back: Arc::new(Notify::new()),
        });
    });
}

/// The frontend as a thread: publishes each number by itself, and never looks back.
fn send(mut front: Front, to_back: Arc<Notify>, numbers: &'static [u32]) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for number in numbers {
            front.push(number).expect("room for all of them");
            if front.publish() {
                to_back.notify();
            }
        }
    })
}

/// A frontend sends those requests, and the backend takes them, sleeping by `sleep` where it finds none.
fn transfer(ends: Ends, numbers: &'static [u32], mut sleep: impl FnMut(&mut Back, &Notify)) {
    let front = send(ends.front, ends.to_back.clone(), numbers);
    let mut back = ends.back;
    let mut expected = numbers.iter();
    while expected.len() > 0 {
        match back.take().expect("an honest frontend") {
            Some(Ok(number)) => assert_eq!(Some(&number), expected.next()),
            None => sleep(&mut back, &ends.to_back),
        }
    }
    front.join().expect("the frontend");
}

/// Sleeps as a backend should.
fn sleep_checked(back: &mut Back, to_back: &Notify) {
    if !back.final_check().expect("an honest frontend") {
        to_back.wait();
    }
}

#[test]
fn no_request_is_slept_through() {
    explore(Broken::Nothing, |ends| {
        transfer(ends, &[7, 8], sleep_checked)
    });
}

#[test]
fn no_batch_of_requests_is_slept_through() {
    explore(Broken::Nothing, |ends| {
        let front = send(ends.front, ends.to_back.clone(), &[7, 8]);
        let mut back = ends.back;
        let both = NonZeroU32::new(2).expect("not zero");
        while !back.final_check_for(both).expect("an honest frontend") {
            ends.to_back.wait();
        }
        assert_eq!(back.unconsumed(), Ok(2));
        front.join().expect("the frontend");
    });
}

/// The end of a deadline that the backend has set, at whatever moment.
fn deadline(to_back: Arc<Notify>) -> thread::JoinHandle<()> {
    thread::spawn(move || to_back.notify())
}

/// Takes what is there, and returns how many requests that were.
fn take_all(back: &mut Back) -> usize {
    let mut taken = 0;
    while let Some(Ok(_)) = back.take().expect("an honest frontend") {
        taken += 1;
    }
    taken
}

/// A frontend sends these requests; the backend waits for two of them with a deadline if there is one, then for
/// each by itself.
fn wait_for_two(ends: Ends, numbers: &'static [u32], with_deadline: bool) {
    let front = send(ends.front, ends.to_back.clone(), numbers);
    let mut back = ends.back;
    let timer = with_deadline.then(|| deadline(ends.to_back.clone()));
    let two = NonZeroU32::new(2).expect("not zero");
    if !back.final_check_for(two).expect("an honest frontend") {
        ends.to_back.wait();
    }
    let mut taken = take_all(&mut back);
    while taken < numbers.len() {
        sleep_checked(&mut back, &ends.to_back);
        taken += take_all(&mut back);
    }
    front.join().expect("the frontend");
    if let Some(timer) = timer {
        timer.join().expect("the timer");
    }
}

#[test]
fn fewer_requests_than_were_asked_for_are_found_by_the_deadline() {
    explore_to(2, Broken::Nothing, |ends| wait_for_two(ends, &[7], true));
}

#[test]
fn after_the_deadline_the_next_request_notifies() {
    explore_to(2, Broken::Nothing, |ends| {
        wait_for_two(ends, &[7, 8], true);
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn asking_for_more_than_come_without_a_deadline_is_found_out() {
    explore_to(2, Broken::Nothing, |ends| wait_for_two(ends, &[7], false));
}

#[test]
fn no_response_is_slept_through() {
    explore(Broken::Nothing, |ends| {
        let (mut front, mut back) = (ends.front, ends.back);
        for number in [7, 8] {
            front.push(&number).expect("room for two");
        }
        assert!(front.publish());
        let to_front = ends.to_front.clone();
        let back = thread::spawn(move || {
            while let Some(Ok(number)) = back.take().expect("an honest frontend") {
                back.respond(&(number + 100)).expect("a request to answer");
                if back.publish() {
                    to_front.notify();
                }
            }
        });
        let mut expected = vec![108, 107];
        while !expected.is_empty() {
            match front.take().expect("an honest backend") {
                Some(number) => assert_eq!(Some(number), expected.pop()),
                None if front.final_check().expect("an honest backend") => {}
                None => ends.to_front.wait(),
            }
        }
        back.join().expect("the backend");
    });
}

#[test]
fn requests_and_responses_share_the_slots_without_loss() {
    explore_to(2, Broken::Nothing, |ends| {
        let (mut front, mut back) = (ends.front, ends.back);
        let (to_front, to_back) = (ends.to_front.clone(), ends.to_back.clone());
        let server = thread::spawn(move || {
            let mut left = 3;
            while left > 0 {
                match back.take().expect("an honest frontend") {
                    Some(Ok(number)) => {
                        back.respond(&(number + 100)).expect("a request to answer");
                        if back.publish() {
                            to_front.notify();
                        }
                        left -= 1;
                    }
                    None if back.final_check().expect("an honest frontend") => {}
                    None => to_back.wait(),
                }
            }
        });
        // Three requests through two slots: the third reuses the slot of the first response.
        let (mut asked, mut answered) = (0, 0);
        while answered < 3 {
            while asked < 3 && front.push(&asked).is_ok() {
                asked += 1;
            }
            if front.publish() {
                ends.to_back.notify();
            }
            match front.take().expect("an honest backend") {
                Some(number) => {
                    assert_eq!(number, answered + 100);
                    answered += 1;
                }
                None if front.final_check().expect("an honest backend") => {}
                None => ends.to_front.wait(),
            }
        }
        server.join().expect("the backend");
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn sleeping_without_a_final_check_is_found_out() {
    explore_to(2, Broken::Nothing, |ends| {
        transfer(ends, &[7, 8], |_, to_back| to_back.wait())
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn sleeping_against_the_final_check_is_found_out() {
    explore_to(2, Broken::Nothing, |ends| {
        transfer(ends, &[7, 8], |back, to_back| {
            let _pending = back.final_check().expect("an honest frontend");
            to_back.wait();
        });
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_missing_barrier_is_found_out() {
    explore_to(2, Broken::Barrier, |ends| {
        transfer(ends, &[7, 8], sleep_checked)
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_slot_published_without_release_is_found_out() {
    explore_to(2, Broken::Release, |ends| {
        transfer(ends, &[7], |_, _| thread::yield_now())
    });
}
