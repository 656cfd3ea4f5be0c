//! Sleeping by a timer while requests gather.
//!
//! While a batch of requests gathers there is nothing to do, and looking for it in all that time costs
//! a processor. How long a batch takes to gather is learned; most of it is slept through, so that the
//! last of it is looked for again. The frontend has not been asked to notify us meanwhile, and as it is
//! busy with its other requests, to be a little late holds nobody up.

use core::time::Duration;

/// What is known of a queue's batches.
#[derive(Debug, Default)]
pub struct Naps {
    /// How long a batch usually takes to gather, without the time of serving it.
    gathering: Duration,
    /// How long nothing was to do in this batch.
    idle: Duration,
    /// Whether something was to do since the last look.
    serving: bool,
    /// Whether a nap was taken in this batch.
    taken: bool,
}

impl Naps {
    /// How long a batch usually takes to gather.
    pub fn gathering(&self) -> Duration {
        self.gathering
    }

    /// There is something to do until the next look.
    pub fn serving(&mut self) {
        self.serving = true;
    }

    /// The queue was looked at, for the first time since `span`.
    pub fn looked(&mut self, span: Duration) {
        if !core::mem::take(&mut self.serving) {
            self.idle += span;
        }
    }

    /// A batch of `count` has gathered. Learns from it how long one of `usual` takes.
    pub fn gathered(&mut self, count: u32, usual: u32) {
        let took = self.idle * usual / count;
        self.gathering = (self.gathering * 3 + took) / 4;
    }

    /// Whatever was before, a batch gathers from now on.
    pub fn begin_batch(&mut self) {
        self.idle = Duration::ZERO;
        self.serving = true;
        self.taken = false;
    }

    /// How long to nap, if that pays: it has to last longer than it costs, which is about the
    /// lateness of sleeps. None lasts longer than `most`, whatever was learned.
    pub fn take(&mut self, lateness: Duration, most: Duration) -> Option<Duration> {
        // Half of all sleeps end later than 1.5 to 2 times the least lateness, which is what is known.
        let nap = self.gathering.min(most).checked_sub(lateness * 2)?;
        if self.taken || nap < lateness {
            return None;
        }
        self.taken = true;
        Some(nap)
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::options::Options;
    use crate::engine::pace::{Look, Pace};
    use bulkhead_xen::Instant;
    use core::time::Duration;

    const START: Instant = Instant(1_000_000);

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    /// A frontend of `depth` requests, one every 20 us, of which serving takes a quarter. Answers how
    /// long it took for 10,000 of them, and how much of that was slept through.
    fn with_naps(depth: u32, lateness: Duration) -> (Duration, Duration) {
        let options = Options {
            poll: Some(micros(1000)),
            hold: Some(micros(1000)),
            ..Options::default()
        };
        let mut pace = Pace::new(options, START, Some(lateness));
        let (mut now, mut slept, mut done) = (START, Duration::ZERO, 0);
        // When each of its requests comes next, and how many of them wait.
        let (mut next, mut free, mut waiting) = (START, depth, 0);
        let mut served = 0;
        while done < 10_000 {
            now = now + micros(1);
            while free > 0 && next <= now {
                free -= 1;
                waiting += 1;
                next = next + micros(20);
            }
            let look = pace.look(now, waiting, 32);
            if let Look::Nap(until) = look {
                slept += until.since(now) + lateness;
                now = until + lateness;
                continue;
            }
            now = now + micros(5) * (waiting - served);
            served = waiting;
            if look == Look::Answer {
                if free == 0 {
                    next = now;
                }
                done += waiting;
                free += waiting;
                (waiting, served) = (0, 0);
                pace.answered(0, Some(lateness));
            }
        }
        (now.since(START), slept)
    }

    #[test]
    fn most_of_what_a_batch_takes_to_gather_is_slept_through_and_costs_the_frontend_nothing() {
        let (took, slept) = with_naps(32, micros(40));
        assert!(took < micros(10_000 * 22), "{took:?} for 10,000 requests");
        assert!(slept > took / 2, "slept {slept:?} of {took:?}");
        let (_, slept) = with_naps(32, micros(150));
        assert_eq!(slept, Duration::ZERO, "a nap would cost what it saves");
    }

    #[test]
    fn a_frontend_that_keeps_few_requests_outstanding_never_waits_for_a_nap() {
        let (_, slept) = with_naps(6, micros(2));
        assert_eq!(slept, Duration::ZERO);
        let (_, slept) = with_naps(8, micros(2));
        assert!(slept > Duration::ZERO, "these are enough");
    }
}
