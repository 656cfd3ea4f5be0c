//! Requests that xenstored refuses for the moment: they are made again, and nothing else changes.
//!
//! A refusal says something about a node only if the node is not there, or is closed to this domain.
//! A xenstored that is out of memory, damaged or overloaded says nothing about any disk. Only a
//! connection to xenstored that is broken for good ends what needs it.

use bulkhead_executor::{Handle, Sleep};
use bulkhead_xen::{Hypervisor, Instant};
use bulkhead_xenstore_client::{Client, Error, Fault, Refusal};
use core::time::Duration;

/// The time after a refusal until xenstored is asked again.
pub const PAUSE: Duration = Duration::from_secs(1);

/// The time without a refusal after which the next one is logged again.
const QUIET: Duration = Duration::from_secs(60);

/// Returns whether the same request may succeed later.
pub fn is_passing(error: &Error) -> bool {
    match error.fault() {
        Fault::Refused { refusal, .. } => !matches!(
            refusal,
            Refusal::NotFound
                | Refusal::AccessDenied
                | Refusal::NotPermitted
                | Refusal::ReadOnly
                | Refusal::QuotaExceeded
                | Refusal::OverQuota
        ),
        Fault::Malformed { .. } | Fault::Conflicts { .. } | Fault::Changing { .. } => true,
        _ => false,
    }
}

/// Repeats `work` after a pause, whatever xenstored refused, until it is done or there is no xenstore any
/// more. The log says `what` is waited for.
pub async fn persist<H: Hypervisor, T>(
    handle: &Handle<H>,
    what: &str,
    work: impl AsyncFn() -> Result<T, Error>,
) -> Result<T, Error> {
    let mut told = false;
    loop {
        let begun = handle.now();
        match work().await {
            Err(error) if !error.is_disconnected() => {
                refused(handle, what, &error, begun, &mut told).await;
            }
            result => return result,
        }
    }
}

/// Writes a node, after a pause again, whatever xenstored refused.
pub async fn persist_write<H: Hypervisor>(
    handle: &Handle<H>,
    store: &Client,
    node: &str,
    text: &str,
) -> Result<(), Error> {
    persist(handle, node, async || store.write(node, text).await).await
}

/// Waits until xenstored may be asked again what it has refused. Has no part in what the work is, so that it is there once.
#[inline(never)]
fn refused<H: Hypervisor>(
    handle: &Handle<H>,
    what: &str,
    error: &Error,
    begun: Instant,
    told: &mut bool,
) -> Sleep<H> {
    if !*told || handle.now().since(begun) > QUIET {
        log::error!("{what}: {error}; to be tried again");
        *told = true;
    }
    handle.sleep(PAUSE)
}
