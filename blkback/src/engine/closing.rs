//! The end of a queue: its requests are finished, as long as the store completes them, and the store lets go of the
//! frontend's pages. That takes a bounded time, whatever the store does.

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

/// The longest time that a store with requests may go without a completion while the queue stops. The sum of this and
/// the next two is less than the ten seconds for which libxl waits for a disk to close.
const STORE_ANSWERS: Duration = Duration::from_secs(6);
/// The time in which it has to complete requests that were given up.
const STORE_GIVES_UP: Duration = Duration::from_secs(1);
/// The time in which it has to let go of all pages.
const STORE_CLOSES: Duration = Duration::from_secs(1);

/// The time for which a frontend that cannot be told of the end of its disk is served after its last request: its guest
/// may take that long to notice by itself. `xl destroy` waits for it, as the guest is paused by then.
const UNREACHABLE_SILENT: Duration = Duration::from_millis(300);
/// The longest time for which it is served. With the time that a store may take after that, it is less than libxl's ten
/// seconds.
const UNREACHABLE: Duration = Duration::from_secs(4);
/// The time between two looks at its event channel.
const UNREACHABLE_LOOK: Duration = Duration::from_millis(5);

/// Registers that the store does not let go of a queue.
pub(super) fn hold<H: Hypervisor>(queue: &Queue<H>, unreleased: &Unreleased) -> Held {
    log::error!(
        "{}: the store does not let go of {} request(s): pages of the frontend that are mapped stay \
         mapped until it does",
        queue.name(),
        queue.in_flight()
    );
    unreleased.hold()
}

/// The reason why a store was left with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreSilent;

/// Continues to serve a frontend that cannot be told of the end of its disk, as its directory is gone (`xl
/// block-detach --force`), until it closes its event channel, is silent, or the time is over. Linux's frontend waits
/// in `del_gendisk` for the responses to all of its requests, including those that it sends until then: one without a
/// response would keep the guest's xenbus from ever working again. No frontend waits for requests that are left after
/// this.
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

/// Finishes the requests that are on the ring at this moment, and publishes their responses, whether the frontend
/// listens or not. Later requests are not looked at. The other queues of the vCPU have their turns between sweeps. If
/// the store does not complete requests, the rest is left undone.
pub(super) async fn finish_what_was_asked<H: Hypervisor>(
    handle: &Handle<H>,
    queue: &mut Queue<H>,
    guard: &QueueGuard,
) -> Result<(), QueueError> {
    queue.close()?;
    loop {
        // Requests may wait for others that are in flight.
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

/// Waits for the store. It is asked to give up its requests once no frontend waits for them, or if it takes too long.
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

/// Closes the store; requests that are still in flight get error responses then. Returns false if it does not let go of
/// the pages in time.
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

/// Waits for a store that has not let go of its pages in time. Meanwhile the frontend cannot notify the queue, and its
/// pages stay mapped.
pub(super) async fn outwait<H: Hypervisor>(queue: &mut Queue<H>, held: Held) {
    queue.channel().mask();
    poll_fn(|context| queue.poll_close(context)).await;
    log::info!("{}: the store has let go of its requests", queue.name());
    drop(held);
}
