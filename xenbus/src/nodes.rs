//! Reads the nodes of a directory, which may be a hostile guest's.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_xenstore_client::{Client, Error, Fault, Nodes, Refusal};
use litemap::LiteMap;

/// The nodes of a directory that were asked for and are there: values by name, relative to the directory.
pub type NodeMap = LiteMap<String, String>;

/// Nodes that are read at once, which bounds the memory and the number of requests to xenstored.
const AT_ONCE: usize = 16;

/// Reads the named nodes below `path`, as far as they are there, several in flight at once.
pub async fn read_nodes(
    nodes: &mut NodeMap,
    store: &Nodes,
    path: &str,
    names: &[&str],
) -> Result<(), Error> {
    read(nodes, store, path, names, Part::Whole).await
}

/// Reads nodes of a peer in the same way. It may make them as long as it likes: the first 64 bytes of each are kept,
/// and no node that is read so has more if it means anything.
pub async fn peer_nodes(
    nodes: &mut NodeMap,
    store: &Nodes,
    path: &str,
    names: &[&str],
) -> Result<(), Error> {
    read(nodes, store, path, names, Part::Start).await
}

/// The part of each value that is kept.
enum Part {
    Whole,
    Start,
}

async fn read(
    nodes: &mut NodeMap,
    store: &Nodes,
    path: &str,
    names: &[&str],
    part: Part,
) -> Result<(), Error> {
    for some in names.chunks(AT_ONCE) {
        let paths: Vec<String> = some.iter().map(|name| format!("{path}/{name}")).collect();
        let values = match part {
            Part::Whole => store.read_each(&paths).await?,
            Part::Start => store.read_each_start(&paths).await?,
        };
        for (name, value) in some.iter().zip(values) {
            if let Some(value) = value {
                nodes.insert(String::from(*name), value);
            }
        }
    }
    Ok(())
}

/// Reads a node of this end's directory, which only the toolstack and this domain write.
pub async fn own_node(store: &Client, path: String) -> Result<Option<String>, Error> {
    match store.read_optional(path).await {
        // The node is there, and its value has no meaning.
        Err(error) if matches!(error.fault(), Fault::NotText { .. }) => Ok(Some(String::new())),
        read => read,
    }
}

/// Reads a node of the peer, which may remove it, deny this domain access, or write anything into it. The first 64
/// bytes are kept.
pub async fn peer_node(store: &Client, path: String) -> Result<Option<String>, Error> {
    match store.read_start(path).await {
        Err(error) if matches!(error.fault(), Fault::NotText { .. } | Fault::Path { .. }) => {
            Ok(None)
        }
        Err(error) if error.refusal() == Some(Refusal::AccessDenied) => Ok(None),
        read => read,
    }
}

/// Returns the start of a guest's text that takes at most 40 characters in a log line, where those that
/// cannot be printed take several.
pub fn excerpt(text: &str) -> String {
    let mut room = 40_usize;
    let fits = |character: &char| {
        let left = room.checked_sub(character.escape_debug().len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    text.chars().take_while(fits).collect()
}
