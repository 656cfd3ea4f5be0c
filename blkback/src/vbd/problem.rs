//! Everything that can keep a disk from being served, as the operator reads it.

use super::config::ConfigError;
use super::frontend_nodes::PublishedError;
use super::sector_units::SectorUnits;
use crate::admission::Refused;
use crate::engine::{QueueError, QueueSetupError};
use bulkhead_images::OpenError;
use bulkhead_xenstore_client as xenstore;
use core::fmt;

/// The reason why a disk is not served, or not any more.
#[derive(Debug)]
pub enum Problem {
    /// The toolstack's nodes are not valid.
    Config(ConfigError),
    /// The device that `target=` names cannot be opened.
    Open(OpenError),
    /// The frontend's nodes are not valid.
    Published(PublishedError),
    /// The frontend may count sectors in other units than the backend.
    SectorUnits(SectorUnits),
    /// There is no room for the disk.
    Refused(Refused),
    /// The rings that the frontend published cannot be connected to.
    Connect(QueueSetupError),
    /// The frontend broke the ring.
    Queue(QueueError),
    /// xenstored refused a request.
    Store(xenstore::Error),
    /// The disk is not the one that the boot before has served until it crashed.
    #[cfg(feature = "recover")]
    NotAsLeft,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Open(error) => error.fmt(f),
            Self::Published(error) => error.fmt(f),
            Self::SectorUnits(error) => error.fmt(f),
            Self::Refused(error) => error.fmt(f),
            Self::Connect(error) => error.fmt(f),
            Self::Queue(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            #[cfg(feature = "recover")]
            Self::NotAsLeft => f.write_str("it is not the disk that was served before the crash"),
        }
    }
}

macro_rules! from {
    ($($variant:ident($error:ty))*) => {
        $(impl From<$error> for Problem {
            fn from(error: $error) -> Self {
                Problem::$variant(error)
            }
        })*
    };
}

from! {
    Config(ConfigError)
    Open(OpenError)
    Published(PublishedError)
    SectorUnits(SectorUnits)
    Refused(Refused)
    Connect(QueueSetupError)
    Queue(QueueError)
    Store(xenstore::Error)
}
