//! The treatment of notifications that come without requests. A frontend may send them without end, and each wakes the
//! vCPU that also serves other guests.

use core::time::Duration;

/// The number of empty notifications in a row that cost the frontend nothing: one may belong to requests that the queue
/// found before the notification came.
const TOLERATED: u32 = 16;
/// The shortest and the longest time for which the queue is not looked at after further ones. It doubles from the one
/// to the other.
const SHORTEST: Duration = Duration::from_micros(125);
const LONGEST: Duration = Duration::from_millis(8);

/// The empty notifications of one queue.
#[derive(Debug, Default)]
pub struct BackOff {
    in_a_row: u32,
    /// The length of the last delay; zero if there was none since the last request.
    delay: Duration,
}

impl BackOff {
    /// Notes a notification without a request. Returns the time for which the queue is not to be looked at, if there is
    /// one.
    pub fn empty_notification(&mut self) -> Option<Duration> {
        self.in_a_row += 1;
        if self.in_a_row <= TOLERATED {
            return None;
        }
        self.in_a_row = TOLERATED;
        self.delay = (self.delay * 2).clamp(SHORTEST, LONGEST);
        Some(self.delay)
    }

    /// Returns whether no delay was ordered since the last request.
    pub fn is_unused(&self) -> bool {
        self.delay.is_zero()
    }

    /// Notes that the frontend has sent a request.
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
