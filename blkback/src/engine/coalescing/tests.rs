use super::super::closed_loop::PAUSE;
use super::super::poll_window::CLOSED_LOOP;
use super::*;
use alloc::vec::Vec;

const START: Instant = Instant(1_000_000);
/// The cost of blocking.
const COST: Duration = micros(10);
const COSTS: BlockCosts = BlockCosts {
    run_time: Some(COST),
    wakeup_latency: None,
    scale: 1,
};
/// Slots of a ring.
const SLOTS: u32 = 32;

const fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

fn options(poll: Option<u64>, hold: Option<u64>) -> QueueOptions {
    QueueOptions {
        poll: poll.map(micros),
        hold: hold.map(micros),
        ..QueueOptions::default()
    }
}

/// A frontend and the task that serves its queue, on a clock of their own.
struct Served {
    coalescer: Coalescer,
    costs: BlockCosts,
    now: Instant,
    /// The times at which the waiting requests came.
    waiting: Vec<Instant>,
    /// The time at which the next request comes, if there is one.
    next: Option<Instant>,
    /// The counts and times of the run so far.
    batches: u32,
    polled: Duration,
    notified: u32,
    timers: u32,
    slowest: Duration,
    /// The time that was polled without a sleep or a new request between.
    in_vain: Duration,
}

impl Served {
    fn with(options: QueueOptions) -> Served {
        Served {
            coalescer: Coalescer::new(options, START, COSTS),
            costs: COSTS,
            now: START,
            waiting: Vec::new(),
            next: None,
            batches: 0,
            polled: Duration::ZERO,
            notified: 0,
            timers: 0,
            slowest: Duration::ZERO,
            in_vain: Duration::ZERO,
        }
    }

    fn new() -> Served {
        Served::with(QueueOptions::default())
    }

    fn forget(&mut self) {
        (self.batches, self.notified, self.timers) = (0, 0, 0);
        (self.polled, self.slowest) = (Duration::ZERO, Duration::ZERO);
    }

    /// Lets time pass, and requests come. `following` gets the number of waiting requests, and returns the time from
    /// the request before it to the next one.
    fn pass(&mut self, to: Instant, following: &mut impl FnMut(usize) -> Option<Duration>) {
        self.now = to;
        while let Some(next) = self.next.filter(|next| *next <= to) {
            self.waiting.push(next);
            self.in_vain = Duration::ZERO;
            self.next = following(self.waiting.len()).map(|span| next + span);
        }
    }

    /// Takes one step of the task. Returns the number of requests that it answered, or `None` if it sleeps for good.
    fn step(&mut self, following: &mut impl FnMut(usize) -> Option<Duration>) -> Option<usize> {
        let waiting = self.waiting.len();
        match self.coalescer.next(self.now, waiting as u32, SLOTS) {
            Next::Poll => {
                self.polled += micros(1);
                self.in_vain += micros(1);
                self.pass(self.now + micros(1), following);
                Some(0)
            }
            Next::Answer => {
                let slowest = self.waiting.drain(..).map(|came| self.now.since(came));
                self.slowest = slowest.fold(self.slowest, Duration::max);
                self.batches += 1;
                self.in_vain = Duration::ZERO;
                self.coalescer.published(self.now, waiting as u32);
                self.coalescer.answered(0, || self.costs);
                if self.next.is_none() {
                    self.next = following(0).map(|span| self.now + span);
                }
                Some(waiting)
            }
            Next::Sleep(sleep) => {
                self.in_vain = Duration::ZERO;
                let latest = self.now + Duration::from_nanos(self.coalescer.hold);
                assert!(sleep.until.is_none_or(|until| until <= latest), "{sleep:?}");
                assert!(
                    sleep.until.is_some() || (waiting == 0 && sleep.more.get() == 1),
                    "{waiting} wait without a deadline: {sleep:?}"
                );
                // The frontend goes on until the one comes of which it is to notify us.
                let asked = waiting + sleep.more.get() as usize;
                while self.waiting.len() < asked
                    && let Some(next) = self.next
                    && sleep.until.is_none_or(|until| next < until)
                {
                    self.pass(next, following);
                }
                if self.waiting.len() >= asked {
                    self.notified += 1;
                } else {
                    self.timers += 1;
                    self.pass(sleep.until?, following);
                }
                if sleep.until.is_none() {
                    let waiting = self.waiting.len() as u32;
                    self.coalescer.woke(self.now, waiting);
                }
                Some(0)
            }
        }
    }

    /// Runs a frontend that keeps `depth` requests outstanding, and sends one more every `gap` while it has not run
    /// dry. Returns the number of batches in which `requests` requests are answered.
    fn run(&mut self, depth: usize, gap: Duration, requests: usize) -> u32 {
        let mut following = |waiting| (waiting < depth).then_some(gap);
        let (before, mut done) = (self.batches, 0);
        self.next = Some(self.next.unwrap_or(self.now + gap));
        while done < requests {
            done += self.step(&mut following).expect("it sleeps for ever");
        }
        self.batches - before
    }
}

#[test]
fn a_single_request_is_hardly_ever_kept_waiting() {
    for gap in [5, 20, 300, 5000].map(micros) {
        let mut served = Served::new();
        served.run(1, gap, 100);
        let before = served.now;
        assert_eq!(served.run(1, gap, 10_000), 10_000);
        let took = served.now.since(before);
        assert!(
            took < (gap + micros(2)) * 10_000,
            "{took:?} for 10,000 requests"
        );
    }
}

#[test]
fn a_batch_costs_one_notification_and_no_polling() {
    // In a closed loop only if the operator says so.
    for (poll, gap) in [(Some(0), micros(20)), (None, micros(520))] {
        a_batch_costs_one_notification(Served::with(options(poll, Some(20_000))), gap);
    }
}

fn a_batch_costs_one_notification(mut served: Served, gap: Duration) {
    served.run(32, gap, 1000);
    served.forget();
    let batches = served.run(32, gap, 10_000);
    assert!(batches < 1000, "{batches} for 10,000 requests");
    assert!(
        served.notified <= batches + batches / 16,
        "{} notifications",
        served.notified
    );
    assert!(served.timers < batches / 4, "{} timers", served.timers);
    assert_eq!(served.polled, Duration::ZERO);
    assert!(
        served.slowest < gap * 32 + micros(50) + gap * 3,
        "{:?}",
        served.slowest
    );
}

#[test]
fn a_closed_loop_of_several_requests_is_polled_and_answered_in_batches() {
    for (depth, gap) in [(32, 20), (32, 120), (8, 200), (4, 200)] {
        let mut served = Served::new();
        served.run(depth, micros(gap), 200);
        served.forget();
        let batches = served.run(depth, micros(gap), 10_000);
        let most = 10_000 * 2 / depth as u32;
        assert!(batches <= most + most / 8, "{batches} at depth {depth}");
        assert_eq!((served.notified, served.timers), (0, 0), "depth {depth}");
    }
}

#[test]
fn an_offered_rate_is_never_taken_for_a_closed_loop() {
    let mut random = 1u64;
    for rate in [50.0, 300.0, 800.0] {
        for depth in [1, 8, 32] {
            let mut served = Served::new();
            // A Poisson process, whose next request waits while as many as that are outstanding.
            let mut following = |waiting| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let uniform = ((random >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
                let span = Duration::from_secs_f64(-uniform.ln() / rate);
                (waiting < depth).then_some(span)
            };
            served.next = Some(START);
            let mut done = 0;
            while done < 100_000 {
                done += served.step(&mut following).expect("it sleeps for ever");
                let closed_loop = &served.coalescer.closed_loop;
                assert!(!closed_loop.goes_on(served.now), "{rate} at depth {depth}");
            }
        }
    }
}

#[test]
fn only_a_frontend_that_asks_often_is_waited_for_longer() {
    // A slow guest that asks as fast as it can: half of its requests come together, in less time than a response
    // may be held back.
    let mut served = Served::new();
    served.run(16, micros(200), 5000);
    served.forget();
    let batches = served.run(16, micros(200), 8000);
    assert!(batches < 8000 / 6, "{batches} for 8,000 requests");
    // One that has a request now and then waits for no others.
    served.run(8, micros(900), 1000);
    served.forget();
    served.run(8, micros(900), 1000);
    assert!(served.slowest <= MOST_OF_SLOW, "{:?}", served.slowest);
}

/// Runs a guest that keeps `depth` requests outstanding and takes 400 µs for each, and 2 ms for each notification. Returns
/// the number of batches in which `requests` requests are answered.
fn run_slow_guest(served: &mut Served, depth: usize, requests: usize) -> u32 {
    const EACH: Duration = micros(400);
    let mut following = |waiting| (waiting < depth).then_some(EACH);
    let (before, mut done) = (served.batches, 0);
    served.next = Some(served.next.unwrap_or(served.now + EACH));
    while done < requests {
        let answered = served.step(&mut following).expect("it sleeps for ever");
        if answered > 0 {
            served.next = served.next.map(|next| next + micros(2000));
        }
        done += answered;
    }
    served.batches - before
}

#[test]
fn where_wake_ups_take_long_a_closed_loop_is_answered_in_batches() {
    let batches = |scale, hold| {
        let mut served = Served::with(options(Some(0), hold));
        served.costs.scale = scale;
        run_slow_guest(&mut served, 32, 1000);
        served.forget();
        let batches = run_slow_guest(&mut served, 32, 10_000);
        let most = hold.map_or(MOST * scale, micros) * SLOTS;
        assert!(served.slowest <= most, "{:?}", served.slowest);
        batches
    };
    let (usual, slow, chosen) = (batches(1, None), batches(8, None), batches(8, Some(500)));
    assert!(slow < 1200 && slow * 3 < usual, "{slow}, {usual} without");
    assert!(
        chosen > 3 * slow,
        "what the operator chooses holds: {chosen}"
    );
}

/// A guest that takes 300 µs for a request, and 1 ms more for each eighth: hardly a batch goes without a time between two
/// requests that is longer than 500 µs.
#[test]
fn a_slow_closed_loop_is_answered_in_batches() {
    let mut served = Served::with(options(None, None));
    let mut sent = 0u32;
    let mut following = |waiting| {
        sent += 1;
        let pause = if sent.is_multiple_of(8) { 1000 } else { 0 };
        (waiting < 32).then_some(micros(300 + pause))
    };
    served.next = Some(START + micros(300));
    let mut run = |served: &mut Served, requests: usize| {
        let mut done = 0;
        while done < requests {
            done += served.step(&mut following).expect("it sleeps for ever");
        }
    };
    run(&mut served, 3000);
    served.forget();
    run(&mut served, 10_000);
    assert!(served.batches < 10_000 / 6, "{} batches", served.batches);
}

/// A device that completes requests later has each of them seen twice: as a request, and as a response.
#[test]
fn an_offered_rate_to_a_device_that_completes_requests_later_is_no_closed_loop() {
    let mut coalescer = Coalescer::new(QueueOptions::default(), START, COSTS);
    let mut now = START;
    for _ in 0..10_000 {
        // 1,500 requests a second, three of them together.
        for (waiting, outstanding) in [(3, 3), (0, 3), (3, 3)] {
            now = now + micros(667);
            coalescer.sees(now, outstanding);
            coalescer.next(now, waiting, SLOTS);
            assert!(!coalescer.is_closed_loop(now));
        }
        coalescer.published(now, 3);
        coalescer.answered(0, || COSTS);
    }
}

/// A request waits first, then its response.
#[test]
fn a_request_of_a_device_that_completes_it_later_counts_once_for_the_longer_limit() {
    let costs = BlockCosts { scale: 8, ..COSTS };
    let mut coalescer = Coalescer::new(QueueOptions::default(), START, costs);
    let (mut now, mut answered) = (START, 0);
    while coalescer.hold_scale.get() == 8 {
        assert!(answered < 1000, "there is no trial");
        for waiting in [1, 0, 1] {
            now = now + micros(300);
            coalescer.sees(now, 1);
            coalescer.next(now, waiting, SLOTS);
            coalescer.gives(now);
        }
        coalescer.published(now, 1);
        coalescer.answered(0, || costs);
        answered += 1;
    }
    // 40 to learn from, and the 24 that were timed.
    assert_eq!(answered, 64);
}

#[test]
fn where_wake_ups_take_long_an_offered_rate_is_hardly_ever_kept_waiting() {
    let mut random = 1u64;
    for rate in [50.0, 300.0, 800.0] {
        let mut served = Served::new();
        served.costs.scale = 8;
        let mut following = |waiting| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let uniform = ((random >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
            let span = Duration::from_secs_f64(-uniform.ln() / rate);
            (waiting < 32).then_some(span)
        };
        served.next = Some(START);
        let (mut done, mut longer) = (0, 0);
        while done < 20_000 {
            let answered = served.step(&mut following).expect("it sleeps for ever");
            done += answered;
            longer += usize::from(served.slowest > MOST) * answered;
            served.slowest = Duration::ZERO;
        }
        assert!(longer < done / 50, "{longer} of {done} at {rate}");
    }
}

#[test]
fn a_frontend_that_pauses_now_and_then_is_still_answered_in_large_batches() {
    let mut served = Served::new();
    let (mut submitted, mut done) = (0u32, 0);
    let mut following = |waiting| {
        submitted += 1;
        // As a guest does at each tick of its timer.
        let pause = if submitted.is_multiple_of(20) { 60 } else { 0 };
        (waiting < 32).then_some(micros(5 + pause))
    };
    served.next = Some(START + micros(5));
    while done < 10_000 {
        done += served.step(&mut following).expect("it sleeps for ever");
    }
    assert!(served.batches < 10_000 / 8, "{} batches", served.batches);
}

#[test]
fn a_frontend_that_fills_the_ring_is_let_run_dry_now_and_then_only() {
    let mut served = Served::new();
    let (mut dry, mut done) = (0, 0);
    let mut following = |waiting| (waiting < 32).then_some(micros(5));
    served.next = Some(START);
    while done < 1000 {
        let answered = served.step(&mut following).expect("it sleeps for ever");
        dry += u32::from(answered == 32);
        done += u32::from(answered > 0);
    }
    assert!((1..50).contains(&dry), "{dry} times of {done}");
}

#[test]
fn it_adapts_when_the_frontend_slows_down_and_speeds_up() {
    let mut served = Served::new();
    served.run(32, micros(20), 5000);
    assert!(served.run(1, micros(20), 1000) >= 990);
    assert!(served.run(32, micros(20), 20_000) < 4000);
    assert!(served.run(1, micros(3000), 1000) >= 990);
    assert!(served.run(8, micros(100), 20_000) < 8000);
}

#[test]
fn a_frontend_that_asks_for_less_is_served_by_the_deadline() {
    let mut served = Served::new();
    served.run(32, micros(20), 10_000);
    // The last batch was full, and more is asked for: one request, and nothing else.
    let mut nothing = |_| None;
    served.waiting.clear();
    served.next = Some(served.now + micros(7));
    served.forget();
    while served.batches == 0 {
        served.step(&mut nothing).expect("it sleeps for ever");
    }
    assert!(served.slowest <= MOST, "{:?}", served.slowest);
    assert!(served.timers <= 3, "{} timers", served.timers);
}

#[test]
fn an_idle_queue_costs_nothing() {
    for depth in [1, 2, 8, 32] {
        let mut served = Served::new();
        served.run(depth, micros(5), 10_000);
        served.waiting.clear();
        served.next = None;
        served.forget();
        let mut nothing = |_| None;
        let mut steps = 0;
        while served.step(&mut nothing).is_some() {
            steps += 1;
            assert!(steps < 5000, "it never sleeps for good");
        }
        // One deadline for those that were on their way, and one window.
        assert!(served.timers <= 2, "depth {depth}");
        let window = match depth {
            1 | 2 => Duration::from_nanos(CLOSED_LOOP),
            _ => PAUSE,
        };
        assert!(served.polled <= COST + window, "depth {depth}");
    }
}

#[test]
fn no_deadline_is_later_than_the_cap_and_no_polling_longer_than_its_window() {
    // As learned on a host that is overloaded, or from a frontend that does what it likes.
    let mut random = 1u64;
    let mut random = move |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % below
    };
    for (poll, hold) in [(None, None), (Some(0), Some(0)), (Some(50), Some(2000))] {
        let mut served = Served::with(options(poll, hold));
        let closed_loop = Duration::from_nanos(CLOSED_LOOP).max(PAUSE);
        let most_poll = poll.map_or(closed_loop, micros);
        let most_hold = hold.map_or(MOST, micros);
        served.next = Some(START);
        for _ in 0..400_000 {
            let depth = 1 + random(32) as usize;
            let span = match random(4) {
                0 => random(3),
                1 => random(100),
                2 => random(700),
                _ => random(5000),
            };
            let mut following = |waiting| (waiting < depth).then(|| micros(span));
            served.step(&mut following);
            // Some may have come since the last look, which counts for the next one.
            assert!(served.in_vain <= most_poll + micros(1), "polled for longer");
            let oldest = served.waiting.first().map(|came| served.now.since(*came));
            let waited = oldest.unwrap_or_default();
            assert!(
                waited <= (most_hold + most_poll + micros(1)) * SLOTS,
                "{waited:?}"
            );
            if served.next.is_none() && served.waiting.is_empty() {
                served.next = Some(served.now + micros(span));
            }
        }
        assert!(served.batches > 500, "{}", served.batches);
    }
}

#[test]
fn without_holding_everything_is_answered_at_once() {
    let mut served = Served::with(options(Some(0), Some(0)));
    served.run(32, micros(20), 1000);
    served.forget();
    assert_eq!(served.run(32, micros(20), 10_000), 10_000);
    assert_eq!(
        (served.slowest, served.polled),
        (Duration::ZERO, Duration::ZERO)
    );
}

#[test]
fn a_notification_without_a_request_teaches_nothing() {
    let mut coalescer = Coalescer::new(QueueOptions::default(), START, COSTS);
    let mut now = START;
    for _ in 0..100 {
        assert_eq!(coalescer.next(now, 0, SLOTS), Sleep::IDLE);
        now = now + micros(1);
        coalescer.woke(now, 0);
    }
}

#[test]
fn a_clock_that_stands_still_keeps_nobody_polling() {
    let mut coalescer = Coalescer::new(options(Some(200), None), START, BlockCosts::default());
    coalescer.queue_depth = 9;
    coalescer.gap = nanos(micros(10));
    let polls = (0..1000).take_while(|_| coalescer.next(START, 1, SLOTS) == Next::Poll);
    assert!(polls.count() <= FROZEN_CLOCK as usize + 1);
}
