//! A guest's own queue of a disk, in which a process waits for a request that no backend has.

use super::MINUTE;
use crate::host::guest::Guest;
use anyhow::{Result, ensure};

/// Prints whether the guest's own queue of a disk is stopped, and the requests in it. Linux's blkfront
/// (6.1) stops its queue for good when the backend closes: a process that waits for a request in it that was never
/// given to the driver then waits for ever, whatever the backend does.
const QUEUE: &str = "mount -t debugfs none /sys/kernel/debug 2>/dev/null; \
    cd /sys/kernel/debug/block/DISK || exit; cat hctx0/state; \
    cat hctx0/dispatch hctx0/busy hctx0/cpu*/*rq_list sched/*list* 2>/dev/null | grep -F '.state='; true";

/// Checks that a process in the guest waits for a request that the guest's stopped queue holds, and that none is with
/// the backend.
pub fn expect_held_by_the_guest(guest: &Guest, device: &str) -> Result<()> {
    let queue = guest.ok(&QUEUE.replace("DISK", device), MINUTE)?;
    // Idle and without a tag: it was never given to the driver. What is in flight is the backend's to answer.
    let idle = |line: &str| line.contains("tag=-1,") && line.contains(".state=idle");
    ensure!(
        queue.starts_with("STOPPED")
            && queue.lines().any(idle)
            && !queue.contains(".state=in_flight"),
        "the guest holds no request of {device} itself; its queue: {queue}"
    );
    Ok(())
}
