//! The time of day, by which certificates are valid or not.

use core::fmt;
use core::time::Duration;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// A clock that the caller trusts.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the time since the beginning of 1970, UTC; `None` if it is not known.
    fn now(&self) -> Option<Duration>;
}

/// A clock, as rustls takes it.
#[derive(Debug)]
pub struct ClockProvider<C>(pub C);

impl<C: Clock> TimeProvider for ClockProvider<C> {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().map(UnixTime::since_unix_epoch)
    }
}

/// A time, shown as a date and the minute of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(
    /// The seconds since the beginning of 1970.
    pub u64,
);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const YEARS: u64 = 400 * 365 + 97;
        // Days from the first of March of the year 0 on, in which the leap day is the last of its year.
        let days = (self.0 / 86_400).saturating_add(719_468);
        let (era, day) = (days / YEARS, days % YEARS);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        let minute = self.0 / 60 % 1_440;
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC",
            minute / 60,
            minute % 60
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn dates_are_shown() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59 UTC"),
        ] {
            assert_eq!(Date(seconds).to_string(), shown);
        }
        assert!(Date(u64::MAX).to_string().ends_with("UTC"));
    }
}
