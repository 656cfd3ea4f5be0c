//! Memory: which frames are free, the heap above them, the memory functions, and the tables that
//! say where everything is mapped.

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

/// Bytes that disks may be given: those of free pages and those that the heap has and does not use, without
/// the [`RESERVE`].
#[cfg(feature = "unikernel")]
pub fn beyond_reserve() -> usize {
    (statistics().free + heap::free()).saturating_sub(RESERVE)
}
