//! The parts of a read that have come.

use crate::fault::NbdViolation;

/// The most separate pieces at a time. Servers send the data of a read from the front to the back, in which case there
/// is one piece; the specification lets them do otherwise.
pub const MOST_PIECES: usize = 8;

/// The bytes of a read that have come: separate pieces in their order, each with its first byte and its end. No read is
/// so long that the numbers overflow.
#[derive(Clone, Copy, Debug)]
pub struct Coverage {
    pieces: [(u32, u32); MOST_PIECES],
    count: usize,
}

impl Coverage {
    pub const NONE: Coverage = Coverage {
        pieces: [(0, 0); MOST_PIECES],
        count: 0,
    };

    /// Adds bytes that have come. Fails if some of them had come before, or if there are too many separate pieces.
    pub fn add(&mut self, start: u64, len: u64) -> Result<(), NbdViolation> {
        let (start, end) = (start as u32, (start + len) as u32);
        let pieces = &mut self.pieces;
        let at = pieces[..self.count].partition_point(|piece| piece.1 <= start);
        if at < self.count && pieces[at].0 < end {
            return Err(NbdViolation::Twice);
        }
        let follows = at > 0 && pieces[at - 1].1 == start;
        let precedes = at < self.count && pieces[at].0 == end;
        match (follows, precedes) {
            (true, true) => {
                pieces[at - 1].1 = pieces[at].1;
                pieces.copy_within(at + 1..self.count, at);
                self.count -= 1;
            }
            (true, false) => pieces[at - 1].1 = end,
            (false, true) => pieces[at].0 = start,
            (false, false) => {
                if self.count == MOST_PIECES {
                    return Err(NbdViolation::Scattered);
                }
                pieces.copy_within(at..self.count, at + 1);
                pieces[at] = (start, end);
                self.count += 1;
            }
        }
        Ok(())
    }

    /// Returns whether all of a read of `len` bytes has come.
    #[inline]
    pub fn is_whole(&self, len: u64) -> bool {
        self.count == 1 && self.pieces[0] == (0, len as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    /// Returns the number of separate pieces.
    fn apart(has: &[bool]) -> usize {
        let begins = |at: &usize| has[*at] && (*at == 0 || !has[*at - 1]);
        (0..has.len()).filter(begins).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 10 } else { 2000 }, ..ProptestConfig::default() })]
        #[test]
        fn pieces_are_noted_as_bytes_would_be(pieces in prop::collection::vec((0u64..40, 1u64..12), 1..40)) {
            let mut coverage = Coverage::NONE;
            let mut has = vec![false; 40];
            for (start, len) in pieces {
                let len = len.min(40 - start);
                let range = start as usize..(start + len) as usize;
                let expected = match has[range.clone()].contains(&true) {
                    true => Err(NbdViolation::Twice),
                    false => {
                        let mut then = has.clone();
                        then[range].fill(true);
                        match apart(&then) > MOST_PIECES {
                            true => Err(NbdViolation::Scattered),
                            false => {
                                has = then;
                                Ok(())
                            }
                        }
                    }
                };
                prop_assert_eq!(coverage.add(start, len), expected);
                prop_assert_eq!(coverage.count, apart(&has));
                prop_assert_eq!(coverage.is_whole(40), !has.contains(&false));
            }
        }
    }
}
