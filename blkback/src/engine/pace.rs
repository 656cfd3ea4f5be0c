//! When to show answers to the frontend, and how long to look for requests before sleeping.
//!
//! A notification costs the guest far more than the request itself: an exit or an interrupt. So
//! answers wait for each other as long as that holds nobody up, and a frontend that has asked for
//! more by the time we would have gone to sleep need not wake us.
//!
//! Both are learned. A frontend that keeps so many requests outstanding (its depth) is answered
//! when half of them wait: it is busy with the other half meanwhile, and never runs dry. Its depth
//! shows when it does run dry, which is let happen now and then. Looking before sleeping goes on
//! about as long as the frontend was seen to take, and not at all if it takes longer than looking
//! may last: that is a multiple of what blocking and waking was measured to cost, because a look
//! that takes much longer than the sleep it saves does not pay, and never more than [`MOST`].
//!
//! There is no sleeping by a timer while answers gather: that would save processor time, but timers
//! end late, now and then by many times what they end late at least, and a frontend runs dry then.

use super::options::Options;
use bulkhead_xen::Instant;
use core::time::Duration;

/// The frontend is let run dry after so many batches; the more seldom, the more often that told
/// nothing new.
const OFTEN: u32 = 16;
const SELDOM: u32 = 1024;
/// What looking may last at most, in times of what a sleep costs us. The frontend pays for it as
/// well, and more than we do: an exit to notify us, and its latency.
const SLEEPS: u32 = 8;
/// What looking and holding may last at most, unless the operator says otherwise: what a sleep costs is
/// learned, and on a host that was overloaded for a while that may be many milliseconds.
const MOST: Duration = Duration::from_micros(500);
/// Until a sleep's cost is known.
const UNKNOWN: Duration = Duration::from_micros(400);
/// A clock that shows the same time so often stands still, as that of a test does.
const FROZEN_CLOCK: u32 = 64;

/// A queue's rhythm.
#[derive(Debug)]
pub struct Pace {
    options: Options,
    /// How many requests the frontend is believed to keep outstanding, and how many it had when it
    /// ran dry the last time.
    depth: u32,
    dry: u32,
    /// How many batches were answered since it was let run dry, and how many have to be until it
    /// is again.
    answered: u32,
    patient_for: u32,
    /// How many requests and answers the last look found.
    seen: u32,
    /// The longest usual time from one request to the next, and the longest since the last answer.
    gap: Duration,
    longest: Duration,
    /// When something last happened.
    active: Instant,
    /// How long we look before sleeping.
    patience: Duration,
    /// How late sleeps end, which is what they cost.
    lateness: Option<Duration>,
    last_look: Instant,
    same_looks: u32,
}

/// What to do after a look at the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Look again, after the other tasks of this vCPU.
    Again,
    /// Serve the requests that there are, and show the answers.
    Answer,
    /// Sleep until the frontend notifies us.
    Sleep,
}

impl Pace {
    /// The rhythm of a queue that has seen nothing yet.
    pub fn new(options: Options, now: Instant, lateness: Option<Duration>) -> Self {
        Pace {
            options,
            depth: 1,
            dry: 1,
            answered: 0,
            patient_for: OFTEN,
            seen: 0,
            gap: Duration::ZERO,
            longest: Duration::ZERO,
            active: now,
            patience: Duration::ZERO,
            lateness,
            last_look: now,
            same_looks: 0,
        }
    }

    /// Looks at a queue with `waiting` requests and answers that the frontend waits for, of at most
    /// `most`.
    pub fn look(&mut self, now: Instant, waiting: u32, most: u32) -> Look {
        let moves = self.clock_moves(now);
        if waiting > self.seen {
            let since = now.since(self.active);
            if self.seen == 0 {
                self.expect(since);
            }
            // Several may have come while other queues had their turn.
            let gap = since / (waiting - self.seen);
            self.longest = self.longest.max(gap);
            self.active = now;
            self.seen = waiting;
            self.depth = self.depth.max(waiting);
            if waiting < self.target(most) {
                return Look::Again;
            }
            if waiting == most {
                // There is room for no more: that is as dry as it gets.
                self.ran_dry(waiting);
            }
            return Look::Answer;
        }
        self.seen = waiting;
        let limit = match waiting {
            0 => self.patience,
            _ => (self.gap.max(self.longest) * 2).min(self.limit(self.options.hold)),
        };
        if now.since(self.active) < limit && moves {
            return Look::Again;
        }
        if waiting == 0 {
            return Look::Sleep;
        }
        self.ran_dry(waiting);
        self.active = now;
        Look::Answer
    }

    /// How many have to wait to be answered.
    fn target(&self, most: u32) -> u32 {
        match self.answered >= self.patient_for {
            true => most,
            false => self.half(),
        }
    }

    /// Half of what the frontend keeps outstanding.
    fn half(&self) -> u32 {
        self.depth.div_ceil(2)
    }

    /// The frontend has nothing more to ask for before it is answered.
    fn ran_dry(&mut self, depth: u32) {
        let known = self.depth;
        self.depth = depth.max(self.dry);
        self.dry = depth;
        self.answered = 0;
        self.patient_for = match self.depth == known {
            true => (self.patient_for * 2).min(SELDOM),
            false => OFTEN,
        };
    }

    /// The frontend was answered, and so much waits nevertheless. `lateness` is what a sleep costs.
    pub fn answered(&mut self, waiting: u32, lateness: Option<Duration>) {
        // What may be answered at once is to count as having just come.
        self.seen = waiting.min(self.half() - 1);
        self.answered += 1;
        self.gap = self.longest.max(self.gap - self.gap / 8);
        self.longest = Duration::ZERO;
        self.lateness = lateness;
    }

    /// A sleep is over, and so many requests wait. Had it been short enough, looking would have been
    /// better.
    pub fn woke(&mut self, now: Instant, waiting: u32) {
        if waiting == 0 {
            // A notification may be of requests that were found before it came.
            return;
        }
        let idle = now.since(self.active);
        if !self.expect(idle) {
            self.patience /= 2;
        }
        self.active = now;
    }

    /// The frontend took so long to ask for more, and may take twice that the next time. False if it was
    /// longer than looking may last.
    fn expect(&mut self, idle: Duration) -> bool {
        let limit = self.limit(self.options.poll);
        if idle <= limit {
            self.patience = self.patience.max(idle * 2).min(limit);
        }
        idle <= limit
    }

    /// The most that the operator allows, or that makes sense.
    fn limit(&self, chosen: Option<Duration>) -> Duration {
        chosen.unwrap_or_else(|| {
            let pays = self.lateness.map_or(UNKNOWN, |late| late * SLEEPS);
            pays.min(MOST)
        })
    }

    /// Takes note of the time since the last look; false if the clock stands still.
    fn clock_moves(&mut self, now: Instant) -> bool {
        self.same_looks = match now == self.last_look {
            true => self.same_looks + 1,
            false => 0,
        };
        self.last_look = now;
        self.same_looks < FROZEN_CLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant(1_000_000);

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    fn pace() -> Pace {
        let options = Options {
            poll: Some(micros(200)),
            hold: Some(micros(100)),
            ..Options::default()
        };
        Pace::new(options, START, None)
    }

    /// A frontend that keeps `depth` requests outstanding, one more every `gap` while it has not
    /// run dry. Answers how often it was answered.
    fn run(pace: &mut Pace, now: &mut Instant, depth: u32, gap: Duration, requests: u32) -> u32 {
        let (mut waiting, mut answered, mut done) = (0, 0, 0);
        let mut next = *now + gap;
        while done < requests {
            *now = *now + micros(1);
            if waiting < depth && *now >= next {
                next = *now + gap;
                waiting += 1;
            }
            if pace.look(*now, waiting, 32) == Look::Answer {
                answered += 1;
                done += waiting;
                waiting = 0;
                pace.answered(0, None);
            }
        }
        answered
    }

    #[test]
    fn a_single_request_is_hardly_ever_kept_waiting() {
        let (mut pace, mut now) = (pace(), START);
        run(&mut pace, &mut now, 1, micros(20), 100);
        let before = now;
        assert_eq!(run(&mut pace, &mut now, 1, micros(20), 10_000), 10_000);
        let took = now.since(before);
        assert!(took < micros(10_000 * 22), "{took:?} for 10,000 requests");
    }

    #[test]
    fn many_requests_are_answered_together() {
        let (mut pace, mut now) = (pace(), START);
        run(&mut pace, &mut now, 32, micros(20), 1000);
        let answered = run(&mut pace, &mut now, 32, micros(20), 10_000);
        assert!(answered < 1000, "{answered} times for 10,000 requests");
    }

    #[test]
    fn a_frontend_that_pauses_now_and_then_is_still_answered_in_large_batches() {
        let (mut pace, mut now) = (pace(), START);
        let (mut waiting, mut submitted, mut answered) = (0, 0u32, 0);
        let mut next = now + micros(5);
        while submitted < 10_000 {
            now = now + micros(1);
            if waiting < 32 && now >= next {
                waiting += 1;
                submitted += 1;
                // As a guest does at each tick of its timer.
                let pause = if submitted.is_multiple_of(20) { 60 } else { 0 };
                next = now + micros(5 + pause);
            }
            if pace.look(now, waiting, 32) == Look::Answer {
                answered += 1;
                waiting = 0;
                pace.answered(0, None);
            }
        }
        assert!(answered < 10_000 / 8, "{answered} times");
    }

    #[test]
    fn a_frontend_that_fills_the_ring_is_let_run_dry_now_and_then_only() {
        let mut pace = pace();
        let (mut now, mut waiting, mut answered, mut dry) = (START, 0, 0, 0);
        while answered < 1000 {
            now = now + micros(5);
            waiting += 1;
            if pace.look(now, waiting, 32) == Look::Answer {
                answered += 1;
                dry += u32::from(waiting == 32);
                waiting = 0;
                pace.answered(0, None);
            }
        }
        assert!((1..50).contains(&dry), "{dry} times of {answered}");
    }

    #[test]
    fn looking_lasts_a_multiple_of_what_a_sleep_costs() {
        let mut pace = Pace::new(Options::default(), START, Some(micros(3)));
        let mut now = START + micros(3 * u64::from(SLEEPS));
        pace.woke(now, 1);
        assert_eq!(pace.look(now + micros(1), 0, 32), Look::Again);
        for _ in 0..20 {
            now = now + micros(4 * u64::from(SLEEPS));
            pace.woke(now, 1);
        }
        assert_eq!(pace.look(now + micros(1), 0, 32), Look::Sleep);
    }

    #[test]
    fn no_lateness_makes_looking_or_holding_last_longer_than_the_cap() {
        // As learned while the host was overloaded.
        for late in [100, 1000, 50_000, 1_000_000].map(micros) {
            let mut pace = Pace::new(Options::default(), START, Some(late));
            let mut now = START;
            for _ in 0..50 {
                // Whatever the frontend does to keep us looking: it asks just before we would give up.
                now = now + (MOST - micros(1));
                pace.woke(now, 1);
            }
            assert_eq!(pace.look(now + micros(1), 0, 32), Look::Again);
            assert_eq!(pace.look(now + MOST, 0, 32), Look::Sleep, "{late:?}");
            pace.depth = 32;
            pace.gap = late;
            let now = now + MOST;
            assert_eq!(pace.look(now, 1, 32), Look::Again);
            assert_eq!(pace.look(now + MOST, 1, 32), Look::Answer, "{late:?}");
        }
    }

    #[test]
    fn the_operator_may_have_it_look_and_hold_for_longer() {
        let options = Options {
            poll: Some(MOST * 4),
            hold: Some(MOST * 4),
            ..Options::default()
        };
        let mut pace = Pace::new(options, START, None);
        let now = START + MOST * 3;
        pace.woke(now, 1);
        assert_eq!(pace.look(now + MOST * 3, 0, 32), Look::Again);
        assert_eq!(pace.look(now + MOST * 4, 0, 32), Look::Sleep);
    }

    #[test]
    fn a_notification_without_a_request_teaches_nothing() {
        let mut pace = Pace::new(Options::default(), START, Some(micros(10)));
        let mut now = START;
        for _ in 0..100 {
            assert_eq!(pace.look(now, 0, 32), Look::Sleep);
            now = now + micros(10);
            pace.woke(now, 0);
        }
    }

    #[test]
    fn it_adapts_when_the_frontend_slows_down_and_speeds_up() {
        let (mut pace, mut now) = (pace(), START);
        run(&mut pace, &mut now, 32, micros(20), 5000);
        assert!(run(&mut pace, &mut now, 1, micros(20), 1000) >= 990);
        assert!(run(&mut pace, &mut now, 32, micros(20), 20_000) < 4000);
    }

    #[test]
    fn looking_pays_or_is_given_up() {
        let mut pace = pace();
        let mut now = START;
        assert_eq!(pace.look(now, 0, 32), Look::Sleep, "nothing is known yet");
        now = now + micros(40);
        pace.woke(now, 1);
        assert_eq!(pace.look(now, 1, 32), Look::Answer);
        pace.answered(0, None);
        assert_eq!(pace.look(now + micros(70), 0, 32), Look::Again);
        assert_eq!(pace.look(now + micros(80), 0, 32), Look::Sleep);
        for _ in 0..20 {
            now = now + micros(5000);
            pace.woke(now, 1);
        }
        assert_eq!(pace.look(now, 0, 32), Look::Sleep, "it takes too long");
    }

    #[test]
    fn a_long_pause_does_not_end_looking_that_pays() {
        let mut pace = pace();
        let mut now = START + micros(40);
        pace.woke(now, 1);
        for _ in 0..OFTEN / 4 {
            assert_eq!(pace.look(now, 1, 32), Look::Answer);
            pace.answered(0, None);
            // One request is found while looking, the next one is not.
            now = now + micros(39);
            assert_eq!(pace.look(now, 1, 32), Look::Answer);
            pace.answered(0, None);
            now = now + micros(5000);
            pace.woke(now, 1);
        }
        assert_eq!(pace.look(now, 1, 32), Look::Answer);
        pace.answered(0, None);
        assert_eq!(pace.look(now + micros(38), 0, 32), Look::Again);
    }

    #[test]
    fn a_clock_that_stands_still_keeps_nobody_looking() {
        let mut pace = pace();
        pace.depth = 9;
        let looks = (0..1000).take_while(|_| pace.look(START, 1, 32) == Look::Again);
        assert!(looks.count() <= FROZEN_CLOCK as usize + 1);
    }
}
