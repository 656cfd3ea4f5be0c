//! When to publish responses, when to poll for requests, and until what to sleep.
//!
//! A notification costs the guest far more than the request itself: an exit or an interrupt. So
//! responses wait for each other as long as that holds nobody up, and the frontend is asked to
//! notify us when the whole batch is there (`req_event`), not at its first request.
//!
//! How many make a batch is learned. If a frontend keeps N requests outstanding, responses are
//! published in batches of N/2, so that it always has N/2 left to work on. N is measured anew now
//! and then by withholding responses until the frontend stalls.
//!
//! Whatever is waited for, the task sleeps, and a deadline is behind each notification that was
//! asked for later than at the next request: a frontend that asks for less is served when it has
//! been quiet for twice the usual time from one request to the next, and [`MOST`] at most. Only what is expected sooner
//! than it pays to block is polled for ([`PollWindow`]). Nothing is looked at again without a
//! request since: an idle queue costs nothing.

use super::options::Options;
use super::poll_window::{BlockCosts, Nanos, PollWindow, nanos};
use bulkhead_xen::Instant;
use core::num::NonZeroU32;
use core::time::Duration;

/// The frontend is let run dry after so many batches; the more seldom, the more often that told
/// nothing new.
const OFTEN: u32 = 16;
const SELDOM: u32 = 1024;
/// How long a response is held back at most, unless the operator says otherwise, when no other has joined it.
pub const MOST: Duration = Duration::from_millis(2);
/// The same for a frontend that usually takes longer than this from one request to the next: what would join the
/// response is too long in coming.
const MOST_OF_SLOW: Duration = Duration::from_micros(500);
/// After how many batches it is looked at what blocking costs.
const COSTS_EVERY: u8 = 16;
/// A clock that shows the same time so often stands still, as that of a test does.
const FROZEN_CLOCK: u32 = 64;

/// Decides for one queue.
#[derive(Debug)]
pub struct Coalescer {
    hold: Nanos,
    hold_of_slow: Nanos,
    poll: PollWindow,
    /// How many requests the frontend is believed to keep outstanding, and how many it had when it
    /// ran dry the last time.
    queue_depth: u32,
    dry: u32,
    /// How many batches were answered since it was let run dry, and how many have to be until it
    /// is again.
    answered: u32,
    patient_for: u32,
    /// How many batches were answered, without end.
    batches: u8,
    /// How many requests and responses were there the last time.
    seen: u32,
    /// The last batch was as large as it was to be: the next one is on its way.
    streaming: bool,
    /// The longest usual time from one request to the next, and the longest since the last batch.
    gap: Nanos,
    longest: Nanos,
    /// When something last happened.
    active: Instant,
    /// The deadline of the sleep that it was told last.
    until: Option<Instant>,
    /// The task was woken for what has come, which the window knows.
    woken: bool,
    last_look: Instant,
    same_looks: u32,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look again, after the other tasks of this vCPU.
    Poll,
    /// Serve the requests that there are, and publish the responses.
    Answer,
    /// Sleep until the frontend notifies us.
    Sleep(Sleep),
}

/// How to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// The frontend is to notify us when there are so many more requests.
    pub more: NonZeroU32,
    /// When to look at what is there nevertheless. There is always such a time if `more` is more than one, or if
    /// anything waits.
    pub until: Option<Instant>,
}

impl Sleep {
    /// Until the next request.
    const IDLE: Next = Next::Sleep(Sleep {
        more: NonZeroU32::MIN,
        until: None,
    });
}

impl Coalescer {
    /// That of a queue that has seen nothing yet.
    pub fn new(options: Options, now: Instant, costs: BlockCosts) -> Self {
        Coalescer {
            hold: nanos(options.hold.unwrap_or(MOST)),
            hold_of_slow: nanos(options.hold.unwrap_or(MOST_OF_SLOW)),
            poll: PollWindow::new(options.poll, costs),
            queue_depth: 1,
            dry: 1,
            answered: 0,
            patient_for: OFTEN,
            batches: 0,
            seen: 0,
            streaming: false,
            gap: 0,
            longest: 0,
            active: now,
            until: None,
            woken: false,
            last_look: now,
            same_looks: 0,
        }
    }

    /// What to do with a queue that has `waiting` requests and responses that the frontend waits for, of at
    /// most `most`.
    #[inline]
    pub fn next(&mut self, now: Instant, waiting: u32, most: u32) -> Next {
        let moves = self.clock_moves(now);
        let until = self.until.take();
        let mut stalls = !moves;
        if waiting > self.seen {
            stalls |= !self.arrived(now, waiting, until);
            if waiting >= self.target(most) {
                self.streaming = true;
                if waiting == most {
                    // There is room for no more: that is as dry as it gets.
                    self.ran_dry(waiting);
                }
                return Next::Answer;
            }
        }
        self.seen = waiting;
        if waiting == 0 {
            return self.idle(now, most, moves);
        }
        if stalls || self.since(now) >= self.quiet() {
            self.ran_dry(waiting);
            self.streaming = false;
            self.active = now;
            return Next::Answer;
        }
        let missing = self.target(most).saturating_sub(waiting);
        self.gather(now, missing, waiting)
    }

    /// More requests or responses are there than the last time. False if the deadline is over, and they came far
    /// more slowly than usual.
    #[inline]
    fn arrived(&mut self, now: Instant, waiting: u32, until: Option<Instant>) -> bool {
        let since = self.since(now);
        let woken = core::mem::take(&mut self.woken);
        if self.seen == 0 && !woken && until.is_none() {
            self.poll.found(since);
        }
        // Several may have come while we slept, or while other queues had their turn.
        let gap = since / Nanos::from(waiting - self.seen);
        let late = until.is_some_and(|until| now >= until);
        let as_usual = !late || gap <= self.usual_gap() * 2;
        if as_usual {
            self.longest = self.longest.max(gap);
        }
        self.active = now;
        self.seen = waiting;
        self.queue_depth = self.queue_depth.max(waiting);
        as_usual
    }

    /// Nothing waits.
    #[inline]
    fn idle(&mut self, now: Instant, most: u32, moves: bool) -> Next {
        let batch = self.target(most).min(self.half());
        self.streaming = self.streaming && batch > 1 && moves && now < self.deadline(batch, 0);
        if self.streaming {
            return self.gather(now, batch, 0);
        }
        let window = self.poll.get(self.half() == 1);
        match moves && self.since(now) < window {
            true => Next::Poll,
            false => Sleep::IDLE,
        }
    }

    /// Waits for `missing` more requests to join those that wait.
    fn gather(&mut self, now: Instant, missing: u32, waiting: u32) -> Next {
        let (span, limit) = (self.span(missing, waiting), self.poll.limit());
        if span > 0 && span <= limit && self.since(now) < limit {
            return Next::Poll;
        }
        self.until = Some(self.deadline(missing, waiting));
        Next::Sleep(Sleep {
            more: NonZeroU32::new(missing).unwrap_or(NonZeroU32::MIN),
            until: self.until,
        })
    }

    /// How long the frontend is expected to take for `missing` more requests.
    fn span(&self, missing: u32, waiting: u32) -> Nanos {
        // If it is let run dry, it has no more than it is known to have.
        let expected = missing.min(self.queue_depth.saturating_sub(waiting));
        self.usual_gap() * Nanos::from(expected)
    }

    /// When it has taken too long for that.
    fn deadline(&self, missing: u32, waiting: u32) -> Instant {
        let span = (self.span(missing, waiting) + self.quiet()).min(self.most_held());
        Instant(self.active.0.saturating_add(span))
    }

    /// A frontend that has asked for nothing more for so long will not before it is answered.
    fn quiet(&self) -> Nanos {
        (self.usual_gap() * 2).min(self.most_held())
    }

    /// How long a response is held back at most.
    fn most_held(&self) -> Nanos {
        match self.usual_gap() > self.hold_of_slow {
            true => self.hold_of_slow,
            false => self.hold,
        }
    }

    fn usual_gap(&self) -> Nanos {
        self.gap.max(self.longest)
    }

    fn since(&self, now: Instant) -> Nanos {
        now.0.saturating_sub(self.active.0)
    }

    /// How many have to wait to be answered.
    #[inline]
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

    /// The frontend was answered, and `waiting` wait nevertheless. `costs` are those of blocking, asked for now
    /// and then: they are measured seldom.
    #[inline]
    pub fn answered(&mut self, waiting: u32, costs: impl FnOnce() -> BlockCosts) {
        // What may be answered at once is to count as having just come.
        self.seen = waiting.min(self.half() - 1);
        self.answered += 1;
        self.gap = self.longest.max(self.gap - self.gap / 8);
        self.longest = 0;
        self.batches = self.batches.wrapping_add(1);
        if self.batches.is_multiple_of(COSTS_EVERY) {
            self.poll.set_costs(costs());
        }
    }

    /// A sleep without a deadline is over, and `waiting` requests wait.
    #[inline]
    pub fn woke(&mut self, now: Instant, waiting: u32) {
        if waiting == 0 {
            // A notification may be of requests that were found before it came.
            return;
        }
        let idle = self.since(now);
        self.poll.woken(idle);
        self.woken = true;
        if idle > self.hold {
            // That was a pause, and says nothing of the time between requests.
            self.active = now;
        }
    }

    /// Takes note of the time since the last look; false if the clock stands still.
    #[inline]
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
