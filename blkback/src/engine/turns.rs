//! Shares the turns of a vCPU between guests instead of queues: a guest with many queues gets at most twice as much of
//! the vCPU as a guest with a single queue that sends as many requests.
//!
//! The executor polls the tasks that can run one after another, again and again. A round is one pass through all
//! queues that have work. In each round every guest has the same number of turns: that of the guest with the fewest
//! queues that had work in the last round, times [`TOLERATED`]. Its other queues pass, and the queues that have passed
//! longest are the next. Guests with the same number of queues never pass. To pass costs one poll of the task, and if
//! only one guest has queues on the vCPU, or work for it, no queue passes.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The pages of requests from which on a sweep takes no more; a request without pages counts as one. A sweep is a queue's turn
/// of its vCPU: however large its ring and its requests are, other guests' queues wait for no more than this and one request.
/// The other costs of a turn are small beside it.
pub const MOST_OF_A_SWEEP: usize = 256;

/// The number of rounds for which several guests are expected to have work again, after a round in which they had: a
/// guest that sends one request after another has none in most rounds.
const EXPECTED: u32 = 16;

/// The number of rounds after which the number of turns may double.
const RISES_EVERY: u32 = 4;

/// The factor by which a guest may have more turns than the guest with the fewest. With 1, the queues of guests that
/// differ a little passed again and again, which took a tenth of a request's instructions.
const TOLERATED: u32 = 2;

/// The number of times in a row that a queue publishes responses before it is taken to have the vCPU for itself.
const ALONE: u32 = 16;

/// The state that the queues of a vCPU share. Only that vCPU uses it, so each access is a plain one.
#[derive(Debug)]
pub struct VcpuTurns {
    /// The number of guests with queues there.
    guests: AtomicU32,
    /// The number of the current round.
    round: AtomicU32,
    /// The number of guests that had work in this round so far.
    busy: AtomicU32,
    /// The last round in which several guests had work.
    shared: AtomicU32,
    /// The number of turns that each guest has in this round, and the least that one of them could use.
    most: AtomicU32,
    least: AtomicU32,
    /// The queue that published the last responses, and the number of times in a row that it was the same one.
    last: AtomicU32,
    in_a_row: AtomicU32,
    /// The number of queues that there ever were.
    queues: AtomicU32,
}

impl Default for VcpuTurns {
    fn default() -> Self {
        VcpuTurns {
            guests: AtomicU32::new(0),
            round: AtomicU32::new(2 * EXPECTED),
            busy: AtomicU32::new(0),
            shared: AtomicU32::new(0),
            most: AtomicU32::new(1),
            least: AtomicU32::new(u32::MAX),
            last: AtomicU32::new(0),
            in_a_row: AtomicU32::new(0),
            queues: AtomicU32::new(0),
        }
    }
}

impl VcpuTurns {
    /// Returns whether several guests had work in this round or in one of the last before it.
    #[inline]
    fn is_shared(&self, round: u32) -> bool {
        round.wrapping_sub(self.shared.load(Relaxed)) <= EXPECTED
    }

    /// Begins a round. The number of turns falls at once, and rises slowly, so that a guest whose only queue has work
    /// now and then counts in between, too.
    fn next_round(&self) -> u32 {
        let round = self.round.load(Relaxed).wrapping_add(1);
        let mut most = self.most.load(Relaxed);
        if round.is_multiple_of(RISES_EVERY) {
            most = most.saturating_mul(2);
        }
        self.most.store(most.min(self.least.load(Relaxed)), Relaxed);
        self.least.store(u32::MAX, Relaxed);
        self.busy.store(0, Relaxed);
        self.round.store(round, Relaxed);
        round
    }
}

/// The state that a guest's queues on a vCPU share.
#[derive(Debug)]
pub struct GuestTurns {
    vcpu: Arc<VcpuTurns>,
    /// The last round in which it had work.
    round: AtomicU32,
    /// The number of its queues that had work in that round so far, and of those that had a turn.
    asked: AtomicU32,
    used: AtomicU32,
    /// The same for the round before.
    asked_before: AtomicU32,
    used_before: AtomicU32,
}

impl GuestTurns {
    /// Returns the state of a guest that has no queues on this vCPU yet.
    pub fn on(vcpu: &Arc<VcpuTurns>) -> Self {
        vcpu.guests.fetch_add(1, Relaxed);
        GuestTurns {
            vcpu: vcpu.clone(),
            round: AtomicU32::default(),
            asked: AtomicU32::default(),
            used: AtomicU32::default(),
            asked_before: AtomicU32::default(),
            used_before: AtomicU32::default(),
        }
    }

    /// Notes that its first queue with work in a round is polled.
    fn begin(&self, round: u32) {
        let vcpu = &self.vcpu;
        let asked = self.asked.swap(0, Relaxed);
        let least = vcpu
            .least
            .load(Relaxed)
            .min(asked.max(1).saturating_mul(TOLERATED));
        vcpu.least.store(least, Relaxed);
        if increased(&vcpu.busy) == 2 {
            vcpu.shared.store(round, Relaxed);
        }
        self.asked_before.store(asked, Relaxed);
        self.used_before.store(self.used.swap(0, Relaxed), Relaxed);
        self.round.store(round, Relaxed);
    }
}

impl Default for GuestTurns {
    /// Returns the state of a guest that has a vCPU for itself.
    fn default() -> Self {
        GuestTurns::on(&Arc::default())
    }
}

impl Drop for GuestTurns {
    fn drop(&mut self) {
        self.vcpu.guests.fetch_sub(1, Relaxed);
    }
}

/// The turns of one queue.
#[derive(Debug, Default)]
pub struct Turn {
    guest: Arc<GuestTurns>,
    /// The last round in which it was polled with work.
    seen: u32,
    /// The number of rounds that it has passed since it had a turn.
    passed: u32,
    /// Tells it from the other queues of the vCPU.
    number: u32,
}

impl Turn {
    /// Returns the turns of a queue of this guest.
    pub fn of(guest: Arc<GuestTurns>) -> Self {
        Turn {
            number: increased(&guest.vcpu.queues),
            guest,
            ..Turn::default()
        }
    }

    /// Returns whether the queue, which is polled and has work, has its turn now.
    #[inline]
    pub fn take(&mut self) -> bool {
        self.guest.vcpu.guests.load(Relaxed) <= 1 || self.take_among_guests()
    }

    /// Returns whether queues of several guests have had work for this vCPU lately.
    #[inline]
    pub fn is_shared(&self) -> bool {
        let vcpu = &*self.guest.vcpu;
        vcpu.guests.load(Relaxed) > 1 && vcpu.is_shared(vcpu.round.load(Relaxed))
    }

    /// Notes that the queue has published responses to a frontend with several requests outstanding. Returns whether
    /// no other queue of the vCPU did so lately.
    #[inline]
    pub fn answered(&self) -> bool {
        let vcpu = &*self.guest.vcpu;
        if vcpu.last.load(Relaxed) == self.number {
            return increased(&vcpu.in_a_row) > ALONE;
        }
        vcpu.last.store(self.number, Relaxed);
        vcpu.in_a_row.store(0, Relaxed);
        false
    }

    fn take_among_guests(&mut self) -> bool {
        let guest = &*self.guest;
        let vcpu = &*guest.vcpu;
        // The first queue that is polled for the second time begins the next round.
        let mut round = vcpu.round.load(Relaxed);
        if self.seen == round {
            round = vcpu.next_round();
        }
        self.seen = round;
        if guest.round.load(Relaxed) != round {
            guest.begin(round);
        }
        increased(&guest.asked);
        if vcpu.is_shared(round) && self.has_to_pass() {
            self.passed = self.passed.saturating_add(1);
            return false;
        }
        increased(&guest.used);
        self.passed = 0;
        true
    }

    fn has_to_pass(&self) -> bool {
        let most = self.guest.vcpu.most.load(Relaxed).max(1);
        if self.guest.used.load(Relaxed) >= most {
            return true;
        }
        // The queues of a guest are polled in the same order in each round: without this count, the first ones would
        // always have the turns.
        let asked = self.guest.asked_before.load(Relaxed);
        asked > most && self.passed < (asked - 1) / most && self.guest.used_before.load(Relaxed) > 0
    }
}

/// Adds one, and returns the sum. No other vCPU changes it meanwhile.
fn increased(number: &AtomicU32) -> u32 {
    let sum = number.load(Relaxed).wrapping_add(1);
    number.store(sum, Relaxed);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// The queues of some guests on one vCPU, and the turns that each guest had.
    struct Queues(Vec<Vec<(Turn, u32)>>);

    impl Queues {
        fn of(guests: &[usize]) -> Queues {
            let vcpu = Arc::default();
            let queues = |&count: &usize| {
                let guest = Arc::new(GuestTurns::on(&vcpu));
                (0..count).map(|_| (Turn::of(guest.clone()), 0)).collect()
            };
            Queues(guests.iter().map(queues).collect())
        }

        /// Polls all queues that have work, `times` times. Returns the number of turns that each guest had.
        fn poll(
            &mut self,
            times: usize,
            has_work: impl Fn(usize, usize, usize) -> bool,
        ) -> Vec<u32> {
            let mut had = alloc::vec![0; self.0.len()];
            for time in 0..times {
                for (guest, queues) in self.0.iter_mut().enumerate() {
                    for (number, (turn, turns)) in queues.iter_mut().enumerate() {
                        if has_work(time, guest, number) && turn.take() {
                            *turns += 1;
                            had[guest] += 1;
                        }
                    }
                }
            }
            had
        }
    }

    #[test]
    fn no_guest_has_more_than_twice_the_turns_and_queues_share_their_guests() {
        for guests in [&[8, 1][..], &[1, 8], &[3, 5, 1], &[15, 2], &[2, 1, 2]] {
            let mut queues = Queues::of(guests);
            let had = queues.poll(3000, |_, _, _| true);
            let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
            assert!(*most <= least * 2 + least / 10, "{guests:?}: {had:?}");
            for queues in queues.0 {
                let turns: Vec<u32> = queues.into_iter().map(|(_, turns)| turns).collect();
                let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
                assert!(most - least <= 40, "{guests:?}: {turns:?}");
            }
        }
    }

    #[test]
    fn guests_with_as_many_queues_and_a_guest_alone_pass_nothing() {
        let mut queues = Queues::of(&[8, 8, 8]);
        queues.poll(20, |_, _, _| true);
        assert_eq!(queues.poll(100, |_, _, _| true), [800; 3]);
        assert_eq!(Queues::of(&[8]).poll(100, |_, _, _| true), [800]);
        // The others have queues, and no work for a while.
        let mut queues = Queues::of(&[8, 1]);
        queues.poll(10, |_, _, _| true);
        queues.poll(20, |_, guest, _| guest == 0);
        assert_eq!(queues.poll(100, |_, guest, _| guest == 0), [800, 0]);
    }

    #[test]
    fn a_guest_that_asks_now_and_then_waits_for_few_turns_of_others() {
        let mut queues = Queues::of(&[16, 1]);
        let now_and_then = |time: usize, guest, _| guest == 0 || time.is_multiple_of(4);
        queues.poll(40, now_and_then);
        let had = queues.poll(400, now_and_then);
        assert_eq!(had[1], 100, "its turn comes at once");
        assert!(had[0] <= 400 * 16 / 4, "{had:?}");
    }

    #[test]
    fn queues_that_idle_take_nothing_from_their_guests_others() {
        // Both guests have eight queues, and one has work for one of them alone.
        let mut queues = Queues::of(&[8, 8]);
        let work = |_, guest, number| guest == 0 || number == 3;
        queues.poll(40, work);
        let had = queues.poll(1000, work);
        assert!(had[0] <= 2100 && had[1] == 1000, "{had:?}");
    }

    #[test]
    fn a_queue_is_alone_once_no_other_has_had_work_for_a_while() {
        let vcpu = Arc::default();
        let guest = Arc::new(GuestTurns::on(&vcpu));
        let [one, other] = [0, 1].map(|_| Turn::of(guest.clone()));
        let alone = |turn: &Turn, times| (0..times).filter(|_| turn.answered()).count();
        assert_eq!(alone(&one, 100), 100 - 1 - ALONE as usize);
        assert_eq!(alone(&other, 1), 0);
        for _ in 0..100 {
            assert_eq!((alone(&one, ALONE), alone(&other, 1)), (0, 0));
        }
    }

    #[test]
    fn a_guest_that_has_gone_is_not_shared_with() {
        let vcpu = Arc::new(VcpuTurns::default());
        let guests = [0, 1].map(|_| GuestTurns::on(&vcpu));
        assert_eq!(vcpu.guests.load(Relaxed), 2);
        drop(guests);
        assert_eq!(vcpu.guests.load(Relaxed), 0);
    }
}
