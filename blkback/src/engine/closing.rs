//! The end of a queue: what was asked for is finished, as long as the store answers, and the store lets go
//! of the frontend's pages. All of it takes a bounded time, whatever the store does.

use super::queue::Queue;
use super::queue_control::QueueGuard;
use super::setup::QueueError;
use super::unreleased::{Held, Unreleased};
use bulkhead_executor::Handle;
use bulkhead_xen::Hypervisor;
use core::future::{Future, poll_fn};
use core::num::NonZeroU32;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

/// How long a store that has requests may go without completing one while the queue stops. With the two
/// below it is less than the ten seconds for which libxl waits for a disk to be closed.
const STORE_ANSWERS: Duration = Duration::from_secs(6);
/// How long it may take to complete requests that were given up.
const STORE_GIVES_UP: Duration = Duration::from_secs(1);
/// How long it may take to let go of everything.
const STORE_CLOSES: Duration = Duration::from_secs(1);

/// How long a frontend that cannot be told that its disk goes away is served after its last request: the time
/// that its guest may take to notice by itself. `xl destroy` waits for it, as the guest is paused by then.
const UNREACHABLE_SILENT: Duration = Duration::from_millis(300);
/// How long it is served at most. With what a store may take after that it is less than libxl's ten seconds.
const UNREACHABLE: Duration = Duration::from_secs(4);
/// How often its event channel is looked at.
const UNREACHABLE_LOOK: Duration = Duration::from_millis(5);

/// Notes that the store does not let go of a queue.
pub(super) fn hold<H: Hypervisor>(queue: &Queue<H>, unreleased: &Unreleased) -> Held {
    log::error!(
        "{}: the store does not let go of {} request(s): pages of the frontend that are mapped stay \
         mapped until it does",
        queue.name(),
        queue.in_flight()
    );
    unreleased.hold()
}

/// Why a store has been left with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreSilent;

/// Serves a frontend on that cannot be told that its disk goes away, as its directory is gone (`xl block-detach
/// --force`), until it closes its event channel, is silent, or the time is over. Linux's frontend waits in
/// `del_gendisk` for the answers to all of its requests, those included that it sends until then: one without an
/// answer would keep the guest's xenbus from ever working again. Nobody waits for what is left after this.
pub(super) async fn serve_unreachable_frontend<H: Hypervisor>(
    handle: &Handle<H>,
    queue: &mut Queue<H>,
    guard: &QueueGuard,
) -> Result<(), QueueError> {
    let start = handle.now();
    let mut last_request = start;
    while !guard.is_given_up() && queue.channel().is_connected() {
        let taken = queue.sweep()?;
        queue.settle();
        queue.publish();
        let now = handle.now();
        if taken > 0 || queue.in_flight() > 0 {
            last_request = now;
        }
        if now >= last_request + UNREACHABLE_SILENT || now >= start + UNREACHABLE {
            break;
        }
        if queue.final_check_for(0, NonZeroU32::MIN)? {
            handle.yield_now().await;
            continue;
        }
        let channel = queue.channel();
        let mut notified = pin!(channel.notified());
        let mut over = pin!(handle.sleep(UNREACHABLE_LOOK));
        poll_fn(|context| {
            let happened = notified.as_mut().poll(context).is_ready()
                || queue.poll_completion(context).is_ready()
                || over.as_mut().poll(context).is_ready();
            match happened {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
    guard.give_up();
    Ok(())
}

/// Finishes and answers what is on the ring at this moment, whether the frontend listens or not. What it
/// asks for from now on is not looked at. The other queues of the vCPU have their turns between sweeps. A
/// store that does not answer leaves the rest undone.
pub(super) async fn finish_what_was_asked<H: Hypervisor>(
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
            if something_completes(handle, queue, guard).await == Err(StoreSilent) {
                return Ok(());
            }
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

/// Waits for the store, which gives up what it can once nobody waits for it or it takes too long.
async fn something_completes<H: Hypervisor>(
    handle: &Handle<H>,
    queue: &mut Queue<H>,
    guard: &QueueGuard,
) -> Result<(), StoreSilent> {
    if !guard.is_given_up() {
        let mut given_up = pin!(guard.given_up());
        let mut over = pin!(handle.sleep(STORE_ANSWERS));
        let completed = poll_fn(|context| {
            if queue.poll_completion(context).is_ready() {
                return Poll::Ready(Some(Ok(())));
            }
            if given_up.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            over.as_mut().poll(context).map(|()| Some(Err(StoreSilent)))
        });
        match completed.await {
            Some(Ok(())) => return Ok(()),
            Some(Err(StoreSilent)) => log::error!(
                "{}: the store has not answered {} request(s) for {} s: they are given up",
                queue.name(),
                queue.in_flight(),
                STORE_ANSWERS.as_secs()
            ),
            None => {}
        }
    }
    queue.cancel_pending();
    let mut over = pin!(handle.sleep(STORE_GIVES_UP));
    poll_fn(|context| {
        if queue.poll_completion(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        over.as_mut().poll(context).map(|()| Err(StoreSilent))
    })
    .await
}

/// Has the store let go of everything; what is in flight still is answered with errors then. False if it
/// does not let go in time.
pub(super) async fn close<H: Hypervisor>(handle: &Handle<H>, queue: &mut Queue<H>) -> bool {
    let mut over = pin!(handle.sleep(STORE_CLOSES));
    let closed = poll_fn(|context| {
        if queue.poll_close(context).is_ready() {
            return Poll::Ready(true);
        }
        over.as_mut().poll(context).map(|()| false)
    });
    let closed = closed.await;
    if closed && queue.in_flight() > 0 {
        queue.abandon();
    }
    closed
}

/// Waits until a store lets go that has not in time. The frontend cannot notify the queue meanwhile, and its
/// pages stay as they are.
pub(super) async fn outwait<H: Hypervisor>(queue: &mut Queue<H>, held: Held) {
    queue.channel().mask();
    poll_fn(|context| queue.poll_close(context)).await;
    log::info!("{}: the store has let go of its requests", queue.name());
    drop(held);
}
