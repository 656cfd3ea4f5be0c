//! The task of a queue: serves requests while there are some, and sleeps while there are none.

use super::backoff::BackOff;
use super::closing::{close, finish_what_was_asked, hold, outwait, serve_unreachable_frontend};
use super::coalescing::{Coalescer, Next};
use super::gathering::Gathering;
use super::later::{self, NewRequests};
use super::needs::SLOTS_OF_A_PAGE;
use super::poll_window::BlockCosts;
use super::queue::Queue;
use super::queue_control::QueueGuard;
use super::setup::{QueueError, QueueSetup, QueueSetupError};
use super::turns::Turn;
use alloc::boxed::Box;
use bulkhead_executor::{Handle, Sleep as Timer};
use bulkhead_grant::Region;
use bulkhead_images::{IoQueue, QueueContext};
use bulkhead_xen::{Hypervisor, Instant};
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;

/// The time in which a store has to open a queue, while the frontend waits for its disk.
const STORE_OPENS: Duration = Duration::from_secs(10);

/// Connects to a queue, on the vCPU where this runs, and serves it from the time at which its disk says so until the
/// disk says to stop, or until an error. When the guard reports the end of the queue, no page of the frontend's is
/// mapped and no event channel bound, except pages that a store without an answer still holds.
pub async fn serve<H: Hypervisor>(
    handle: Handle<H>,
    region: Region<H>,
    mut setup: QueueSetup,
    guard: QueueGuard,
) {
    let mut turn = core::mem::take(&mut setup.turn);
    let unreleased = setup.unreleased.clone();
    if unreleased.any() {
        return guard.tried(Err(QueueSetupError::StoreHolds));
    }
    let device = match open(&handle, &setup, &guard).await {
        Ok(device) => device,
        Err(error) => return guard.tried(Err(error)),
    };
    let mut queue = match Queue::connect(&handle, &region, setup, device) {
        Ok(queue) => {
            guard.tried(Ok(queue.stats()));
            queue
        }
        Err(error) => return guard.tried(Err(error)),
    };
    guard.started().await;
    let outcome = until_stopped(&handle, &mut queue, &guard, &mut turn).await;
    if close(&handle, &mut queue).await {
        // Frees the ring, the mapped pages and the event channel, before the end is reported.
        drop(queue);
        return guard.finish(outcome);
    }
    let held = hold(&queue, &unreleased);
    // A crash finds the disk that has its number next, and nothing of this one.
    queue.keep_nothing();
    guard.finish(outcome);
    outwait(&mut queue, held).await;
}

/// Opens the device's queue, unless that takes too long, or the disk says to stop.
async fn open<H: Hypervisor>(
    handle: &Handle<H>,
    setup: &QueueSetup,
    guard: &QueueGuard,
) -> Result<Box<dyn IoQueue>, QueueSetupError> {
    let depth = setup.ring.len() * SLOTS_OF_A_PAGE;
    let context = QueueContext::new(handle.hypervisor().vcpu(), depth).among(setup.queues);
    let mut opening = setup.device.open_queue(&context);
    let mut stopped = pin!(guard.stopped());
    let mut over = pin!(handle.sleep(STORE_OPENS));
    poll_fn(|context| {
        if let Poll::Ready(opened) = opening.as_mut().poll(context) {
            return Poll::Ready(opened.map_err(QueueSetupError::from));
        }
        if stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(QueueSetupError::Abandoned));
        }
        let over = over.as_mut().poll(context);
        over.map(|()| Err(QueueSetupError::StoreSilent))
    })
    .await
}

async fn until_stopped<H: Hypervisor>(
    handle: &Handle<H>,
    queue: &mut Queue<H>,
    guard: &QueueGuard,
    turn: &mut Turn,
) -> Result<(), QueueError> {
    let mut coalescer = Coalescer::new(queue.options(), handle.now(), block_costs(handle));
    let mut back_off = BackOff::default();
    let mut wait = Wait::new(handle, guard, Progress::new(queue, handle));
    let most = queue.slots();
    // Whether there was a sweep since the other tasks of this vCPU had their turn. The next sweep comes after their
    // turn, as one sweep takes a bounded time.
    let mut swept = false;
    // Whether the ring and the clock were just read, and the device has no request.
    let mut has_looked = false;
    let mut gathering = Gathering::default();
    let (mut waiting, mut now) = (0, handle.now());
    while !guard.is_stopped() {
        if !core::mem::take(&mut has_looked) {
            queue.settle();
            (waiting, now) = (queue.waiting()?, handle.now());
        }
        // A queue without a turn has left it to other queues of this guest.
        if waiting > 0 && (swept || !turn.take()) {
            handle.yield_now().await;
            swept = false;
            continue;
        }
        let mut gathers = false;
        let gathered = if queue.completes_later() {
            if waiting > 0 || coalescer.expects_several() {
                match later::new_requests(queue, &mut coalescer, &mut gathering, now, waiting)? {
                    NewRequests::Given => {
                        swept = true;
                        continue;
                    }
                    NewRequests::Gather => gathers = true,
                    NewRequests::Due => {}
                }
            }
            queue.gathered(waiting)
        } else {
            waiting + queue.unpublished()
        };
        match coalescer.next(now, gathered, most) {
            Next::Poll => {
                // Requests that need no hypercall begin at once; the others are better served together.
                if waiting > 0 && !gathers && queue.is_served_singly() {
                    queue.sweep()?;
                    gathering.given();
                }
            }
            Next::Answer => {
                queue.sweep()?;
                gathering.given();
                let published = queue.publish();
                waiting = queue.waiting()?;
                coalescer.published(now, published);
                coalescer.answered(queue.gathered(waiting), || block_costs(handle));
                // A store that is at work on requests wakes the task when it has done them.
                if coalescer.expects_several() {
                    coalescer.set_alone(turn.answered() && queue.in_flight() == 0);
                }
                back_off.request();
                // Several guests send requests all the time: this one will have more after the others' turn.
                if !turn.is_shared() {
                    swept = true;
                    now = handle.now();
                    has_looked = queue.in_flight() == 0;
                    continue;
                }
            }
            Next::Sleep(sleep) => {
                if waiting > 0 {
                    gathers &= queue.hardly_misses(waiting, coalescer.pattern(now));
                    // Requests that need no hypercall begin at once, as above.
                    if !gathers && queue.is_served_singly() && queue.sweep()? > 0 {
                        gathering.given();
                        swept = true;
                        continue;
                    }
                }
                let is_idle = sleep.until.is_none();
                let sleep = match queue.completes_later() {
                    true => {
                        let requests = (now, waiting, gathers);
                        later::sleep(queue, &coalescer, &gathering, sleep, requests)
                    }
                    false => sleep,
                };
                if !queue.final_check_for(waiting, sleep.more)? {
                    wait.begin(queue, sleep.until);
                    queue.count_sleep();
                    let notified = Waiting(&mut wait, queue).await;
                    swept &= !wait.end();
                    let before = waiting;
                    (waiting, now) = (queue.waiting()?, handle.now());
                    has_looked = queue.in_flight() == 0;
                    if waiting > before {
                        if is_idle {
                            coalescer.woke(now, waiting);
                        }
                    } else if notified {
                        let first = back_off.is_unused();
                        if let Some(delay) = back_off.empty_notification() {
                            if first {
                                queue.log_spurious_notifications();
                            }
                            look_away(handle, queue, guard, delay).await;
                            has_looked = false;
                        }
                    }
                    continue;
                }
            }
        }
        handle.yield_now().await;
        swept = false;
    }
    if guard.is_unreachable() {
        serve_unreachable_frontend(handle, queue, guard).await?;
    }
    finish_what_was_asked(handle, queue, guard).await
}

fn block_costs<H: Hypervisor>(handle: &Handle<H>) -> BlockCosts {
    BlockCosts {
        run_time: handle.block_cost(),
        wakeup_latency: handle.wakeup_latency(),
        scale: handle.wakeup_scale(),
    }
}

/// The time of the store's last completion, if it has a time-out.
struct Progress {
    completions: u64,
    since: Instant,
    /// True if the store had requests at the last look.
    waiting: bool,
}

impl Progress {
    fn new<H: Hypervisor>(queue: &Queue<H>, handle: &Handle<H>) -> Self {
        Progress {
            completions: queue.completions(),
            since: handle.now(),
            waiting: queue.in_flight() > 0,
        }
    }

    /// Returns the time at which the store has gone too long without a completion.
    fn deadline<H: Hypervisor>(&mut self, queue: &Queue<H>, handle: &Handle<H>) -> Option<Instant> {
        let timeout = queue.timeout()?;
        let waits_on = self.waiting && queue.in_flight() > 0;
        if !waits_on || queue.completions() != self.completions {
            *self = Progress::new(queue, handle);
        }
        self.waiting.then(|| self.since + timeout)
    }
}

/// A wait for the frontend, the device, the disk or a time, whichever comes first. Meanwhile, requests that take longer
/// than the store's own time-out are given up.
struct Wait<'a, H> {
    handle: &'a Handle<H>,
    guard: &'a QueueGuard,
    progress: Progress,
    /// The time at which the queue is looked at in any case.
    until: Option<Instant>,
    /// A timer that ends at that time, or earlier if the store has gone too long without a completion by then.
    timer: Option<Timer<H>>,
    /// True if the task has waited, and other tasks had their turn meanwhile.
    slept: bool,
}

/// The future of a [`Wait`]. It is inlined where it is awaited, which the closure of a `poll_fn` is in some builds and
/// not in others.
struct Waiting<'w, 'a, H: Hypervisor>(&'w mut Wait<'a, H>, &'w mut Queue<H>);

impl<H: Hypervisor> Future for Waiting<'_, '_, H> {
    type Output = bool;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        let Waiting(wait, queue) = self.get_mut();
        wait.poll(context, queue)
    }
}

impl<'a, H: Hypervisor> Wait<'a, H> {
    fn new(handle: &'a Handle<H>, guard: &'a QueueGuard, progress: Progress) -> Self {
        Wait {
            handle,
            guard,
            progress,
            until: None,
            timer: None,
            slept: false,
        }
    }

    #[inline]
    fn begin(&mut self, queue: &Queue<H>, until: Option<Instant>) {
        let late = self.progress.deadline(queue, self.handle);
        let first = match (until, late) {
            (Some(until), Some(late)) => Some(until.min(late)),
            (one, None) | (None, one) => one,
        };
        self.until = until;
        self.timer = first.map(|time| self.handle.sleep_until(time));
        self.slept = false;
    }

    /// Ends the wait, and returns whether other tasks had their turn meanwhile.
    #[inline]
    fn end(&mut self) -> bool {
        self.timer = None;
        self.slept
    }

    /// Returns ready when there is no more to wait for: with true if the frontend has notified the queue.
    #[inline]
    fn poll(&mut self, context: &mut Context<'_>, queue: &mut Queue<H>) -> Poll<bool> {
        if queue.poll_notified(context).is_ready() {
            return Poll::Ready(true);
        }
        let happened = self.guard.poll_stopped(context).is_ready()
            || queue.poll_completion(context).is_ready()
            || (self.timer.is_some() && self.is_over(context, queue));
        match happened {
            true => Poll::Ready(false),
            false => {
                self.slept = true;
                Poll::Pending
            }
        }
    }

    /// Returns whether the time has come at which the queue is looked at in any case.
    #[inline(never)]
    fn is_over(&mut self, context: &mut Context<'_>, queue: &mut Queue<H>) -> bool {
        let Some(timer) = &mut self.timer else {
            return false;
        };
        if pin!(timer).poll(context).is_pending() {
            return false;
        }
        if self.until.is_some_and(|until| self.handle.now() >= until) {
            return true;
        }
        log::error!(
            "{}: the store has not answered {} request(s) in time: those that it can leave undone are given up, the \
             rest is waited for",
            queue.name(),
            queue.in_flight()
        );
        queue.cancel_pending();
        self.progress = Progress::new(queue, self.handle);
        self.timer = self.until.map(|until| self.handle.sleep_until(until));
        // The store may have completed them at once.
        context.waker().wake_by_ref();
        false
    }
}

/// Waits for `delay` without looking at the queue and without notifications, unless the device completes a request or
/// the queue is to stop.
async fn look_away<H: Hypervisor>(
    handle: &Handle<H>,
    queue: &mut Queue<H>,
    guard: &QueueGuard,
    delay: Duration,
) {
    let channel = queue.channel();
    let mut over = pin!(handle.sleep(delay));
    let mut stopped = pin!(guard.stopped());
    channel.mask();
    poll_fn(|context| {
        let over = over.as_mut().poll(context).is_ready()
            || stopped.as_mut().poll(context).is_ready()
            || queue.poll_completion(context).is_ready();
        match over {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    channel.unmask();
}
