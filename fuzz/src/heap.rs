//! The limit on the memory that an input may make a target allocate.

use bulkhead_blkback_testkit::{bytes_in_use, forget_most_bytes, start_journal};

/// Panics when it is dropped, if this thread has used more memory meanwhile than is allowed.
pub struct Limited {
    before: i64,
    most: i64,
}

/// Allows this thread to allocate up to `most` bytes more than it has at a time, until the result is dropped.
pub fn limited(most: usize) -> Limited {
    // Otherwise the journal would still hold the lines of earlier inputs, and its growth would count for this one.
    start_journal();
    forget_most_bytes();
    Limited {
        before: bytes_in_use(),
        most: most as i64,
    }
}

/// Sets the limit for a parser: 64 KiB, and 64 times the size of the input.
pub fn of_parser(input: &[u8]) -> Limited {
    limited((64 << 10) + 64 * input.len())
}

impl Drop for Limited {
    fn drop(&mut self) {
        let most = bytes_in_use() + forget_most_bytes() - self.before;
        if !std::thread::panicking() {
            assert!(most <= self.most, "{most} bytes were allocated");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_earlier_inputs_do_not_count() {
        for _ in 0..20_000 {
            let _limit = limited(4096);
            log::error!("a line of an input");
        }
    }

    #[test]
    fn what_was_freed_again_counts() {
        let limit = limited(1000);
        drop(vec![0u8; 900]);
        drop(limit);
        let exceeded = std::panic::catch_unwind(|| {
            let _limit = limited(1000);
            drop(std::hint::black_box(vec![0u8; 1100]));
        });
        assert!(exceeded.is_err());
    }
}
