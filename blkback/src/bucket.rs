//! A budget that fills up with time: it limits how often a guest may do something in a burst, and in the long run.

use bulkhead_xen::Instant;
use core::time::Duration;

/// A token bucket. Tokens that are taken from an empty bucket are a debt, up to a bound.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// The number of tokens; a negative one is a debt.
    level: i32,
    /// The time up to which it has been filled.
    filled: Instant,
    size: Size,
}

/// The size of a bucket, and the speed at which it fills.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// The most tokens that there can be.
    pub most: i32,
    /// The largest debt.
    pub debt: i32,
    /// The time it takes to get one more.
    pub one_more: Duration,
}

impl Bucket {
    /// Returns a full bucket.
    pub fn new(size: Size, now: Instant) -> Self {
        Bucket {
            level: size.most,
            filled: now,
            size,
        }
    }

    fn fill(&mut self, now: Instant) {
        let Size { most, one_more, .. } = self.size;
        let periods = now.since(self.filled).as_nanos() / one_more.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        let tokens = i32::try_from(periods).unwrap_or(i32::MAX);
        self.level = self.level.saturating_add(tokens).min(most);
        self.filled = match self.is_full_now() {
            true => now,
            false => self.filled + one_more * periods,
        };
    }

    fn is_full_now(&self) -> bool {
        self.level == self.size.most
    }

    /// Returns whether the bucket is full again.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.is_full_now()
    }

    /// Takes one token, if there is one.
    pub fn try_to_take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let there = self.level > 0;
        self.level -= i32::from(there);
        there
    }

    /// Takes this number of tokens, also if fewer are there.
    pub fn charge(&mut self, now: Instant, tokens: usize) {
        self.fill(now);
        let tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
        self.level = self.level.saturating_sub(tokens).max(-self.size.debt);
    }

    /// Returns the time at which the debt will be paid; `None` if there is none.
    pub fn in_debt_until(&mut self, now: Instant) -> Option<Instant> {
        self.fill(now);
        let debt = u32::try_from(-self.level).ok().filter(|debt| *debt > 0)?;
        Some(self.filled + self.size.one_more * debt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        most: 5,
        debt: 3,
        one_more: Duration::from_secs(10),
    };

    fn second(count: u64) -> Instant {
        Instant(count * 1_000_000_000)
    }

    fn taken(bucket: &mut Bucket, now: u64) -> usize {
        let taken = (0..100).filter(|_| bucket.try_to_take(second(now)));
        taken.count()
    }

    #[test]
    fn some_at_once_and_then_one_after_the_other() {
        let mut bucket = Bucket::new(SIZE, second(100));
        assert_eq!(taken(&mut bucket, 100), 5);
        assert_eq!(taken(&mut bucket, 109), 0);
        assert_eq!(taken(&mut bucket, 110), 1);
        // Not more by asking often.
        assert_eq!(
            (111..=170)
                .map(|now| taken(&mut bucket, now))
                .sum::<usize>(),
            6
        );
        assert!(!bucket.is_full(second(200)));
        assert_eq!(taken(&mut bucket, 1000), 5);
        assert_eq!(taken(&mut bucket, u64::MAX / 2_000_000_000), 5);
    }

    #[test]
    fn a_debt_is_bounded_and_ends() {
        let mut bucket = Bucket::new(SIZE, second(0));
        assert_eq!(bucket.in_debt_until(second(0)), None);
        bucket.charge(second(0), 5);
        assert_eq!(bucket.in_debt_until(second(0)), None);
        bucket.charge(second(0), 2);
        assert_eq!(bucket.in_debt_until(second(0)), Some(second(20)));
        assert_eq!(bucket.in_debt_until(second(11)), Some(second(20)));
        bucket.charge(second(11), usize::MAX);
        assert_eq!(bucket.in_debt_until(second(11)), Some(second(40)));
        assert_eq!(bucket.in_debt_until(second(40)), None);
        assert_eq!(taken(&mut bucket, 40), 0);
        assert!(bucket.is_full(second(90)));
    }
}
