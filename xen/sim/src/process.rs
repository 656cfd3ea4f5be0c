//! The process's own memory, where a driver under test has what it allocates.

use std::fs;

/// Returns whether the process can write at an address: it is on its heap or a stack, and no constant.
pub(super) fn is_writable(address: usize) -> bool {
    // proc(5): "address perms offset dev inode path", the address as "first-end".
    let maps = fs::read_to_string("/proc/self/maps").expect("the host lists our memory");
    maps.lines().any(|line| {
        let mut words = line.split([' ', '-']);
        let mut number = || usize::from_str_radix(words.next()?, 16).ok();
        let (Some(first), Some(end)) = (number(), number()) else {
            return false;
        };
        let writable = words.next().is_some_and(|access| access.contains('w'));
        (first..end).contains(&address) && writable
    })
}
