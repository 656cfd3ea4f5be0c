//! How a queue treats notifications that come without requests. A frontend may send them without end, and
//! each wakes the vCPU that serves others too.

use core::time::Duration;

/// So many empty notifications in a row are a frontend's right: one may be of requests that were found
/// before it came.
const TOLERATED: u32 = 16;
/// How long the queue is not looked at then: first, and at most. It doubles in between.
const SHORTEST: Duration = Duration::from_micros(125);
const LONGEST: Duration = Duration::from_millis(8);

/// The empty notifications of one queue.
#[derive(Debug, Default)]
pub struct BackOff {
    in_a_row: u32,
    /// How long the last delay was; zero if there was none since the last request.
    delay: Duration,
}

impl BackOff {
    /// A notification came without a request. `Some` is how long to look no more at the queue.
    pub fn empty_notification(&mut self) -> Option<Duration> {
        self.in_a_row += 1;
        if self.in_a_row <= TOLERATED {
            return None;
        }
        self.in_a_row = TOLERATED;
        self.delay = (self.delay * 2).clamp(SHORTEST, LONGEST);
        Some(self.delay)
    }

    /// Whether the queue has not been kept from looking since the last request.
    pub fn is_unused(&self) -> bool {
        self.delay.is_zero()
    }

    /// The frontend had a request.
    pub fn request(&mut self) {
        *self = BackOff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_limit_and_a_request_ends_it() {
        let mut back_off = BackOff::default();
        for _ in 0..2 {
            for _ in 0..TOLERATED {
                assert_eq!(back_off.empty_notification(), None);
            }
            assert!(back_off.is_unused());
            assert_eq!(back_off.empty_notification(), Some(SHORTEST));
            assert_eq!(back_off.empty_notification(), Some(SHORTEST * 2));
            assert!(!back_off.is_unused());
            let last = (0..100).map(|_| back_off.empty_notification()).last();
            assert_eq!(last, Some(Some(LONGEST)));
            back_off.request();
        }
    }
}
