//! The pages of a queue's memory that no request uses.

/// A map of up to [`MOST`](Self::MOST) pages, of which requests take runs.
pub struct FreePages([u64; WORDS]);

const WORDS: usize = 8;

/// The number of pages whose bits are in one word.
const PER_WORD: usize = u64::BITS as usize;

impl FreePages {
    /// The largest number of pages, 512.
    pub const MOST: usize = WORDS * PER_WORD;

    /// Returns a map of `pages` pages, all free. More than [`MOST`](Self::MOST) count as that many.
    pub fn new(pages: usize) -> FreePages {
        let mut map = FreePages([0; WORDS]);
        map.give_back(0, pages.min(Self::MOST));
        map
    }

    /// Takes `count` contiguous pages. Returns the first; `None` if no run of free pages is that long.
    #[inline]
    pub fn take(&mut self, count: usize) -> Option<usize> {
        let (mut start, mut end) = (0, 0);
        while end < Self::MOST {
            let left = PER_WORD - end % PER_WORD;
            let rest = self.0[end / PER_WORD] >> (end % PER_WORD);
            if rest & 1 == 0 {
                end += (rest.trailing_zeros() as usize).min(left);
                start = end;
                continue;
            }
            end += rest.trailing_ones() as usize;
            if end - start >= count {
                self.flip(start, count);
                return Some(start);
            }
        }
        None
    }

    /// Gives back `count` pages from `first` on, which were taken.
    #[inline]
    pub fn give_back(&mut self, first: usize, count: usize) {
        self.flip(first, count);
    }

    #[inline]
    fn flip(&mut self, first: usize, count: usize) {
        let (mut page, end) = (first, first + count);
        while page < end {
            let at = page % PER_WORD;
            let of_word = (PER_WORD - at).min(end - page);
            self.0[page / PER_WORD] ^= (u64::MAX >> (PER_WORD - of_word)) << at;
            page += of_word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn map(free: impl IntoIterator<Item = usize>) -> FreePages {
        let mut map = FreePages::new(0);
        free.into_iter().for_each(|page| map.give_back(page, 1));
        map
    }

    #[test]
    fn runs_of_free_pages_are_found() {
        assert_eq!(FreePages::new(0).take(1), None);
        assert_eq!(map([3]).take(1), Some(3));
        assert_eq!(map([2, 3, 5, 6, 7, 9, 10]).take(3), Some(5));
        assert_eq!(map([2, 3, 5, 6, 7, 9, 10]).take(4), None);
        assert_eq!(
            FreePages::new(FreePages::MOST).take(FreePages::MOST),
            Some(0)
        );
        assert_eq!(FreePages::new(400).take(401), None);
        // Across the borders of words, and up to the last page.
        for first in [1, 31, 60, 63, 64, 100, 127, FreePages::MOST - 33] {
            let mut map = map(first..first + 33);
            assert_eq!(map.take(34), None);
            assert_eq!(map.take(33), Some(first));
            assert_eq!(map.take(1), None, "all are taken");
            map.give_back(first, 33);
            assert_eq!(map.take(32), Some(first));
        }
    }

    #[test]
    fn what_is_taken_is_nobody_elses_until_it_is_given_back() {
        let mut map = FreePages::new(400);
        let runs: Vec<usize> = core::iter::from_fn(|| map.take(33)).collect();
        assert_eq!(runs, (0..12).map(|run| run * 33).collect::<Vec<_>>());
        assert_eq!(map.take(4), Some(396), "the rest is of use, too");
        map.give_back(33, 33);
        assert_eq!((map.take(33), map.take(1)), (Some(33), None));
    }
}
