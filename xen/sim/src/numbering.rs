//! Numbering of the machine's frames, by which only the machine knows a page's machine frame and bus address.
//! Neither follows from the guest frame or from an address, and neighbouring pages have frames that are not
//! neighbours.

use bulkhead_xen::Mfn;

/// Memory of domains: `1 << 28` frames, in numbers that version 1 grant entries can hold.
const MEMORY: Numbers = Numbers { bits: 28 };
/// Pages of the process, which stand for memory of the domain that names them.
const HEAP: Numbers = Numbers { bits: 40 };

/// The most pages of memory that the machine can have.
pub(super) const MACHINE_PAGES: u64 = 1 << MEMORY.bits;

/// The frame of a page of the machine's memory.
pub(super) fn machine_frame(page: u64) -> Mfn {
    MEMORY.frame(page)
}

/// The page of the machine's memory that has that frame.
pub(super) fn machine_page(frame: Mfn) -> Option<u64> {
    MEMORY.page(frame)
}

/// The frame of a page of the process, by its address.
pub(super) fn heap_frame(page: u64) -> Mfn {
    HEAP.frame(page)
}

/// The page of the process that has that frame.
pub(super) fn heap_page(frame: Mfn) -> Option<u64> {
    HEAP.page(frame)
}

/// A numbering of `1 << bits` pages by the numbers from `1 << bits` on, each of which is used once.
struct Numbers {
    bits: u32,
}

/// Odd, so that multiplying by it can be undone.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Undoes that.
const INVERSE: u64 = inverse(FACTOR);

const fn inverse(odd: u64) -> u64 {
    // Newton's method: right in three bits, and in twice as many each time.
    let (mut guess, mut round) = (odd, 0);
    while round < 5 {
        guess = guess.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(guess)));
        round += 1;
    }
    guess
}

impl Numbers {
    fn frame(&self, page: u64) -> Mfn {
        assert!(
            page >> self.bits == 0,
            "page {page:#x} of a smaller machine"
        );
        Mfn(1 << self.bits | self.fold(self.times(self.fold(page), FACTOR)))
    }

    fn page(&self, frame: Mfn) -> Option<u64> {
        let number = frame.0 ^ 1 << self.bits;
        (number >> self.bits == 0).then(|| self.fold(self.times(self.fold(number), INVERSE)))
    }

    /// Mixes the upper half into the lower one; done twice, nothing has happened.
    fn fold(&self, number: u64) -> u64 {
        number ^ number >> (self.bits / 2)
    }

    fn times(&self, number: u64, factor: u64) -> u64 {
        number.wrapping_mul(factor) & ((1 << self.bits) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_frame_of_its_own_that_nothing_else_tells() {
        for numbers in [MEMORY, HEAP] {
            let mut before = None;
            for page in (0..5000).chain((1 << numbers.bits) - 5000..1 << numbers.bits) {
                let frame = numbers.frame(page);
                assert_eq!(numbers.page(frame), Some(page));
                assert_ne!(frame.0, page);
                assert_ne!(
                    before.map(|before: u64| before + 1),
                    Some(frame.0),
                    "{page}"
                );
                before = Some(frame.0);
            }
            assert_eq!(numbers.page(Mfn(5)), None);
        }
    }
}
