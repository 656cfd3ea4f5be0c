//! Decides how long a queue pair's interrupts are held back: while the controller has many commands, its completions are
//! looked for at a time at which several of them are expected.
//!
//! An interrupt wakes the vCPU, which costs far more than taking a completion. By Little's law, a command stays in the
//! controller as long as the controller takes to complete as many commands as it has. A pause for a quarter of them
//! delays none by more than a quarter of that.

use bulkhead_xen::Instant;
use core::time::Duration;

/// The shortest pause, in nanoseconds. Xen's timers are late by up to this (`timer_slop`), and a controller that is so
/// fast that a shorter pause would do keeps the vCPU awake anyway.
const LEAST: u64 = 50_000;

/// The longest pause, in nanoseconds, unless the operator sets a shorter one (`hold=`). Where wake-ups take longer than
/// usual, it is longer in proportion.
const MOST: u64 = 1_000_000;

/// A pause is for the completions of one in this many of the commands in flight.
const PART: usize = 4;

/// The estimate of how fast the controller completes the commands of one queue pair. Times are in nanoseconds.
pub struct Moderation {
    /// The longest pause, as the operator wants it.
    chosen: Option<u64>,
    /// The average time between two completions, a moving one.
    gap: u64,
    /// The time of the last look that found completions, and the number of all completions by then.
    since: Instant,
    done: u64,
    /// No commands were in flight after that look.
    idle: bool,
    /// The look before the present one found none.
    missed: bool,
}

impl Moderation {
    /// Returns the estimate before the first completion. No pause is longer than `hold`, or than 1 ms if that is more.
    pub fn new(hold: Option<Duration>) -> Self {
        Moderation {
            chosen: hold.map(|hold| MOST.min(hold.as_nanos() as u64)),
            gap: MOST,
            since: Instant(0),
            done: 0,
            idle: true,
            missed: false,
        }
    }

    /// Returns for how long interrupts are held back, after a look at which the controller had completed `done` commands
    /// since the beginning and had `at_work` in flight. `None` if the controller is to interrupt, as it is whenever two
    /// looks one after the other found nothing: an idle controller costs nothing. A wake-up takes `scale` times longer
    /// than usual.
    pub fn pause(
        &mut self,
        now: Instant,
        at_work: usize,
        done: u64,
        scale: u32,
    ) -> Option<Duration> {
        let most = self.chosen.unwrap_or(MOST * u64::from(scale));
        let new = done.wrapping_sub(self.done);
        let span = now.0.saturating_sub(self.since.0);
        match span.checked_div(new) {
            // Completions may come in bursts. The time until the next one counts from the last one on.
            None if core::mem::replace(&mut self.missed, true) => return None,
            None => {}
            Some(gap) => {
                (self.since, self.done, self.missed) = (now, done, false);
                // A longer time is one in which the guest sent no requests.
                if !core::mem::replace(&mut self.idle, at_work == 0) {
                    self.gap = (3 * self.gap + gap.min(most)) / 4;
                }
            }
        }
        let expected = ((at_work / PART) as u64).min(most / self.gap.max(1));
        let pause = self.gap * expected;
        (expected > 1 && pause >= LEAST).then(|| Duration::from_nanos(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: u64 = 1_000;

    #[test]
    fn time_without_commands_is_not_the_controllers() {
        let mut moderation = Moderation::new(None);
        assert!(settled(&mut moderation, 32, 100 * MICROSECOND, 1).is_some());
        let (mut now, mut done) = (moderation.since, moderation.done);
        for _ in 0..20 {
            // It does the rest, is given 32 commands after a while, and does eight of them.
            (now, done) = (now + Duration::from_micros(3200), done + 32);
            moderation.pause(now, 0, done, 1);
            (now, done) = (now + Duration::from_millis(20), done + 8);
            let pause = moderation.pause(now, 24, done, 1).expect("a pause");
            assert!((500..700).contains(&pause.as_micros()), "{pause:?}");
        }
    }

    /// Looks at a controller with so many commands at work, which completes one in `gap` nanoseconds, until its speed is
    /// known. Returns the pause.
    fn settled(
        moderation: &mut Moderation,
        at_work: usize,
        gap: u64,
        scale: u32,
    ) -> Option<Duration> {
        let (mut now, mut done, mut pause) = (moderation.since, moderation.done, None);
        for _ in 0..40 {
            let new = pause
                .map_or(1, |pause: Duration| pause.as_nanos() as u64 / gap)
                .max(1);
            (now, done) = (Instant(now.0 + new * gap), done + new);
            pause = moderation.pause(now, at_work, done, scale);
        }
        pause
    }

    #[test]
    fn a_pause_is_for_a_quarter_of_the_commands() {
        let mut moderation = Moderation::new(None);
        let mut micros_at = |scale, at_work, gap| {
            let pause = settled(&mut moderation, at_work, gap * MICROSECOND, scale)?;
            Some(pause.as_micros())
        };
        let mut micros = |at_work, gap| micros_at(1, at_work, gap);
        assert!(matches!(micros(32, 100), Some(800..=805)));
        assert!(matches!(micros(8, 285), Some(569..=590)));
        assert_eq!(micros(7, 100), None, "one at a time");
        assert_eq!(micros(1, 100), None);
        // Not even two in the longest pause.
        assert_eq!(micros(32, 600), None);
        // The longest pause.
        assert!(matches!(micros(63, 200), Some(800..=1000)));
        assert_eq!(micros(32, 5), None, "too quick");
        // Where wake-ups take five times as long.
        assert!(matches!(micros_at(5, 32, 600), Some(4700..=4800)));
        assert_eq!(micros_at(5, 32, 3000), None);
    }

    #[test]
    fn the_operator_can_shorten_pauses_or_forbid_them() {
        for (hold, most) in [(0, None), (300, Some(300)), (9_000, Some(1_000))] {
            let mut moderation = Moderation::new(Some(Duration::from_micros(hold)));
            let pause = settled(&mut moderation, 63, 90 * MICROSECOND, 4);
            let most = most.map(Duration::from_micros);
            assert_eq!(pause.is_some(), most.is_some(), "{hold}");
            assert!(pause <= most, "{hold}: {pause:?}");
        }
    }

    #[test]
    fn without_a_completion_there_is_one_more_pause() {
        let mut moderation = Moderation::new(None);
        assert!(settled(&mut moderation, 32, 100 * MICROSECOND, 1).is_some());
        let (now, done) = (moderation.since, moderation.done);
        let later = Instant(now.0 + 800 * MICROSECOND);
        assert!(
            moderation.pause(later, 32, done, 1).is_some(),
            "a late burst"
        );
        assert_eq!(moderation.pause(later, 32, done, 1), None);
        assert_eq!(moderation.pause(later, 32, done, 1), None);
    }
}
