//! The task of one queue: sweeps while there is work, sleeps while there is none.

use super::backoff::BackOff;
use super::coalescing::{Coalescer, Next};
use super::needs::SLOTS_OF_A_PAGE;
use super::queue::Queue;
use super::queue_control::QueueGuard;
use super::setup::{ConnectError, QueueError, QueueSetup};
use super::turns::Turn;
use alloc::boxed::Box;
use bulkhead_executor::Handle;
use bulkhead_grant::Region;
use bulkhead_images::{IoQueue, QueueContext};
use bulkhead_xen::Hypervisor;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

/// How long a store may take to open a queue, while the frontend waits for its disk.
const STORE_OPENS: Duration = Duration::from_secs(10);

/// Connects to a queue, on the vCPU where this runs, and serves it from when its disk says so
/// until the disk says to stop, or until it cannot go on. Nothing of the frontend's is mapped or
/// bound any more when this returns.
pub async fn serve<H: Hypervisor>(
    handle: Handle<H>,
    region: Region<H>,
    mut setup: QueueSetup,
    guard: QueueGuard,
) {
    let mut turn = core::mem::take(&mut setup.turn);
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
    // Gives back the ring, the mapped pages and the event channel, before anyone is told.
    drop(queue);
    guard.finish(outcome);
}

/// Opens the device's queue, unless that takes too long, or the disk says to stop.
async fn open<H: Hypervisor>(
    handle: &Handle<H>,
    setup: &QueueSetup,
    guard: &QueueGuard,
) -> Result<Box<dyn IoQueue>, ConnectError> {
    let depth = setup.ring.len() * SLOTS_OF_A_PAGE;
    let context = QueueContext::new(handle.hypervisor().vcpu(), depth);
    let mut opening = setup.device.open_queue(&context);
    let mut stopped = pin!(guard.stopped());
    let mut over = pin!(handle.sleep(STORE_OPENS));
    poll_fn(|context| {
        if let Poll::Ready(opened) = opening.as_mut().poll(context) {
            return Poll::Ready(opened.map_err(ConnectError::from));
        }
        if stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(ConnectError::Abandoned));
        }
        let over = over.as_mut().poll(context);
        over.map(|()| Err(ConnectError::StoreSilent))
    })
    .await
}

async fn until_stopped<H: Hypervisor>(
    handle: &Handle<H>,
    queue: &mut Queue<H>,
    guard: &QueueGuard,
    turn: &mut Turn,
) -> Result<(), QueueError> {
    let mut coalescer = Coalescer::new(queue.options(), handle.now(), handle.lateness());
    let mut back_off = BackOff::default();
    let most = queue.slots();
    while !guard.is_stopped() {
        queue.settle();
        let waiting = queue.waiting()?;
        if waiting > 0 && !turn.take() {
            // Other queues of this guest have had its turns.
            handle.yield_now().await;
            continue;
        }
        match coalescer.next(handle.now(), waiting + queue.unpublished(), most) {
            Next::Poll => {
                // What goes on meanwhile is to begin at once; what costs a hypercall is better done
                // together.
                if waiting > 0 && queue.is_served_singly() {
                    queue.sweep()?;
                }
            }
            Next::Answer => {
                queue.sweep()?;
                queue.publish();
                coalescer.answered(queue.waiting()? + queue.unpublished(), handle.lateness());
                back_off.request();
            }
            Next::Sleep => {
                if !queue.final_check()? {
                    let notified = something_happens(queue, guard).await;
                    let waiting = queue.waiting()?;
                    coalescer.woke(handle.now(), waiting);
                    if notified && waiting == 0 {
                        let first = back_off.is_unused();
                        if let Some(delay) = back_off.empty_notification() {
                            if first {
                                queue.complain_of_notifications();
                            }
                            look_away(handle, queue, guard, delay).await;
                        }
                    }
                    continue;
                }
            }
        }
        // A look is a bounded amount of work: the other queues get their turn.
        handle.yield_now().await;
    }
    finish_what_was_asked(handle, queue, guard).await
}

/// Finishes and answers what is on the ring at this moment, whether the frontend listens or not. What it
/// asks for from now on is not looked at. The other queues of the vCPU have their turns between sweeps.
async fn finish_what_was_asked<H: Hypervisor>(
    handle: &Handle<H>,
    queue: &mut Queue<H>,
    guard: &QueueGuard,
) -> Result<(), QueueError> {
    queue.close()?;
    loop {
        // Requests may wait for some of those in flight.
        let waited = queue.in_flight() > 0;
        let taken = queue.sweep()?;
        while queue.in_flight() > 0 {
            something_completes(queue, guard).await;
            queue.settle();
        }
        if queue.untaken() == 0 || (taken == 0 && !waited) {
            break;
        }
        handle.yield_now().await;
    }
    queue.publish();
    Ok(())
}

/// Waits for the device, which gives up what it can once nobody waits for it.
async fn something_completes<H: Hypervisor>(queue: &mut Queue<H>, guard: &QueueGuard) {
    if !guard.is_given_up() {
        let mut given_up = pin!(guard.given_up());
        let completed = poll_fn(|context| {
            if given_up.as_mut().poll(context).is_ready() {
                return Poll::Ready(false);
            }
            queue.poll_completion(context).map(|()| true)
        });
        if completed.await {
            return;
        }
    }
    queue.cancel_pending();
    poll_fn(|context| queue.poll_completion(context)).await;
}

/// Waits for the frontend, the device or the disk, whoever is first. True if it was the frontend.
async fn something_happens<H: Hypervisor>(queue: &mut Queue<H>, guard: &QueueGuard) -> bool {
    let channel = queue.channel();
    let stats = queue.stats();
    let mut notified = pin!(channel.notified());
    let mut stopped = pin!(guard.stopped());
    stats.sleeps.add(1);
    poll_fn(|context| {
        if notified.as_mut().poll(context).is_ready() {
            stats.notifications_received.add(1);
            return Poll::Ready(true);
        }
        let happened =
            stopped.as_mut().poll(context).is_ready() || queue.poll_completion(context).is_ready();
        match happened {
            true => Poll::Ready(false),
            false => Poll::Pending,
        }
    })
    .await
}

/// Lets `delay` pass without looking at the queue or being notified of it, unless the device has completed
/// something or the queue is to stop.
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
