//! Requests of the toolstack to the domain as a whole: `control/shutdown` and `control/sysrq`
//! (Xen's `docs/misc/xenstore-paths.pandoc`).

use bulkhead_xenbus::{CommandNode, excerpt};
use bulkhead_xenstore_client::{Client, Error};

/// The way in which the toolstack wants the domain to end.
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

/// The node that libxl reads before it saves or migrates a domain: the port on which a domain that can be
/// suspended waits for the request.
const SUSPEND_PORT: &str = "device/suspend/event-channel";

/// Port 0, which libxl cannot bind. libxl gives a save up at once if it cannot bind the port; without
/// one it would write its request, see it acknowledged, and wait a minute for a suspend.
const NO_PORT: &str = "0";

/// The log line for a request to suspend.
const NOT_SUSPENDED: &str = "the domain cannot be saved, migrated or suspended: its guests' disks are \
    connected to this memory; it goes on serving";

/// Announces which requests are honoured and which are not.
async fn announce(store: &Client) {
    for (node, value) in [
        ("control/feature-poweroff", "1"),
        ("control/feature-reboot", "1"),
        ("control/feature-suspend", "0"),
        (SUSPEND_PORT, NO_PORT),
    ] {
        // xl makes these nodes; a toolstack that does not is not an error of ours.
        if let Err(error) = store.write(node, value).await {
            log::debug!("{error}");
        }
    }
}

/// Announces which requests are honoured, and waits for one.
pub async fn shutdown_requested(store: &Client) -> Result<ShutdownRequest, Error> {
    announce(store).await;
    let mut requests = CommandNode::watch(store, NODE).await?;
    loop {
        let value = requests.next().await?;
        match ShutdownRequest::parse(&value) {
            Some(request) => return Ok(request),
            None if value == "suspend" => log::warn!("{NODE}: {NOT_SUSPENDED}"),
            None => log::warn!("{NODE}: {:?} is not offered", excerpt(&value)),
        }
    }
}

/// The node into which `xl sysrq` writes a key.
const SYSRQ: &str = "control/sysrq";

/// The key that has a domain crash, as in Linux.
const CRASH: &str = "c";

/// Waits until the toolstack asks the domain to crash (`xl sysrq DOMAIN c`). It does so to see the domain's end or to
/// have a core dump of it. No other key is offered.
pub async fn crash_requested(store: &Client) -> Result<(), Error> {
    let mut keys = CommandNode::watch(store, SYSRQ).await?;
    loop {
        let key = keys.next().await?;
        if key == CRASH {
            return Ok(());
        }
        let key = excerpt(&key);
        log::warn!("{SYSRQ}: {key:?} is not offered, only {CRASH} is: crash");
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
