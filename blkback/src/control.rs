//! What the toolstack asks of the domain as a whole: `control/shutdown`
//! (Xen's `docs/misc/xenstore-paths.pandoc`).

use bulkhead_xenstore_client::{Client, Error};

/// How the toolstack wants the domain to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// `xl shutdown`.
    Poweroff,
    /// `xl reboot`.
    Reboot,
    /// Stop without powering off.
    Halt,
}

impl ShutdownRequest {
    /// Reads the node's value. Other requests (suspend, S3) are not offered.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "poweroff" => Some(Self::Poweroff),
            "reboot" => Some(Self::Reboot),
            "halt" => Some(Self::Halt),
            _ => None,
        }
    }
}

const NODE: &str = "control/shutdown";

/// Says which requests are honoured, and waits for one.
pub async fn shutdown_requested(store: &Client) -> Result<ShutdownRequest, Error> {
    for feature in ["feature-poweroff", "feature-reboot"] {
        // xl makes these nodes; a toolstack that does not is not an error of ours.
        if let Err(error) = store.write(alloc::format!("control/{feature}"), "1").await {
            log::debug!("{error}");
        }
    }
    let mut watch = store.watch(NODE).await?;
    loop {
        watch.next().await?;
        let Some(value) = store.read_optional(NODE).await? else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        // The empty value tells the toolstack that the request was seen.
        store.write(NODE, "").await?;
        match ShutdownRequest::parse(&value) {
            Some(request) => return Ok(request),
            None => log::warn!("{NODE}: {value:?} is not offered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ShutdownRequest;

    #[test]
    fn only_what_is_offered_is_understood() {
        assert_eq!(
            ShutdownRequest::parse("poweroff"),
            Some(ShutdownRequest::Poweroff)
        );
        assert_eq!(
            ShutdownRequest::parse("reboot"),
            Some(ShutdownRequest::Reboot)
        );
        assert_eq!(ShutdownRequest::parse("halt"), Some(ShutdownRequest::Halt));
        assert_eq!(ShutdownRequest::parse("suspend"), None);
    }
}
