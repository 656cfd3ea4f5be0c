//! The requests of one disk that xenstored refuses.

use super::problem::Problem;
use crate::id::VbdId;
use crate::services::Services;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::retry::{PAUSE, is_passing};
use bulkhead_xenstore_client::Error;
use core::pin::pin;
use futures_util::future::select;

/// The failure of a step.
pub enum Failure {
    /// xenstored refused for the moment: nothing has changed.
    Passing(Error),
    /// There is no xenstore any more.
    Disconnected(Error),
    /// The device cannot be served.
    Fatal(Problem),
}

impl Failure {
    /// Returns the failure of a request that has to succeed in the end, whatever xenstored says now.
    pub fn of_what_must_be(error: Error) -> Self {
        match error {
            error if error.is_disconnected() => Failure::Disconnected(error),
            error => Failure::Passing(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            error if error.is_disconnected() => Failure::Disconnected(error),
            error if is_passing(&error) => Failure::Passing(error),
            error => Failure::Fatal(error.into()),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Store(error) => error.into(),
            problem => Failure::Fatal(problem),
        }
    }
}

/// Makes a request until xenstored has an answer to it, or until the driver domain ends.
pub async fn insist<H: Hypervisor, T>(
    services: &Services<H>,
    id: VbdId,
    request: impl AsyncFn() -> Result<T, Error>,
) -> Result<T, Error> {
    let mut told = false;
    loop {
        match request().await {
            Err(error) if is_passing(&error) && !services.closing.is_set() => {
                if !told {
                    log::warn!("vbd {id}: {error}; to be tried again");
                    told = true;
                }
                let pause = pin!(services.handle.sleep(PAUSE));
                select(pause, pin!(services.closing.wait())).await;
            }
            result => return result,
        }
    }
}
