//! Decides when a queue publishes responses, when it polls for requests, and how it sleeps.
//!
//! A notification costs the guest far more than the request itself: an exit or an interrupt. So responses are held
//! back to be published together as long as that delays no guest, and the frontend is asked to notify the backend of
//! the last request of a batch (`req_event`), not of the first.
//!
//! The size of a batch is learned. If a frontend keeps N requests outstanding, responses are published in batches of
//! N/2, so that it always has N/2 left to work on. N is re-measured now and then by withholding responses until the
//! frontend stalls.
//!
//! While it waits, the task sleeps. Whenever it has asked for a notification later than that of the next request, the
//! sleep has a deadline: if the frontend sends fewer requests than expected, it is served once it has been quiet for
//! twice the usual time between two requests, and after [`MOST`] at the latest (a quarter of that where requests are
//! usually further apart). The queue is polled only for a request that is expected sooner than blocking would pay
//! ([`PollWindow`]). A queue that has seen no request since its last look is not looked at again: an idle queue costs
//! nothing.

use super::closed_loop::ClosedLoop;
use super::gathering::{Limits, RequestPattern};
use super::hold_scale::HoldScale;
use super::options::QueueOptions;
use super::poll_window::{BlockCosts, Nanos, PollWindow, nanos};
use bulkhead_xen::Instant;
use core::num::NonZeroU32;
use core::time::Duration;

/// The least and the most batches between two measurements of N. The number rises while N stays the same.
const OFTEN: u32 = 16;
const SELDOM: u32 = 1024;
/// The longest time that a response is held back if no other one joins it, unless the operator sets another. Where
/// wake-ups take longer than usual ([`BlockCosts::scale`]), it is longer in proportion, if that pays ([`HoldScale`]): the
/// guest's take as long, and that is what a batch spares it.
pub const MOST: Duration = Duration::from_millis(2);
/// The same for a frontend that usually takes longer than this from one request to the next, unless it is in a [closed
/// loop](ClosedLoop): what would join the response is too long in coming.
const MOST_OF_SLOW: Duration = Duration::from_micros(500);
/// The number of batches after which the cost of blocking is read again.
const COSTS_EVERY: u8 = 16;
/// The number of looks at which the clock may show the same time. Beyond that it stands still, as a test's does.
const FROZEN_CLOCK: u32 = 64;

/// Makes the decisions for one queue.
#[derive(Debug)]
pub struct Coalescer {
    /// The longest time that a response is held back, as the operator wants it.
    chosen_hold: Option<Duration>,
    hold_scale: HoldScale,
    /// The one that holds, and the one of a slow frontend.
    hold: Nanos,
    hold_of_slow: Nanos,
    poll: PollWindow,
    closed_loop: ClosedLoop,
    /// No other queue of the vCPU with several requests outstanding has had work lately, and the store none.
    alone: bool,
    /// N as it is believed to be, and as it was at the last measurement.
    queue_depth: u32,
    dry: u32,
    /// The number of batches since the last measurement, and the number until the next one.
    answered: u32,
    patient_for: u32,
    /// The number of all batches.
    batches: u8,
    /// The number of requests and responses at the last look.
    seen: u32,
    /// The number of all requests that the frontend had outstanding then, if the device completes them later.
    outstanding: u32,
    /// The frontend has nothing to do before it has the responses that wait.
    waited_for: bool,
    /// The last batch had its full size: the next one is expected.
    streaming: bool,
    /// The longest usual time between two requests, and the longest since the last batch.
    gap: Nanos,
    longest: Nanos,
    /// The time of the last request or response.
    active: Instant,
    /// The time at which the device was last given requests, whose responses are on their way, or at which there were
    /// new ones for it.
    given: Instant,
    /// The deadline of the last sleep.
    until: Option<Instant>,
    /// The task was woken for the requests that are there, and the window has noted that.
    woken: bool,
    last_look: Instant,
    same_looks: u32,
}

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look again, after the other tasks of this vCPU.
    Poll,
    /// Serve the requests that there are, and publish the responses.
    Answer,
    /// Sleep until the frontend notifies us.
    Sleep(Sleep),
}

/// The way to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// The number of further requests after which the frontend is to notify the backend.
    pub more: NonZeroU32,
    /// The time at which the queue is looked at in any case. It is always set if `more` is more than one, or if a
    /// request or a response waits.
    pub until: Option<Instant>,
}

impl Sleep {
    /// Sleeps until the next request.
    const IDLE: Next = Next::Sleep(Sleep {
        more: NonZeroU32::MIN,
        until: None,
    });
}

impl Coalescer {
    /// Returns the state of a new queue.
    pub fn new(options: QueueOptions, now: Instant, costs: BlockCosts) -> Self {
        let mut coalescer = Coalescer {
            chosen_hold: options.hold,
            hold_scale: HoldScale::new(now),
            hold: 0,
            hold_of_slow: 0,
            poll: PollWindow::new(options.poll, costs),
            closed_loop: ClosedLoop::new(options.poll),
            alone: true,
            queue_depth: 1,
            dry: 1,
            answered: 0,
            patient_for: OFTEN,
            batches: 0,
            seen: 0,
            outstanding: 0,
            waited_for: false,
            streaming: false,
            gap: 0,
            longest: 0,
            active: now,
            given: now,
            until: None,
            woken: false,
            last_look: now,
            same_looks: 0,
        };
        coalescer.set_costs(costs);
        coalescer
    }

    /// Notes the cost of blocking, which may have been measured again.
    fn set_costs(&mut self, costs: BlockCosts) {
        let is_chosen = self.chosen_hold.is_some();
        self.hold_scale
            .set_scale(if is_chosen { 1 } else { costs.scale });
        self.set_hold();
        self.poll.set_costs(costs);
    }

    fn set_hold(&mut self) {
        let scale = self.hold_scale.get();
        self.hold = nanos(self.chosen_hold.unwrap_or(MOST * scale));
        self.hold_of_slow = nanos(self.chosen_hold.unwrap_or(MOST_OF_SLOW * scale));
    }

    /// Returns the next action for a queue with `waiting` requests and responses, of at most `most`.
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
                    // The ring has no room for more: the frontend has stalled.
                    self.ran_dry(waiting);
                }
                return Next::Answer;
            }
        }
        self.seen = waiting;
        if waiting == 0 {
            return self.idle(now, moves);
        }
        if self.waited_for && !self.measures() {
            // As large a batch as the frontend leaves room for.
            self.streaming = true;
            return Next::Answer;
        }
        if stalls || now.0.saturating_sub(self.heard().0) >= self.quiet() {
            self.ran_dry(waiting);
            self.streaming = false;
            self.active = now;
            return Next::Answer;
        }
        let missing = self.target(most).saturating_sub(waiting);
        self.gather(now, missing, waiting)
    }

    /// Notes that there are more requests or responses than at the last look. Returns false if the deadline is over and
    /// they came far more slowly than usual.
    #[inline]
    fn arrived(&mut self, now: Instant, waiting: u32, until: Option<Instant>) -> bool {
        let since = self.since(now);
        let woken = core::mem::take(&mut self.woken);
        if self.seen == 0 && !woken && until.is_none() {
            self.poll.found(since);
        }
        // Several may have come while the task slept, or while other queues had their turn.
        let new = waiting - self.seen;
        let gap = match new {
            1 => since,
            several => since / Nanos::from(several),
        };
        let late = until.is_some_and(|until| now >= until);
        let as_usual = !late || gap <= self.usual_gap() * 2;
        if as_usual {
            self.longest = self.longest.max(gap);
        }
        self.active = now;
        self.seen = waiting;
        self.queue_depth = self.queue_depth.max(waiting);
        if self.expects_several() && self.outstanding == 0 {
            self.closed_loop.arrived(now, new);
        }
        as_usual
    }

    /// Returns the next action while nothing waits.
    #[inline]
    fn idle(&mut self, now: Instant, moves: bool) -> Next {
        let batch = self.half();
        self.streaming = self.streaming && batch > 1 && moves && now < self.deadline(batch, 0);
        if self.streaming {
            return self.gather(now, batch, 0);
        }
        let window = self.poll.get(self.half() == 1);
        match moves && (self.since(now) < window || self.is_polled(now)) {
            true => Next::Poll,
            false => Sleep::IDLE,
        }
    }

    /// Returns the wait for `missing` more requests.
    fn gather(&mut self, now: Instant, missing: u32, waiting: u32) -> Next {
        let (span, limit) = (self.span(missing, waiting), self.poll.limit());
        if self.is_polled(now) || span > 0 && span <= limit && self.since(now) < limit {
            return Next::Poll;
        }
        self.until = Some(self.deadline(missing, waiting));
        Next::Sleep(Sleep {
            more: NonZeroU32::new(missing).unwrap_or(NonZeroU32::MIN),
            until: self.until,
        })
    }

    /// Returns the sleep of a queue for which nothing waits, whose device is at work and whose frontend has just sent a
    /// request: the next ones may come together.
    pub fn for_company(&self, now: Instant, most: u32) -> Sleep {
        Sleep {
            more: NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN),
            until: Some(Instant(now.0.saturating_add(self.quiet()))),
        }
    }

    /// Returns the time that the frontend is expected to take for `missing` more requests.
    fn span(&self, missing: u32, waiting: u32) -> Nanos {
        // During a measurement, it may have no more than it is known to have.
        let expected = missing.min(self.queue_depth.saturating_sub(waiting));
        self.usual_gap() * Nanos::from(expected)
    }

    /// Returns the time at which the frontend has taken too long for that.
    fn deadline(&self, missing: u32, waiting: u32) -> Instant {
        let span = (self.span(missing, waiting) + self.quiet()).min(self.most_held());
        Instant(self.heard().0.saturating_add(span))
    }

    /// Returns the longest time without a request after which the frontend is taken to wait for its responses.
    fn quiet(&self) -> Nanos {
        (self.usual_gap() * 2).min(self.most_held())
    }

    /// Returns the time of the last call of [`next`](Self::next).
    #[inline]
    pub fn last_look(&self) -> Instant {
        self.last_look
    }

    /// Returns how long requests wait to be given to the device together.
    #[inline]
    pub fn gathering_limits(&self) -> Limits {
        Limits {
            most: self.most_held(),
            quiet: self.quiet(),
        }
    }

    /// Returns the longest time that a response is held back.
    fn most_held(&self) -> Nanos {
        match self.usual_gap() > self.hold_of_slow && !self.is_closed_loop(self.last_look) {
            true => self.hold_of_slow,
            false => self.hold,
        }
    }

    fn usual_gap(&self) -> Nanos {
        self.gap.max(self.longest)
    }

    /// Returns the time at which there was last something new.
    fn heard(&self) -> Instant {
        self.active.max(self.given)
    }

    fn since(&self, now: Instant) -> Nanos {
        now.0.saturating_sub(self.active.0)
    }

    /// Returns the number that has to wait before responses are published.
    #[inline]
    fn target(&self, most: u32) -> u32 {
        match self.measures() {
            true => most,
            false => self.half(),
        }
    }

    /// Returns whether the frontend is in a closed loop with several requests.
    #[inline]
    pub fn is_closed_loop(&self, now: Instant) -> bool {
        self.expects_several() && self.closed_loop.goes_on(now)
    }

    /// Returns whether the queue is polled because its frontend has several requests outstanding, in a closed loop.
    #[inline]
    fn is_polled(&self, now: Instant) -> bool {
        self.alone && self.is_closed_loop(now)
    }

    /// Returns how the frontend sends its requests.
    #[inline]
    pub fn pattern(&self, now: Instant) -> RequestPattern {
        RequestPattern {
            depth: self.queue_depth,
            closed_loop: self.is_closed_loop(now),
        }
    }

    /// Returns whether responses are withheld to measure what the frontend keeps outstanding.
    #[inline]
    fn measures(&self) -> bool {
        self.answered >= self.patient_for
    }

    /// Returns half of what the frontend keeps outstanding.
    fn half(&self) -> u32 {
        self.queue_depth.div_ceil(2)
    }

    /// Notes that the frontend has stalled: it waits for its responses.
    fn ran_dry(&mut self, waiting: u32) {
        let (depth, known) = (waiting.max(self.outstanding), self.queue_depth);
        self.queue_depth = depth.max(self.dry);
        self.dry = depth;
        self.answered = 0;
        self.patient_for = match self.queue_depth == known {
            true => (self.patient_for * 2).min(SELDOM),
            false => OFTEN,
        };
    }

    /// Notes that responses were published, and that `waiting` requests and responses are left. `costs` returns the
    /// cost of blocking; it is called now and then, as that changes seldom.
    #[inline]
    pub fn answered(&mut self, waiting: u32, costs: impl FnOnce() -> BlockCosts) {
        // What is left may be served at once: it counts as new.
        self.seen = waiting.min(self.half() - 1);
        self.answered += 1;
        self.gap = self.longest.max(self.gap - self.gap / 8);
        self.longest = 0;
        self.batches = self.batches.wrapping_add(1);
        if self.batches.is_multiple_of(COSTS_EVERY) {
            self.set_costs(costs());
        }
    }

    /// Notes that the frontend has `outstanding` requests, of which the device completes some later.
    pub fn sees(&mut self, now: Instant, outstanding: u32) {
        self.queue_depth = self.queue_depth.max(outstanding);
        let new = outstanding.saturating_sub(self.outstanding);
        if new > 0 {
            self.outstanding = outstanding;
            if self.expects_several() {
                self.closed_loop.arrived(now, new);
            }
        }
    }

    /// Notes whether the frontend has nothing to do before it has the responses that wait: no more are waited for.
    pub fn set_waited_for(&mut self, waited_for: bool) {
        self.waited_for = waited_for;
    }

    /// Notes that so many responses were published.
    #[inline]
    pub fn published(&mut self, now: Instant, count: u32) {
        if self.outstanding > 0 {
            self.outstanding = self.outstanding.saturating_sub(count);
            self.waited_for = false;
        }
        if self.hold_scale.matters() && self.hold_scale.published(now, count) {
            self.set_hold();
            // How many requests come together is another number now.
            self.answered = self.patient_for;
        }
    }

    /// Notes that there are new requests for a device that completes them later: the frontend has not stalled.
    #[inline]
    pub fn gives(&mut self, now: Instant) {
        self.given = now;
    }

    /// Returns whether the frontend keeps several requests outstanding.
    #[inline]
    pub fn expects_several(&self) -> bool {
        self.half() > 1
    }

    /// Notes whether the queue alone decides when its vCPU may sleep: no other queue there with several requests
    /// outstanding has had work lately, and its store is not at work. While others are served, requests come for this
    /// one, and to poll it besides would be one more look at it after each of theirs.
    #[inline]
    pub fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
    }

    /// Notes that a sleep without a deadline has ended, with `waiting` requests.
    #[inline]
    pub fn woke(&mut self, now: Instant, waiting: u32) {
        if waiting == 0 {
            // The notification may be about requests that were found earlier.
            return;
        }
        let idle = self.since(now);
        self.poll.woken(idle);
        self.woken = true;
        if idle > self.hold {
            // The guest has paused: that says nothing about the time between requests.
            self.active = now;
        }
    }

    /// Notes the time since the last look. Returns false if the clock stands still.
    #[inline]
    fn clock_moves(&mut self, now: Instant) -> bool {
        if now != self.last_look {
            self.last_look = now;
            self.same_looks = 0;
            return true;
        }
        self.same_looks += 1;
        self.same_looks < FROZEN_CLOCK
    }
}

#[cfg(test)]
mod tests;
