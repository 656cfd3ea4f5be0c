//! Turns of the queues of one vCPU, shared between guests and not between queues: a guest with many
//! queues gets no more of the vCPU than one with a single queue that asks as much.
//!
//! The executor polls the tasks that can run one after another, again and again. That is a round. As
//! long as queues of several guests are awake on the vCPU, one queue of each guest has a turn in a round,
//! the one that has waited longest; the guest's others pass. Passing costs a poll of the task and nothing
//! else. Where one guest is alone, every queue has its turn in every round.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What the queues of a vCPU share. All that use it run there, so each access is a plain one.
#[derive(Debug, Default)]
pub struct VcpuTurns {
    /// The number of the round that is going on.
    round: AtomicU32,
    /// How many guests have queues that are awake.
    guests: AtomicU32,
}

/// What a guest's queues on a vCPU share.
#[derive(Debug, Default)]
pub struct GuestTurns {
    vcpu: Arc<VcpuTurns>,
    /// How many of its queues are awake.
    awake: AtomicU32,
    /// The last round in which one of them had a turn.
    last: AtomicU32,
}

impl GuestTurns {
    /// Those of a guest that has no queues on this vCPU yet.
    pub fn on(vcpu: &Arc<VcpuTurns>) -> Self {
        GuestTurns {
            vcpu: vcpu.clone(),
            ..GuestTurns::default()
        }
    }
}

/// A queue's part in it. It is asleep at first, and again when it is dropped.
#[derive(Debug, Default)]
pub struct Turn {
    guest: Arc<GuestTurns>,
    awake: bool,
    /// The last round in which it was polled.
    seen: u32,
    /// The rounds that it has passed since it had a turn.
    passed: u32,
}

impl Turn {
    /// That of a queue of this guest.
    pub fn of(guest: Arc<GuestTurns>) -> Self {
        Turn {
            guest,
            ..Turn::default()
        }
    }

    /// The queue looks for work from now on.
    #[inline]
    pub fn wake(&mut self) {
        if !core::mem::replace(&mut self.awake, true) && add(&self.guest.awake, 1) == 1 {
            add(&self.guest.vcpu.guests, 1);
        }
        // Whoever was asleep has waited.
        self.passed = u32::MAX;
    }

    /// The queue sleeps from now on.
    #[inline]
    pub fn sleep(&mut self) {
        if core::mem::replace(&mut self.awake, false) && add(&self.guest.awake, u32::MAX) == 0 {
            add(&self.guest.vcpu.guests, u32::MAX);
        }
    }

    /// Whether the queue has its turn now that it is polled.
    #[inline]
    pub fn take(&mut self) -> bool {
        self.guest.awake.load(Relaxed) <= 1 || self.take_of_many()
    }

    fn take_of_many(&mut self) -> bool {
        let guest = &self.guest;
        let awake = guest.awake.load(Relaxed);
        if guest.vcpu.guests.load(Relaxed) <= 1 {
            return true;
        }
        // The first that is polled for the second time begins the next round.
        let mut round = guest.vcpu.round.load(Relaxed);
        if self.seen == round {
            round = add(&guest.vcpu.round, 1);
        }
        self.seen = round;
        // The queues of a guest are polled in the same order in each round: without counting, the first
        // one would always be the one.
        if guest.last.load(Relaxed) == round || self.passed < awake - 1 {
            self.passed = self.passed.saturating_add(1);
            return false;
        }
        guest.last.store(round, Relaxed);
        self.passed = 0;
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.sleep();
    }
}

/// Adds, and returns the sum. Nobody else is there to change it meanwhile.
#[inline]
fn add(number: &AtomicU32, count: u32) -> u32 {
    let sum = number.load(Relaxed).wrapping_add(count);
    number.store(sum, Relaxed);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// Lets the queues of each guest ask for many rounds; returns how many turns each queue had.
    fn turns(guests: &[usize], rounds: usize) -> Vec<Vec<u32>> {
        let vcpu = Arc::default();
        let queues = |&count: &usize| {
            let guest = Arc::new(GuestTurns::on(&vcpu));
            (0..count).map(|_| (Turn::of(guest.clone()), 0)).collect()
        };
        let mut all: Vec<Vec<(Turn, u32)>> = guests.iter().map(queues).collect();
        all.iter_mut().flatten().for_each(|(turn, _)| turn.wake());
        for _ in 0..rounds {
            for (turn, had) in all.iter_mut().flatten() {
                *had += u32::from(turn.take());
            }
        }
        let had = |queues: Vec<(Turn, u32)>| queues.into_iter().map(|(_, had)| had).collect();
        all.into_iter().map(had).collect()
    }

    #[test]
    fn guests_share_the_turns_and_queues_share_their_guests() {
        for guests in [&[8, 1][..], &[1, 8], &[3, 5, 1], &[15, 15], &[2, 1, 2]] {
            let rounds = 3000;
            for queues in turns(guests, rounds) {
                let sum: u32 = queues.iter().sum();
                assert!(sum as usize <= rounds + 16, "{guests:?}: {queues:?}");
                assert!(
                    sum as usize >= rounds - rounds / 10,
                    "{guests:?}: {queues:?}"
                );
                let (least, most) = (queues.iter().min(), queues.iter().max());
                assert!(
                    most.unwrap() - least.unwrap() <= 32,
                    "{guests:?}: {queues:?}"
                );
            }
        }
    }

    #[test]
    fn a_guest_alone_passes_no_turn() {
        assert_eq!(turns(&[4], 100), [[100; 4]]);
    }

    #[test]
    fn guests_whose_queues_sleep_take_nothing() {
        let vcpu = Arc::default();
        let (one, two) = (GuestTurns::on(&vcpu), GuestTurns::on(&vcpu));
        let (one, two) = (Arc::new(one), Arc::new(two));
        let mut many: Vec<Turn> = (0..4).map(|_| Turn::of(one.clone())).collect();
        let mut other = Turn::of(two);
        many.iter_mut().for_each(Turn::wake);
        other.wake();
        let round = |many: &mut Vec<Turn>, other: &mut Turn| {
            other.take();
            many.iter_mut()
                .filter_map(|turn| turn.take().then_some(()))
                .count()
        };
        assert!((0..20).all(|_| round(&mut many, &mut other) <= 1));
        other.sleep();
        assert!((0..20).all(|_| many.iter_mut().all(Turn::take)));
        drop(many);
        assert_eq!((vcpu.guests.load(Relaxed), one.awake.load(Relaxed)), (0, 0));
    }
}
