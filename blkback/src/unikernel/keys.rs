//! The keys that the command line may have.

use crate::WATCHDOG;
use bulkhead_blkback::engine::QueueOptions;

/// The number of all keys on the command line.
const KEY_COUNT: usize = QueueOptions::KEYS.len() + 1 + NETWORK.len() + TLS.len() + RECOVERY.len();

/// All keys on the command line.
pub const KEYS: [&str; KEY_COUNT] = {
    let mut all = [WATCHDOG; KEY_COUNT];
    let lists: [&[&str]; 4] = [&QueueOptions::KEYS, NETWORK, TLS, RECOVERY];
    let (mut key, mut list) = (0, 0);
    while list < lists.len() {
        let mut at = 0;
        while at < lists[list].len() {
            all[key] = lists[list][at];
            (key, at) = (key + 1, at + 1);
        }
        list += 1;
    }
    all
};

/// The keys of restarts in place.
#[cfg(feature = "recover")]
const RECOVERY: &[&str] = &crate::recovery::KEYS;
#[cfg(not(feature = "recover"))]
const RECOVERY: &[&str] = &[];

/// The keys of the network, and of TLS.
#[cfg(feature = "nbd")]
const NETWORK: &[&str] = &crate::network::KEYS;
#[cfg(feature = "nbd")]
const TLS: &[&str] = &crate::tls::KEYS;
#[cfg(not(feature = "nbd"))]
const NETWORK: &[&str] = &[];
#[cfg(not(feature = "nbd"))]
const TLS: &[&str] = &[];
