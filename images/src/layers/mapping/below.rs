//! The queues of the devices below a mapped device.

use crate::io::{Io, Submitted, Tag};
use crate::queue::{Caps, DataAccess, IoQueue, OpenQueueError};
use alloc::boxed::Box;
use alloc::string::ToString;

/// The queue of a device below.
pub(super) struct Below {
    pub queue: Box<dyn IoQueue>,
    pub depth: usize,
    pub pending: usize,
    pub unflushed: bool,
    pub in_place: bool,
    /// True if it can make data durable.
    pub flushes: bool,
    pub closed: bool,
}

impl Below {
    #[inline]
    pub fn submit(&mut self, tag: Tag, io: Io<'_>) -> Submitted {
        if self.pending >= self.depth {
            return Submitted::Busy;
        }
        self.unflushed = true;
        let submitted = self.queue.submit(tag, io);
        if submitted == Submitted::Pending {
            self.pending += 1;
        }
        submitted
    }

    pub fn flush_submissions(&mut self) {
        if core::mem::take(&mut self.unflushed) {
            self.queue.flush_submissions();
        }
    }
}

/// Returns the capabilities that all of the queues below have in common.
pub(super) fn common(queues: &[Box<dyn IoQueue>]) -> Result<Caps, OpenQueueError> {
    let all = queues.iter().map(|queue| Ok(queue.caps()));
    let common = all.reduce(|one, other| {
        let (one, other): (Caps, Caps) = (one?, other?);
        Ok(Caps {
            depth: one.depth.min(other.depth),
            segments: one.segments.min(other.segments),
            bytes: one.bytes.min(other.bytes),
            alignment: one.alignment.max(other.alignment),
            access: match (one.access, other.access) {
                (one, other) if one == other => one,
                (DataAccess::Direct, DataAccess::Mapped)
                | (DataAccess::Mapped, DataAccess::Direct) => DataAccess::Mapped,
                _ => {
                    let reason = "its disks are of kinds that one volume cannot have together";
                    return Err(OpenQueueError::Failed(reason.to_string()));
                }
            },
            fua: one.fua && other.fua,
            timeout: one
                .timeout
                .zip(other.timeout)
                .map(|(one, other)| one.max(other)),
            at_once: one.at_once && other.at_once,
        })
    });
    common.unwrap_or(Ok(Caps::UNLIMITED))
}
