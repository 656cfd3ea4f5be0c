//! A version on trial: until it serves, each of its failures that is reported leads back to the version before, by the
//! list and the code that this one has left in its stage (see `upgrade`).

use super::leaving::{let_go, say};
use super::record::HandOver;
use super::{copying, others, region};
use crate::grants;
use crate::memory::layout::{Ranges, TooFragmented, frames_of, subtract};
use crate::memory::{image, pages};
use bulkhead_upgrade::Version;
use bulkhead_xen::PAGE_SIZE;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;

/// The upgrade that this boot has to prove.
static TRYING: Once<HandOver> = Once::new();
/// True once it has, or was not to.
static SETTLED: AtomicBool = AtomicBool::new(false);
/// The stage can be given back: its pages are known to the allocator.
static KNOWN: AtomicBool = AtomicBool::new(false);
/// Learns whether this boot has to prove a version. Among the first things that Rust code does.
pub(crate) fn begin() {
    if let Some(over) = region::trying() {
        TRYING.call_once(|| over);
    }
}

/// Returns whether a failure leads back to the version before.
pub fn is_trying() -> bool {
    TRYING.is_completed() && !SETTLED.load(Ordering::Relaxed)
}

/// Keeps the stage out of the memory that is free.
pub(super) fn keep_stage(free: &mut Ranges) -> Result<(), TooFragmented> {
    let Some(over) = TRYING.get() else {
        return Ok(());
    };
    let stage = frames_of(
        over.stage.into(),
        u64::from(over.stage_pages) * PAGE_SIZE as u64,
    );
    let last = stage.end;
    subtract(free, stage)?;
    let known = free.iter().any(|range| range.end >= last);
    KNOWN.store(known, Ordering::Relaxed);
    Ok(())
}

/// Notes that this version serves: from here on, a crash is one as any other.
pub fn settle() {
    let trying = is_trying();
    SETTLED.store(true, Ordering::Relaxed);
    if region::is_restart() && region::is_fresh() {
        // SAFETY: no crash is being reported, and whoever has read the record has a copy.
        unsafe { region::change(|sealed| sealed.settle()) };
    }
    if let Some(over) = TRYING.get()
        && trying
        && KNOWN.load(Ordering::Relaxed)
        && let Some(first) = NonNull::new(over.stage as usize as *mut u8)
    {
        // SAFETY: `reserve` has kept these pages out of what is free, and nothing leads back any more.
        unsafe { pages::free_pages(first, over.stage_pages as usize) };
    }
}

/// Hands the domain back to the version before. To be called once the failure was reported.
pub(super) fn go_back() {
    let Some(over) = TRYING.get() else { return };
    SETTLED.store(true, Ordering::SeqCst);
    let (from, to) = (Version(over.from), Version(over.to));
    let refused = others::stop().err().or_else(|| {
        let granted = grants::has_granted(image::room());
        granted.then_some("another domain has a page where the image of before goes")
    });
    if let Some(why) = refused {
        return say(format_args!(
            "version {to} has failed, and cannot go back: {why}\n"
        ));
    }
    // SAFETY: the domain has failed: only the vCPU that reports goes on, and it uses nothing of this boot any more.
    unsafe {
        region::change(|sealed| sealed.go_back());
        if let_go(format_args!("version {to} has failed: back to {from}")) {
            region::copy_to(over.room as usize as *mut u8, over.room_bytes as usize);
            copying::leave(over.table, over.stage);
        }
    }
}
