//! The memory that survives: a place for each queue.

use super::record::{QueueRecord, SealedRecord};
use alloc::vec::Vec;
use bulkhead_ring::blkif::{Blkif, RESPONSE_SIZE, SLOT_SIZE};
use bulkhead_ring::{BackRing, Overrun, SharedPages};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

/// The most queues that are kept. The frontends of others lose their disks when the domain crashes.
pub const QUEUES: usize = 32;

/// The most connections to servers of which something is kept.
pub const CONNECTIONS: usize = 32;

/// The slots of a ring that can be kept: one page.
pub const SLOTS: u32 = 32;

/// The memory that survives. All of it is zero when the domain is built.
#[derive(Debug)]
#[repr(C)]
pub struct KeptMemory {
    /// A place for each queue.
    pub places: [KeptQueue; QUEUES],
    /// What is kept of connections to servers: bulkhead-net knows what the numbers are.
    pub connections: [[AtomicU32; 10]; CONNECTIONS],
}

/// What is kept of one queue.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct KeptQueue {
    pub(super) sealed: SealedRecord,
    /// Of a store that completes at once.
    pub answers: Answers,
    requests: [Kept; SLOTS as usize],
}

/// The last two responses that were put in the order of the requests, the later one of which may be on the ring in
/// part. That one with an even index comes first.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Answers {
    ids: [AtomicU64; 2],
    rests: [Rest; 2],
}

/// What a response has beside its identifier.
#[derive(Debug, Default)]
#[repr(C)]
struct Rest {
    /// Operation and status, as on the ring.
    outcome: AtomicU32,
    /// The response's index. An odd one of the first response, or an even one of the second, says that there is none.
    index: AtomicU32,
}

/// A request as it was taken off the ring.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct Kept {
    /// Its bytes.
    pub slot: [u8; SLOT_SIZE],
    /// The request's index. If responses are put in the order of the requests, it belongs to the place that the index
    /// names, so that any other number says that nothing was taken.
    index: AtomicU32,
    /// What became of the request, if responses are put in any order: one of the numbers below.
    state: AtomicU32,
    /// The index of its response, if that was put.
    response: AtomicU32,
    /// Makes the size a power of two.
    _rest: u32,
}

/// No request is there, or it was answered and the frontend was shown the response. Any number but the next two says so.
const FREE: u32 = 0;
/// The request was taken, and no response was put.
const TAKEN: u32 = 0x6e6b_6174;
/// Its response was put.
const ANSWERED: u32 = 0x7277_7361;

impl Kept {
    /// Returns none.
    pub const fn none() -> Kept {
        Kept {
            slot: [0; SLOT_SIZE],
            index: AtomicU32::new(0),
            state: AtomicU32::new(FREE),
            response: AtomicU32::new(0),
            _rest: 0,
        }
    }

    /// Notes that this is the request with that index: from here on, it is not on the ring any more.
    #[inline]
    pub fn keep(&mut self, index: u32) {
        // The request is there before its index, and both before a response overwrites it.
        self.index.store(index, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    /// Notes the same of a request that may be answered before earlier ones. Its place is free.
    #[inline]
    pub fn keep_unanswered(&mut self, index: u32) {
        self.index.store(index, Ordering::Release);
        self.note(TAKEN);
    }

    /// Notes that the request's response is the one with that index, which is to be published yet.
    #[inline]
    pub fn answer(&mut self, response: u32) {
        self.response.store(response, Ordering::Release);
        self.note(ANSWERED);
    }

    /// Notes that the frontend was shown the response: the place is free.
    #[inline]
    pub fn free(&mut self) {
        self.note(FREE);
    }

    fn note(&mut self, state: u32) {
        // What was written before is there before this is, and this before anything else is done.
        self.state.store(state, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    /// Returns whether the frontend, which was shown all responses before the one with that index, has a response yet to
    /// get.
    fn is_unanswered(&self, published: u32) -> bool {
        let response = self.response.load(Ordering::Relaxed);
        match self.state.load(Ordering::Relaxed) {
            TAKEN => true,
            // It lies at most a ring before or behind the published index.
            ANSWERED => response.wrapping_sub(published) <= i32::MAX as u32,
            _ => false,
        }
    }
}

impl Answers {
    /// Notes a response, which is about to be put: from here on, its request is answered, even if the domain crashes.
    /// All requests before it were answered, and the response before it is on the ring.
    #[inline]
    pub fn note(&mut self, index: u32, response: &[u8; RESPONSE_SIZE]) {
        let [id, outcome] = words(response);
        let at = index as usize % 2;
        // The one that was here, the last but one, is not needed any more.
        self.ids[at].store(id, Ordering::Relaxed);
        self.rests[at]
            .outcome
            .store(outcome as u32, Ordering::Relaxed);
        // What was done comes first, then the response, then its index, and then the response on the ring.
        self.rests[at].index.store(index, Ordering::Release);
        compiler_fence(Ordering::Release);
    }

    /// Notes that there is none.
    pub fn forget(&mut self) {
        for (rest, none) in self.rests.iter().zip([1, 0]) {
            rest.index.store(none, Ordering::Relaxed);
        }
    }

    /// Returns the last response if the frontend, which was shown all responses before the one with that index, was not
    /// shown it. Returns with it the number of responses that it was not shown.
    fn last(&self, published: u32) -> Option<(u32, [u8; RESPONSE_SIZE])> {
        let held_back = |at: usize| {
            let index = self.rests[at].index.load(Ordering::Relaxed);
            let count = index.wrapping_sub(published).wrapping_add(1);
            let is_one = index as usize % 2 == at && (1..=SLOTS).contains(&count);
            is_one.then_some((count, at))
        };
        let (count, at) = (0..2).filter_map(held_back).max()?;
        let mut response = [0; RESPONSE_SIZE];
        let (id, outcome) = response.split_at_mut(size_of::<u64>());
        id.copy_from_slice(&self.ids[at].load(Ordering::Relaxed).to_ne_bytes());
        let rest = self.rests[at].outcome.load(Ordering::Relaxed);
        outcome[..size_of::<u32>()].copy_from_slice(&rest.to_ne_bytes());
        Some((count, response))
    }
}

/// Returns the identifier, and the rest. Both layouts are alike, but that the 32-bit one has no padding at the end.
#[inline]
fn words(response: &[u8; RESPONSE_SIZE]) -> [u64; 2] {
    let (words, _) = response.as_chunks();
    [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
}

impl KeptQueue {
    /// Returns where requests are kept: each at its index modulo their number.
    #[inline]
    pub fn requests(&mut self) -> &mut [Kept; SLOTS as usize] {
        &mut self.requests
    }

    /// Notes who is served, from now on and with no request taken yet.
    pub fn seal(&mut self, record: &QueueRecord) {
        self.answers.forget();
        for index in 0..SLOTS {
            self.forget(index);
        }
        for kept in &mut self.requests {
            *kept.state.get_mut() = FREE;
        }
        // A crash finds the record or finds none, and never one with an earlier frontend's requests.
        compiler_fence(Ordering::SeqCst);
        self.sealed.seal(record);
        compiler_fence(Ordering::SeqCst);
    }

    /// Notes that nobody is served.
    pub fn clear(&mut self) {
        self.sealed.clear();
        compiler_fence(Ordering::SeqCst);
    }

    /// Returns whether responses are put in any order, if anybody is served.
    pub fn answers_in_any_order(&self) -> Option<bool> {
        Some(self.sealed.read()?.any_order)
    }

    /// Frees the places of all requests that a frontend has responses to, which was shown all responses before the one
    /// with that index. Returns the others, each with its index, in that order: none of them has a response any more.
    pub fn unanswered(&mut self, published: u32) -> Vec<(u8, u32)> {
        let is_one = |kept: &&Kept| kept.is_unanswered(published);
        let count = self.requests.iter().filter(is_one).count();
        // The next index to be taken. However long a request waits, it is not overtaken by 2^32 others.
        let next = published.wrapping_add(count as u32);
        let mut found: Vec<(u8, u32)> = Vec::with_capacity(count);
        for (at, kept) in (0..).zip(&mut self.requests) {
            if !kept.is_unanswered(published) {
                kept.free();
                continue;
            }
            kept.note(TAKEN);
            let index = *kept.index.get_mut();
            let is_earlier =
                |&(_, other): &(u8, u32)| other.wrapping_sub(next) < index.wrapping_sub(next);
            found.insert(found.partition_point(is_earlier), (at, index));
        }
        found
    }

    /// Returns the request with that index, if it was kept because its response was another's.
    pub fn kept(&self, index: u32) -> Option<&[u8; SLOT_SIZE]> {
        let kept = &self.requests[(index % SLOTS) as usize];
        (kept.index.load(Ordering::Relaxed) == index).then_some(&kept.slot)
    }

    /// Keeps the request with that index, which `copy` copies.
    pub fn keep(&mut self, index: u32, copy: impl FnOnce(&mut [u8; SLOT_SIZE])) {
        // After a crash, what lies on the ring may be a response already.
        if self.kept(index).is_none() {
            let kept = &mut self.requests[(index % SLOTS) as usize];
            copy(&mut kept.slot);
            kept.keep(index);
        }
    }

    /// Forgets the request with that index.
    pub fn forget(&mut self, index: u32) {
        let at = index % SLOTS;
        // The index of another place.
        self.requests[at as usize]
            .index
            .store(at + 1, Ordering::Relaxed);
    }

    /// Returns how many requests were kept from that index on, which is at most the number of slots.
    pub fn taken_from(&self, index: u32) -> u32 {
        let kept = |after: &u32| self.kept(index.wrapping_add(*after)).is_some();
        (0..SLOTS).take_while(kept).count() as u32
    }

    /// Puts the ring back to where it was when the domain crashed, the requests were answered in their order and the
    /// frontend was shown all responses before the next: shows it the others, and takes the requests that are kept.
    /// Returns their number.
    ///
    /// # Errors
    /// The frontend has not published that many requests.
    pub fn restore(&mut self, ring: &mut BackRing<SharedPages, Blkif>) -> Result<u32, Overrun> {
        if let Some((count, response)) = self.answers.last(ring.taken()) {
            ring.put_again(count, &response)?;
            // Whether it asked for that or not, it is notified once the queue is connected.
            let _ = ring.publish();
        }
        self.answers.forget();
        let next = ring.taken();
        let count = self.taken_from(next);
        ring.skip(count)?;
        for after in count..SLOTS {
            self.forget(next.wrapping_add(after));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::VbdId;
    use alloc::boxed::Box;
    use bulkhead_ring::blkif::Abi;
    use bulkhead_xen::{DomId, GrantRef, Port};

    fn place() -> Box<KeptQueue> {
        let record = QueueRecord {
            disk: VbdId {
                frontend: DomId(1),
                device: 51712,
            },
            queue: 0,
            queues: 1,
            ring: GrantRef(8),
            event_channel: Port(3),
            abi: Abi::X86_64,
            persistent: false,
            sectors: 8,
            sector_size: 512,
            nodes: 0,
            any_order: false,
        };
        let mut place = Box::new(KeptQueue {
            sealed: SealedRecord::default(),
            answers: Answers::default(),
            requests: [const { Kept::none() }; SLOTS as usize],
        });
        place.seal(&record);
        place
    }

    fn take(place: &mut KeptQueue, index: u32) {
        place.keep(index, |slot| slot.fill(index as u8));
    }

    #[test]
    fn nothing_is_found_that_was_not_taken() {
        let place = place();
        for index in [0, 1, 31, 32, u32::MAX] {
            assert_eq!(place.taken_from(index), 0, "{index}");
        }
    }

    #[test]
    fn what_was_taken_is_found_from_any_index_on_across_the_wrap() {
        let start = u32::MAX - 20;
        let mut place = place();
        for after in 0..50 {
            take(&mut place, start.wrapping_add(after));
        }
        for after in 18..50 {
            assert_eq!(place.taken_from(start.wrapping_add(after)), 50 - after);
        }
        assert_eq!(place.taken_from(start), 0, "overwritten long ago");
        assert_eq!(place.taken_from(start.wrapping_add(50)), 0);
    }

    fn response(index: u32) -> [u8; RESPONSE_SIZE] {
        let mut response = [0; RESPONSE_SIZE];
        response[..12].fill(index as u8);
        response
    }

    #[test]
    fn the_last_response_that_was_not_published_is_found_across_the_wrap() {
        let mut place = place();
        let start = u32::MAX - 20;
        for published in [0, 1, 31, 32, start, u32::MAX] {
            assert_eq!(place.answers.last(published), None, "{published}");
        }
        for after in 0..50 {
            let index = start.wrapping_add(after);
            place.answers.note(index, &response(index));
            for held_back in 0..after.min(SLOTS - 1) {
                let published = index.wrapping_sub(held_back);
                let expected = Some((held_back + 1, response(index)));
                assert_eq!(place.answers.last(published), expected);
            }
            assert_eq!(place.answers.last(index.wrapping_add(1)), None, "published");
        }
        place.answers.forget();
        assert_eq!(place.answers.last(start.wrapping_add(48)), None);
    }

    #[test]
    fn a_response_that_is_noted_in_part_is_none() {
        let mut place = place();
        for index in 6..9 {
            place.answers.note(index, &response(index));
        }
        // The next one is being written over the last but one.
        place.answers.ids[1].store(77, Ordering::Relaxed);
        assert_eq!(place.answers.last(7), Some((2, response(8))));
        assert_eq!(place.answers.last(9), None);
    }

    #[test]
    fn a_request_is_kept_once_until_it_is_forgotten() {
        let mut place = place();
        place.keep(40, |slot| slot.fill(1));
        place.keep(40, |slot| slot.fill(2));
        assert_eq!(place.kept(40), Some(&[1; SLOT_SIZE]));
        assert_eq!((place.kept(8), place.kept(72)), (None, None));
        place.forget(40);
        assert_eq!(place.kept(40), None);
    }

    #[test]
    fn an_earlier_frontends_requests_are_forgotten() {
        let mut place = place();
        (0..32).for_each(|index| take(&mut place, index));
        place.answers.note(5, &response(5));
        let record = place.sealed.read().expect("sealed");
        place.seal(&record);
        for index in 0..32 {
            assert_eq!(place.taken_from(index), 0);
            assert_eq!(place.answers.last(index), None);
        }
    }

    #[test]
    fn what_has_no_response_that_was_published_is_found_in_its_order() {
        let mut place = place();
        // Indices across the wrap; the response of 3 is put before that of 1.
        let first = u32::MAX - 1;
        for after in 0..5 {
            place.requests()[4 - after as usize].keep_unanswered(first.wrapping_add(after));
        }
        place.requests()[1].answer(first);
        place.requests()[3].answer(first.wrapping_add(1));
        let mut found = |published| {
            let all = place.unanswered(published).into_iter();
            let all = all.map(|(at, index)| (at, index.wrapping_sub(first)));
            all.collect::<Vec<_>>()
        };
        let published = first.wrapping_add(1);
        assert_eq!(found(published), [(4, 0), (3, 1), (2, 2), (0, 4)]);
        // The same again after another crash: the response of 1 counts no more.
        assert_eq!(
            found(published.wrapping_add(1)),
            [(4, 0), (3, 1), (2, 2), (0, 4)]
        );
    }

    #[test]
    fn a_place_that_is_free_is_not_found_however_long_ago_its_response_was() {
        let mut place = place();
        place.requests()[7].keep_unanswered(0);
        place.requests()[7].answer(0);
        assert_eq!(place.unanswered(0).len(), 1);
        place.requests()[7].answer(0);
        place.requests()[7].free();
        for published in [1, 1 << 30, 1 << 31, 3 << 30, u32::MAX] {
            assert!(place.unanswered(published).is_empty(), "{published}");
        }
    }
}
