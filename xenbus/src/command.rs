//! A node into which an operator or the toolstack writes a request, and which this domain empties when it
//! has read the request.

use alloc::string::String;
use bulkhead_xenstore_client::{Client, Error, Watch};

/// The requests that come by one node, as `control/shutdown` does it.
pub struct CommandNode<'a> {
    store: &'a Client,
    node: &'a str,
    watch: Watch,
}

impl<'a> CommandNode<'a> {
    /// Watches the node, which need not be there.
    pub async fn watch(store: &'a Client, node: &'a str) -> Result<Self, Error> {
        let watch = store.watch(node).await?;
        Ok(CommandNode { store, node, watch })
    }

    /// Waits for the next request, and empties the node: this tells the writer that the request was seen.
    pub async fn next(&mut self) -> Result<String, Error> {
        loop {
            self.watch.next().await?;
            let request = self.store.read_optional(self.node).await?;
            if let Some(request) = request.filter(|request| !request.is_empty()) {
                self.store.write(self.node, "").await?;
                return Ok(request);
            }
        }
    }
}
