//! The parameters of a queue, and the errors of connecting to it and serving it.

use super::journal::Journal;
use super::options::QueueOptions;
use super::turns::Turn;
use super::unreleased::Unreleased;
use crate::guest_log::GuestLog;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead_grant::{NoRoom, OutOfMemory};
use bulkhead_images::{BlockDevice, OpenQueueError};
use bulkhead_ring::blkif::Abi;
use bulkhead_ring::{AttachError, BadPages, Overrun};
use bulkhead_xen::{DomId, Errno, GrantRef, GrantStatus, Port};
use core::fmt;

/// The parameters with which a queue is served.
pub struct QueueSetup {
    /// The name of the disk and the queue, for the log.
    pub name: String,
    /// The guest's log, which gets the lines about the frontend's mistakes.
    pub log: Arc<GuestLog>,
    /// The domain that grants the pages.
    pub frontend: DomId,
    /// The layout of the frontend's messages.
    pub abi: Abi,
    /// The ring's pages.
    pub ring: Vec<GrantRef>,
    /// The frontend's event channel.
    pub event_channel: Port,
    /// True if the frontend keeps its data pages granted, as it was offered.
    pub persistent: bool,
    /// The most segments of an indirect request that the frontend was offered.
    pub indirect_segments: usize,
    /// True if the frontend was offered to discard.
    pub discard: bool,
    /// The device's sectors, in bytes.
    pub sector_size: usize,
    /// The device. A queue of it is opened on the vCPU that serves this ring.
    pub device: Arc<dyn BlockDevice>,
    /// The number of queues of the disk's connection.
    pub queues: usize,
    /// The count of queues of this disk whose pages the store has not let go of since the disk was attached.
    pub unreleased: Unreleased,
    /// The journal of the queue's requests, for the time after a crash.
    pub journal: Journal,
    /// The options.
    pub options: QueueOptions,
    /// The queue's part of the vCPU's turns.
    pub turn: Turn,
}

/// The reason why a queue cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueSetupError {
    /// A page of the ring cannot be mapped.
    Ring(GrantRef, GrantStatus),
    /// The number of ring pages is not one that a ring can have.
    Pages(BadPages),
    /// The pages hold no ring, or one with impossible indexes.
    Attach(AttachError),
    /// The event channel cannot be bound.
    EventChannel(Port, Errno),
    /// This domain has no memory or address space left for it.
    NoRoom(NoRoom),
    /// The store does not open a queue, for this reason.
    Store(String),
    /// The store did not open a queue in time.
    StoreSilent,
    /// The store has not let go of the pages of an earlier connection.
    StoreHolds,
    /// The queue's task is gone.
    Abandoned,
}

impl fmt::Display for QueueSetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(gref, status) => {
                write!(f, "the ring's grant {gref} cannot be mapped: {status}")
            }
            Self::Pages(error) => write!(f, "the ring cannot be used: {error}"),
            Self::Attach(error) => write!(f, "the ring cannot be used: {error}"),
            Self::EventChannel(port, error) => {
                write!(
                    f,
                    "the frontend's event channel {port} cannot be bound: {error}"
                )
            }
            Self::NoRoom(error) => error.fmt(f),
            Self::Store(reason) => write!(f, "the store cannot be used: {reason}"),
            Self::StoreSilent => f.write_str("the store cannot be used: it does not answer"),
            Self::StoreHolds => f.write_str(
                "the store cannot be used: it still holds requests of an earlier connection",
            ),
            Self::Abandoned => f.write_str("the queue was given up before it connected"),
        }
    }
}

impl core::error::Error for QueueSetupError {}

impl From<NoRoom> for QueueSetupError {
    fn from(error: NoRoom) -> Self {
        QueueSetupError::NoRoom(error)
    }
}

impl From<OutOfMemory> for QueueSetupError {
    fn from(error: OutOfMemory) -> Self {
        QueueSetupError::NoRoom(error.into())
    }
}

impl From<OpenQueueError> for QueueSetupError {
    fn from(error: OpenQueueError) -> Self {
        match error {
            OpenQueueError::NoMemory { bytes } => OutOfMemory { bytes }.into(),
            OpenQueueError::Failed(reason) => QueueSetupError::Store(reason),
        }
    }
}

/// The reason why a queue ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The frontend's producer index is impossible.
    Overrun(Overrun),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overrun(overrun) => overrun.fmt(f),
        }
    }
}

impl core::error::Error for QueueError {}

impl From<Overrun> for QueueError {
    fn from(overrun: Overrun) -> Self {
        QueueError::Overrun(overrun)
    }
}
