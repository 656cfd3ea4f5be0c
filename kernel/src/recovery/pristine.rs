//! The initialised data of the image as it was loaded: copied at the first boot of that image, and read-only from then on.

use super::region;
use crate::memory::image;
use core::sync::atomic::{AtomicU64, Ordering};

/// The start info that the builder has left, where the next boot finds it again.
static START: AtomicU64 = AtomicU64::new(0);

/// Copies the data if the image was loaded for this boot, and notes where the start info is.
///
/// # Safety
/// The first thing that Rust code does, on the only vCPU.
pub unsafe fn keep(start: u64) {
    if region::is_fresh() {
        let (data, copy) = (image::data(), image::pristine());
        let bytes = (data.end - data.start) as usize;
        // SAFETY: `link.ld` has set the room aside; nothing has written to the data yet.
        unsafe {
            (data.start as *const u8).copy_to_nonoverlapping(copy.start as *mut u8, bytes);
        }
    }
    START.store(start, Ordering::Relaxed);
}

/// Returns the address of the start info.
pub fn start() -> u64 {
    START.load(Ordering::Relaxed)
}
