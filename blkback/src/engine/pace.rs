//! When to show answers to the frontend, and how long to look for requests before sleeping.
//!
//! A notification costs the guest far more than the request itself: an exit or an interrupt. So
//! answers wait for each other as long as that holds nobody up, and a frontend that has asked for
//! more by the time we would have gone to sleep need not wake us.
//!
//! Both are learned. How many answers go out together doubles for as long as the frontend keeps
//! asking for more meanwhile; once it runs dry, half as many are enough to keep it busy. Looking
//! before sleeping goes on about as long as the frontend was seen to take, and not at all if it
//! takes longer than that may last.

use super::options::Options;
use bulkhead_xen::Instant;
use core::time::Duration;

/// A larger batch is tried after so many that were filled; the more seldom, the more often it was
/// too large.
const OFTEN: u32 = 4;
const SELDOM: u32 = 1024;
/// A clock that shows the same time so often stands still, as that of a test does.
const FROZEN_CLOCK: u32 = 64;

/// A queue's rhythm.
#[derive(Debug)]
pub struct Pace {
    options: Options,
    /// How many answers go out together.
    batch: u32,
    /// How many batches were filled since that number was changed, and how many have to be before
    /// a larger one is tried.
    filled: u32,
    needed: u32,
    /// How many requests and answers the last look found.
    seen: u32,
    /// The usual time from one request to the next while answers wait.
    gap: Duration,
    /// When something last happened.
    active: Instant,
    /// How long we look before sleeping.
    patience: Duration,
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
    pub fn new(options: Options, now: Instant) -> Self {
        Pace {
            options,
            batch: 1,
            filled: 0,
            needed: OFTEN,
            seen: 0,
            gap: options.hold,
            active: now,
            patience: Duration::ZERO,
            last_look: now,
            same_looks: 0,
        }
    }

    /// Looks at a queue with `waiting` requests and answers that the frontend waits for, of at most
    /// `most`.
    pub fn look(&mut self, now: Instant, waiting: u32, most: u32) -> Look {
        if waiting > self.seen {
            return self.more_came(now, waiting, most);
        }
        self.seen = waiting;
        let limit = match waiting {
            0 => self.patience,
            _ => (self.gap * 2).min(self.options.hold),
        };
        if now.since(self.active) < limit && self.clock_moves(now) {
            return Look::Again;
        }
        if waiting == 0 {
            return Look::Sleep;
        }
        // The frontend has run dry: it can be kept busy with half of what it has.
        self.batch = waiting.div_ceil(2);
        self.filled = 0;
        self.needed = (self.needed * 2).min(SELDOM);
        self.active = now;
        Look::Answer
    }

    fn more_came(&mut self, now: Instant, waiting: u32, most: u32) -> Look {
        if self.seen > 0 {
            // A long one counts in full, short ones bring it down slowly: too short a wait for
            // company costs more than too long a one.
            let gap = now.since(self.active);
            self.gap = gap.max(self.gap - self.gap.saturating_sub(gap) / 8);
        }
        self.seen = waiting;
        self.active = now;
        if waiting < self.batch {
            return Look::Again;
        }
        self.filled += 1;
        if self.filled >= self.needed {
            self.filled = 0;
            self.batch = (self.batch * 2).min(most);
        }
        Look::Answer
    }

    /// The frontend was answered; so much waits nevertheless.
    pub fn answered(&mut self, waiting: u32) {
        self.seen = waiting.min(self.batch - 1);
    }

    /// A sleep is over. Had it been short enough, looking would have been better.
    pub fn woke(&mut self, now: Instant) {
        let idle = now.since(self.active);
        self.patience = match idle <= self.options.poll {
            true => (idle * 2).min(self.options.poll),
            false => self.patience / 2,
        };
        self.active = now;
    }

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
            poll: micros(200),
            hold: micros(100),
            ..Options::default()
        };
        Pace::new(options, START)
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
                pace.answered(0);
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
        pace.woke(now);
        assert_eq!(pace.look(now, 1, 32), Look::Answer);
        pace.answered(0);
        assert_eq!(pace.look(now + micros(70), 0, 32), Look::Again);
        assert_eq!(pace.look(now + micros(80), 0, 32), Look::Sleep);
        for _ in 0..20 {
            now = now + micros(5000);
            pace.woke(now);
        }
        assert_eq!(pace.look(now, 0, 32), Look::Sleep, "it takes too long");
    }

    #[test]
    fn a_clock_that_stands_still_keeps_nobody_looking() {
        let mut pace = pace();
        pace.batch = 5;
        let looks = (0..1000).take_while(|_| pace.look(START, 1, 32) == Look::Again);
        assert!(looks.count() <= FROZEN_CLOCK as usize + 1);
    }
}
