//! Random numbers for keys: the processor's, tested, and mixed.
//!
//! The words come from the instruction RDRAND. Each is tested by the rules of NIST SP 800-90B (section 4.4), and so are
//! the first ones together, before any is used. The output is a hash of a pool into which words and the time stamp
//! counter are hashed each time. It reveals neither earlier nor later output, and an attacker who knows a processor's
//! numbers still does not know the counter's low bits.

use core::fmt;
use sha2::{Digest, Sha256};

/// The number of words that are tested before the first is used.
const TRIAL: usize = 1024;

/// The number of words that are mixed in before bytes are given out: 256 bits.
const FRESH: usize = 4;

/// The number of times that a word is asked for (Intel's guide to the generator, section 5.2.1: ten failures in a row
/// mean a fault).
const ATTEMPTS: usize = 10;

/// The most by which the number of ones in the trial's words may differ from half of their bits: ten times the standard
/// deviation, which is half the root of the number of bits.
const MOST_EXCESS: u32 = 10 * 128;

/// The reason why there are no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RandomFault {
    /// The processor has no generator.
    Missing,
    /// The generator gives no words.
    Silent,
    /// The generator gives the same word again.
    Repeats,
    /// A bit of its words never changed in the test at the start.
    Stuck,
    /// The words in the test at the start had many more ones than zeros, or fewer.
    Biased,
}

impl fmt::Display for RandomFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RandomFault::Missing => {
                "the processor has no generator of random numbers (RDRAND), or the domain may not use it"
            }
            RandomFault::Silent => "the processor's generator of random numbers gives none",
            RandomFault::Repeats => "the processor's generator of random numbers repeats itself",
            RandomFault::Stuck => "the processor's generator of random numbers is stuck",
            RandomFault::Biased => "the processor's generator of random numbers is biased",
        })
    }
}

impl core::error::Error for RandomFault {}

/// A generator over a source of words.
pub struct Generator<W> {
    /// Returns a word, or `None` if there is none at the moment.
    words: W,
    last: u64,
    pool: [u8; 32],
    /// The fault after which there are no numbers any more.
    fault: Option<RandomFault>,
}

impl<W: FnMut() -> Option<u64>> Generator<W> {
    /// Tests a source. `salt` goes into the pool: bytes that differ in each domain, and at each start.
    pub fn start(words: W, salt: &[u8]) -> Result<Self, RandomFault> {
        let mut generator = Generator {
            words,
            last: 0,
            pool: Sha256::digest(salt).into(),
            fault: None,
        };
        generator.last = generator.raw()?;
        let (mut ones, mut any, mut all) = (0, 0, u64::MAX);
        for _ in 0..TRIAL {
            let word = generator.word()?;
            ones += word.count_ones();
            (any, all) = (any | word, all & word);
            generator.mix(word);
        }
        if any != u64::MAX || all != 0 {
            return Err(RandomFault::Stuck);
        }
        if ones.abs_diff(TRIAL as u32 * u64::BITS / 2) > MOST_EXCESS {
            return Err(RandomFault::Biased);
        }
        Ok(generator)
    }

    /// Fills `bytes`. `stamp` returns the time stamp counter. After an error, every later call fails, too.
    pub fn fill(&mut self, bytes: &mut [u8], stamp: impl Fn() -> u64) -> Result<(), RandomFault> {
        for part in bytes.chunks_mut(32) {
            for _ in 0..FRESH {
                let word = self.word()?;
                self.mix(word);
            }
            self.mix(stamp());
            let output = Sha256::new()
                .chain_update(b"output")
                .chain_update(self.pool)
                .finalize();
            part.copy_from_slice(&output[..part.len()]);
            self.mix(0);
        }
        Ok(())
    }

    fn mix(&mut self, word: u64) {
        let mixed = Sha256::new()
            .chain_update(b"pool")
            .chain_update(self.pool)
            .chain_update(word.to_le_bytes());
        self.pool = mixed.finalize().into();
    }

    /// Returns a word that differs from the one before: two equal words in a row happen once in 2^64 times.
    fn word(&mut self) -> Result<u64, RandomFault> {
        let word = self.raw()?;
        if word == self.last {
            self.fault = Some(RandomFault::Repeats);
            return Err(RandomFault::Repeats);
        }
        self.last = word;
        Ok(word)
    }

    fn raw(&mut self) -> Result<u64, RandomFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let word = (0..ATTEMPTS).find_map(|_| (self.words)());
        word.ok_or_else(|| {
            self.fault = Some(RandomFault::Silent);
            RandomFault::Silent
        })
    }
}

impl<W> fmt::Debug for Generator<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "unikernel")]
mod domain {
    use super::{Generator, RandomFault};
    use crate::rdrand::{has_rdrand, rdrand};
    use crate::{Hypercalls, time};
    use bulkhead_xen::Hypervisor;
    use spin::Mutex;

    /// The domain's generator, and its source.
    type Own = Generator<fn() -> Option<u64>>;

    static OWN: Mutex<Option<Own>> = Mutex::new(None);

    /// Tests the processor's generator, and has [`random`] use it.
    pub fn start_random() -> Result<(), RandomFault> {
        if !has_rdrand() {
            return Err(RandomFault::Missing);
        }
        let (now, counter) = (Hypercalls.now(), time::counter());
        let wall = Hypercalls.wall_clock().as_nanos();
        let mut salt = [0; 32];
        salt[..8].copy_from_slice(&now.0.to_le_bytes());
        salt[8..16].copy_from_slice(&counter.to_le_bytes());
        salt[16..].copy_from_slice(&wall.to_le_bytes());
        *OWN.lock() = Some(Own::start(rdrand, &salt)?);
        Ok(())
    }

    /// Fills `bytes` with random numbers that keys can be made of.
    pub fn random(bytes: &mut [u8]) -> Result<(), RandomFault> {
        let mut own = OWN.lock();
        let own = own.as_mut().ok_or(RandomFault::Missing)?;
        own.fill(bytes, time::counter)
    }
}

#[cfg(feature = "unikernel")]
pub use domain::{random, start_random};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdrand::{has_rdrand, rdrand};
    use std::cell::Cell;

    /// Returns words that are random enough for a test (splitmix64).
    fn words(seed: u64) -> impl FnMut() -> Option<u64> {
        let mut state = seed;
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let word = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            Some(word ^ word >> 31)
        }
    }

    fn fault(words: impl FnMut() -> Option<u64>) -> Option<RandomFault> {
        Generator::start(words, b"").err()
    }

    #[test]
    fn a_good_source_passes() {
        for seed in 0..50 {
            assert_eq!(fault(words(seed)), None, "{seed}");
        }
    }

    #[test]
    fn bad_sources_are_found_before_they_are_used() {
        assert_eq!(fault(|| None), Some(RandomFault::Silent));
        // What some processors gave after they had slept: all ones, and success.
        assert_eq!(fault(|| Some(u64::MAX)), Some(RandomFault::Repeats));
        assert_eq!(fault(|| Some(0)), Some(RandomFault::Repeats));
        let mut count = 0;
        let counting = || {
            count += 1;
            Some(count)
        };
        assert_eq!(fault(counting), Some(RandomFault::Stuck));
        for bit in [0, 17, 63] {
            let mut low = words(1);
            assert_eq!(
                fault(|| low().map(|it| it & !(1 << bit))),
                Some(RandomFault::Stuck)
            );
            let mut high = words(1);
            assert_eq!(
                fault(|| high().map(|it| it | 1 << bit)),
                Some(RandomFault::Stuck)
            );
        }
        let mut two = words(2);
        let biased = || Some(two()? | two()?);
        assert_eq!(fault(biased), Some(RandomFault::Biased));
    }

    #[test]
    fn a_source_may_fail_now_and_then_and_not_for_long() {
        let mut good = words(3);
        let mut calls = 0;
        let sometimes = || {
            calls += 1;
            (calls % 10 == 0).then(&mut good)?
        };
        assert_eq!(fault(sometimes), None);
    }

    #[test]
    fn a_source_that_breaks_later_gives_nothing_any_more() {
        let broken = Cell::new(false);
        let mut good = words(4);
        let source = || match broken.get() {
            true => Some(7),
            false => good(),
        };
        let mut generator = Generator::start(source, b"").expect("it works");
        assert_eq!(generator.fill(&mut [0; 40], || 0), Ok(()));
        broken.set(true);
        assert_eq!(
            generator.fill(&mut [0; 40], || 0),
            Err(RandomFault::Repeats)
        );
        broken.set(false);
        assert_eq!(
            generator.fill(&mut [0; 40], || 0),
            Err(RandomFault::Repeats)
        );
    }

    #[test]
    fn what_is_given_out_differs_by_words_salt_and_time() {
        let bytes = |seed, salt: &[u8], stamp| {
            let mut generator = Generator::start(words(seed), salt).expect("it works");
            let mut bytes = [[0; 45]; 2];
            for part in &mut bytes {
                generator.fill(part, || stamp).expect("it works");
            }
            assert_ne!(bytes[0], bytes[1]);
            assert_ne!(bytes[0][..13], bytes[0][32..], "its parts differ");
            bytes[0]
        };
        let first = bytes(5, b"a", 1);
        assert_eq!(first, bytes(5, b"a", 1));
        for other in [bytes(6, b"a", 1), bytes(5, b"b", 1), bytes(5, b"a", 2)] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn the_hosts_processor_passes_if_it_has_the_instruction() {
        if has_rdrand() {
            assert_eq!(fault(rdrand), None);
        } else {
            assert_eq!(rdrand(), None);
        }
    }
}
