//! Requests that xenstored refuses for the moment: they are made again, and nothing else changes.
//!
//! A refusal says something about a node only if the node is not there, or is closed to this domain.
//! A xenstored that is out of memory, damaged or overloaded says nothing about any disk. Only a
//! connection to xenstored that is broken for good is the end of whatever needs it.

use bulkhead_executor::Handle;
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::{Error, Fault, Refusal};
use core::time::Duration;

/// How long after a refusal xenstored is asked again.
pub const PAUSE: Duration = Duration::from_secs(1);

/// What went well for so long has a new refusal logged.
const QUIET: Duration = Duration::from_secs(60);

/// Whether the same request may succeed later.
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

/// Begins `work` anew after a pause, whatever xenstored refused, until it is done or there is no
/// xenstore any more. The log tells what is waited for.
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
                if !told || handle.now().since(begun) > QUIET {
                    log::error!("{what}: {error}; to be tried again");
                    told = true;
                }
                handle.sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}
