//! A version on trial: until it serves, each of its failures that is reported leads back to the version before, by the
//! list and the code that the latter has left in its stage (see `upgrade`).

use super::leaving::{let_go, say};
use super::obstacles::{self, Obstacle};
use super::record::HandOver;
use super::{copying, others, parking, region};
use crate::memory::layout::{Ranges, TooFragmented, frames_of, subtract};
use crate::memory::{self, image, pages};
use crate::{domain, grants};
use bulkhead_upgrade::Version;
use bulkhead_xen::PAGE_SIZE;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;

/// The upgrade that this boot belongs to: its stage is kept.
static OVER: Once<HandOver> = Once::new();
/// True if this version is on trial.
static TRYING: AtomicBool = AtomicBool::new(false);
/// True once the upgrade is over, or there was none.
static SETTLED: AtomicBool = AtomicBool::new(false);
/// True if the stage's pages can be given back: the allocator's map covers them.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// Reads whether this boot belongs to an upgrade. Called before anything can fail that is to lead back.
pub(crate) fn begin() {
    if let Some((over, trying)) = region::hand_over() {
        OVER.call_once(|| over);
        TRYING.store(trying, Ordering::Relaxed);
        if !domain::is_pvh() {
            parking::find_in(over.stage.into());
        }
    }
}

/// Returns whether a failure leads back to the version before.
pub fn is_trying() -> bool {
    TRYING.load(Ordering::Relaxed) && !SETTLED.load(Ordering::Relaxed)
}

/// Ends the trial: no failure leads back any more.
pub(super) fn end() {
    SETTLED.store(true, Ordering::SeqCst);
}

/// Keeps the stage out of the memory that is free.
pub(super) fn keep_stage(free: &mut Ranges) -> Result<(), TooFragmented> {
    let Some(over) = OVER.get() else {
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

/// Notes that this version serves, which ends the trial, and frees the stage: a later crash is followed by an ordinary
/// restart.
pub fn settle() {
    let settled = SETTLED.swap(true, Ordering::Relaxed);
    if region::is_restart() && region::is_fresh() {
        // SAFETY: no crash is being reported, and all that was read of the record was copied.
        unsafe { region::change(|sealed| sealed.settle()) };
    }
    if let Some(over) = OVER.get()
        && !settled
        && KNOWN.load(Ordering::Relaxed)
        && let Some(first) = NonNull::new(over.stage as usize as *mut u8)
    {
        match parking::leave_stage() {
            // A vCPU that this version does not start waits there for good.
            Some((_, true)) => return obstacles::add(Obstacle::Vcpus),
            Some((stage, false)) => memory::pv::forbid_code(stage),
            None => {}
        }
        // SAFETY: `reserve` has kept these pages out of what is free, and nothing leads back any more.
        unsafe { pages::free_pages(first, over.stage_pages as usize) };
    }
}

/// Hands the domain back to the version before. To be called once the failure was reported.
pub(super) fn go_back() {
    let Some(over) = OVER.get() else { return };
    end();
    let (from, to) = (Version(over.from), Version(over.to));
    let refused = others::stop().err();
    let refused = refused.or_else(obstacles::first).or_else(|| {
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
