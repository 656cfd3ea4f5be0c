//! Pages of this domain, and of others, one word at a time.

use crate::Failure;
use crate::index::Words;
use bulkhead_xen::{Gfn, Hypervisor, PAGE_SIZE, Reservation};
use core::ptr::NonNull;

/// Takes cleared pages in a row, which are never given back.
pub fn allocate(memory: &impl Reservation, count: usize) -> Result<NonNull<u8>, Failure> {
    let first = memory.allocate(count);
    let first = first.ok_or_else(|| Failure(alloc::format!("no memory for {count} pages")))?;
    // SAFETY: new pages, which nobody else has.
    unsafe { first.write_bytes(0, count * PAGE_SIZE) };
    Ok(first)
}

/// Returns one of some pages in a row.
pub fn nth(first: NonNull<u8>, index: usize) -> NonNull<u8> {
    first.map_addr(|address| address.saturating_add(index * PAGE_SIZE))
}

/// Returns the frame behind an own page.
pub fn frame(hypervisor: &impl Hypervisor, page: NonNull<u8>) -> Result<Gfn, Failure> {
    let frame = hypervisor.frame_of(page.as_ptr());
    frame.ok_or_else(|| Failure(alloc::format!("{page:p} is no page of this domain")))
}

/// Reads the word at the start of a page.
///
/// # Safety
/// The page is mapped.
pub unsafe fn read(page: NonNull<u8>) -> u64 {
    // SAFETY: by the contract; a page's start is aligned.
    unsafe { page.cast::<u64>().read_volatile() }
}

/// Writes the word at the start of a page.
///
/// # Safety
/// The page is mapped, writable, and seen through no reference.
pub unsafe fn mark(page: NonNull<u8>, word: u64) {
    // SAFETY: by the contract; a page's start is aligned.
    unsafe { page.cast::<u64>().write_volatile(word) };
}

/// Fills a page with a word.
///
/// # Safety
/// The page is mapped, writable, and seen through no reference.
pub unsafe fn fill(page: NonNull<u8>, word: u64) {
    for at in 0..PAGE_SIZE / 8 {
        // SAFETY: by the contract; within the page, and aligned.
        unsafe { page.cast::<u64>().add(at).write_volatile(word) };
    }
}

/// Returns whether a page holds that word and nothing else.
///
/// # Safety
/// The page is mapped.
pub unsafe fn is_filled(page: NonNull<u8>, word: u64) -> bool {
    // SAFETY: by the contract; within the page, and aligned.
    (0..PAGE_SIZE / 8).all(|at| unsafe { page.cast::<u64>().add(at).read_volatile() } == word)
}

/// Writes a page of words.
///
/// # Safety
/// The page is mapped, writable, and seen through no reference.
pub unsafe fn write(page: NonNull<u8>, words: &Words) {
    for (at, word) in words.iter().enumerate() {
        // SAFETY: by the contract; within the page, and aligned.
        unsafe { page.cast::<u32>().add(at).write_volatile(*word) };
    }
}

/// Reads a page of words.
///
/// # Safety
/// The page is mapped.
pub unsafe fn words(page: NonNull<u8>) -> Words {
    // SAFETY: by the contract; within the page, and aligned.
    core::array::from_fn(|at| unsafe { page.cast::<u32>().add(at).read_volatile() })
}
