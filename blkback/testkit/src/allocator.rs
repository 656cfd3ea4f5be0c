//! Counts what a thread allocates, and refuses an allocation if a test wants that.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
    /// The number of the coming allocation that is refused, counted from 1, and the least size of those counted.
    static REFUSED: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
    /// True while the driver domain runs, and not the rest of the machine: only its allocations count.
    static DRIVER_DOMAIN: Cell<bool> = const { Cell::new(false) };
    /// Bytes of all allocations that are smaller than that.
    static SMALL: Cell<i64> = const { Cell::new(0) };
}

/// Returns whether this allocation is the one to be refused.
fn is_refused(size: usize) -> bool {
    let refused = REFUSED.try_with(|refused| {
        let (left, least) = refused.get();
        if !DRIVER_DOMAIN.get() {
            return false;
        }
        if size < least {
            SMALL.set(SMALL.get() + size as i64);
            return false;
        }
        refused.set((left.saturating_sub(1), least));
        left == 1
    });
    refused.unwrap_or(false)
}

fn count(allocations: u64, bytes: i64) {
    // A thread that ends has no counter any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + allocations));
    let total = BYTES.try_with(|total| {
        total.set(total.get() + bytes);
        total.get()
    });
    if let Ok(total) = total {
        let _ = MOST.try_with(|most| most.set(most.get().max(total)));
    }
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        #[cfg(feature = "recover")]
        let _busy = crate::stepping::Busy::new();
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        count(1, layout.size() as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        #[cfg(feature = "recover")]
        let _busy = crate::stepping::Busy::new();
        count(0, -(layout.size() as i64));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the number of allocations that this thread has made so far.
pub fn allocations() -> u64 {
    COUNT.get()
}

/// Returns the most bytes that this thread had allocated and not freed at any time since the last call, beyond those
/// that it has now.
pub fn forget_most_bytes() -> i64 {
    MOST.replace(BYTES.get()) - BYTES.get()
}

/// Returns the number of bytes that this thread has allocated and not freed.
pub fn bytes_in_use() -> i64 {
    BYTES.get()
}

/// Does `act` while one of the driver domain's allocations is refused: number `which` (from 1) of those of at least
/// `least` bytes. Returns whether there was such an allocation, and the bytes of all smaller ones together.
pub fn refusing(which: u64, least: usize, act: impl FnOnce()) -> (bool, usize) {
    SMALL.set(0);
    REFUSED.set((which, least));
    act();
    let (left, _) = REFUSED.replace((0, 0));
    (left == 0, SMALL.get() as usize)
}

/// Notes that the driver domain does not go on: it has crashed.
#[cfg(feature = "recover")]
pub fn leave_driver_domain() {
    DRIVER_DOMAIN.set(false);
}

/// Does `act` as the driver domain, whose allocations can be [refused](refusing).
pub fn in_driver_domain<R>(act: impl FnOnce() -> R) -> R {
    let before = DRIVER_DOMAIN.replace(true);
    let result = act();
    DRIVER_DOMAIN.set(before);
    result
}
