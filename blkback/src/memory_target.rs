//! The size of the domain's memory: `memory/target`, which the toolstack writes
//! (`xl mem-set`, in KiB; Xen's `docs/misc/xenstore-paths.pandoc`).
//!
//! Memory that is not in use goes back to Xen, and is taken back when the target rises. Images and
//! allocations stay, and so does a reserve. A target that cannot be reached is followed as far as possible,
//! and the log says what is in the way.

use bulkhead_executor::Handle;
use bulkhead_xen::{Balloon, Hypervisor, PAGE_SIZE};
use bulkhead_xenbus::retry::persist;
use bulkhead_xenstore_client::{Client, Error};
use core::cell::Cell;
use core::convert::Infallible;

const TARGET: &str = "memory/target";

const KIB_OF_A_PAGE: usize = PAGE_SIZE / 1024;

/// The distance to a target that is not logged: Xen counts some pages that are not memory of the domain.
const NOT_WORTH_A_WORD: usize = (1 << 20) / PAGE_SIZE;

/// Follows the target. Returns only if xenstore cannot be used any more.
pub async fn follow_memory_target<H: Hypervisor>(
    handle: &Handle<H>,
    store: &Client,
    memory: &dyn Balloon,
) -> Result<Infallible, Error> {
    let followed = Cell::new(None);
    let following = async || follow_each(handle, store, memory, &followed).await;
    persist(handle, TARGET, following).await
}

async fn follow_each<H: Hypervisor>(
    handle: &Handle<H>,
    store: &Client,
    memory: &dyn Balloon,
    followed: &Cell<Option<usize>>,
) -> Result<Infallible, Error> {
    let mut watch = store.watch(TARGET).await?;
    loop {
        watch.next().await?;
        // A domain that was made without the node has none.
        let Some(text) = store.read_optional(TARGET).await? else {
            continue;
        };
        let Ok(kib) = text.trim().parse::<usize>() else {
            log::error!("{TARGET}: '{text}' is not a number of KiB");
            continue;
        };
        if followed.replace(Some(kib)) != Some(kib) {
            follow(handle, memory, kib / KIB_OF_A_PAGE).await;
        }
    }
}

/// Gives back or takes back memory until there are `target` pages, or no more can be done.
async fn follow<H: Hypervisor>(handle: &Handle<H>, memory: &dyn Balloon, target: usize) {
    let before = memory.owned();
    loop {
        let owned = memory.owned();
        let done = match target.checked_sub(owned) {
            Some(0) => break,
            Some(missing) => memory.take_back(missing),
            None => memory.give_back(owned - target),
        };
        if done == 0 {
            break;
        }
        // The disks have their requests meanwhile.
        handle.yield_now().await;
    }
    let now = memory.owned();
    if now.abs_diff(before) > NOT_WORTH_A_WORD {
        let (before, now) = (before * KIB_OF_A_PAGE, now * KIB_OF_A_PAGE);
        log::info!("{TARGET}: the domain had {before} KiB of memory and has {now}");
    }
    // Pages that guests discarded, and that Xen has, are taken back when they are written.
    let reached = now..=now + memory.released();
    if target + NOT_WORTH_A_WORD >= *reached.start() && target <= reached.end() + NOT_WORTH_A_WORD {
        return;
    }
    let why = if now > target {
        "the rest is in use, or the reserve that serving needs"
    } else if memory.missing() > 0 {
        "Xen has no more for it"
    } else {
        "it cannot have more than it was created with (maxmem=, of a PVH domain)"
    };
    let (target, now) = (target * KIB_OF_A_PAGE, now * KIB_OF_A_PAGE);
    log::warn!("{TARGET}: {target} KiB are wanted, the domain stays at {now}: {why}");
}
