//! The addresses at which registers of devices are mapped: runs of pages out of a fixed number of pages.

use core::ops::Range;

/// The largest number of runs at a time.
const RUNS: usize = 64;

/// The pages that are in use.
#[derive(Debug)]
pub struct DeviceSpace {
    /// The runs, in order.
    used: heapless::Vec<Range<usize>, RUNS>,
}

impl DeviceSpace {
    /// Returns a space in which all pages are free.
    pub const fn new() -> Self {
        DeviceSpace {
            used: heapless::Vec::new(),
        }
    }

    /// Takes the first free run of `pages` pages, of `all` pages that there are, and returns its first page. `None` if
    /// there is no such run, or there are too many runs.
    pub fn take(&mut self, pages: usize, all: usize) -> Option<usize> {
        let mut start = 0;
        let mut place = self.used.len();
        for (index, run) in self.used.iter().enumerate() {
            if run.start - start >= pages {
                place = index;
                break;
            }
            start = run.end;
        }
        let end = start.checked_add(pages).filter(|end| *end <= all)?;
        if pages == 0 {
            return None;
        }
        self.used.insert(place, start..end).ok()?;
        Some(start)
    }

    /// Gives back the run that begins at a page.
    pub fn give_back(&mut self, first: usize) {
        self.used.retain(|run| run.start != first);
    }
}

impl Default for DeviceSpace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_do_not_meet_and_are_used_again() {
        let mut space = DeviceSpace::new();
        let mut take = |pages| space.take(pages, 10);
        assert_eq!([take(4), take(3), take(2)], [Some(0), Some(4), Some(7)]);
        assert_eq!(take(2), None);
        assert_eq!(take(usize::MAX), None);
        assert_eq!(take(0), None);
        assert_eq!(take(1), Some(9));
        space.give_back(4);
        assert_eq!(space.take(4, 10), None);
        assert_eq!(space.take(2, 10), Some(4));
        assert_eq!(space.take(1, 10), Some(6));
        space.give_back(0);
        space.give_back(4);
        assert_eq!(space.take(6, 10), Some(0));
    }

    #[test]
    fn there_is_a_limit_to_the_number_of_runs() {
        let mut space = DeviceSpace::new();
        let taken = (0..100).filter_map(|_| space.take(1, 1000)).count();
        assert_eq!(taken, RUNS);
        space.give_back(5);
        assert_eq!(space.take(1, 1000), Some(5));
    }
}
