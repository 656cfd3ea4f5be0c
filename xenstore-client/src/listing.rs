//! Listings that are longer than one message: asked for in parts.

use crate::error::{Error, Excerpt, Fault};
use crate::nodes::Nodes;
use crate::wire::{DirectoryPart, MessageType, Refusal, Request};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The number of times that a listing is begun before its changes are an error.
const ATTEMPTS: u32 = 100;

/// Lists the names of all children, as of one moment: if the node changes between two parts, the
/// listing begins again. Returns `too_big` if the server does not know parts.
pub(crate) async fn in_parts(
    nodes: &Nodes,
    path: &str,
    too_big: Error,
) -> Result<Vec<String>, Error> {
    for _ in 0..ATTEMPTS {
        match attempt(nodes, path).await {
            Ok(Some(names)) => return Ok(names),
            Ok(None) => {}
            Err(error) if error.refusal() == Some(Refusal::NotImplemented) => return Err(too_big),
            Err(error) => return Err(error),
        }
    }
    Err(Fault::Changing {
        path: path.into(),
        attempts: ATTEMPTS,
    }
    .into())
}

async fn attempt(nodes: &Nodes, path: &str) -> Result<Option<Vec<String>>, Error> {
    let mut names = Vec::new();
    let mut offset = 0;
    let mut generation: Option<String> = None;
    loop {
        let payload = nodes.ask(Request::DirectoryPart(path, offset))?.await?;
        let part = DirectoryPart::parse(&payload).ok_or_else(|| Fault::Malformed {
            request: MessageType::DIRECTORY_PART,
            subject: path.into(),
            answer: Excerpt::of(&payload),
        })?;
        match &generation {
            Some(first) if first != part.generation => return Ok(None),
            Some(_) => {}
            None => generation = Some(part.generation.to_string()),
        }
        names.extend(part.names.iter().map(|name| name.to_string()));
        if part.last {
            return Ok(Some(names));
        }
        offset += part.length;
    }
}
