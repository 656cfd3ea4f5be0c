//! The frame allocator: one bit for each page of the domain, set while it is free.

use core::ops::Range;

/// Allocates runs of page frames. All of its bookkeeping is the bitmap that it is given.
#[derive(Debug)]
pub struct Frames<'a> {
    words: &'a mut [u64],
    free: usize,
    /// No word below this one has a free frame.
    lowest: usize,
}

const BITS: usize = u64::BITS as usize;

impl<'a> Frames<'a> {
    /// Returns the words of bitmap that `frames` frames need.
    pub const fn words_for(frames: usize) -> usize {
        frames.div_ceil(BITS)
    }

    /// Returns an allocator without any free frame. The bitmap's contents do not matter.
    pub fn new(words: &'a mut [u64]) -> Self {
        words.fill(0);
        Frames {
            words,
            free: 0,
            lowest: 0,
        }
    }

    /// Returns the number of free frames.
    pub fn free_frames(&self) -> usize {
        self.free
    }

    /// Takes the lowest run of `count` free frames from the frame `from` on, and returns its first frame. `None` if
    /// there is no such run.
    pub fn allocate(&mut self, count: usize, from: usize) -> Option<usize> {
        if count == 0 || count > self.free {
            return None;
        }
        let limit = self.words.len() * BITS;
        let lowest = self.lowest * BITS;
        let mut start = lowest.max(from);
        let mut first_free_word = None;
        loop {
            start = self.next_free(start)?;
            first_free_word.get_or_insert(start / BITS);
            let end = start.checked_add(count).filter(|end| *end <= limit)?;
            match self.first_taken(start..end) {
                None => {
                    self.set(start..end, false);
                    self.free -= count;
                    if from <= lowest {
                        self.lowest = first_free_word.unwrap_or(self.lowest);
                    }
                    return Some(start);
                }
                Some(taken) => start = taken + 1,
            }
        }
    }

    /// Takes the lowest free frame and those behind it that are free, up to `count` in all.
    pub fn take_lowest(&mut self, count: usize) -> Option<Range<usize>> {
        let start = self.next_free(self.lowest * BITS)?;
        let end = (start + count).min(self.words.len() * BITS);
        let end = self.first_taken(start..end).unwrap_or(end);
        self.lowest = start / BITS;
        self.take(start..end)
    }

    /// Takes the highest free frame and those before it that are free, up to `count` in all.
    pub fn take_highest(&mut self, count: usize) -> Option<Range<usize>> {
        let word = self.words.iter().rposition(|word| *word != 0)?;
        let end = (word + 1) * BITS - self.words[word].leading_zeros() as usize;
        let is_free = |frame: &usize| self.words[frame / BITS] & 1 << (frame % BITS) != 0;
        let run = (0..end).rev().take(count).take_while(is_free).count();
        self.take(end - run..end)
    }

    /// Takes a frame if it is free. Returns whether it was.
    pub fn take_frame(&mut self, frame: usize) -> bool {
        let is_free = self.next_free(frame) == Some(frame);
        if is_free {
            self.set(frame..frame + 1, false);
            self.free -= 1;
        }
        is_free
    }

    fn take(&mut self, run: Range<usize>) -> Option<Range<usize>> {
        self.set(run.clone(), false);
        self.free -= run.len();
        (!run.is_empty()).then_some(run)
    }

    /// Makes a run of frames free.
    ///
    /// # Panics
    /// If one of them is free already or lies outside of the bitmap.
    pub fn release(&mut self, run: Range<usize>) {
        if run.is_empty() {
            return;
        }
        assert!(
            run.end <= self.words.len() * BITS
                && self.next_free(run.start).is_none_or(|next| next >= run.end),
            "frames {run:?} freed twice or unknown"
        );
        self.lowest = self.lowest.min(run.start / BITS);
        self.free += run.len();
        self.set(run, true);
    }

    /// Returns the first free frame at or after `from`.
    fn next_free(&self, from: usize) -> Option<usize> {
        let mut word = from / BITS;
        let mut bits = self.words.get(word)? & (u64::MAX << (from % BITS));
        loop {
            if bits != 0 {
                return Some(word * BITS + bits.trailing_zeros() as usize);
            }
            word += 1;
            bits = *self.words.get(word)?;
        }
    }

    /// Returns the first frame of `run` that is not free.
    fn first_taken(&self, run: Range<usize>) -> Option<usize> {
        let mut at = run.start;
        while at < run.end {
            let taken = !self.words[at / BITS] & (u64::MAX << (at % BITS));
            let word_start = at / BITS * BITS;
            if taken != 0 {
                let frame = word_start + taken.trailing_zeros() as usize;
                return (frame < run.end).then_some(frame);
            }
            at = word_start + BITS;
        }
        None
    }

    fn set(&mut self, run: Range<usize>, free: bool) {
        let mut at = run.start;
        while at < run.end {
            let end = run.end.min((at / BITS + 1) * BITS);
            let mask = (u64::MAX >> (BITS - (end - at))) << (at % BITS);
            if free {
                self.words[at / BITS] |= mask;
            } else {
                self.words[at / BITS] &= !mask;
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_allocator_has_nothing() {
        let mut words = [u64::MAX; 2];
        let mut frames = Frames::new(&mut words);
        assert_eq!(frames.allocate(1, 0), None);
        assert_eq!(frames.free_frames(), 0);
    }

    #[test]
    fn runs_cross_words_and_begin_where_they_may() {
        let mut words = [0; 8];
        let mut frames = Frames::new(&mut words);
        frames.release(3..512);
        assert_eq!(frames.allocate(100, 0), Some(3));
        assert_eq!(frames.allocate(256, 256), Some(256));
        assert_eq!(frames.allocate(1, 256), None, "none from there on");
        assert_eq!(frames.allocate(154, 0), None);
        assert_eq!(frames.allocate(1, 128), Some(128));
        assert_eq!(frames.allocate(25, 0), Some(103), "those before are found");
        assert_eq!(frames.allocate(127, 0), Some(129));
        assert_eq!(frames.free_frames(), 0);
    }

    #[test]
    fn runs_are_taken_from_either_end() {
        let mut words = [0; 4];
        let mut frames = Frames::new(&mut words);
        frames.release(3..70);
        frames.release(100..200);
        assert_eq!(frames.take_highest(40), Some(160..200));
        assert_eq!(frames.take_highest(100), Some(100..160));
        assert_eq!(frames.take_highest(1), Some(69..70));
        assert_eq!(frames.take_lowest(10), Some(3..13));
        assert_eq!(frames.allocate(1, 0), Some(13));
        frames.release(200..201);
        assert_eq!(frames.take_lowest(100), Some(14..69));
        assert_eq!(frames.free_frames(), 1);
        assert_eq!(frames.take_lowest(100), Some(200..201));
        assert_eq!(frames.take_highest(5), None);
        assert_eq!(frames.take_lowest(5), None);
    }

    #[test]
    fn a_frame_that_is_free_is_taken_once() {
        let mut words = [0; 2];
        let mut frames = Frames::new(&mut words);
        frames.release(3..100);
        assert!(frames.take_frame(64) && !frames.take_frame(64));
        assert_eq!(frames.free_frames(), 96);
        for unknown in [2, 100, 127, 128, 1 << 40] {
            assert!(!frames.take_frame(unknown), "{unknown}");
        }
        assert_eq!(frames.allocate(61, 0), Some(3));
        assert_eq!(frames.allocate(1, 0), Some(65));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_frame_cannot_be_freed_twice() {
        let mut words = [0; 1];
        let mut frames = Frames::new(&mut words);
        frames.release(0..4);
        frames.release(3..5);
    }

    proptest! {
        /// Compares the allocator with a plain list of flags: a run that is given out was free, and is the lowest from
        /// there on, and a refusal means that no such run exists.
        #[test]
        fn it_agrees_with_a_list_of_flags(
            steps in prop::collection::vec((any::<bool>(), 1usize..70, 0usize..320), 1..200)
        ) {
            const TOTAL: usize = 300;
            let mut words = [0; Frames::words_for(TOTAL)];
            let mut frames = Frames::new(&mut words);
            frames.release(0..TOTAL);
            let mut model = [true; TOTAL];
            let mut held: Vec<Range<usize>> = Vec::new();
            for (allocate, count, from) in steps {
                // Half of them anywhere.
                let from = from.saturating_sub(160);
                if allocate || held.is_empty() {
                    let first = (from..TOTAL)
                        .find(|&at| at + count <= TOTAL && model[at..at + count].iter().all(|f| *f));
                    prop_assert_eq!(frames.allocate(count, from), first);
                    if let Some(at) = first {
                        model[at..at + count].fill(false);
                        held.push(at..at + count);
                    }
                } else {
                    let run = held.swap_remove(count % held.len());
                    model[run.clone()].fill(true);
                    frames.release(run);
                }
                prop_assert_eq!(frames.free_frames(), model.iter().filter(|f| **f).count());
            }
        }
    }
}
