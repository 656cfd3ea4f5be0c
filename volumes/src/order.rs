//! The order of things in a list, found without moving them.
//!
//! What is sorted here is large, of many types, and sorted rarely. The standard library's sort is made for speed: it
//! takes 2 to 8 KiB of code for each type. Positions are sorted instead, as a heap, by one copy of little code.

use alloc::vec::Vec;
use core::cmp::Ordering;

/// Returns the positions below `len` in the order that `compare` says; equals stay in theirs. `None` without memory.
///
/// It takes a time of `len` times its logarithm, whatever a disk says.
pub(crate) fn order(len: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Option<Vec<usize>> {
    let mut heap = Vec::new();
    heap.try_reserve_exact(len).ok()?;
    heap.extend(0..len);
    for root in (0..len / 2).rev() {
        sink(&mut heap, root, compare);
    }
    for end in (1..len).rev() {
        heap.swap(0, end);
        sink(&mut heap[..end], 0, compare);
    }
    Some(heap)
}

/// Lets the position at `root` sink to where no later one lies below it.
fn sink(heap: &mut [usize], mut root: usize, compare: &dyn Fn(usize, usize) -> Ordering) {
    let earlier = |one: usize, other: usize| compare(one, other).then(one.cmp(&other)).is_lt();
    loop {
        let mut child = 2 * root + 1;
        if child + 1 < heap.len() && earlier(heap[child], heap[child + 1]) {
            child += 1;
        }
        if child >= heap.len() || !earlier(heap[root], heap[child]) {
            return;
        }
        heap.swap(root, child);
        root = child;
    }
}

#[cfg(test)]
mod tests {
    use super::order;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_that_of_a_stable_sort(values in proptest::collection::vec(0..20_u8, 0..100)) {
            let mut expected: Vec<usize> = (0..values.len()).collect();
            expected.sort_by_key(|position| values[*position]);
            let found = order(values.len(), &|one, other| values[one].cmp(&values[other]));
            prop_assert_eq!(found, Some(expected));
        }
    }
}
