//! What xenstore says about a disk: the nodes that the state machine goes by.

use super::decision::Observed;
use super::state::XenbusState;
use alloc::format;
use alloc::string::String;
use bulkhead_xenstore_client::{Client, Error, Refusal};

/// Reads where both ends of a disk say they are. An error says nothing about the disk.
pub async fn observe(store: &Client, path: &str, frontend: &str) -> Result<Observed, Error> {
    let own = own_node(store, format!("{path}/state")).await?;
    let online = own_node(store, format!("{path}/online")).await?;
    let frontend = guests_node(store, format!("{frontend}/state")).await?;
    Ok(Observed {
        own: own.map(|state| XenbusState::parse(Some(&state))),
        online: online.as_deref() != Some("0"),
        frontend: frontend.map(|state| XenbusState::parse(Some(&state))),
    })
}

/// A node of the backend's directory, which only the toolstack and this domain write.
async fn own_node(store: &Client, path: String) -> Result<Option<String>, Error> {
    match store.read_optional(path).await {
        // It is there, and means nothing.
        Err(Error::NotText { .. }) => Ok(Some(String::new())),
        read => read,
    }
}

/// A node of the guest, which may remove it, close it to us or write into it what it likes.
pub async fn guests_node(store: &Client, path: String) -> Result<Option<String>, Error> {
    match store.read_optional(path).await {
        Err(Error::NotText { .. } | Error::Path { .. }) => Ok(None),
        Err(error) if error.refusal() == Some(Refusal::AccessDenied) => Ok(None),
        read => read,
    }
}
