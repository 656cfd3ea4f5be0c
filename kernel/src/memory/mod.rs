//! Memory: the frames that are free, the heap above them, the memory functions, and the tables that map everything.

pub mod device_space;
pub mod frames;
pub mod layout;
pub mod memcpy;
pub mod page_table;
pub mod pv_tables;

#[cfg(feature = "unikernel")]
mod heap;
#[cfg(feature = "unikernel")]
pub(crate) mod image;
#[cfg(feature = "unikernel")]
pub(crate) mod map;
#[cfg(feature = "unikernel")]
pub(crate) mod p2m;
#[cfg(feature = "unikernel")]
pub mod pages;
#[cfg(feature = "unikernel")]
pub(crate) mod pv;
#[cfg(feature = "unikernel")]
pub(crate) mod pvh;

#[cfg(feature = "unikernel")]
pub use pages::{MemoryStatistics, RESERVE, allocate_pages, free_pages, statistics};

/// Returns the bytes that disks may be given: those of free pages and the unused ones of the heap, without the
/// [`RESERVE`].
#[cfg(feature = "unikernel")]
pub fn beyond_reserve() -> usize {
    (statistics().free + heap::free()).saturating_sub(RESERVE)
}
