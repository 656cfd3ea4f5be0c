//! Devices that were given up: everything on them fails, and they are tried again, unless nothing can come of that.

use crate::{DriverTask, PassedThrough, StartFailure};
use alloc::string::String;
use bulkhead_executor::Handle;
use bulkhead_xen::Hypervisor;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use futures_util::future::OptionFuture;
use log::Level;

/// The pause before a device that was given up is started again. The log names it ([`Refusal::retry_note`]).
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// The reason why a device is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for the log and for guests' disks that name the device.
    pub reason: String,
    /// The device would fail again for the same reason, so it is not started again.
    pub stays: bool,
}

impl Refusal {
    /// Returns a reason that may pass.
    pub(crate) fn for_now(reason: String) -> Refusal {
        let stays = false;
        Refusal { reason, stays }
    }

    /// Returns what the log adds to the reason.
    pub fn retry_note(&self) -> &'static str {
        match self.stays {
            true => "",
            false => "; it is tried again every minute",
        }
    }
}

/// Waits until a device that was given up is to be stopped for good, or, unless its refusal [`stays`](Refusal::stays),
/// until it is to be started again. Returns true in the first case.
pub async fn leaves_before_trial<H: Hypervisor>(
    handle: &Handle<H>,
    device: &PassedThrough,
    stays: bool,
) -> bool {
    let pause = (!stays).then(|| handle.sleep(TRIED_AGAIN));
    let mut over = pin!(OptionFuture::from(pause));
    poll_fn(|context| {
        device.watch().wake_with(context.waker());
        if device.is_leaving() {
            return Poll::Ready(true);
        }
        match over.as_mut().poll(context) {
            Poll::Ready(Some(())) => Poll::Ready(false),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Gives a device up: all requests to it fail from now on. It is started again every minute, if that may help. Returns
/// true once it works again, and false when it is to be stopped for good.
pub(crate) async fn give_up<T: DriverTask + ?Sized>(task: &mut T, refusal: Refusal) -> bool {
    let (again, Refusal { reason, mut stays }) = (refusal.retry_note(), refusal);
    task.log(
        Level::Error,
        format_args!("it is given up: {reason}{again}"),
    );
    task.device().fail(reason);
    task.fail_requests();
    loop {
        if leaves_before_trial(task.handle(), task.device(), stays).await {
            return false;
        }
        if task.is_gone() {
            continue;
        }
        // Requests whose memory it could still access have not failed yet; they do once it has stopped.
        let stopped = task.halt().await;
        task.fail_requests();
        if !stopped {
            continue;
        }
        match task.try_start().await {
            Ok(()) => {
                task.log(Level::Warn, format_args!("it works again"));
                task.device().recover();
                task.device().set_ready(true);
                return true;
            }
            Err(error) => {
                task.log(Level::Debug, format_args!("it does not start: {error}"));
                stays = error.stays();
                task.halt().await;
                task.fail_requests();
            }
        }
    }
}
