//! The functions that libxl and pciback list in the backend's directory.

use crate::address::{FunctionName, Slot};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_xenbus::{NodeMap, XenbusState, excerpt, read_nodes};
use bulkhead_xenstore_client::{Client, Error};

/// The largest number of functions that is read.
const MOST: usize = 64;

/// A function in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: FunctionName,
    /// Its place for pciback; `None` as long as pciback does not show it.
    pub slot: Option<Slot>,
    /// libxl removes it.
    pub removed: bool,
}

/// Reads the functions that are listed; one whose name is not that of a function is left out, with an error in the log.
/// libxl renumbers the functions when one is removed, but not while it waits for this end to answer.
pub async fn list(store: &Client, path: &str) -> Result<Vec<Listed>, Error> {
    let mut nodes = NodeMap::new();
    read_nodes(&mut nodes, store, path, &["num_devs"]).await?;
    let count = nodes
        .get("num_devs")
        .and_then(|count| count.trim().parse().ok());
    let count: usize = count.unwrap_or(0);
    if count > MOST {
        log::warn!("{count} functions: only the first {MOST} are looked at");
    }
    let mut listed = Vec::new();
    for number in 0..count.min(MOST) {
        let names = ["dev", "vdev", "state"].map(|name| format!("{name}-{number}"));
        let mut nodes = NodeMap::new();
        let wanted = names.each_ref().map(String::as_str);
        read_nodes(&mut nodes, store, path, &wanted).await?;
        let [dev, vdev, state] = wanted.map(|name| nodes.get(name).map(String::as_str));
        let Some(name) = dev.and_then(FunctionName::parse) else {
            log::error!(
                "{}={:?} is not a function",
                wanted[0],
                excerpt(dev.unwrap_or_default())
            );
            continue;
        };
        listed.push(Listed {
            name,
            slot: vdev.and_then(Slot::parse),
            removed: XenbusState::parse(state) == XenbusState::Closing,
        });
    }
    Ok(listed)
}
