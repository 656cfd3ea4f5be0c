//! The end of a disk, from the last request until the toolstack has seen what it waits for.

use super::backend_nodes::{Act, DirectoryChange, set_state};
use super::connection::FrontendConnection;
use super::observation::Observer;
use super::problem::Problem;
use super::retry::insist;
use crate::changes::Changes;
use crate::id::VbdId;
use crate::services::Services;
use alloc::format;
use alloc::string::ToString;
use bulkhead_xen::Hypervisor;
use bulkhead_xenbus::NodeMap;
use bulkhead_xenbus::XenbusState;
use bulkhead_xenbus::retry::PAUSE;
use bulkhead_xenstore_client::{Client, Error};
use core::cell::Cell;
use core::pin::pin;
use core::time::Duration;
use futures_util::future::{Either, select};

/// The time for which a frontend is served after it has reported that it is closed. Linux's frontend reports so without
/// waiting for requests that it publishes on its other vCPUs at that moment, and then waits in `del_gendisk` without an
/// end for the responses to them.
pub const LAST_REQUESTS: Duration = Duration::from_millis(20);

/// The time that an ending driver domain waits for a frontend to let go of its disk. A guest that is late, on a busy
/// host, makes requests until it has seen that its disk goes away; a request after this time is never answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a closed device stays visible before its directory is removed: libxl waits for the
/// state, and calls it a failure if the directory is gone by the time it looks, which may be late on
/// a busy dom0. It then waits ten seconds for the removal. Nothing shows when libxl has looked.
pub const LINGER: Duration = Duration::from_millis(2500);

/// Tells a connected frontend that its disk goes away, and waits until the frontend has let go of it. The
/// frontend is served meanwhile, so that requests which it makes before it has noticed are answered too. The
/// wait lasts for [`CLOSE_TIMEOUT`] at most, also if the frontend cannot be told.
pub async fn close_frontend<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    observer: &Observer<H>,
) {
    let (path, changed) = (id.backend_path(), observer.changes());
    let let_go = pin!(async {
        let written = loop {
            match set_state(&services.store, &path, XenbusState::Closing).await {
                Ok(written) => break written,
                Err(error) => log::warn!("vbd {id}: {error}"),
            }
            services.handle.sleep(PAUSE).await;
        };
        // The event of it may come later than this task looks.
        observer.wrote(XenbusState::Closing, written);
        loop {
            let holds = match observer.observe().await {
                Ok(seen) => {
                    let holds = matches!(
                        seen.frontend,
                        Some(
                            XenbusState::Initialised
                                | XenbusState::Connected
                                | XenbusState::Closing
                        )
                    );
                    holds && seen.own == Some(XenbusState::Closing)
                }
                // No news.
                Err(_) => true,
            };
            if !holds {
                return;
            }
            select(pin!(changed.raised()), pin!(services.handle.sleep(PAUSE))).await;
        }
    });
    let over = pin!(services.handle.sleep(CLOSE_TIMEOUT));
    if let Either::Right(_) = select(let_go, over).await {
        log::warn!("vbd {id}: the frontend does not let go");
    }
}

/// Stops serving a frontend and takes back everything. Requests in flight are finished as long as the store
/// completes requests, the frontend is there and the driver domain does not end.
pub async fn close<H: Hypervisor>(
    services: &Services<H>,
    connection: &FrontendConnection<H>,
    observer: &Observer<H>,
) {
    let changed = observer.changes();
    let seen = Cell::new(false);
    let nobody_waits = pin!(async {
        loop {
            select(pin!(changed.raised()), pin!(services.closing.wait())).await;
            seen.set(true);
            if services.closing.is_set() {
                return;
            }
            let mut now = observer.observe().await;
            while now.is_err() {
                services.handle.sleep(PAUSE).await;
                now = observer.observe().await;
            }
            let gone = now.is_ok_and(|now| now.is_frontend_gone());
            // One that had not said that it closes is served for a while.
            if gone && !connection.is_unreachable() {
                return;
            }
        }
    });
    if let Either::Right((_, closed)) = select(pin!(connection.close()), nobody_waits).await {
        connection.give_up();
        closed.await;
    }
    if seen.get() {
        // The disk's task has not done anything about it yet.
        changed.end_wait();
    }
}

/// Does what is left when a disk has given back everything.
pub async fn finish<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    end: End,
    changed: &Changes,
) -> Result<(), Problem> {
    let path = id.backend_path();
    let report_closed = async || set_state(&services.store, &path, XenbusState::Closed).await;
    match end {
        End::Release => {
            insist(services, id, report_closed).await?;
            log::info!("vbd {id}: the frontend is gone, the image is free");
            taken_away(services, id, &path, changed).await?;
            remove(services, id, &path, changed).await?;
        }
        End::Remove => remove(services, id, &path, changed).await?,
        End::Refuse(problem, refused) => {
            report(services, id, &problem).await;
            let removed = insist(services, id, async || {
                remove_refused(services, &path, &refused).await
            });
            if !removed.await? {
                changed.raise();
            }
        }
        End::StartOver => changed.raise(),
        End::Abandon => log::info!("vbd {id}: removed by the toolstack"),
        End::Leave => {
            insist(services, id, report_closed).await?;
            log::info!("vbd {id}: closed, the driver domain ends");
        }
    }
    Ok(())
}

/// Waits until the toolstack is done with a closed device.
async fn taken_away<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    path: &str,
    changed: &Changes,
) -> Result<(), Error> {
    let kept = async || {
        let kept = is_closed(&services.store, path).await?;
        let online = services
            .store
            .read_optional(format!("{path}/online"))
            .await?;
        Ok(kept && online.as_deref() != Some("0"))
    };
    while insist(services, id, kept).await? && !services.closing.is_set() {
        select(pin!(changed.raised()), pin!(services.closing.wait())).await;
    }
    Ok(())
}

async fn is_closed(store: &Client, path: &str) -> Result<bool, Error> {
    let state = store.read_optional(format!("{path}/state")).await?;
    Ok(is_over(XenbusState::parse(state.as_deref())))
}

/// Returns whether a device in this state is not served any more. libxl asks for 5 even where 6 is reached already.
pub fn is_over(state: XenbusState) -> bool {
    matches!(state, XenbusState::Closed | XenbusState::Closing)
}

/// Reports `Closed` and then removes the directory, for both of which the toolstack waits, unless
/// it has made it anew meanwhile.
async fn remove<H: Hypervisor>(
    services: &Services<H>,
    id: VbdId,
    path: &str,
    changed: &Changes,
) -> Result<(), Problem> {
    insist(services, id, async || {
        set_state(&services.store, path, XenbusState::Closed).await
    })
    .await?;
    let mut linger = pin!(services.handle.sleep(LINGER));
    while let Either::Right(_) = select(&mut linger, pin!(changed.raised())).await {
        let closed = insist(services, id, async || {
            is_closed(&services.store, path).await
        });
        if !closed.await? {
            // It is gone, or the next disk's already.
            changed.raise();
            return Ok(());
        }
    }
    let removed = insist(services, id, async || {
        let removal = DirectoryChange {
            from: &is_over,
            described: None,
            act: Act::Remove,
        };
        removal.make(&services.store, path).await
    });
    if !removed.await? {
        changed.raise();
    }
    log::info!("vbd {id}: detached");
    Ok(())
}

/// Removes the directory of a disk that was refused: without it the toolstack gives up at once
/// instead of waiting. Returns false if the directory is another disk's by now.
async fn remove_refused<H: Hypervisor>(
    services: &Services<H>,
    path: &str,
    refused: &NodeMap,
) -> Result<bool, Error> {
    let removal = DirectoryChange {
        from: &|_| true,
        described: Some(refused),
        act: Act::Remove,
    };
    removal.make(&services.store, path).await
}

/// The way in which a disk ends.
pub enum End {
    /// The disk was never served. The nodes that the toolstack wrote come with the reason.
    Refuse(Problem, NodeMap),
    /// The disk's frontend is gone; the toolstack has yet to take the disk away.
    Release,
    /// This domain is to remove the disk's directory.
    Remove,
    /// The directory is another disk's by now.
    StartOver,
    /// The directory is gone.
    Abandon,
    /// The driver domain ends; the toolstack cleans up behind it.
    Leave,
}

/// Tells the operator, in the log and in the error node that belongs to the disk.
pub async fn report<H: Hypervisor>(services: &Services<H>, id: VbdId, problem: &Problem) {
    log::error!("vbd {id}: {problem}");
    write_error(services, id, problem).await;
}

/// Tells the operator in the error node that belongs to the disk.
pub async fn write_error<H: Hypervisor>(services: &Services<H>, id: VbdId, problem: &Problem) {
    let (device, frontend, text) = (id.into(), id.frontend_path(), problem.to_string());
    services.write_error(&device, &frontend, &text).await;
}
