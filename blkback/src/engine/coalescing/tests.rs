use super::*;

const START: Instant = Instant(1_000_000);

fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

fn coalescer() -> Coalescer {
    let options = Options {
        poll: Some(micros(200)),
        hold: Some(micros(100)),
        ..Options::default()
    };
    Coalescer::new(options, START, None)
}

/// A frontend that keeps `depth` requests outstanding, one more every `gap` while it has not
/// run dry. Answers how often it was answered.
fn run(
    coalescer: &mut Coalescer,
    now: &mut Instant,
    depth: u32,
    gap: Duration,
    requests: u32,
) -> u32 {
    let (mut waiting, mut answered, mut done) = (0, 0, 0);
    let mut next = *now + gap;
    while done < requests {
        *now = *now + micros(1);
        if waiting < depth && *now >= next {
            next = *now + gap;
            waiting += 1;
        }
        if coalescer.next(*now, waiting, 32) == Next::Answer {
            answered += 1;
            done += waiting;
            waiting = 0;
            coalescer.answered(0, None);
        }
    }
    answered
}

#[test]
fn a_single_request_is_hardly_ever_kept_waiting() {
    let (mut coalescer, mut now) = (coalescer(), START);
    run(&mut coalescer, &mut now, 1, micros(20), 100);
    let before = now;
    assert_eq!(run(&mut coalescer, &mut now, 1, micros(20), 10_000), 10_000);
    let took = now.since(before);
    assert!(took < micros(10_000 * 22), "{took:?} for 10,000 requests");
}

#[test]
fn many_requests_are_answered_together() {
    let (mut coalescer, mut now) = (coalescer(), START);
    run(&mut coalescer, &mut now, 32, micros(20), 1000);
    let answered = run(&mut coalescer, &mut now, 32, micros(20), 10_000);
    assert!(answered < 1000, "{answered} times for 10,000 requests");
}

#[test]
fn a_frontend_that_pauses_now_and_then_is_still_answered_in_large_batches() {
    let (mut coalescer, mut now) = (coalescer(), START);
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
        if coalescer.next(now, waiting, 32) == Next::Answer {
            answered += 1;
            waiting = 0;
            coalescer.answered(0, None);
        }
    }
    assert!(answered < 10_000 / 8, "{answered} times");
}

#[test]
fn a_frontend_that_fills_the_ring_is_let_run_dry_now_and_then_only() {
    let mut coalescer = coalescer();
    let (mut now, mut waiting, mut answered, mut dry) = (START, 0, 0, 0);
    while answered < 1000 {
        now = now + micros(5);
        waiting += 1;
        if coalescer.next(now, waiting, 32) == Next::Answer {
            answered += 1;
            dry += u32::from(waiting == 32);
            waiting = 0;
            coalescer.answered(0, None);
        }
    }
    assert!((1..50).contains(&dry), "{dry} times of {answered}");
}

#[test]
fn looking_lasts_a_multiple_of_what_a_sleep_costs() {
    let mut coalescer = Coalescer::new(Options::default(), START, Some(micros(3)));
    let mut now = START + micros(3 * u64::from(SLEEPS));
    coalescer.woke(now, 1);
    assert_eq!(coalescer.next(now + micros(1), 0, 32), Next::Poll);
    for _ in 0..20 {
        now = now + micros(4 * u64::from(SLEEPS));
        coalescer.woke(now, 1);
    }
    assert_eq!(coalescer.next(now + micros(1), 0, 32), Next::Sleep);
}

#[test]
fn no_lateness_makes_looking_or_holding_last_longer_than_the_cap() {
    // As learned while the host was overloaded.
    for late in [100, 1000, 50_000, 1_000_000].map(micros) {
        let mut coalescer = Coalescer::new(Options::default(), START, Some(late));
        let mut now = START;
        for _ in 0..50 {
            // Whatever the frontend does to keep us looking: it asks just before we would give up.
            now = now + (MOST - micros(1));
            coalescer.woke(now, 1);
        }
        assert_eq!(coalescer.next(now + micros(1), 0, 32), Next::Poll);
        assert_eq!(coalescer.next(now + MOST, 0, 32), Next::Sleep, "{late:?}");
        coalescer.queue_depth = 32;
        coalescer.gap = late;
        let now = now + MOST;
        assert_eq!(coalescer.next(now, 1, 32), Next::Poll);
        assert_eq!(coalescer.next(now + MOST, 1, 32), Next::Answer, "{late:?}");
    }
}

#[test]
fn the_operator_may_have_it_look_and_hold_for_longer() {
    let options = Options {
        poll: Some(MOST * 4),
        hold: Some(MOST * 4),
        ..Options::default()
    };
    let mut coalescer = Coalescer::new(options, START, None);
    let now = START + MOST * 3;
    coalescer.woke(now, 1);
    assert_eq!(coalescer.next(now + MOST * 3, 0, 32), Next::Poll);
    assert_eq!(coalescer.next(now + MOST * 4, 0, 32), Next::Sleep);
}

#[test]
fn a_notification_without_a_request_teaches_nothing() {
    let mut coalescer = Coalescer::new(Options::default(), START, Some(micros(10)));
    let mut now = START;
    for _ in 0..100 {
        assert_eq!(coalescer.next(now, 0, 32), Next::Sleep);
        now = now + micros(10);
        coalescer.woke(now, 0);
    }
}

#[test]
fn it_adapts_when_the_frontend_slows_down_and_speeds_up() {
    let (mut coalescer, mut now) = (coalescer(), START);
    run(&mut coalescer, &mut now, 32, micros(20), 5000);
    assert!(run(&mut coalescer, &mut now, 1, micros(20), 1000) >= 990);
    assert!(run(&mut coalescer, &mut now, 32, micros(20), 20_000) < 4000);
}

#[test]
fn looking_pays_or_is_given_up() {
    let mut coalescer = coalescer();
    let mut now = START;
    assert_eq!(
        coalescer.next(now, 0, 32),
        Next::Sleep,
        "nothing is known yet"
    );
    now = now + micros(40);
    coalescer.woke(now, 1);
    assert_eq!(coalescer.next(now, 1, 32), Next::Answer);
    coalescer.answered(0, None);
    assert_eq!(coalescer.next(now + micros(70), 0, 32), Next::Poll);
    assert_eq!(coalescer.next(now + micros(80), 0, 32), Next::Sleep);
    for _ in 0..20 {
        now = now + micros(5000);
        coalescer.woke(now, 1);
    }
    assert_eq!(coalescer.next(now, 0, 32), Next::Sleep, "it takes too long");
}

#[test]
fn a_long_pause_does_not_end_looking_that_pays() {
    let mut coalescer = coalescer();
    let mut now = START + micros(40);
    coalescer.woke(now, 1);
    for _ in 0..OFTEN / 4 {
        assert_eq!(coalescer.next(now, 1, 32), Next::Answer);
        coalescer.answered(0, None);
        // One request is found while looking, the next one is not.
        now = now + micros(39);
        assert_eq!(coalescer.next(now, 1, 32), Next::Answer);
        coalescer.answered(0, None);
        now = now + micros(5000);
        coalescer.woke(now, 1);
    }
    assert_eq!(coalescer.next(now, 1, 32), Next::Answer);
    coalescer.answered(0, None);
    assert_eq!(coalescer.next(now + micros(38), 0, 32), Next::Poll);
}

#[test]
fn a_clock_that_stands_still_keeps_nobody_looking() {
    let mut coalescer = coalescer();
    coalescer.queue_depth = 9;
    let looks = (0..1000).take_while(|_| coalescer.next(START, 1, 32) == Next::Poll);
    assert!(looks.count() <= FROZEN_CLOCK as usize + 1);
}
