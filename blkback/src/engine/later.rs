//! What the task of a queue does besides, if its store may complete requests later.
//!
//! Such a store has work while the task sleeps. It is given new requests beside those that it has, several at a time
//! ([`Gathering`]), and the frontend is asked for a notification before the store runs out of work.
//!
//! No function is inlined: a store that completes its requests at once has no use for them.

use super::coalescing::{Coalescer, Sleep};
use super::gathering::Gathering;
use super::queue::Queue;
use super::setup::QueueError;
use bulkhead_xen::{Hypervisor, Instant};

/// What becomes of the requests that wait.
pub enum NewRequests {
    /// The store was given them, beside those that it has.
    Given,
    /// They wait for others.
    Gather,
    /// They are served with the next batch, or before the queue sleeps; or there are none.
    Due,
}

/// Gives the `waiting` requests to the store if it is at work and they are enough, or have waited for long enough. Notes
/// whether the frontend waits for responses.
#[inline(never)]
pub fn new_requests<H: Hypervisor>(
    queue: &mut Queue<H>,
    coalescer: &mut Coalescer,
    gathering: &mut Gathering,
    now: Instant,
    waiting: u32,
) -> Result<NewRequests, QueueError> {
    coalescer.sees(now, queue.outstanding(waiting));
    let pattern = coalescer.pattern(now);
    coalescer.set_waited_for(queue.is_waited_for(waiting, pattern));
    if waiting == 0 {
        return Ok(NewRequests::Due);
    }
    let more = gathering.look(coalescer.last_look(), now, waiting);
    let enough = queue.enough(waiting, pattern);
    if waiting < enough && now < gathering.deadline(coalescer.gathering_limits()) {
        // A frontend that sends some has not stalled.
        if more {
            coalescer.gives(now);
        }
        return Ok(NewRequests::Gather);
    }
    if queue.is_at_work() && queue.sweep()? > 0 {
        gathering.given();
        coalescer.gives(now);
        return Ok(NewRequests::Given);
    }
    Ok(NewRequests::Due)
}

/// Returns the sleep of a queue that would sleep for `sleep` but for its store. `gathers`: the `waiting` requests wait for
/// others meanwhile.
#[inline(never)]
pub fn sleep<H: Hypervisor>(
    queue: &mut Queue<H>,
    coalescer: &Coalescer,
    gathering: &Gathering,
    sleep: Sleep,
    (now, waiting, gathers): (Instant, u32, bool),
) -> Sleep {
    let pattern = coalescer.pattern(now);
    // More requests may be on their way.
    let company = queue.store_has_become_busy(pattern) || gathers;
    let Sleep { more, mut until } = match company && sleep.until.is_none() {
        true => coalescer.for_company(now, queue.slots()),
        false => sleep,
    };
    if gathers {
        let over = gathering.deadline(coalescer.gathering_limits());
        until = Some(until.map_or(over, |until| until.min(over)));
    }
    let more = more.min(queue.missed_from(waiting, pattern));
    Sleep { more, until }
}
