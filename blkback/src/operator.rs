//! What an operator may ask of the running domain, through nodes of its own that only the
//! toolstack and the domain may write:
//!
//! ```text
//!   xenstore-write /local/domain/<storage>/data/grow "NAME 128M"
//!   xenstore-read  /local/domain/<storage>/data/grow-answer
//! ```

use crate::backend::Backend;
use alloc::format;
use alloc::string::String;
use bulkhead_images::GrowRequest;
use bulkhead_xen::Hypervisor;
use bulkhead_xenstore_client::Error;
use core::convert::Infallible;

const GROW: &str = "data/grow";
const GROW_ANSWER: &str = "data/grow-answer";

/// Grows images when asked to. Only returns if xenstore cannot be used any more.
pub async fn grow_on_request<H: Hypervisor>(backend: &Backend<H>) -> Result<Infallible, Error> {
    let store = &backend.store;
    let mut watch = store.watch(GROW).await?;
    loop {
        watch.next().await?;
        let Some(request) = store.read_optional(GROW).await? else {
            continue;
        };
        if request.is_empty() {
            continue;
        }
        // The empty value says that the request was seen, as with control/shutdown.
        store.write(GROW, "").await?;
        let answer = match grow(backend, &request) {
            Ok(done) => {
                log::info!("{done}");
                done
            }
            Err(refused) => {
                log::error!("{GROW}: {refused}");
                refused
            }
        };
        store.write(GROW_ANSWER, answer).await?;
    }
}

fn grow<H: Hypervisor>(backend: &Backend<H>, request: &str) -> Result<String, String> {
    let request: GrowRequest = request.parse().map_err(|error| format!("{error}"))?;
    let GrowRequest { name, size } = &request;
    let old = backend
        .catalog
        .grow(name, *size)
        .map_err(|error| format!("{error}"))?;
    Ok(format!("image ram:{name} grew from {old} to {size} bytes"))
}
