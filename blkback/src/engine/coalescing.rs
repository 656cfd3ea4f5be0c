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
pub struct Coalescer {
    options: Options,
    /// How many requests the frontend is believed to keep outstanding, and how many it had when it
    /// ran dry the last time.
    queue_depth: u32,
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
    poll_window: Duration,
    /// How late sleeps end, which is what they cost.
    lateness: Option<Duration>,
    last_look: Instant,
    same_looks: u32,
}

/// What to do after a look at the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look again, after the other tasks of this vCPU.
    Poll,
    /// Serve the requests that there are, and show the answers.
    Answer,
    /// Sleep until the frontend notifies us.
    Sleep,
}

impl Coalescer {
    /// The rhythm of a queue that has seen nothing yet.
    pub fn new(options: Options, now: Instant, lateness: Option<Duration>) -> Self {
        Coalescer {
            options,
            queue_depth: 1,
            dry: 1,
            answered: 0,
            patient_for: OFTEN,
            seen: 0,
            gap: Duration::ZERO,
            longest: Duration::ZERO,
            active: now,
            poll_window: Duration::ZERO,
            lateness,
            last_look: now,
            same_looks: 0,
        }
    }

    /// Looks at a queue with `waiting` requests and answers that the frontend waits for, of at most
    /// `most`.
    pub fn next(&mut self, now: Instant, waiting: u32, most: u32) -> Next {
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
            self.queue_depth = self.queue_depth.max(waiting);
            if waiting < self.target(most) {
                return Next::Poll;
            }
            if waiting == most {
                // There is room for no more: that is as dry as it gets.
                self.ran_dry(waiting);
            }
            return Next::Answer;
        }
        self.seen = waiting;
        let limit = match waiting {
            0 => self.poll_window,
            _ => (self.gap.max(self.longest) * 2).min(self.limit(self.options.hold)),
        };
        if now.since(self.active) < limit && moves {
            return Next::Poll;
        }
        if waiting == 0 {
            return Next::Sleep;
        }
        self.ran_dry(waiting);
        self.active = now;
        Next::Answer
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
        self.queue_depth.div_ceil(2)
    }

    /// The frontend has nothing more to ask for before it is answered.
    fn ran_dry(&mut self, depth: u32) {
        let known = self.queue_depth;
        self.queue_depth = depth.max(self.dry);
        self.dry = depth;
        self.answered = 0;
        self.patient_for = match self.queue_depth == known {
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
            self.poll_window /= 2;
        }
        self.active = now;
    }

    /// The frontend took so long to ask for more, and may take twice that the next time. False if it was
    /// longer than looking may last.
    fn expect(&mut self, idle: Duration) -> bool {
        let limit = self.limit(self.options.poll);
        if idle <= limit {
            self.poll_window = self.poll_window.max(idle * 2).min(limit);
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
mod tests;
