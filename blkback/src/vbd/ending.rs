//! The end of a disk: what is left to do when it has given back everything, until the toolstack
//! has what it waits for.

use super::config::CONFIG_NODES;
use super::connection::read_into;
use super::identity::VbdId;
use super::problem::Problem;
use super::published::Nodes;
use super::state::XenbusState;
use crate::backend::Backend;
use alloc::format;
use alloc::string::ToString;
use bulkhead_executor::Signal;
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::{self as store, Error, Transaction};
use core::pin::pin;
use core::time::Duration;
use futures_util::future::select;

/// How long a closed device stays visible before its directory is removed: libxl waits for the
/// state, and calls it a failure if the directory is gone by the time it looks. It then waits
/// ten seconds for the removal.
const LINGER: Duration = Duration::from_millis(500);

/// What is left to do when a disk has given back everything.
pub async fn finish<H: Hypervisor>(
    backend: &Backend<H>,
    id: VbdId,
    end: End,
    changed: &Signal,
) -> Result<(), Problem> {
    let path = id.backend_path();
    match end {
        End::Release => {
            set_state(backend, &path, XenbusState::Closed).await?;
            log::info!("vbd {id}: the frontend is gone, the image is free");
            taken_away(backend, &path, changed).await?;
            remove(backend, id, &path).await?;
        }
        End::Remove => remove(backend, id, &path).await?,
        End::Refuse(problem, refused) => {
            report(backend, id, &problem).await;
            if !remove_refused(backend, &path, &refused).await? {
                changed.raise();
            }
        }
        End::StartOver => changed.raise(),
        End::Abandon => log::info!("vbd {id}: removed by the toolstack"),
        End::Leave => {
            set_state(backend, &path, XenbusState::Closed).await?;
            log::info!("vbd {id}: closed, the driver domain ends");
        }
    }
    Ok(())
}

/// Waits until the toolstack is done with a closed device.
async fn taken_away<H: Hypervisor>(
    backend: &Backend<H>,
    path: &str,
    changed: &Signal,
) -> Result<(), Error> {
    while is_closed(&backend.store, path).await?
        && backend
            .store
            .read_optional(format!("{path}/online"))
            .await?
            .as_deref()
            != Some("0")
        && !backend.closing.is_set()
    {
        select(pin!(changed.raised()), pin!(backend.closing.wait())).await;
    }
    Ok(())
}

async fn is_closed(nodes: &store::Nodes, path: &str) -> Result<bool, Error> {
    let state = nodes.read_optional(format!("{path}/state")).await?;
    let state = XenbusState::parse(state.as_deref());
    // libxl asks for 5 even where 6 is reached already.
    Ok(matches!(state, XenbusState::Closed | XenbusState::Closing))
}

/// Reports `Closed` and then removes the directory, for both of which the toolstack waits, unless
/// it has made it anew meanwhile.
async fn remove<H: Hypervisor>(backend: &Backend<H>, id: VbdId, path: &str) -> Result<(), Problem> {
    set_state(backend, path, XenbusState::Closed).await?;
    backend.handle.sleep(LINGER).await;
    backend
        .store
        .transaction(async |tx: &Transaction| {
            if is_closed(tx, path).await? {
                tx.remove(path).await?;
            }
            Ok(())
        })
        .await?;
    log::info!("vbd {id}: detached");
    Ok(())
}

/// Removes the directory of a disk that was refused: without it the toolstack gives up at once
/// instead of waiting. Answers false if the directory is another disk's by now.
async fn remove_refused<H: Hypervisor>(
    backend: &Backend<H>,
    path: &str,
    refused: &Nodes,
) -> Result<bool, Error> {
    backend
        .store
        .transaction(async |tx: &Transaction| {
            let ours = describes(tx, path, refused).await?;
            if ours {
                tx.remove(path).await?;
            }
            Ok(ours)
        })
        .await
}

/// Whether the directory still describes the disk that it described when `nodes` were read.
pub async fn describes(tx: &Transaction, path: &str, nodes: &Nodes) -> Result<bool, Error> {
    let mut now = Nodes::new();
    read_into(&mut now, tx, path, CONFIG_NODES).await?;
    Ok(now == *nodes)
}

/// Says where we are, unless the toolstack has removed the directory, which writing would make
/// again, or has made it anew, which is the next disk's to answer.
pub async fn set_state<H: Hypervisor>(
    backend: &Backend<H>,
    path: &str,
    state: XenbusState,
) -> Result<(), Error> {
    let path = format!("{path}/state");
    backend
        .store
        .transaction(async |tx: &Transaction| {
            let own = tx.read_optional(&path).await?;
            if own.is_some() && XenbusState::parse(own.as_deref()) != XenbusState::Initialising {
                tx.write(&path, state.to_string()).await?;
            }
            Ok(())
        })
        .await
}

/// How a disk ends.
pub enum End {
    /// It was never served. What the toolstack wrote about it comes with the reason.
    Refuse(Problem, Nodes),
    /// Its frontend is gone; the toolstack has yet to take it away.
    Release,
    /// Its directory is ours to remove.
    Remove,
    /// Its directory is another disk's by now.
    StartOver,
    /// Its directory is gone.
    Abandon,
    /// The driver domain ends; the toolstack cleans up behind it.
    Leave,
}

/// Tells the operator, in the log and in the error node that belongs to the disk.
pub async fn report<H: Hypervisor>(backend: &Backend<H>, id: VbdId, problem: &Problem) {
    log::error!("vbd {id}: {problem}");
    let text = format!("{problem}");
    if let Err(error) = backend.errors.write(&backend.store, id, &text).await {
        log::warn!("vbd {id}: the error node could not be written: {error}");
    }
}
